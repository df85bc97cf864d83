//! The check of a stopped appliance's state, as a command: what it prints and how it ends. What is checked only the store
//! knows.

use anyhow::{Context, bail};
use empathd_proto::secret::Secret;
use empathd_store::{Entropy, StateFindings, verify_stopped};
use serde_json::json;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use zeroize::Zeroizing;

/// Longest passphrase file that is read.
const PASSPHRASE_BYTES_MAX: u64 = 4096;

/// What the check says at its end.
pub struct Verdict {
    /// The document or text to print.
    pub text: String,
    /// Whether everything fitted.
    pub clean: bool,
}

/// Checks a state folder.
///
/// # Errors
/// When the check could not be made at all; the text says what to do.
pub fn run(state: &Path, passphrase_file: &Path, as_json: bool, entropy: Arc<dyn Entropy>) -> anyhow::Result<Verdict> {
    let passphrase = passphrase(passphrase_file)?;
    let findings = verify_stopped(state, &passphrase, entropy, &mut |_, _| ())?;
    let text = if as_json { document(&findings) } else { page(state, &findings) };
    Ok(Verdict { text, clean: findings.is_clean() })
}

/// The first line of a file.
pub(crate) fn passphrase(file: &Path) -> anyhow::Result<Secret> {
    let mut text = Zeroizing::new(String::new());
    let opened = std::fs::File::open(file).and_then(|file| file.take(PASSPHRASE_BYTES_MAX).read_to_string(&mut text));
    opened.with_context(|| format!("the passphrase file {} cannot be read", file.display()))?;
    match text.lines().next().filter(|line| !line.is_empty()) {
        Some(line) => Ok(Secret::new(line.to_owned())),
        None => bail!("the passphrase file {} is empty: write the passphrase on its first line", file.display()),
    }
}

fn document(findings: &StateFindings) -> String {
    let audit = findings.audit.as_ref().map(|audit| json!({ "entries": audit.entries, "verified": audit.verified() }));
    json!({
        "clean": findings.is_clean(),
        "values": findings.values,
        "stopped_in_order": findings.stopped_in_order,
        "audit": audit,
        "findings": findings.findings,
    })
    .to_string()
}

fn page(state: &Path, findings: &StateFindings) -> String {
    let mut lines = vec![format!("Checked {} values and files in {}.", findings.values, state.display())];
    if let Some(audit) = &findings.audit {
        let word = if audit.verified() { "verified" } else { "NOT verified" };
        lines.push(format!("Audit trail: {} entries, {word}.", audit.entries));
    }
    if !findings.stopped_in_order {
        lines.push("It was not stopped in order, so unused bytes of the files could not be compared.".to_owned());
    }
    if findings.is_clean() {
        lines.push("Everything fits.".to_owned());
        return lines.join("\n");
    }
    lines.extend(findings.findings.iter().map(|finding| format!("ALTERED: {finding}")));
    lines.push("Do not start the appliance on this state. Keep a copy of it, then restore a backup.".to_owned());
    lines.join("\n")
}
