//! Adapter generations: how much each one learned, and where it stands.

use super::table::{Side, Table};
use super::words::{bytes, day};
use crate::session::Edge;
use empathd_proto::report::{AdapterState, AdapterSummary};

/// All generations.
pub(crate) fn list(adapters: &[AdapterSummary], edge: &Edge) -> String {
    use Side::{Left, Right};
    let mut table =
        Table::new([("ADAPTER", Left), ("STATE", Left), ("MADE", Left), ("SIZE", Right), ("VALIDATION LOSS", Left)]);
    for adapter in adapters {
        let loss = format!("{:.3} -> {:.3}", adapter.train.val_loss_before, adapter.train.val_loss_after);
        table.row([adapter.id.to_string(), state(adapter), day(adapter.made_at_ms, edge), bytes(adapter.bytes), loss]);
    }
    let text = table.text("No adapters yet. Next: empathctl train start --promote --follow");
    match adapters.iter().find(|adapter| adapter.state == AdapterState::Approved) {
        Some(adapter) => format!("{text}\nNext: empathctl adapter promote {}\n", adapter.id),
        None => text,
    }
}

fn state(adapter: &AdapterSummary) -> String {
    match &adapter.gate {
        Some(gate) if adapter.state == AdapterState::Candidate && !gate.passed() => "refused".into(),
        _ => adapter.state.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::words::tests::edge;
    use empathd_proto::report::{BoundRule, GateBound, GateReport, TrainReport};
    use empathd_proto::{AdapterId, DatasetId, JobId};
    use expect_test::expect;

    #[test]
    fn a_refused_candidate_shows_and_an_approved_one_names_its_command() {
        let gate = |held| GateReport {
            bounds: vec![GateBound::new("validation_loss", if held { 0.9 } else { 1.1 }, BoundRule::AtMost, 0.99, 24)],
            ..GateReport::default()
        };
        let adapter = |n, state, held| AdapterSummary {
            id: AdapterId::from_bytes([n; 16]),
            state,
            dataset: DatasetId::from_bytes([3; 16]),
            job: JobId::from_bytes([4; 16]),
            bytes: 4_612_345,
            digest: "00".into(),
            made_at_ms: edge().now_ms,
            train: TrainReport { val_loss_before: 3.1014, val_loss_after: 2.7, ..TrainReport::default() },
            gate: Some(gate(held)),
        };
        let adapters = [adapter(1, AdapterState::Candidate, false), adapter(2, AdapterState::Approved, true)];
        expect![[r#"
            ADAPTER                                   STATE     MADE          SIZE  VALIDATION LOSS
            adapter_01010101010101010101010101010101  refused   2026-03-01  4.6 MB  3.101 -> 2.700
            adapter_02020202020202020202020202020202  approved  2026-03-01  4.6 MB  3.101 -> 2.700

            Next: empathctl adapter promote adapter_02020202020202020202020202020202
        "#]]
        .assert_eq(&list(&adapters, &edge()));
    }
}
