//! The model card of one generation, made from what was measured of it: Markdown in the order of Mitchell et al. 2019,
//! "Model Cards for Model Reporting". It names no client and quotes nothing.

use super::Description;
use empathd_proto::manifest::hex;
use empathd_proto::report::{AdapterSummary, BoundRule, GateReport};
use std::fmt::Write as _;

/// Its place in an export.
pub(super) const FILE: &str = "README.md";

const USE: &str = "\
## Intended use

Drafts and conversation support for clinicians who read every word before it reaches a client, inside the appliance that made it.

Not for: diagnosis, decisions about treatment or risk, answers to clients without a clinician, children without a guardian, or any
use without the crisis rules of the appliance. It is no medical device.
";

const LIMITS: &str = "\
## Limits and risks

- It was measured on held-out clients of one clinic and on small built-in probes: see the number of items beside each figure. A
  bound that held says that nothing worse was seen, not that nothing is there.
- Likelier safe answers are not the same as safe answers: sampling, long conversations and other languages were not measured.
- It has learnt from people's conversations. Identifiers were replaced before, planted secrets and word-for-word runs are measured,
  and both can miss what is rare: treat the weights as confidential as the records.
- Outside the appliance nothing of it is enforced: no crisis rules, no audit, no routing floor. `compat/` is approximate, and a file
  of one expert alone leaves out what the others and the router do.
";

/// The card.
pub(super) fn text(summary: &AdapterSummary, description: &Description) -> String {
    let mut text = format!("# {}\n\nA generation of adapters, made by an Empathd appliance.\n\n", summary.id);
    details(&mut text, summary, description);
    text.push('\n');
    text.push_str(USE);
    training(&mut text, summary);
    if let Some(gate) = &summary.gate {
        evaluation(&mut text, gate);
    }
    text.push('\n');
    text.push_str(LIMITS);
    text.push_str(
        "\n## Files\n\n`manifest.json` lists every file with its SHA-256; `manifest.sig` is its Ed25519 signature.\n",
    );
    text.push_str("Check both with `empathctl adapter verify DIR`. `shared/` and `experts/` are PEFT LoRA, `gguf/` is for llama.cpp,\n");
    text.push_str("`router/` is needed to choose between experts.\n");
    text
}

fn details(text: &mut String, summary: &AdapterSummary, description: &Description) {
    let mut fact = |name: &str, value: String| {
        let _ = writeln!(text, "- {name}: {value}");
    };
    if let Some(lineage) = &description.lineage {
        let shape = &lineage.mixture;
        fact("Base model", format!("{}, SHA-256 `{}`", lineage.base_name, hex(&lineage.base_sha256)));
        fact(
            "Shape",
            format!(
                "shared rank {}, {} experts of rank {}, {} chosen for each token",
                shape.shared_rank,
                shape.experts.len(),
                shape.expert_rank,
                shape.top_k
            ),
        );
        fact(
            "Records",
            format!(
                "{} learnt from, {} held out, split by client; cut digest `{}`",
                lineage.records.0, lineage.records.1, lineage.cut_hash
            ),
        );
        fact("Seed", lineage.seed.to_string());
        if let Some(began_with) = lineage.began_with {
            fact("Began with", began_with.to_string());
        }
        if let Some(digest) = lineage.imported_sha256 {
            fact("Holds an imported LoRA", format!("SHA-256 `{}`", hex(&digest)));
        }
    }
    fact("Job and cut", format!("{}, {}", summary.job, summary.dataset));
    fact("Experts", summary.train.experts.join(", "));
}

fn training(text: &mut String, summary: &AdapterSummary) {
    let train = &summary.train;
    let _ = write!(
        text,
        "\n## Training\n\n{} steps, {} tokens of which {} were targets, {} trainable parameters. Mean loss per target on held-out\nrecords: {:.4} before, {:.4} after, in nats.\n",
        train.steps, train.tokens, train.target_tokens, train.trainable, train.val_loss_before, train.val_loss_after
    );
    if !train.folded_domains.is_empty() {
        let folded: Vec<_> = train.folded_domains.iter().map(|domain| domain.as_str()).collect();
        let _ = writeln!(text, "\nToo little data for an expert of their own: {}.", folded.join(", "));
    }
}

fn evaluation(text: &mut String, gate: &GateReport) {
    let _ = write!(text, "\n## Evaluation\n\nBuilt-in probes of version {}.\n\n", gate.suite);
    text.push_str("| measured | items | base model | active before | this one |\n|---|---|---|---|---|\n");
    let number = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |value| format!("{value:.4}"));
    for figure in &gate.figures {
        let (base, active) = (number(figure.base), number(figure.active));
        let _ = writeln!(text, "| {} | {} | {base} | {active} | {:.4} |", figure.name, figure.items, figure.candidate);
    }
    text.push_str("\n| bound | measured | limit | held |\n|---|---|---|---|\n");
    for bound in &gate.bounds {
        let side = if bound.rule == BoundRule::AtMost { "at most" } else { "at least" };
        let held = if bound.held { "yes" } else { "no" };
        let small = if bound.is_small() { ", a small sample" } else { "" };
        let _ =
            writeln!(text, "| {} | {:.4} | {side} {:.4} | {held}{small} |", bound.name, bound.measured, bound.limit);
    }
}
