//! The audit trail.

use super::table::{Side, Table, facts};
use super::words::{count, moment};
use crate::checkpoint;
use crate::session::Edge;
use empathd_proto::admin::AuditVerdict;
use empathd_proto::audit::{AuditEntry, AuditObject, Outcome, Principal, PrincipalKind, SignedCheckpoint};

/// The newest entries, oldest first.
pub(crate) fn tail(entries: &[AuditEntry], edge: &Edge) -> String {
    use Side::{Left, Right};
    let mut table =
        Table::new([("SEQ", Right), ("AT", Left), ("WHO", Left), ("DID", Left), ("ENDED", Left), ("DETAIL", Left)]);
    for entry in entries {
        table.row([
            entry.seq.to_string(),
            moment(entry.at_ms, edge),
            who(entry.principal),
            entry.action.to_string(),
            ended(entry.outcome).to_owned(),
            detail(entry),
        ]);
    }
    table.text("The trail is empty.")
}

fn who(principal: Principal) -> String {
    match principal.kind {
        PrincipalKind::Appliance => "appliance".into(),
        PrincipalKind::LocalUser => format!("uid {}", principal.number),
        PrincipalKind::Certificate => format!("cert {:x}", principal.number),
    }
}

fn ended(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Done => "done",
        Outcome::Denied(_) => "denied",
        Outcome::Failed(_) => "failed",
    }
}

/// Why it ended badly, to what it was done, and to how many.
fn detail(entry: &AuditEntry) -> String {
    let why = match entry.outcome {
        Outcome::Done => None,
        Outcome::Denied(code) | Outcome::Failed(code) => Some(code.to_string()),
    };
    let many = (entry.count > 1).then(|| format!("count {}", count(entry.count)));
    let parts: Vec<String> = [why, object(entry.object), many].into_iter().flatten().collect();
    parts.join(", ")
}

fn object(object: AuditObject) -> Option<String> {
    match object {
        AuditObject::None => None,
        AuditObject::Record(id) => Some(id.to_string()),
        AuditObject::Client(id) => Some(id.to_string()),
        AuditObject::Dataset(id) => Some(id.to_string()),
        AuditObject::Adapter(id) => Some(id.to_string()),
        AuditObject::Job(id) => Some(id.to_string()),
        AuditObject::Certificate(number) => Some(format!("cert {number:x}")),
    }
}

/// What the check found.
pub(crate) fn verdict(verdict: &AuditVerdict, known: Option<&SignedCheckpoint>) -> String {
    let head = if verdict.verified { "The audit trail verifies." } else { "THE AUDIT TRAIL DOES NOT VERIFY." };
    let size = known.and_then(|known| checkpoint::read(known).ok()).map(|(_, checkpoint)| checkpoint.size);
    let before = match (size, verdict.extends_known) {
        (None, _) => "none seen by this user before; this one is kept".into(),
        (Some(size), Some(true)) => format!("extends the {} entries seen before", count(size)),
        (Some(size), _) => format!("DOES NOT EXTEND the {} entries seen before", count(size)),
    };
    let mut text = format!("{head}\n\n{}", facts(&[("entries", count(verdict.entries)), ("checkpoint", before)]));
    for finding in &verdict.findings {
        text.push_str(&format!("  found: {finding}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::words::tests::edge;
    use empathd_proto::audit::ActionKind;
    use empathd_proto::{AdapterId, ErrorCode};
    use expect_test::expect;

    #[test]
    fn the_tail_reads_as_sentences() {
        let entry = AuditEntry {
            seq: 9,
            at_ms: edge().now_ms,
            principal: Principal { kind: PrincipalKind::LocalUser, number: 0 },
            action: ActionKind::Ingest,
            outcome: Outcome::Done,
            object: AuditObject::None,
            count: 1_200,
        };
        let denied = AuditEntry {
            seq: 10,
            principal: Principal { kind: PrincipalKind::Certificate, number: 0xbeef },
            action: ActionKind::Chat,
            outcome: Outcome::Denied(ErrorCode::EngineUnavailable),
            count: 0,
            ..entry
        };
        let promoted = AuditEntry {
            seq: 11,
            action: ActionKind::AdapterPromote,
            object: AuditObject::Adapter(AdapterId::from_bytes([1; 16])),
            count: 1,
            ..entry
        };
        expect![[r#"
            SEQ  AT              WHO        DID              ENDED   DETAIL
              9  03-01 12:00:00  uid 0      ingest           done    count 1,200
             10  03-01 12:00:00  cert beef  chat             denied  engine_unavailable
             11  03-01 12:00:00  uid 0      adapter_promote  done    adapter_01010101010101010101010101010101
        "#]]
        .assert_eq(&tail(&[entry, denied, promoted], &edge()));
    }
}
