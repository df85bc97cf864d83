//! Keys as an administrator handles them: state, new epochs, ways in, key files. How keys are kept is not known here.

use crate::acts::fit_passphrase;
use crate::admin::upload::FileSink;
use crate::app::{Acted, App};
use crate::care::{self, Due};
use crate::problem;
use empathd_proto::admin::AdminReply;
use empathd_proto::keys::{EscrowSummary, KEY_FILE, KeysReport, MAX_SHARES, Papers, Rekey};
use empathd_proto::manifest::FileFacts;
use empathd_proto::problem::{ErrorCode, Problem};
use empathd_proto::secret::Secret;
use empathd_store::{AuditDraft, RecoveryShare, Unlock, UnlockSource};
use std::io::Read;
use std::sync::Arc;
use zeroize::Zeroizing;

/// Longest credential that is read: systemd's own limit.
const CREDENTIAL_BYTES_MAX: u64 = 1024 * 1024;

/// How keys and copies stand.
pub(crate) async fn status(app: &Arc<App>) -> Result<Acted, Problem> {
    let report = app
        .blocking(|app| {
            let store = app.vault.unsealed()?;
            let ways_in = store.unlock_sources().into_iter().map(|way| word(way).to_owned()).collect();
            Ok(KeysReport {
                store: store.id(),
                epoch: store.epoch_number().map_err(problem::from_write)?,
                ways_in,
                locked: store.keys_are_locked_in_memory(),
                care: care::report(&store)?,
            })
        })
        .await?;
    Ok(Acted::unrecorded(AdminReply::Keys(report), 0))
}

fn word(way: UnlockSource) -> &'static str {
    match way {
        UnlockSource::Passphrase => "passphrase",
        UnlockSource::Credential => "credential",
        UnlockSource::Shares => "shares",
    }
}

/// Begins a new epoch.
pub(crate) async fn rotate(app: &Arc<App>, draft: AuditDraft) -> Result<Acted, Problem> {
    app.blocking(move |app| app.vault.unsealed()?.rotate_keys(draft).map_err(problem::from_key)).await?;
    Ok(Acted::recorded(AdminReply::Ok))
}

/// Exchanges, makes or takes away a way in.
pub(crate) async fn rekey(app: &Arc<App>, rekey: Rekey, draft: AuditDraft) -> Result<Acted, Problem> {
    if let Rekey::Passphrase { new, .. } = &rekey {
        fit_passphrase(new)?;
    }
    let reply = app.blocking(move |app| exchange(app, &rekey, draft)).await?;
    Ok(Acted::recorded(reply))
}

fn exchange(app: &App, rekey: &Rekey, draft: AuditDraft) -> Result<AdminReply, Problem> {
    let store = app.vault.unsealed()?;
    match rekey {
        Rekey::Passphrase { present, new } => {
            let present = Unlock::Passphrase(present);
            store.change_passphrase(present, new, app.vault.cost, draft).map_err(problem::from_key)?;
        }
        Rekey::Shares => {
            let due = |writer: &mut empathd_store::Writer<'_>| care::change(writer, |care| care.is_due(Due::Shares));
            let shares = store.recovery_shares_and(draft, due).map_err(problem::from_key)?;
            return Ok(AdminReply::Shares(papers(&shares)));
        }
        Rekey::Credential { wanted: false } => store.set_credential(None, draft).map_err(problem::from_key)?,
        Rekey::Credential { wanted: true } => {
            let credential = credential(app)?;
            store.set_credential(Some(&credential), draft).map_err(problem::from_key)?;
        }
    }
    Ok(AdminReply::Ok)
}

/// Makes a key file and gives it out.
pub(crate) async fn escrow(app: &Arc<App>, files: FileSink, draft: AuditDraft) -> Result<Acted, Problem> {
    let bytes = app
        .blocking(move |app| {
            let made = |writer: &mut empathd_store::Writer<'_>| {
                care::change(writer, |care| (care.key_file_at_ms, care.due) = (Some(draft.at_ms), None))
            };
            app.vault.unsealed()?.key_file_and(draft, made).map_err(problem::from_key)
        })
        .await?;
    let FileFacts { bytes: length, sha256 } = FileFacts::of(&bytes);
    files.send(KEY_FILE.to_owned(), bytes).await?;
    Ok(Acted::recorded(AdminReply::Escrowed(EscrowSummary { bytes: length, sha256, at_ms: draft.at_ms })))
}

/// The credential that the service was started with.
pub(crate) fn credential(app: &App) -> Result<Zeroizing<Vec<u8>>, Problem> {
    let next = "Add LoadCredentialEncrypted=empathd.unseal to the unit, as docs/INSTALL.md shows, and restart it.";
    let Some(path) = &app.config.credential else {
        return Err(Problem::new(ErrorCode::Conflict, "The service was started without a credential.", next));
    };
    let mut bytes = Zeroizing::new(Vec::new());
    let read = std::fs::File::open(path).and_then(|file| file.take(CREDENTIAL_BYTES_MAX).read_to_end(&mut bytes));
    match read {
        Ok(_) => Ok(bytes),
        Err(error) => {
            Err(Problem::new(ErrorCode::Storage, format!("The credential cannot be read: {}.", error.kind()), next))
        }
    }
}

/// Shares as they are on paper.
pub(crate) fn papers(shares: &[RecoveryShare]) -> Papers {
    Papers(shares.iter().map(RecoveryShare::to_text).collect())
}

/// The shares that somebody typed.
///
/// # Errors
/// [`ErrorCode::BadRequest`] says which group of which share to compare.
pub(crate) fn shares(texts: &[Secret]) -> Result<Vec<RecoveryShare>, Problem> {
    if texts.len() < empathd_store::SHARES_NEEDED || texts.len() > MAX_SHARES {
        let detail = "Two or three recovery shares are needed.";
        return Err(Problem::new(ErrorCode::BadRequest, detail, "Give two different papers of the three."));
    }
    let read = |(at, text): (usize, &Secret)| {
        RecoveryShare::from_text(text).map_err(|error| {
            let detail = format!("Share {} of those given: {error}.", at + 1);
            Problem::new(ErrorCode::BadRequest, detail, "Type it again from the paper.")
        })
    };
    texts.iter().enumerate().map(read).collect()
}
