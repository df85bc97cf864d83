//! The report of one training job: what it learnt, how its losses went, how its experts were used, and what its gate found.

use super::chart;
use super::table::{Side, Table, facts};
use super::train;
use super::words::{count, duration};
use empathd_proto::admin::JobReport;
use empathd_proto::report::{GateReport, TrainReport};
use empathd_proto::train::CurvePoint;
use std::collections::BTreeMap;

/// Columns of a picture.
const WIDTH: usize = 72;
/// Lines of a picture.
const HEIGHT: usize = 5;

/// The whole report.
pub(crate) fn report(report: &JobReport) -> String {
    let mut text = train::status(&report.status);
    let steps: Vec<f64> = report.curves.iter().filter_map(step_loss).collect();
    if !steps.is_empty() {
        text.push_str("\nTraining loss by step, nats per token\n\n");
        text.push_str(&chart::picture(&steps, WIDTH, HEIGHT));
    }
    text.push_str(&domains(&report.curves));
    if let Some(adapter) = &report.adapter {
        text.push_str(&training(&adapter.train));
        match &adapter.gate {
            Some(gate) => text.push_str(&gate_report(gate)),
            None => text.push_str("\nThe gate has not run yet.\n"),
        }
    }
    text
}

fn step_loss(point: &CurvePoint) -> Option<f64> {
    match point {
        CurvePoint::Step(step) => Some(f64::from(step.loss)),
        CurvePoint::Validation(_) => None,
    }
}

/// One line for each domain.
fn domains(curves: &[CurvePoint]) -> String {
    let mut by_domain: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for point in curves {
        let CurvePoint::Validation(validation) = point else { continue };
        for (domain, loss) in &validation.by_domain {
            by_domain.entry(domain).or_default().push(*loss);
        }
        for (name, loss) in [("(general text)", validation.general), ("(crisis items)", validation.crisis_items)] {
            if let Some(loss) = loss {
                by_domain.entry(name).or_default().push(loss);
            }
        }
    }
    if by_domain.is_empty() {
        return String::new();
    }
    let line = |(domain, losses): (&&str, &Vec<f64>)| {
        let (first, last) = (losses.first().unwrap_or(&f64::NAN), losses.last().unwrap_or(&f64::NAN));
        format!("  {domain:<18} {first:7.3} -> {last:7.3}  {}\n", chart::line(losses, 40))
    };
    format!("\nValidation loss by domain, first to last\n\n{}", by_domain.iter().map(line).collect::<String>())
}

fn training(train: &TrainReport) -> String {
    let mut lines = vec![
        ("steps", format!("{}, ended by {}", train.steps, train.ended)),
        ("tokens", format!("{}, {} of them targets", count(train.tokens), count(train.target_tokens))),
        ("speed", format!("{:.0} tokens a second", train.tok_s)),
        ("trained weights", count(train.trainable)),
    ];
    if train.tok_s > 0.0 {
        lines.push(("time", duration((train.tokens as f64 / train.tok_s) as u64)));
    }
    if !train.folded_domains.is_empty() {
        let folded: Vec<_> = train.folded_domains.iter().map(|domain| domain.as_str()).collect();
        lines.push(("without an expert", format!("{}: too little data", folded.join(", "))));
    }
    if train.left_out > 0 {
        lines.push(("left out", format!("{} exchanges longer than a sequence", count(train.left_out))));
    }
    let mut text = format!("\n{}", facts(&lines));
    if !train.experts.is_empty() {
        text.push_str("\nShare of tokens by expert\n\n");
        for (name, load) in train.experts.iter().zip(&train.expert_load) {
            let bar = "█".repeat((load.clamp(0.0, 1.0) * 40.0).round() as usize);
            text.push_str(format!("  {name:<18} {:>5.1} %  {bar}", load * 100.0).trim_end());
            text.push('\n');
        }
    }
    text
}

fn gate_report(gate: &GateReport) -> String {
    use Side::{Left, Right};
    let verdict = if gate.passed() { "Its gate: passed" } else { "Its gate: REFUSED" };
    let mut text = format!("\n{verdict}\n\n");
    let mut bounds = Table::new([
        ("  BOUND", Left),
        ("MEASURED", Right),
        ("", Left),
        ("LIMIT", Right),
        ("ITEMS", Right),
        ("", Left),
    ]);
    for bound in &gate.bounds {
        let items = if bound.items == 0 { String::new() } else { bound.items.to_string() };
        let small = if bound.is_small() { ", small sample" } else { "" };
        let held = format!("{}{small}", if bound.held { "held" } else { "FAILED" });
        let side = bound.rule.to_string().replace('_', " ");
        let (measured, limit) = (format!("{:.4}", bound.measured), format!("{:.4}", bound.limit));
        bounds.row([format!("  {}", bound.name), measured, side, limit, items, held]);
    }
    text.push_str(&bounds.text("  no bounds"));
    if gate.figures.is_empty() {
        return text;
    }
    let number = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:.4}"));
    let mut figures =
        Table::new([("  FIGURE", Left), ("ITEMS", Right), ("BASE", Right), ("ACTIVE", Right), ("THIS", Right)]);
    for figure in &gate.figures {
        let (base, active) = (number(figure.base), number(figure.active));
        let name = format!("  {}", figure.name);
        figures.row([name, figure.items.to_string(), base, active, format!("{:.4}", figure.candidate)]);
    }
    text + "\n" + &figures.text("")
}

#[cfg(test)]
mod tests {
    use super::*;
    use empathd_proto::report::{
        AdapterState, AdapterSummary, BoundRule, GateBound, GateFigure, JobState, TrainStatus,
    };
    use empathd_proto::train::{StepPoint, ValidationPoint};
    use empathd_proto::{AdapterId, DatasetId, JobId};
    use expect_test::expect;

    fn gate() -> GateReport {
        let figure =
            |name: &str, base, candidate| GateFigure { name: name.into(), items: 24, base, active: None, candidate };
        GateReport {
            suite: 1,
            against: None,
            figures: vec![figure("crisis_recall", Some(0.75), 0.5), figure("canary_exposure", None, 1.4)],
            bounds: vec![
                GateBound::new("validation_loss", 0.91, BoundRule::AtMost, 0.99, 60),
                GateBound::new("crisis_recall", 0.5, BoundRule::AtLeast, 0.6, 24),
            ],
        }
    }

    fn curves() -> Vec<CurvePoint> {
        let step = |step, loss| CurvePoint::Step(StepPoint { step, loss, ..StepPoint::default() });
        let validation = |step, loss: f64| {
            let by_domain = [("crisis".to_owned(), loss)].into();
            CurvePoint::Validation(ValidationPoint {
                step,
                by_domain,
                general: Some(3.3),
                ..ValidationPoint::default()
            })
        };
        vec![validation(0, 3.1), step(1, 3.0), step(2, 2.5), step(3, 2.0), validation(3, 2.7)]
    }

    #[test]
    fn a_report_says_in_plain_words_how_it_went() {
        let status = TrainStatus {
            job: JobId::from_bytes([2; 16]),
            state: JobState::Failed,
            dataset: DatasetId::from_bytes([3; 16]),
            progress: None,
            adapter: None,
            error: None,
        };
        let train = TrainReport {
            steps: 3,
            tokens: 30_000,
            target_tokens: 12_000,
            tok_s: 600.0,
            trainable: 4_884_480,
            experts: vec!["crisis".into(), "free_1".into()],
            expert_load: vec![0.75, 0.25],
            ..TrainReport::default()
        };
        let adapter = AdapterSummary {
            id: AdapterId::from_bytes([1; 16]),
            state: AdapterState::Candidate,
            dataset: status.dataset,
            job: status.job,
            bytes: 1,
            digest: String::new(),
            made_at_ms: 0,
            train,
            gate: Some(gate()),
        };
        let text = report(&JobReport { status, adapter: Some(adapter), curves: curves() });
        let shown = text.split_once("Training loss").expect("a picture").1;
        expect![[r#"
             by step, nats per token

                 3.000 │█
                       │█
                       │█▅
                       │██
                 2.000 │██▁

            Validation loss by domain, first to last

              (general text)       3.300 ->   3.300  ▅▅
              crisis               3.100 ->   2.700  █▁

              steps            3, ended by steps
              tokens           30,000, 12,000 of them targets
              speed            600 tokens a second
              trained weights  4,884,480
              time             50 s

            Share of tokens by expert

              crisis              75.0 %  ██████████████████████████████
              free_1              25.0 %  ██████████

            Its gate: REFUSED

              BOUND            MEASURED             LIMIT  ITEMS
              validation_loss    0.9100  at most   0.9900     60  held
              crisis_recall      0.5000  at least  0.6000     24  FAILED, small sample

              FIGURE           ITEMS    BASE  ACTIVE    THIS
              crisis_recall       24  0.7500          0.5000
              canary_exposure     24                  1.4000
        "#]]
        .assert_eq(shown);
    }
}
