//! Keys, copies and erasures: what was done, and what has to be done with it.

use super::table::{Side, Table, facts};
use super::words::{bytes, count, time};
use crate::session::Edge;
use empathd_proto::keys::{
    BackupSummary, Care, Check, ClientExportSummary, Drill, ErasureSummary, EscrowSummary, KeysReport,
};
use std::path::Path;

/// How copies stand, for the status screen.
pub(crate) fn in_a_line(care: &Care) -> String {
    match (&care.key_file_due, care.backup_at_ms) {
        (Some(_), None) => "no backup and no key file yet".into(),
        (None, None) => "no backup yet".into(),
        (Some(_), Some(_)) => "a new key file is due: empathctl keys escrow FILE".into(),
        (None, Some(_)) => "backup and key file are there".into(),
    }
}

/// The whole state of keys and copies.
pub(crate) fn keys(report: &KeysReport, edge: &Edge) -> String {
    let at = |at_ms: Option<u64>| at_ms.map_or_else(|| "never".to_owned(), |at_ms| time(at_ms, edge));
    let care = &report.care;
    let lines = vec![
        ("store", report.store.to_string()),
        ("epoch", report.epoch.to_string()),
        ("ways in", report.ways_in.join(", ")),
        ("memory", if report.locked { "locked".into() } else { "may be swapped out: see empathctl doctor".to_owned() }),
        ("backup", at(care.backup_at_ms)),
        ("drill", at(care.drill.as_ref().map(|drill| drill.at_ms))),
        ("key file", at(care.key_file_at_ms)),
        ("erasure", at(care.erasure_at_ms)),
    ];
    let next = care
        .key_file_due
        .as_ref()
        .map(|why| format!("\nA new key file is due: {why}.\nNext: empathctl keys escrow FILE\n"));
    format!("{}{}", facts(&lines), next.unwrap_or_default())
}

/// A key file was written.
pub(crate) fn escrowed(summary: &EscrowSummary, path: &Path) -> String {
    format!(
        "Wrote the key file, {}, to {}.\nKeep it away from the backups, and destroy every older one: with two recovery \
         shares an older\nkey file still opens what was erased since.\n",
        bytes(summary.bytes),
        path.display()
    )
}

/// A backup was written.
pub(crate) fn backed_up(summary: &BackupSummary, path: &Path) -> String {
    let kind = if summary.incremental { "what changed since the one before" } else { "a whole backup" };
    format!(
        "Wrote {kind}: {} rows, {} files, {}, checked, to {}.\nIt holds no key. Next: empathctl keys escrow FILE, which \
         opens it with two recovery shares.\n",
        count(summary.rows),
        count(summary.blobs),
        bytes(summary.bytes),
        path.display()
    )
}

/// A restore was tried.
pub(crate) fn drilled(drill: &Drill) -> String {
    format!(
        "Restored {} rows into a scratch folder, checked all of them, and removed them: {}.{} s.\n",
        count(drill.rows),
        drill.took_ms / 1000,
        drill.took_ms % 1000 / 100
    )
}

/// A client was erased.
pub(crate) fn erased(erased: &ErasureSummary) -> String {
    let mut text = format!("Erased {} with {} records.\n", erased.client, count(erased.records));
    for adapter in &erased.retired {
        text.push_str(&format!("Retired, because it learned from them: {adapter}\n"));
    }
    if erased.jobs_dropped > 0 {
        text.push_str("A training job that learned from them ended: cut the records again.\n");
    }
    if !erased.retired.is_empty() {
        let active = erased.active.map_or_else(|| "the base model".to_owned(), |adapter| adapter.to_string());
        text.push_str(&format!("Now answers: {active}\n"));
    }
    text.push_str(
        "\nNext: empathctl keys escrow FILE, and destroy every older key file: it still opens this record.\n",
    );
    text
}

/// A client's record was written.
pub(crate) fn client_exported(summary: &ClientExportSummary, folder: &Path) -> String {
    format!(
        "Wrote {} records of {}, {} files, {}, to {}. They are the record itself, unsealed.\n\n  signed by  {}\n\n\
         Whoever receives them checks them with that key: empathctl adapter verify DIR --key KEY\n",
        count(summary.records),
        summary.client,
        summary.files,
        bytes(summary.bytes),
        folder.display(),
        summary.public_key
    )
}

/// The checklist.
pub(crate) fn checklist(checks: &[Check]) -> String {
    use Side::Left;
    let mut table = Table::new([("", Left), ("POINT", Left), ("FOUND", Left)]);
    for check in checks {
        table.row([check.state.to_string(), check.name.clone(), check.found.clone()]);
    }
    let mut text = table.text("Nothing was looked at.");
    for check in checks.iter().filter(|check| !check.next.is_empty()) {
        text.push_str(&format!("\n{}: {}\n", check.name, check.next));
    }
    text
}
