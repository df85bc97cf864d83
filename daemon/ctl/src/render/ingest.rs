//! What came of source files.

use super::table::{Side, Table, facts};
use super::words::count;
use crate::commands::ingest::Outcome;
use std::collections::BTreeMap;

/// The report of a run.
pub(crate) fn report(outcome: &Outcome) -> String {
    let report = &outcome.report;
    if report.files == 0 {
        return "Nothing was taken in.\n".into();
    }
    let head = if outcome.dry_run { "Dry run: nothing was kept." } else { "Taken in." };
    let facts = facts(&[
        ("files", files(outcome)),
        ("records", count(report.read)),
        ("accepted", count(report.accepted)),
        ("negatives", format!("{} (for evaluation, never learned)", count(report.negatives))),
        ("rejected", count(report.rejected)),
        ("duplicates", count(report.duplicates)),
        ("identifiers", format!("{} found in kept records", count(report.phi_spans))),
    ]);
    let tables = [
        ("WHY NOT ACCEPTED", &report.reasons),
        ("ACCEPTED BY PROFILE", &report.by_profile),
        ("BY DOMAIN", &report.by_domain),
    ];
    let tables: String =
        tables.into_iter().filter(|(_, map)| !map.is_empty()).map(|(head, map)| table(head, map)).collect();
    format!("{head}\n\n{facts}{tables}{}", next(outcome))
}

fn files(outcome: &Outcome) -> String {
    let mut text = count(outcome.report.files);
    if !outcome.refused.is_empty() {
        text.push_str(&format!(", {} refused", count(outcome.refused.len() as u64)));
    }
    if outcome.skipped > 0 {
        text.push_str(&format!(", {} passed over", count(outcome.skipped as u64)));
    }
    text
}

fn table(head: &'static str, map: &BTreeMap<String, u64>) -> String {
    let mut table = Table::new([("RECORDS", Side::Right), (head, Side::Left)]);
    let mut rows: Vec<_> = map.iter().collect();
    rows.sort_by_key(|(name, records)| (std::cmp::Reverse(**records), *name));
    for (name, records) in rows {
        table.row([count(*records), name.clone()]);
    }
    format!("\n{}", table.text(""))
}

fn next(outcome: &Outcome) -> &'static str {
    match (outcome.report.accepted, outcome.dry_run) {
        (0, _) => "",
        (_, true) => "\nNext: the same command without --dry-run\n",
        (_, false) => "\nNext: empathctl dataset cut\n",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use empathd_proto::report::IngestReport;
    use expect_test::expect;

    #[test]
    fn reasons_come_with_the_most_frequent_first() {
        let map = |pairs: &[(&str, u64)]| pairs.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect();
        let report = IngestReport {
            files: 2,
            read: 1_300,
            accepted: 1_200,
            negatives: 40,
            rejected: 50,
            duplicates: 10,
            reasons: map(&[("duplicate", 10), ("unsafe_label", 40), ("too_short", 50)]),
            phi_spans: 77,
            by_profile: map(&[("annomi", 1_200)]),
            ..IngestReport::default()
        };
        let outcome = Outcome { report, skipped: 3, ..Outcome::default() };
        expect![[r#"
            Taken in.

              files        2, 3 passed over
              records      1,300
              accepted     1,200
              negatives    40 (for evaluation, never learned)
              rejected     50
              duplicates   10
              identifiers  77 found in kept records

            RECORDS  WHY NOT ACCEPTED
                 50  too_short
                 40  unsafe_label
                 10  duplicate

            RECORDS  ACCEPTED BY PROFILE
              1,200  annomi

            Next: empathctl dataset cut
        "#]]
        .assert_eq(&super::report(&outcome));
    }
}
