//! The last page: what was measured, and the commands that go on from here. It judges nothing.

use super::Places;
use super::promises;
use super::report::Report;
use crate::harness::build::Programs;
use empathd_proto::report::IngestReport;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

/// Width of the names.
const NAME: usize = 28;

/// The whole page.
pub(super) fn text(report: &Report, places: &Places, programs: Option<&Programs>) -> String {
    let mut page = String::new();
    if let Some(ingest) = &report.ingest {
        taken_in(&mut page, ingest);
    }
    learned(&mut page, report);
    answered(&mut page, report);
    title(&mut page, "Promises");
    for (promise, held) in promises::all(report) {
        line(&mut page, if held { "kept" } else { "BROKEN" }, promise);
    }
    for broken in report.broken_promises.iter().filter(|broken| broken.starts_with("a step failed")) {
        line(&mut page, "BROKEN", broken);
    }
    title(&mut page, &format!("{:.0} seconds; report: {}", report.seconds, places.report.display()));
    if let Some(programs) = programs {
        go_on(&mut page, places, programs);
    }
    page
}

fn title(page: &mut String, words: &str) {
    let _ = writeln!(page, "\n{words}");
}

fn line(page: &mut String, name: &str, value: impl std::fmt::Display) {
    let _ = writeln!(page, "  {name:<NAME$} {value}");
}

fn table(page: &mut String, name: &str, counts: &BTreeMap<String, u64>) {
    title(page, name);
    for (key, count) in counts {
        let _ = writeln!(page, "  {key:<NAME$} {count:>8}");
    }
}

fn taken_in(page: &mut String, ingest: &IngestReport) {
    table(page, "Accepted by source profile", &ingest.by_profile);
    table(page, "Accepted by domain", &ingest.by_domain);
    table(page, "Refused, kept as negatives, or known already, by rule", &ingest.reasons);
}

fn learned(page: &mut String, report: &Report) {
    let Some(train) = &report.train else { return };
    title(page, "Training");
    let fall = 100.0 * (1.0 - train.val_loss_after / train.val_loss_before);
    line(page, "tokens", format!("{} ({} of them targets)", train.tokens, train.target_tokens));
    line(page, "speed", format!("{:.0} tokens/s", train.tok_s));
    line(page, "trainable parameters", train.trainable);
    line(
        page,
        "validation loss",
        format!("{:.4} to {:.4} ({fall:.1} % lower)", train.val_loss_before, train.val_loss_after),
    );
    for (name, share) in train.expert_names.iter().zip(&train.expert_load) {
        line(page, &format!("expert {name}"), format!("{:>5.1} % of routed tokens", share * 100.0));
    }
    if let Some(adapter) = &report.adapter {
        line(page, "adapter", format!("{} ({}, {} bytes)", adapter.id, adapter.state, adapter.bytes));
    }
}

fn answered(page: &mut String, report: &Report) {
    let Some(serve) = &report.serve else { return };
    title(page, "Answers to the same question");
    line(
        page,
        "first words, whole",
        format!("{:.0} ms, {:.0} ms for {} tokens", serve.ttft_ms, serve.total_ms, serve.tokens),
    );
    line(page, "base", serve.base_text.replace('\n', " "));
    line(page, "adapted", serve.adapted_text.replace('\n', " "));
}

fn go_on(page: &mut String, places: &Places, programs: &Programs) {
    let here = std::env::current_dir().unwrap_or_default();
    let short = |path: &Path| path.strip_prefix(&here).unwrap_or(path).display().to_string();
    let (state, certs) = (short(&places.state), short(&places.certs));
    title(page, "Go on with this appliance");
    let _ = writeln!(page, "  {} --dev --state {state} --listen 127.0.0.1:8443 &", short(&programs.daemon));
    let _ = writeln!(
        page,
        "  {} --socket {state}/admin.sock unseal --passphrase-file {}",
        short(&programs.ctl),
        short(&places.passphrase)
    );
    let _ = writeln!(
        page,
        "  curl --cacert {certs}/ca.pem --cert {certs}/ehr.pem --key {certs}/ehr.key https://localhost:8443/v1/models"
    );
}
