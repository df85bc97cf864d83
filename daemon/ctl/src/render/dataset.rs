//! How dataset cuts are shown.

use super::table::{Side, Table, facts};
use super::words::{count, time};
use crate::session::Edge;
use empathd_proto::report::DatasetSummary;

/// One cut.
pub(crate) fn cut(cut: &DatasetSummary, edge: &Edge) -> String {
    let facts = facts(&[
        ("train", format!("{} records", count(cut.train))),
        ("validation", format!("{} records, of other clients", count(cut.validation))),
        ("cut at", time(cut.cut_at_ms, edge)),
        ("hash", cut.hash.clone()),
    ]);
    format!("{}\n\n{facts}\nNext: empathctl train start --promote --follow\n", cut.id)
}

/// All cuts.
pub(crate) fn list(cuts: &[DatasetSummary], edge: &Edge) -> String {
    use Side::{Left, Right};
    let mut table = Table::new([("CUT", Left), ("TRAIN", Right), ("VALIDATION", Right), ("AT", Left)]);
    for cut in cuts {
        table.row([cut.id.to_string(), count(cut.train), count(cut.validation), time(cut.cut_at_ms, edge)]);
    }
    table.text("No cuts yet. Next: empathctl dataset cut")
}
