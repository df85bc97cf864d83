//! The figures beside their goals, for a person.

use super::number;
use crate::measure::Figures;
use std::fmt::Write;

/// What a figure should be.
#[derive(Clone, Copy)]
enum Goal {
    None,
    AtLeast(f64),
    AtMost(f64),
    /// At least so many times the peer's.
    TimesPeer(f64),
    /// At most so many times the size of the file.
    TimesFile(f64),
}

const ROWS: [(&str, &str, Goal); 17] = [
    ("prefill_32", "tok/s", Goal::None),
    ("prefill_128", "tok/s", Goal::None),
    ("prefill_512", "tok/s", Goal::TimesPeer(3.0)),
    ("prefill_2048", "tok/s", Goal::TimesPeer(3.0)),
    ("decode_32", "tok/s", Goal::TimesPeer(1.8)),
    ("decode_128", "tok/s", Goal::None),
    ("decode_512", "tok/s", Goal::None),
    ("decode_2048", "tok/s", Goal::TimesPeer(2.0)),
    ("batch8_decode", "tok/s", Goal::TimesPeer(4.0)),
    ("read_gb_s", "GB/s", Goal::None),
    ("roofline_pct", "%", Goal::AtLeast(75.0)),
    ("moe_decode_overhead_pct", "%", Goal::AtMost(10.0)),
    ("moe_decode_overhead_pct_r16", "%", Goal::AtMost(30.0)),
    ("rss_mib", "MiB", Goal::TimesFile(2.0)),
    ("load_s", "s", Goal::None),
    ("perplexity_tokens", "tokens", Goal::None),
    ("perplexity_ratio", "", Goal::AtMost(1.005)),
];

/// One line for each figure that was measured.
pub(super) fn render(figures: &Figures) -> String {
    let mut text = format!("\n{:<28} {:>10} {:<7} {:>9} {:>6}  goal\n", "", "", "", "peer", "ratio");
    for (name, unit, goal) in ROWS {
        let Some(value) = number(figures, name) else { continue };
        let cell = |name: String, digits| number(figures, &name).map_or_else(String::new, |x| format!("{x:.digits$}"));
        let peer = if name == "batch8_decode" { "decode_32" } else { name };
        let (peer, ratio) = (cell(format!("peer_{peer}"), 1), cell(format!("ratio_{name}"), 2));
        let digits = match name {
            "perplexity_ratio" => 4,
            "perplexity_tokens" => 0,
            _ => 1,
        };
        let goal = judged(figures, name, value, goal);
        let line = format!("{name:<28} {value:>10.digits$} {unit:<7} {peer:>9} {ratio:>6}  {goal}");
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

/// The goal and whether it was reached; a goal over a peer that was not measured is only named.
fn judged(figures: &Figures, name: &str, value: f64, goal: Goal) -> String {
    let (words, reached) = match goal {
        Goal::None => return String::new(),
        Goal::AtLeast(least) => (format!(">= {least}"), Some(value >= least)),
        Goal::AtMost(most) => (format!("<= {most}"), Some(value <= most)),
        Goal::TimesPeer(times) => {
            let ratio = number(figures, &format!("ratio_{name}"));
            (format!(">= {times} x peer"), ratio.map(|ratio| ratio >= times))
        }
        Goal::TimesFile(times) => {
            let file = number(figures, "file_mib");
            (format!("<= {times} x file"), file.map(|file| value <= times * file))
        }
    };
    match reached {
        Some(true) => words + "  reached",
        Some(false) => words + "  MISSED",
        None => words,
    }
}
