//! What the demo promises, as checks of its report. It measures nothing itself.

use super::report::Report;
use empathd_proto::report::AdapterState;

/// The least share by which the validation loss falls.
const LOSS_FALLS_BY: f64 = 0.05;
/// Records accepted of the synthetic corpus, and of the four real collections.
const ACCEPTED_MIN: [u64; 2] = [600, 3000];
/// Records refused or kept as negatives of the four real collections.
const REAL_REFUSED_MIN: u64 = 2000;
/// What the shares of all experts add up to.
const SHARES_SUM_TO: std::ops::RangeInclusive<f64> = 0.98..=1.02;

/// One promise: what it says, and whether it held. A part that was not reached breaks its promises.
pub(super) type Promise = (&'static str, bool);

/// Promises that did not hold, in words.
pub(super) fn broken(report: &Report) -> Vec<String> {
    all(report).into_iter().filter(|(_, held)| !held).map(|(promise, _)| format!("not so: {promise}")).collect()
}

/// All promises.
pub(super) fn all(report: &Report) -> Vec<Promise> {
    let mut promises = data(report);
    promises.extend(learning(report));
    promises.extend(answers(report));
    promises
}

fn data(report: &Report) -> Vec<Promise> {
    let accepted_min = ACCEPTED_MIN[usize::from(report.real_data)];
    let ingest = report.ingest.as_ref();
    let counted = |ingest: &empathd_proto::report::IngestReport| {
        ingest.read == ingest.accepted + ingest.negatives + ingest.rejected + ingest.duplicates
    };
    let refused = |ingest: &empathd_proto::report::IngestReport| {
        let refused = ingest.rejected + ingest.negatives;
        refused > 0 && !ingest.reasons.is_empty() && (!report.real_data || refused >= REAL_REFUSED_MIN)
    };
    vec![
        ("enough records are accepted", ingest.is_some_and(|ingest| ingest.accepted >= accepted_min)),
        ("every record read is accounted for", ingest.is_some_and(counted)),
        ("bad records are refused with reasons", ingest.is_some_and(refused)),
        ("identifiers are found", ingest.is_some_and(|ingest| ingest.phi_spans > 0)),
        ("no target is unsafe", ingest.is_some_and(|ingest| ingest.targets_unsafe == 0)),
        (
            "the store holds what was accepted and nothing else",
            report
                .store
                .as_ref()
                .zip(ingest)
                .is_some_and(|(store, ingest)| store.records == ingest.accepted + ingest.negatives),
        ),
        (
            "no planted text lies open in any file",
            report.store.as_ref().is_some_and(|store| store.plaintext_canaries_found == 0),
        ),
    ]
}

fn learning(report: &Report) -> Vec<Promise> {
    let train = report.train.as_ref();
    let falls = train.is_some_and(|train| train.val_loss_after <= train.val_loss_before * (1.0 - LOSS_FALLS_BY));
    let loaded = train.is_some_and(|train| {
        train.experts > 0
            && train.expert_load.len() == train.experts
            && train.expert_load.iter().all(|share| *share > 0.0)
            && SHARES_SUM_TO.contains(&train.expert_load.iter().sum::<f64>())
    });
    let gate = report.adapter.as_ref().and_then(|adapter| adapter.gate.as_ref());
    let active = report.adapter.as_ref().is_some_and(|adapter| adapter.state == AdapterState::Active);
    vec![
        ("validation loss falls by 5 % or more", falls),
        ("every expert takes part", loaded),
        ("the adapter passes its gate", gate.is_some_and(|gate| gate.passed())),
        ("the adapter is active", active),
    ]
}

fn answers(report: &Report) -> Vec<Promise> {
    let serve = report.serve.as_ref();
    let id = report.adapter.as_ref().map(|adapter| adapter.id);
    let answered = serve.is_some_and(|serve| {
        serve.tokens > 0 && !serve.base_text.trim().is_empty() && !serve.adapted_text.trim().is_empty()
    });
    let audit = report.audit.as_ref();
    vec![
        ("both answers have words", answered),
        ("the trained adapter gives the second answer", serve.is_some_and(|s| s.adapter.is_some() && s.adapter == id)),
        ("strangers get nothing", serve.is_some_and(|serve| serve.unauthenticated_refused)),
        ("the audit trail verifies", audit.is_some_and(|audit| audit.verified && audit.entries > 0)),
        ("altered copies are noticed", audit.is_some_and(|audit| audit.tamper_detected)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[test]
    fn a_run_that_measured_nothing_keeps_no_promise() {
        let report = Report::new(&super::super::Options::parse_from(["demo"]));
        assert_eq!(broken(&report).len(), all(&report).len());
    }
}
