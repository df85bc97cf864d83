//! The audit trail leaves the appliance: parts of entries and the checkpoint over them, as files that anybody can check. The entry
//! of the export is in the trail before its first byte leaves, and in what leaves. What a part looks like is not known here.

use crate::admin::upload::FileSink;
use crate::app::{Acted, App};
use crate::problem::{self, defect};
use empathd_proto::admin::{AdminReply, TrailSummary};
use empathd_proto::audit::export::{CHECKPOINT_FILE, MAX_PARTS, PART_ENTRIES, part_file};
use empathd_proto::audit::{AuditEntry, SignedCheckpoint};
use empathd_proto::problem::{ErrorCode, Problem};
use empathd_store::AuditDraft;
use std::sync::Arc;

/// Gives the whole trail, a part at a time.
pub(crate) async fn export(app: &Arc<App>, sink: FileSink, draft: AuditDraft) -> Result<Acted, Problem> {
    let (checkpoint, entries) = app.blocking(move |app| begin(app, draft)).await?;
    let parts = entries.div_ceil(PART_ENTRIES);
    if parts > MAX_PARTS {
        let detail = "The trail is longer than one export can hold.";
        return Err(Problem::new(ErrorCode::TooLarge, detail, "Check it in place: empathctl audit verify"));
    }
    for part in 0..parts {
        let lines = app.blocking(move |app| lines(app, part, entries)).await?;
        sink.send(part_file(part), lines).await?;
    }
    let signed = serde_json::to_vec(&checkpoint).map_err(|_| defect("A checkpoint could not be written."))?;
    sink.send(CHECKPOINT_FILE.to_owned(), signed).await?;
    let files = u32::try_from(parts + 1).unwrap_or(u32::MAX);
    Ok(Acted::recorded(AdminReply::AuditExported(TrailSummary { entries, files, checkpoint })))
}

/// Records the export, and fixes how long the trail is.
fn begin(app: &App, draft: AuditDraft) -> Result<(SignedCheckpoint, u64), Problem> {
    let store = app.vault.unsealed()?;
    store.record_audit(&[draft]).map_err(problem::from_write)?;
    let checkpoint = store.checkpoint().map_err(problem::from_read)?;
    let size = checkpoint.verify().map_err(|_| defect("The store's own checkpoint does not verify."))?.size;
    Ok((checkpoint, size))
}

/// One part: an entry a line.
fn lines(app: &App, part: u64, entries: u64) -> Result<Vec<u8>, Problem> {
    let numbers = part * PART_ENTRIES..((part + 1) * PART_ENTRIES).min(entries);
    let store = app.vault.unsealed()?;
    let found: Vec<AuditEntry> = store.read(|reader| reader.audit_entries(numbers)).map_err(problem::from_read)?;
    let mut lines = Vec::new();
    for entry in found {
        serde_json::to_writer(&mut lines, &entry).map_err(|_| defect("An entry could not be written."))?;
        lines.push(b'\n');
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::action::Action;
    use crate::admin::upload::FilePart;
    use crate::app::Reply;
    use crate::fixture::{Fixture, ROOT};
    use empathd_proto::audit::{ActionKind, verify_log};
    use tokio::sync::mpsc;

    #[tokio::test]
    async fn an_export_is_in_the_trail_that_it_gives_and_verifies_without_the_store() {
        let fixture = Fixture::unsealed("").await;
        for _ in 0..5 {
            fixture.app.perform(&ROOT, Action::AuditTail { count: 1 }).await.expect("read");
        }
        let (sender, mut receiver) = mpsc::channel(64);
        let action = Action::AuditExport { files: FileSink::new(sender) };
        let Ok(Reply::Admin(reply)) = fixture.app.perform(&ROOT, action).await else { panic!("exported") };
        let AdminReply::AuditExported(summary) = *reply else { panic!("a summary") };
        let mut files: Vec<(String, Vec<u8>)> = Vec::new();
        while let Ok(part) = receiver.try_recv() {
            match part {
                FilePart::Begin { path, .. } => files.push((path, Vec::new())),
                FilePart::Chunk(chunk) => files.last_mut().expect("begun").1.extend(chunk),
            }
        }
        assert_eq!(
            files.iter().map(|(path, _)| path.as_str()).collect::<Vec<_>>(),
            ["entries-000000.jsonl", "checkpoint.json"]
        );
        let entry = |line: &[u8]| serde_json::from_slice::<AuditEntry>(line).expect("an entry");
        let entries: Vec<AuditEntry> = files[0].1.split(|b| *b == b'\n').filter(|l| !l.is_empty()).map(entry).collect();
        assert_eq!(
            (entries.len() as u64, entries.last().map(|last| last.action)),
            (summary.entries, Some(ActionKind::AuditExport))
        );
        let signed: SignedCheckpoint = serde_json::from_slice(&files[1].1).expect("a checkpoint");
        let key = signed.key().expect("a key");
        let leaves = || entries.iter().map(AuditEntry::to_leaf);
        assert!(verify_log(leaves(), &signed, &key, None).is_ok());
        assert!(verify_log(leaves().skip(1), &signed, &key, None).is_err());
    }
}
