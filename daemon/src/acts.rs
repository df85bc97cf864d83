//! What the shorter actions do: state, seal, certificates, roster, audit. Who may ask, and the entry of what was only
//! read, is the business of `app.rs`; a change made here carries its own entry.

use crate::admin::upload::{ProgressSink, Upload};
use crate::app::{Acted, App};
use crate::certs::{
    self,
    identity::{parse_serial, serial_number},
};
use crate::engine::{Embedder, Ready};
use crate::problem::{self, Fault};
use crate::{adapters, care, inference, jobs, keys};
use empathd_proto::admin::{
    AdminReply, ApiRole, AuditVerdict, EmbedderState, MAX_AUDIT_TAIL, Progress, SealState, StatusReport,
};
use empathd_proto::audit::{ActionKind, AuditObject, Outcome, SignedCheckpoint, verify_consistency};
use empathd_proto::problem::{ErrorCode, Problem};
use empathd_proto::secret::Secret;
use empathd_store::{AuditDraft, Store, Unlock};
use std::sync::Arc;
use zeroize::Zeroizing;

/// Shortest passphrase that a store is made with, in characters.
const PASSPHRASE_CHARS_MIN: usize = 12;
/// Longest passphrase, in bytes.
const PASSPHRASE_BYTES_MAX: usize = 1024;
/// Largest roster, in bytes.
const ROSTER_BYTES_MAX: usize = 8 * 1024 * 1024;

pub(crate) async fn status(app: &Arc<App>) -> Result<Acted, Problem> {
    let ready = app.engine.ready().ok();
    let (embedder, embedder_problem) = embedder(ready.as_deref());
    let mut report = StatusReport {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        state: app.vault.state(),
        api: app.api().map(|address| address.to_string()),
        engine: app.engine.state(),
        model: ready.as_ref().map(|ready| ready.base.name.clone()),
        adapter: app.adapters.active(),
        records: None,
        audit_entries: None,
        checkpoint: None,
        train: app.training.latest(),
        serving: ready.and_then(|ready| ready.pulse.status()).map(|status| status.serving),
        embedder,
        embedder_problem,
        care: None,
        uptime_s: app.clock.uptime().as_secs(),
        scrub: app.scrub.report(app.clock.uptime()),
    };
    if report.state == SealState::Unsealed {
        report = app
            .blocking(move |app| {
                let store = app.vault.unsealed()?;
                report.records = Some(store.read(|reader| reader.record_count()).map_err(problem::from_read)?);
                let checkpoint = store.checkpoint().map_err(problem::from_read)?;
                report.audit_entries = checkpoint.verify().ok().map(|tree| tree.size);
                report.checkpoint = Some(checkpoint);
                report.care = Some(care::report(&store)?);
                Ok(report)
            })
            .await?;
    }
    Ok(Acted::unrecorded(AdminReply::Status(report), 0))
}

/// The model of embeddings in a word, and what is wrong with it.
fn embedder(ready: Option<&Ready>) -> (EmbedderState, Option<String>) {
    match ready.map_or(Embedder::None, Ready::embedder) {
        Embedder::None => (EmbedderState::None, None),
        Embedder::Loading => (EmbedderState::Loading, None),
        Embedder::Ready { .. } => (EmbedderState::Ready, None),
        Embedder::Failed(why) => (EmbedderState::Failed, Some(why)),
    }
}

pub(crate) async fn init(app: &Arc<App>, passphrase: Secret, draft: AuditDraft) -> Result<Acted, Problem> {
    fit_passphrase(&passphrase)?;
    let (store, shares) = app
        .blocking(move |app| {
            let store = app.vault.create(&passphrase, draft)?;
            let draft = AuditDraft { action: ActionKind::KeysRekey, ..draft };
            let shares = store.recovery_shares(draft).map_err(problem::from_key)?;
            Ok((store, keys::papers(&shares)))
        })
        .await?;
    opened(app).await?;
    Ok(Acted::recorded(AdminReply::Initialised { store: store.id(), shares }))
}

/// Whether a passphrase may open a store from now on.
pub(crate) fn fit_passphrase(passphrase: &Secret) -> Result<(), Problem> {
    let chars = passphrase.expose().chars().count();
    if passphrase.expose().len() > PASSPHRASE_BYTES_MAX {
        let detail = format!("The passphrase is longer than {PASSPHRASE_BYTES_MAX} bytes.");
        return Err(Problem::new(ErrorCode::TooLarge, detail, "Choose a shorter one: several words are enough."));
    }
    if chars < PASSPHRASE_CHARS_MIN {
        let detail = format!("The passphrase has {chars} characters, at least {PASSPHRASE_CHARS_MIN} are needed.");
        return Err(Problem::new(ErrorCode::BadRequest, detail, "Choose a longer one: several words are best."));
    }
    Ok(())
}

pub(crate) async fn unseal(app: &Arc<App>, passphrase: Secret, draft: AuditDraft) -> Result<Acted, Problem> {
    app.blocking(move |app| app.vault.unseal(Unlock::Passphrase(&passphrase), draft)).await?;
    opened(app).await?;
    Ok(Acted::recorded(AdminReply::Ok))
}

pub(crate) async fn unseal_shares(app: &Arc<App>, shares: Vec<Secret>, draft: AuditDraft) -> Result<Acted, Problem> {
    let shares = keys::shares(&shares)?;
    app.blocking(move |app| app.vault.unseal(Unlock::Shares(&shares), draft)).await?;
    opened(app).await?;
    Ok(Acted::recorded(AdminReply::Ok))
}

/// Unseals with the credential that the service was started with, if there is one and the store knows it. The appliance
/// stays sealed when that fails: a person can still unseal it.
pub(crate) async fn unseal_by_credential(app: &Arc<App>) {
    if app.config.credential.is_none() || app.vault.state() != SealState::Sealed {
        return;
    }
    let draft = app.own_draft(ActionKind::Unseal);
    let unsealed = app.blocking(move |app| {
        let credential = keys::credential(app)?;
        app.vault.unseal(Unlock::Credential(&credential), draft)
    });
    let done = match unsealed.await {
        Ok(_) => opened(app).await,
        Err(problem) => Err(problem),
    };
    match done {
        Ok(()) => tracing::info!("unsealed by the credential of the service"),
        Err(problem) => {
            tracing::error!(code = %problem.code, "the credential did not unseal the store");
            app.refusals.push(AuditDraft { outcome: Outcome::Denied(problem.code), ..draft });
        }
    }
}

/// What follows the keys into memory: waiting refusals, jobs that a stop left running, the active adapter.
async fn opened(app: &Arc<App>) -> Result<(), Problem> {
    app.blocking(|app| {
        let store = app.vault.unsealed()?;
        let refusals = app.refusals.take();
        if !refusals.is_empty() {
            store.record_audit(&refusals).map_err(problem::from_write)?;
        }
        jobs::train::recall(app, &store)?;
        adapters::recall(app, &store)
    })
    .await?;
    inference::open(app);
    Ok(())
}

/// Takes the keys out of memory, after training has left a checkpoint. Also the orderly stop, with its own draft.
pub(crate) async fn seal(app: &Arc<App>, draft: AuditDraft) -> Result<Acted, Problem> {
    jobs::train::pause(app).await;
    adapters::forget(app).await;
    // A drill under way leaves nothing in the state folder before the stop is sealed.
    let _alone = app.copying.acquire().await;
    let sealed = app.blocking(move |app| app.vault.seal(draft)).await;
    inference::close(app).await;
    sealed?;
    app.training.forget();
    Ok(Acted::recorded(AdminReply::Ok))
}

pub(crate) async fn cert_enroll(
    app: &Arc<App>,
    name: String,
    role: ApiRole,
    valid_days: u16,
    draft: AuditDraft,
) -> Result<Acted, Problem> {
    let enrolled = app
        .blocking(move |app| {
            let (store, authority) = (app.vault.unsealed()?, app.vault.authority()?);
            let enrolled = store.change(draft, |writer, draft| -> Result<_, Fault> {
                let at_ms = draft.at_ms;
                let cert = certs::enroll(writer, &authority, &name, role, valid_days, at_ms, &*app.entropy)?;
                draft.object = traced(&cert.summary.serial);
                Ok(cert)
            })?;
            app.vault.refresh_certificates(&store)?;
            Ok(enrolled)
        })
        .await?;
    Ok(Acted::recorded(AdminReply::Enrolled(enrolled)))
}

pub(crate) async fn cert_list(app: &Arc<App>) -> Result<Acted, Problem> {
    let certs = app.blocking(|app| Ok(app.vault.unsealed()?.read(certs::list)?)).await?;
    let count = certs.len() as u64;
    Ok(Acted::unrecorded(AdminReply::Certs(certs), count))
}

pub(crate) async fn cert_revoke(app: &Arc<App>, serial: String, draft: AuditDraft) -> Result<Acted, Problem> {
    app.blocking(move |app| {
        let store = app.vault.unsealed()?;
        store.change(draft, |writer, draft| -> Result<_, Fault> {
            let cert = certs::revoke(writer, &serial, draft.at_ms)?;
            draft.object = traced(&cert.serial);
            Ok(())
        })?;
        Ok(app.vault.refresh_certificates(&store)?)
    })
    .await?;
    inference::forget(app).await;
    Ok(Acted::recorded(AdminReply::Ok))
}

/// The certificate as the trail names it.
fn traced(serial: &str) -> AuditObject {
    AuditObject::Certificate(parse_serial(serial).map_or(0, |serial| serial_number(&serial)))
}

pub(crate) async fn roster_set(app: &Arc<App>, upload: Upload, draft: AuditDraft) -> Result<Acted, Problem> {
    let bytes = Zeroizing::new(upload.collect().await?);
    if bytes.len() > ROSTER_BYTES_MAX {
        let detail = format!("The roster has {} bytes, the limit is {ROSTER_BYTES_MAX}.", bytes.len());
        return Err(Problem::new(ErrorCode::TooLarge, detail, "Keep one name a line and leave out the rest."));
    }
    let names = app.blocking(move |app| jobs::roster::set(&*app.vault.unsealed()?, &bytes, draft)).await?;
    Ok(Acted::recorded(AdminReply::Roster { names }))
}

pub(crate) async fn audit_tail(app: &Arc<App>, count: u32) -> Result<Acted, Problem> {
    if count == 0 || count > MAX_AUDIT_TAIL {
        let detail = format!("The number of entries is {count}, allowed is 1 to {MAX_AUDIT_TAIL}.");
        return Err(Problem::new(ErrorCode::BadRequest, detail, "Ask for fewer entries."));
    }
    let tail = move |app: &Arc<App>| app.vault.unsealed()?.audit_tail(count).map_err(problem::from_read);
    let entries = app.blocking(tail).await?;
    let count = entries.len() as u64;
    Ok(Acted::unrecorded(AdminReply::AuditEntries(entries), count))
}

pub(crate) async fn audit_verify(
    app: &Arc<App>,
    known: Option<SignedCheckpoint>,
    progress: ProgressSink,
) -> Result<Acted, Problem> {
    let verdict = app.blocking(move |app| verdict(&*app.vault.unsealed()?, known.as_ref(), &progress)).await?;
    let count = verdict.entries;
    Ok(Acted::unrecorded(AdminReply::AuditVerified(verdict), count))
}

fn verdict(store: &Store, known: Option<&SignedCheckpoint>, progress: &ProgressSink) -> Result<AuditVerdict, Problem> {
    let mut report = |done, total| progress.send(Progress::Audit { done, total });
    let found = store.verify_audit(&mut report).map_err(problem::from_read)?;
    let verified = found.verified();
    let mut findings = found.findings;
    if !verified && findings.is_empty() {
        findings.push("the checkpoint of the trail is missing".to_owned());
    }
    let extends_known = match (known, &found.checkpoint) {
        (None, _) => None,
        (Some(known), Some(now)) => Some(extends(store, known, now)?),
        (Some(_), None) => Some(false),
    };
    if extends_known == Some(false) {
        findings.push("the trail does not extend the checkpoint that this tool has seen".to_owned());
    }
    // A trail without a checkpoint was found out above; the empty one fits nothing.
    let checkpoint =
        found.checkpoint.unwrap_or_else(|| SignedCheckpoint { note: String::new(), public_key: String::new() });
    Ok(AuditVerdict { entries: found.entries, verified: findings.is_empty(), extends_known, findings, checkpoint })
}

/// Whether the trail at `now` extends the one at `known`, both signed by the same key.
fn extends(store: &Store, known: &SignedCheckpoint, now: &SignedCheckpoint) -> Result<bool, Problem> {
    let (Ok(old), Ok(new)) = (known.verify(), now.verify()) else { return Ok(false) };
    if known.public_key != now.public_key || old.origin != new.origin || old.size > new.size {
        return Ok(false);
    }
    let proof = store.consistency_proof(old.size).map_err(problem::from_read)?;
    Ok(verify_consistency(old.size, &old.root, new.size, &new.root, &proof))
}
