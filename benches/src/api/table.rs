//! The figures beside their goals, for a person.

use crate::measure::Figures;
use std::fmt::Write;

/// What a figure should be.
#[derive(Clone, Copy)]
enum Goal {
    None,
    Below(f64),
    AtMost(f64),
}

use Goal::{AtMost, Below, None as Open};

const ROWS: [(&str, &str, Goal, &str); 25] = [
    ("ttft_ms_p50", "ms", Open, "one caller, until the first words"),
    ("ttft_ms_p95", "ms", Below(300.0), ""),
    ("total_ms_p50", "ms", Open, "one caller, until the end"),
    ("total_ms_p95", "ms", Below(2_000.0), ""),
    ("beside_engine_ms_p50", "ms", Open, "until the first words, beside the engine"),
    ("beside_engine_ms_p95", "ms", Open, ""),
    ("ttft_ms_p50_c8", "ms", Open, "eight callers, until the first words"),
    ("ttft_ms_p95_c8", "ms", Below(1_500.0), ""),
    ("total_ms_p50_c8", "ms", Open, "eight callers, until the end"),
    ("total_ms_p95_c8", "ms", Open, ""),
    ("beside_engine_ms_p50_c8", "ms", Open, "until the first words, beside the engine"),
    ("beside_engine_ms_p95_c8", "ms", Open, ""),
    ("goodput_at_slo", "a second", Open, "answers that kept the promise"),
    ("reject_ms_p50", "ms", Open, "eighty callers, until a refusal"),
    ("reject_ms_p99", "ms", Below(20.0), ""),
    ("overload_answers", "", Open, "answers meanwhile"),
    ("overload_rejected", "", Open, "refusals meanwhile"),
    ("overload_rss_mib", "MiB", Open, "memory of both programs meanwhile, at most"),
    ("overload_rss_growth_mib", "MiB", AtMost(super::FLAT_MIB), "more of it in the second half of the time"),
    ("overload_errors_other", "", AtMost(0.0), "neither answer nor refusal"),
    ("overload_crisis_unanswered", "", AtMost(0.0), "people in danger left without an answer"),
    ("cancel_to_free_steps", "steps", AtMost(1.0), "after the caller had left, at most"),
    ("swaps", "", Open, "changes of generation under load"),
    ("swap_requests", "", Open, "questions meanwhile"),
    ("swap_failed_requests", "", AtMost(0.0), "of them failed"),
];

/// One line for each figure that was measured.
pub(super) fn render(figures: &Figures) -> String {
    let mut text = String::from("\n");
    for (name, unit, goal, meaning) in ROWS {
        let Some(value) = figures.get(name).and_then(serde_json::Value::as_f64) else { continue };
        let _ = writeln!(text, "{name:<28} {value:>9.1} {unit:<9} {:<17} {meaning}", judged(value, goal));
    }
    text
}

/// The goal and whether it was reached.
fn judged(value: f64, goal: Goal) -> String {
    let (words, reached) = match goal {
        Open => return String::new(),
        Below(bound) => (format!("< {bound}"), value < bound),
        AtMost(most) => (format!("<= {most}"), value <= most),
    };
    words + if reached { "  reached" } else { "  MISSED" }
}
