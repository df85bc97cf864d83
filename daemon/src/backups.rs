//! Backups on their way out, and the drill that proves that they come back. A backup is written into a file without a name,
//! read back and checked before its first byte leaves. What is in a backup is not known here.

use crate::admin::upload::{FileSink, Upload};
use crate::app::{Acted, App};
use crate::care::{self, Due};
use crate::keys;
use crate::problem::{self, defect};
use empathd_proto::admin::AdminReply;
use empathd_proto::audit::{ActionKind, Outcome};
use empathd_proto::keys::{BACKUP_FILE, BackupSummary, Drill, INDEX_FILE};
use empathd_proto::manifest::hex;
use empathd_proto::problem::{ErrorCode, Problem};
use empathd_proto::secret::Secret;
use empathd_store::{AuditDraft, KdfCost, RecoveryShare, RestoreFrom, Store};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::SemaphorePermit;

/// Folder for what is thrown away again, inside the state folder.
const SCRATCH: &str = "scratch";

/// Makes, checks and gives out a backup.
pub(crate) async fn create(
    app: &Arc<App>,
    index: Upload,
    files: FileSink,
    draft: AuditDraft,
) -> Result<Acted, Problem> {
    let _alone = alone(app)?;
    let index = index.collect().await?;
    let summary = app
        .blocking(move |app| {
            let Written { file, index, summary } = write(app, &index, draft.at_ms)?;
            let store = app.vault.unsealed()?;
            let mut before = None;
            let made = AuditDraft { count: summary.rows, ..draft };
            let noted = store.change(made, |writer, _| {
                care::change(writer, |care| {
                    before = care.backup_at_ms.replace(draft.at_ms);
                    care.is_due(Due::Backup);
                })
            });
            noted.map_err(problem::from_write)?;
            let sent = files
                .send_from(BACKUP_FILE, summary.bytes, &mut BufReader::new(file))
                .and_then(|()| files.send_from(INDEX_FILE, index.len() as u64, &mut index.as_slice()));
            if let Err(problem) = sent {
                // Nobody has it: the last backup is the one before.
                let failed = AuditDraft { outcome: Outcome::Failed(problem.code), ..draft };
                let undone = store.change(failed, |writer, _| care::change(writer, |care| care.backup_at_ms = before));
                undone.map_err(problem::from_write)?;
                return Err(problem);
            }
            Ok(summary)
        })
        .await?;
    Ok(Acted::recorded(AdminReply::BackedUp(summary)))
}

/// Restores the present state into a scratch folder, checks all of it, and throws it away.
pub(crate) async fn drill(app: &Arc<App>, shares: Vec<Secret>, draft: AuditDraft) -> Result<Acted, Problem> {
    let _alone = alone(app)?;
    let shares = keys::shares(&shares)?;
    let drill = app
        .blocking(move |app| {
            let began = app.clock.uptime();
            let folder = Scratch::new(&app.config.state)?;
            let rows = rehearse(app, &folder.0, &shares, draft);
            drop(folder);
            let took = app.clock.uptime().saturating_sub(began).as_millis();
            let drill = Drill { at_ms: draft.at_ms, took_ms: u64::try_from(took).unwrap_or(u64::MAX), rows: rows? };
            let done = AuditDraft { count: drill.rows, ..draft };
            let noted = app
                .vault
                .unsealed()?
                .change(done, |writer, _| care::change(writer, |care| care.drill = Some(drill.clone())));
            noted.map_err(problem::from_write)?;
            Ok(drill)
        })
        .await?;
    Ok(Acted::recorded(AdminReply::Drilled(drill)))
}

/// One at a time: each reads the whole store.
fn alone(app: &Arc<App>) -> Result<SemaphorePermit<'_>, Problem> {
    app.copying.try_acquire().map_err(|_| {
        Problem::new(ErrorCode::Busy, "Another backup or drill is under way.", "Try again when it has ended.")
    })
}

struct Written {
    file: File,
    index: Vec<u8>,
    summary: BackupSummary,
}

fn write(app: &App, since: &[u8], at_ms: u64) -> Result<Written, Problem> {
    let store = app.vault.unsealed()?;
    let mut file = nameless(&app.config.state).map_err(|error| storage(&error))?;
    let mut out = BufWriter::new(&file);
    let since = (!since.is_empty()).then_some(since);
    let backup = store.write_backup(&mut out, since, at_ms).map_err(problem::from_write)?;
    out.flush().map_err(|error| storage(&error))?;
    drop(out);
    file.rewind().map_err(|error| storage(&error))?;
    let mut from = Hashing { from: BufReader::new(&file), hash: Sha256::new(), bytes: 0 };
    let counts = store.check_backup(&mut from).map_err(problem::from_read)?;
    if counts != backup.counts {
        return Err(defect("A backup that was just written holds something else."));
    }
    let (sha256, bytes) = (hex(&from.hash.finalize()), from.bytes);
    file.rewind().map_err(|error| storage(&error))?;
    let summary = BackupSummary {
        name: hex(&backup.name),
        at_ms,
        incremental: since.is_some(),
        rows: counts.rows,
        removed: counts.removed,
        blobs: counts.blobs,
        bytes,
        sha256,
    };
    Ok(Written { file, index: backup.index, summary })
}

/// A file that is gone when it is closed, whatever happens.
fn nameless(state: &Path) -> io::Result<File> {
    let path = state.join("backup.tmp");
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

/// Rows that came back.
fn rehearse(app: &App, folder: &Path, shares: &[RecoveryShare], draft: AuditDraft) -> Result<u64, Problem> {
    let Written { file, .. } = write(app, &[], draft.at_ms)?;
    // It stays in memory: what is due stays due.
    let escrow = AuditDraft { action: ActionKind::KeysEscrow, ..draft };
    let key_file = app.vault.unsealed()?.key_file(escrow).map_err(problem::from_key)?;
    let mut from = BufReader::new(file);
    let mut backups: [&mut dyn Read; 1] = [&mut from];
    let from = RestoreFrom { backups: &mut backups, key_file: &key_file, shares };
    // Nobody unseals what is thrown away: its passphrase is known to nobody.
    let passphrase = Secret::new(hex(&app.random::<32>()));
    let store = Store::restore(folder, from, &passphrase, KdfCost::Light, app.entropy.clone(), draft);
    let (store, restored) = store.map_err(problem::from_restore)?;
    let found = store.verify_all(&mut |_, _| {}).map_err(problem::from_read)?;
    store.close(draft).map_err(problem::from_seal)?;
    if found.is_clean() {
        return Ok(restored.rows);
    }
    let detail = format!("The restored copy does not hold: {} findings.", found.findings.len());
    Err(Problem::new(ErrorCode::Integrity, detail, "Stop the appliance and run: empathd verify"))
}

/// A folder that is removed when it is dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new(state: &Path) -> Result<Self, Problem> {
        sweep(state);
        let folder = state.join(SCRATCH);
        fs::DirBuilder::new().mode(0o700).create(&folder).map_err(|error| storage(&error))?;
        Ok(Self(folder))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::error!(kind = ?error.kind(), "the scratch folder of a drill could not be removed");
        }
    }
}

/// Removes what a drill that was killed left.
pub(crate) fn sweep(state: &Path) {
    let folder = state.join(SCRATCH);
    if folder.exists()
        && let Err(error) = fs::remove_dir_all(folder)
    {
        tracing::error!(kind = ?error.kind(), "the scratch folder of an earlier drill could not be removed");
    }
}

struct Hashing<R> {
    from: R,
    hash: Sha256,
    bytes: u64,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let taken = self.from.read(out)?;
        self.hash.update(&out[..taken]);
        self.bytes += taken as u64;
        Ok(taken)
    }
}

fn storage(error: &io::Error) -> Problem {
    let detail = format!("The state folder cannot hold a copy: {error}.");
    Problem::new(ErrorCode::Storage, detail, "Free some space: a backup needs as much as the store has.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::action::Action;
    use crate::admin::upload::ProgressSink;
    use crate::fixture::{Fixture, NOW_MS, ROOT, ask, passphrase};
    use empathd_proto::audit::{ActionKind, AuditObject};
    use empathd_proto::keys::{CheckState, EraseReason, KEY_FILE, Papers, Rekey};

    /// Takes in one conversation of a client that the source calls so.
    async fn put(app: &Arc<App>, name: &str, words: &str) {
        let line = format!(
            concat!(
                r#"{{"dialogue_id":"{}","messages":[{{"role":"user","content":"I have slept badly for weeks, and {} is on my mind."}},"#,
                r#"{{"role":"assistant","content":"That sounds exhausting. Tell me what a usual night looks like for you."}}]}}"#
            ),
            name, words
        );
        let (chunks, upload) = Upload::new(line.len() as u64, u64::MAX);
        chunks.send(line.into_bytes()).await.expect("taken");
        drop(chunks);
        let progress = ProgressSink::default();
        let ingest = Action::Ingest { file_name: "a.jsonl".into(), upload, dry_run: false, progress };
        let (reply, _) = ask(app, |_| ingest).await.expect("taken in");
        assert!(matches!(&reply, AdminReply::Ingested(report) if report.accepted == 1), "{reply:?}");
    }

    async fn shares(app: &Arc<App>) -> Vec<Secret> {
        let (reply, _) = ask(app, |_| Action::KeysRekey(Rekey::Shares)).await.expect("made");
        let AdminReply::Shares(Papers(shares)) = reply else { panic!("{reply:?}") };
        shares
    }

    async fn back_up(app: &Arc<App>, since: &[u8]) -> (BackupSummary, Vec<u8>, Vec<u8>) {
        let (chunks, index) = Upload::new(since.len() as u64, 1 << 20);
        if !since.is_empty() {
            chunks.send(since.to_vec()).await.expect("sent");
        }
        drop(chunks);
        let (reply, mut files) = ask(app, |files| Action::BackupCreate { index, files }).await.expect("made");
        let AdminReply::BackedUp(summary) = reply else { panic!("{reply:?}") };
        let (backup, index) = (files.remove(BACKUP_FILE).expect("there"), files.remove(INDEX_FILE).expect("there"));
        assert_eq!((summary.bytes, &summary.sha256), (backup.len() as u64, &hex(&Sha256::digest(&backup))));
        (summary, backup, index)
    }

    async fn state_of(app: &Arc<App>, name: &str) -> CheckState {
        let (reply, _) = ask(app, |_| Action::Doctor).await.expect("looked");
        let AdminReply::Checklist(checks) = reply else { panic!("{reply:?}") };
        assert!(checks.iter().all(|check| (check.state == CheckState::Ok) == check.next.is_empty()), "{checks:?}");
        checks.into_iter().find(|check| check.name == name).expect("in the list").state
    }

    #[tokio::test]
    async fn what_was_erased_stays_out_of_what_is_restored_and_a_key_file_stays_due() {
        let fixture = Fixture::unsealed("").await;
        let app = &fixture.app;
        put(app, "one", "the river").await;
        put(app, "other", "the orchard").await;
        let papers = shares(app).await;
        let (whole, first, index) = back_up(app, &[]).await;
        assert!(!whole.incremental);
        put(app, "other", "the harvest").await;
        let (part, second, _) = back_up(app, &index).await;
        assert!(part.incremental && part.rows < whole.rows, "{part:?}");
        assert_eq!(state_of(app, "key file").await, CheckState::Fail);
        let (_, files) = ask(app, |files| Action::KeysEscrow { files }).await.expect("made");
        assert!(files[KEY_FILE].len() > 100);
        assert_eq!(state_of(app, "key file").await, CheckState::Ok);

        let client = Secret::new("one".to_owned());
        let held = Action::ClientHold { client: client.clone(), held: true };
        app.perform(&ROOT, held).await.expect("held");
        let erase = |client: &Secret| Action::ClientErase { client: client.clone(), reason: EraseReason::Request };
        assert_eq!(app.perform(&ROOT, erase(&client)).await.expect_err("held").code, ErrorCode::Conflict);
        app.perform(&ROOT, Action::ClientHold { client: client.clone(), held: false }).await.expect("released");
        let (reply, _) = ask(app, |_| erase(&client)).await.expect("erased");
        let AdminReply::Erased(erased) = reply else { panic!("{reply:?}") };
        assert_eq!((erased.records, erased.reason), (1, EraseReason::Request));
        assert_eq!(app.perform(&ROOT, erase(&client)).await.expect_err("gone").code, ErrorCode::NotFound);
        assert_eq!(state_of(app, "key file").await, CheckState::Fail);
        let tail = app.vault.unsealed().expect("unsealed").audit_tail(50).expect("read");
        let entry = tail.iter().rfind(|entry| entry.action == ActionKind::ClientErase && entry.count == 1);
        assert_eq!(entry.expect("recorded").object, AuditObject::Client(erased.client));

        let (_, files) = ask(app, |files| Action::KeysEscrow { files }).await.expect("made");
        assert_eq!(state_of(app, "key file").await, CheckState::Ok);
        let papers = keys::shares(&papers[1..]).expect("two");
        let (mut first, mut second) = (first.as_slice(), second.as_slice());
        let mut backups: [&mut dyn Read; 2] = [&mut first, &mut second];
        let from = RestoreFrom { backups: &mut backups, key_file: &files[KEY_FILE], shares: &papers };
        let folder = tempfile::tempdir().expect("scratch");
        let draft = app.own_draft(ActionKind::Restore);
        let dir = folder.path().join("state");
        let restored = Store::restore(&dir, from, &passphrase(), KdfCost::Light, app.entropy.clone(), draft);
        let (store, restored) = restored.expect("restored");
        assert_eq!((restored.erased, store.read(|reader| reader.record_count()).expect("read")), (1, 2));
        assert!(store.read(|reader| reader.client("chat_messages:one")).expect("read").is_none());
    }

    #[tokio::test]
    async fn a_drill_restores_everything_leaves_nothing_and_is_told_of() {
        let fixture = Fixture::unsealed("").await;
        let app = &fixture.app;
        put(app, "one", "the river").await;
        let papers = shares(app).await;
        assert_eq!(state_of(app, "drill").await, CheckState::Warn);
        let one = Action::BackupDrill { shares: papers[..1].to_vec() };
        assert_eq!(app.perform(&ROOT, one).await.expect_err("one").code, ErrorCode::BadRequest);
        let (reply, _) = ask(app, |_| Action::BackupDrill { shares: papers[..2].to_vec() }).await.expect("drilled");
        let AdminReply::Drilled(drill) = reply else { panic!("{reply:?}") };
        assert!(drill.rows > 5 && drill.at_ms == NOW_MS, "{drill:?}");
        assert_eq!(state_of(app, "drill").await, CheckState::Ok);
        assert_eq!(state_of(app, "backup").await, CheckState::Fail, "a drill is no backup");
        let left: Vec<_> =
            fs::read_dir(fixture.folder.path()).expect("read").flatten().map(|e| e.file_name()).collect();
        assert!(!left.iter().any(|name| name == SCRATCH || name == "backup.tmp"), "{left:?}");
    }

    #[tokio::test]
    async fn two_papers_unseal_and_earlier_ones_do_not_after_new_ones_were_made() {
        let fixture = Fixture::unsealed("").await;
        let app = &fixture.app;
        let old = shares(app).await;
        let new = shares(app).await;
        app.perform(&ROOT, Action::KeysRotate).await.expect("rotated");
        app.perform(&ROOT, Action::Seal).await.expect("sealed");
        let unseal = |shares: &[Secret]| Action::UnsealShares { shares: shares.to_vec() };
        assert_eq!(app.perform(&ROOT, unseal(&old[..2])).await.expect_err("old").code, ErrorCode::WrongPassphrase);
        app.perform(&ROOT, unseal(&new[1..])).await.expect("unsealed");
        let (reply, _) = ask(app, |_| Action::KeysStatus).await.expect("looked");
        let AdminReply::Keys(report) = reply else { panic!("{reply:?}") };
        assert!(report.epoch >= 4 && report.ways_in == ["passphrase", "shares"], "{report:?}");
        let wrong = Rekey::Passphrase { present: Secret::new("not the passphrase".into()), new: passphrase() };
        let refused = app.perform(&ROOT, Action::KeysRekey(wrong)).await.expect_err("refused");
        assert_eq!(refused.code, ErrorCode::WrongPassphrase);
        let none = app.perform(&ROOT, Action::KeysRekey(Rekey::Credential { wanted: true })).await.expect_err("none");
        assert_eq!(none.code, ErrorCode::Conflict);
    }
}
