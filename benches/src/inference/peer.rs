//! A peer on the same file, with as many threads, right after our own run: its script prints one line of JSON. It knows no
//! peer by name but for what the script says.

use super::{number, text};
use crate::measure::{Figures, rounded};
use anyhow::{Context, ensure};
use std::path::Path;
use std::process::Command;

/// Our figures and those of the peer that they are compared with.
const PAIRS: [(&str, &str); 8] = [
    ("prefill_32", "prefill_32"),
    ("prefill_128", "prefill_128"),
    ("prefill_512", "prefill_512"),
    ("prefill_2048", "prefill_2048"),
    ("decode_32", "decode_32"),
    ("decode_512", "decode_512"),
    ("decode_2048", "decode_2048"),
    ("batch8_decode", "decode_32"),
];

/// Runs the script; adds its figures as `peer_NAME` and ours over them as `ratio_NAME`.
pub(super) fn measure(
    python: &Path,
    script: &Path,
    model: &Path,
    threads: usize,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    eprintln!("the peer is measured now; that takes a minute or two");
    let output = Command::new(python).arg(script).arg(model).arg(threads.to_string()).output();
    let output = output.with_context(|| format!("cannot run {}", python.display()))?;
    ensure!(output.status.success(), "the peer failed: {}", text(&output.stderr));
    let said = text(&output.stdout);
    let line = said.lines().last().unwrap_or_default();
    let theirs: Figures = serde_json::from_str(line).context("the peer's script printed no line of JSON")?;
    for (name, value) in theirs.iter().filter(|(_, value)| value.is_number()) {
        figures.insert(format!("peer_{name}"), value.clone());
    }
    for (our, their) in PAIRS {
        if let (Some(our_value), Some(their_value)) = (number(figures, our), number(&theirs, their)) {
            figures.insert(format!("ratio_{our}"), rounded(our_value / their_value));
        }
    }
    Ok(())
}
