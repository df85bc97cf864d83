//! The appliance: authorises, acts and audits each action, once, here. The doors (`http`, `admin`) only translate; what
//! an action does is known to the modules it calls.

use crate::action::{Action, Needs};
use crate::actor::Actor;
use crate::adapters::Adapters;
use crate::clock::Clock;
use crate::config::Config;
use crate::engine::Engine;
use crate::inference::{Answer, Inference};
use crate::jobs;
use crate::problem;
use crate::refusals::Refusals;
use crate::scrub::Scrub;
use crate::vault::Vault;
use crate::{acts, backups, clients, inference, keys};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use empathd_proto::admin::{AdminReply, EngineState, SealState};
use empathd_proto::audit::{ActionKind, AuditObject, Outcome, Principal};
use empathd_proto::chat::ModelList;
use empathd_proto::generate::Embedded;
use empathd_proto::keys::Care;
use empathd_proto::problem::{ErrorCode, Problem};
use empathd_store::{AuditDraft, Entropy, KdfCost};
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

/// The appliance.
pub struct App {
    pub(crate) config: Config,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) entropy: Arc<dyn Entropy>,
    pub(crate) vault: Vault,
    pub(crate) engine: Engine,
    pub(crate) adapters: Adapters,
    pub(crate) training: jobs::train::Desk,
    pub(crate) ingesting: Semaphore,
    pub(crate) copying: Semaphore,
    pub(crate) inference: Inference,
    noting: tokio::sync::Mutex<()>,
    pub(crate) refusals: Refusals,
    pub(crate) scrub: Scrub,
    pub(crate) stopping: CancellationToken,
    api: OnceLock<SocketAddr>,
}

/// What an action gives back.
#[derive(Debug)]
pub enum Reply {
    /// To a request of the admin socket.
    Admin(Box<AdminReply>),
    /// To [`Action::Chat`] and [`Action::Complete`].
    Answer(Answer),
    /// To [`Action::Embed`].
    Embedded(Embedded),
    /// To [`Action::ModelList`].
    Models(ModelList),
    /// To [`Action::Metrics`] and [`Action::Health`]: the caller may read them.
    Granted,
}

/// Where an enrolled certificate stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CertState {
    /// Enrolled.
    Valid,
    /// Enrolled once, refused now.
    Revoked,
    /// Not of this appliance, expired, or the store is sealed.
    Unknown,
}

/// Whether the appliance can do its work, for `/readyz`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Readiness {
    /// State of the store.
    pub store: SealState,
    /// State of the engine.
    pub engine: EngineState,
    /// Whether it is draining before a stop.
    pub draining: bool,
}

impl Readiness {
    /// Whether everything works.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.store == SealState::Unsealed && self.engine == EngineState::Ready && !self.draining
    }
}

/// What an action did, for the trail: [`App::perform`] records it unless that was done with the change itself.
pub(crate) struct Acted {
    reply: Reply,
    object: AuditObject,
    count: u64,
    recorded: bool,
}

impl Acted {
    /// Something was read or done that is still to be recorded.
    pub(crate) fn unrecorded(reply: AdminReply, count: u64) -> Self {
        Self { reply: Reply::Admin(Box::new(reply)), object: AuditObject::None, count, recorded: false }
    }

    /// Something was changed, and its entry is in the same transaction.
    pub(crate) fn recorded(reply: AdminReply) -> Self {
        Self { reply: Reply::Admin(Box::new(reply)), object: AuditObject::None, count: 0, recorded: true }
    }

    /// Names what it was done to.
    pub(crate) fn about(self, object: AuditObject) -> Self {
        Self { object, ..self }
    }

    fn outside(reply: Reply) -> Self {
        Self { reply, object: AuditObject::None, count: 0, recorded: false }
    }
}

impl App {
    /// The appliance over a state folder.
    ///
    /// # Errors
    /// The store in the folder cannot be opened by this program.
    pub fn new(
        config: Config,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
        cost: KdfCost,
        engine: Engine,
    ) -> Result<Arc<Self>, Problem> {
        let names = config.api.server_names.clone();
        let inference = Inference::new(&config.serving, &entropy);
        let inference = inference.map_err(|_| problem::defect("There is no memory for the keys of kept answers."))?;
        Ok(Arc::new(Self {
            vault: Vault::new(config.state.clone(), names, cost, entropy.clone())?,
            adapters: Adapters::default(),
            training: jobs::train::Desk::default(),
            ingesting: Semaphore::new(1),
            copying: Semaphore::new(1),
            inference,
            noting: tokio::sync::Mutex::default(),
            refusals: Refusals::default(),
            scrub: Scrub::default(),
            stopping: CancellationToken::new(),
            api: OnceLock::new(),
            config,
            clock,
            entropy,
            engine,
        }))
    }

    /// Authorises, acts and audits.
    ///
    /// # Errors
    /// The problem to show to the caller; it was recorded.
    pub async fn perform(self: &Arc<Self>, actor: &Actor, action: Action) -> Result<Reply, Problem> {
        let draft = self.draft(actor.principal(), action.kind());
        if let Err(problem) = self.authorise(actor, &action) {
            self.note(AuditDraft { outcome: Outcome::Denied(problem.code), ..draft }).await;
            return Err(problem);
        }
        let leaves_trace = action.leaves_trace();
        match Box::pin(self.act(actor, action, draft)).await {
            Ok(acted) => {
                if leaves_trace && !acted.recorded {
                    self.record(AuditDraft { object: acted.object, count: acted.count, ..draft }).await?;
                }
                Ok(acted.reply)
            }
            Err(problem) => {
                // A wrong passphrase was refused before anything was done.
                let denied = problem.code == ErrorCode::WrongPassphrase;
                let outcome = if denied { Outcome::Denied(problem.code) } else { Outcome::Failed(problem.code) };
                let draft = AuditDraft { outcome, ..draft };
                // Nothing was shown: who comes when there is no room need not wait for the disk.
                if problem.code == ErrorCode::Busy {
                    self.note_soon(draft)
                } else {
                    self.note(draft).await
                }
                Err(problem)
            }
        }
    }

    fn authorise(&self, actor: &Actor, action: &Action) -> Result<(), Problem> {
        self.recognise(actor)?;
        if matches!(action, Action::Unknown) {
            return Err(Problem::new(ErrorCode::NotFound, "There is no such thing here.", ""));
        }
        if !action.allowed(actor) {
            let detail = format!("This caller may not ask for {}.", action.kind());
            return Err(Problem::new(ErrorCode::Forbidden, detail, "Ask an administrator of the appliance."));
        }
        match action.needs() {
            Needs::Nothing => {}
            Needs::Initialised => drop(self.vault.store()?),
            Needs::Unsealed => drop(self.vault.unsealed()?),
        }
        let begins_work = action.begins_work();
        if begins_work && self.stopping.is_cancelled() {
            return Err(Problem::new(
                ErrorCode::ShuttingDown,
                "The appliance is stopping.",
                "Try again after its start.",
            ));
        }
        Ok(())
    }

    /// Whether this caller is one at all: a certificate may have been revoked, or have expired, since its connection began.
    fn recognise(&self, actor: &Actor) -> Result<(), Problem> {
        let next = "Ask an administrator for a new certificate: empathctl cert enroll";
        match actor {
            Actor::Stranger { .. } => {
                Err(Problem::new(ErrorCode::Forbidden, "This certificate names no role here.", next))
            }
            // Sealed, no certificate is known; that it is sealed says more.
            Actor::Certificate { serial, .. }
                if self.vault.unsealed().is_ok() && self.certificate(serial) != CertState::Valid =>
            {
                Err(Problem::new(ErrorCode::Unauthenticated, "This certificate is not valid here.", next))
            }
            _ => Ok(()),
        }
    }

    async fn act(self: &Arc<Self>, actor: &Actor, action: Action, draft: AuditDraft) -> Result<Acted, Problem> {
        match action {
            Action::Status => acts::status(self).await,
            Action::Init { passphrase } => acts::init(self, passphrase, draft).await,
            Action::Unseal { passphrase } => acts::unseal(self, passphrase, draft).await,
            Action::Seal => acts::seal(self, draft).await,
            Action::CertEnroll { name, role, valid_days } => {
                acts::cert_enroll(self, name, role, valid_days, draft).await
            }
            Action::CertList => acts::cert_list(self).await,
            Action::CertRevoke { serial } => acts::cert_revoke(self, serial, draft).await,
            Action::RosterSet { upload } => acts::roster_set(self, upload, draft).await,
            Action::Ingest { file_name, upload, dry_run, progress } => {
                jobs::ingest::run(self, &file_name, upload, dry_run, progress).await
            }
            Action::DatasetCut { validation_percent, seed } => {
                jobs::cut::cut(self, validation_percent, seed, draft).await
            }
            Action::DatasetList => jobs::cut::list(self).await,
            Action::TrainStart(options) => jobs::train::start(self, options, draft).await,
            Action::TrainStatus { job, follow, progress } => jobs::train::status(self, job, follow, progress).await,
            Action::TrainReport { job } => jobs::report::report(self, job).await,
            Action::TrainStop => jobs::train::stop(self).await,
            Action::AdapterList => crate::adapters::list(self).await,
            Action::AdapterPromote { id } => crate::adapters::promote(self, id, draft).await,
            Action::AdapterExport { id, files } => crate::adapters::export::export(self, id, files, draft).await,
            Action::AdapterImport { options, upload } => jobs::import::start(self, options, upload, draft).await,
            Action::AdapterRollback => crate::adapters::rollback(self, draft).await,
            Action::AuditTail { count } => acts::audit_tail(self, count).await,
            Action::AuditExport { files } => crate::trail::export(self, files, draft).await,
            Action::AuditVerify { known, progress } => acts::audit_verify(self, known, progress).await,
            Action::UnsealShares { shares } => acts::unseal_shares(self, shares, draft).await,
            Action::KeysStatus => keys::status(self).await,
            Action::KeysRotate => keys::rotate(self, draft).await,
            Action::KeysRekey(rekey) => keys::rekey(self, rekey, draft).await,
            Action::KeysEscrow { files } => keys::escrow(self, files, draft).await,
            Action::ClientErase { client, reason } => clients::erase(self, client, reason, draft).await,
            Action::ClientHold { client, held } => clients::hold(self, client, held, draft).await,
            Action::ClientExport { client, files } => clients::export(self, client, files, draft).await,
            Action::BackupCreate { index, files } => backups::create(self, index, files, draft).await,
            Action::BackupDrill { shares } => backups::drill(self, shares, draft).await,
            Action::Doctor => crate::doctor::run(self).await,
            Action::Chat(call) | Action::Complete(call) => {
                Ok(Acted::outside(Reply::Answer(inference::answer(self, actor, *call).await?)))
            }
            Action::Embed(call) => {
                let count = call.texts.len() as u64;
                let reply = Reply::Embedded(inference::embed::embed(self, call).await?);
                Ok(Acted { count, ..Acted::outside(reply) })
            }
            Action::ModelList => Ok(Acted::outside(Reply::Models(inference::models(self)?))),
            Action::Metrics | Action::Health => Ok(Acted::outside(Reply::Granted)),
            Action::Unknown => Err(problem::defect("An action that nobody may ask for was authorised.")),
        }
    }

    /// The entry of what this principal asks for now.
    pub(crate) fn draft(&self, principal: Principal, action: ActionKind) -> AuditDraft {
        let at_ms = self.clock.now_ms();
        AuditDraft { at_ms, principal, action, outcome: Outcome::Done, object: AuditObject::None, count: 0 }
    }

    /// The entry of something the appliance does by itself.
    pub(crate) fn own_draft(&self, action: ActionKind) -> AuditDraft {
        self.draft(Actor::Appliance.principal(), action)
    }

    /// Commits an entry: no audit, no bytes. Sealed, there is nothing to record but that the state was asked for.
    async fn record(self: &Arc<Self>, draft: AuditDraft) -> Result<(), Problem> {
        let Ok(store) = self.vault.unsealed() else { return Ok(()) };
        self.blocking(move |_| store.record_audit(&[draft]).map_err(problem::from_write)).await
    }

    /// Records a refusal or failure; what is told to the caller does not depend on it.
    async fn note(self: &Arc<Self>, draft: AuditDraft) {
        if self.vault.unsealed().is_err() {
            self.refusals.push(draft);
        } else if let Err(problem) = self.record(draft).await {
            tracing::error!(code = %problem.code, kind = %draft.action, "a refusal could not be recorded");
        }
    }

    /// Records a refusal together with those that come meanwhile.
    fn note_soon(self: &Arc<Self>, draft: AuditDraft) {
        self.refusals.push(draft);
        let app = self.clone();
        tokio::spawn(async move {
            let _one_at_a_time = app.noting.lock().await;
            let Ok(store) = app.vault.unsealed() else { return };
            let drafts = app.refusals.take();
            let noted = app.blocking(move |_| store.record_audit(&drafts).map_err(problem::from_write)).await;
            if let Err(problem) = noted {
                tracing::error!(code = %problem.code, "refusals could not be recorded");
            }
        });
    }

    /// Runs what blocks on a thread where that may be.
    pub(crate) async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Arc<Self>) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        let app = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&app)).await;
        done.unwrap_or_else(|_| Err(problem::defect("A part of the appliance ended unexpectedly.")))
    }

    /// Fresh random bytes.
    pub(crate) fn random<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.entropy.fill(&mut bytes);
        bytes
    }

    /// How the API is spoken to; `None` while there are no keys, and then each connection is closed at once.
    #[must_use]
    pub fn tls_config(&self) -> Option<Arc<rustls::ServerConfig>> {
        self.vault.tls()
    }

    /// Where the certificate with this serial number (hexadecimal) stands. Asked at the handshake and at every request.
    #[must_use]
    pub fn certificate(&self, serial: &str) -> CertState {
        match self.vault.certificate(serial) {
            None => CertState::Unknown,
            Some(cert) if cert.revoked_at_ms.is_some() => CertState::Revoked,
            Some(cert) if cert.not_after_ms <= self.clock.now_ms() => CertState::Unknown,
            Some(_) => CertState::Valid,
        }
    }

    /// A counter that changes whenever [`App::certificate`] may answer otherwise: live connections then ask again.
    #[must_use]
    pub fn revocations(&self) -> watch::Receiver<u64> {
        self.vault.changes()
    }

    /// Whether the appliance can do its work.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        Readiness { store: self.vault.state(), engine: self.engine.state(), draining: self.stopping.is_cancelled() }
    }

    /// Sealed records and audit entries; `None` while sealed.
    #[must_use]
    pub fn counts(&self) -> Option<(u64, u64)> {
        let store = self.vault.unsealed().ok()?;
        let records = store.read(|reader| reader.record_count()).ok()?;
        let entries = store.checkpoint().ok()?.verify().ok()?.size;
        Some((records, entries))
    }

    /// When copies were last made; `None` while sealed.
    #[must_use]
    pub fn care(&self) -> Option<Care> {
        crate::care::report(&*self.vault.unsealed().ok()?).ok()
    }

    /// The newest audit checkpoint for the header `Empathd-Audit-Checkpoint`: the signed note in base64.
    #[must_use]
    pub fn checkpoint_note(&self) -> Option<String> {
        let checkpoint = self.vault.unsealed().ok()?.checkpoint().ok()?;
        Some(STANDARD.encode(checkpoint.note))
    }

    /// Milliseconds since the Unix epoch.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.clock.now_ms()
    }

    /// Says where the API listens, once it does.
    pub fn set_api(&self, address: SocketAddr) {
        let _ = self.api.set(address);
    }

    /// Where the API listens.
    #[must_use]
    pub fn api(&self) -> Option<SocketAddr> {
        self.api.get().copied()
    }

    /// From here on no new work is taken.
    pub fn begin_stop(&self) {
        self.stopping.cancel();
    }

    /// Has a running training job leave a checkpoint and end.
    pub async fn pause_training(self: &Arc<Self>) {
        jobs::train::pause(self).await;
    }

    /// Orderly stop: the keys leave memory and the state is sealed.
    pub async fn stop(self: &Arc<Self>) {
        self.begin_stop();
        if self.vault.unsealed().is_err() {
            return;
        }
        let draft = self.own_draft(ActionKind::Stop);
        if let Err(problem) = acts::seal(self, draft).await {
            tracing::error!(code = %problem.code, reason = problem.detail, "the stop could not be recorded");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actor::AdminRole;
    use crate::fixture::{Fixture, ROOT, passphrase};
    use empathd_proto::admin::ApiRole;
    use empathd_proto::audit::AuditEntry;
    use empathd_proto::secret::Secret;

    fn tail(fixture: &Fixture) -> Vec<AuditEntry> {
        fixture.app.vault.unsealed().expect("unsealed").audit_tail(1000).expect("a tail")
    }

    fn of(entries: &[AuditEntry], kind: ActionKind) -> Vec<Outcome> {
        entries.iter().filter(|entry| entry.action == kind).map(|entry| entry.outcome).collect()
    }

    async fn code(fixture: &Fixture, actor: &Actor, action: Action) -> ErrorCode {
        fixture.app.perform(actor, action).await.expect_err("refused").code
    }

    #[tokio::test]
    async fn every_action_leaves_exactly_one_entry_however_it_ends() {
        let fixture = Fixture::unsealed("").await;
        let app = &fixture.app;
        let enroll = |days| Action::CertEnroll { name: "ehr".into(), role: ApiRole::Ehr, valid_days: days };
        app.perform(&ROOT, Action::CertList).await.expect("read");
        app.perform(&ROOT, enroll(30)).await.expect("changed");
        assert_eq!(code(&fixture, &ROOT, enroll(0)).await, ErrorCode::BadRequest);
        let observer = Actor::LocalUser { uid: 1000, role: AdminRole::Observer };
        assert_eq!(code(&fixture, &observer, Action::AuditTail { count: 1 }).await, ErrorCode::Forbidden);
        assert_eq!(code(&fixture, &ROOT, Action::Unknown).await, ErrorCode::NotFound);
        let entries = tail(&fixture);
        assert_eq!(of(&entries, ActionKind::Init), [Outcome::Done]);
        assert_eq!(of(&entries, ActionKind::CertList), [Outcome::Done]);
        // The first one is the authority itself, made at init.
        assert_eq!(
            of(&entries, ActionKind::CertEnroll),
            [Outcome::Done, Outcome::Done, Outcome::Failed(ErrorCode::BadRequest)]
        );
        assert_eq!(of(&entries, ActionKind::AuditTail), [Outcome::Denied(ErrorCode::Forbidden)]);
        assert_eq!(of(&entries, ActionKind::Unknown), [Outcome::Denied(ErrorCode::NotFound)]);
        let last = entries.iter().find(|entry| entry.action == ActionKind::AuditTail).expect("recorded");
        assert_eq!(last.principal, observer.principal());
    }

    #[tokio::test]
    async fn sealed_it_answers_its_state_and_refusals_enter_the_trail_at_the_next_unsealing() {
        let fixture = Fixture::unsealed("").await;
        let app = &fixture.app;
        app.perform(&ROOT, Action::Seal).await.expect("sealed");
        assert!(app.tls_config().is_none() && app.checkpoint_note().is_none() && app.counts().is_none());
        assert!(app.perform(&ROOT, Action::Status).await.is_ok());
        assert_eq!(code(&fixture, &ROOT, Action::CertList).await, ErrorCode::Sealed);
        let wrong = Action::Unseal { passphrase: Secret::new("wrong passphrase".into()) };
        assert_eq!(code(&fixture, &ROOT, wrong).await, ErrorCode::WrongPassphrase);
        app.perform(&ROOT, Action::Unseal { passphrase: passphrase() }).await.expect("unsealed");
        assert!(app.tls_config().is_some());
        let entries = tail(&fixture);
        assert_eq!(of(&entries, ActionKind::Seal), [Outcome::Done]);
        assert_eq!(of(&entries, ActionKind::CertList), [Outcome::Denied(ErrorCode::Sealed)]);
        assert_eq!(of(&entries, ActionKind::Unseal), [Outcome::Done, Outcome::Denied(ErrorCode::WrongPassphrase)]);
    }

    #[tokio::test]
    async fn a_certificate_counts_until_it_is_revoked() {
        let fixture = Fixture::unsealed("").await;
        let app = &fixture.app;
        let enroll = Action::CertEnroll { name: "watch".into(), role: ApiRole::Monitor, valid_days: 1 };
        let Ok(Reply::Admin(reply)) = app.perform(&ROOT, enroll).await else { panic!("a reply") };
        let AdminReply::Enrolled(cert) = *reply else { panic!("enrolled") };
        let serial = cert.summary.serial.clone();
        let role = ApiRole::Monitor;
        let actor = Actor::Certificate { serial: serial.clone(), number: 7, name: "watch".into(), role };
        assert!(matches!(app.perform(&actor, Action::Metrics).await, Ok(Reply::Granted)));
        assert_eq!(code(&fixture, &actor, Action::ModelList).await, ErrorCode::Forbidden);
        let mut revocations = app.revocations();
        revocations.mark_unchanged();
        app.perform(&ROOT, Action::CertRevoke { serial: serial.clone() }).await.expect("revoked");
        assert!(revocations.has_changed().expect("kept"), "live connections are told");
        assert_eq!(app.certificate(&serial), CertState::Revoked);
        assert_eq!(code(&fixture, &actor, Action::Metrics).await, ErrorCode::Unauthenticated);
        let stranger = Actor::Stranger { number: 9 };
        assert_eq!(code(&fixture, &stranger, Action::Health).await, ErrorCode::Forbidden);
        assert_eq!(code(&fixture, &actor, Action::Unknown).await, ErrorCode::Unauthenticated);
        let unknown = Actor::Certificate { serial: "ab".repeat(16), number: 8, name: "watch".into(), role };
        assert_eq!(code(&fixture, &unknown, Action::Metrics).await, ErrorCode::Unauthenticated);
    }

    #[tokio::test]
    async fn before_init_nothing_but_the_state_is_answered() {
        let fixture = Fixture::new("");
        let Ok(Reply::Admin(reply)) = fixture.app.perform(&ROOT, Action::Status).await else { panic!("a reply") };
        let AdminReply::Status(status) = *reply else { panic!("status") };
        assert_eq!(status.state, SealState::Uninitialised);
        assert_eq!(code(&fixture, &ROOT, Action::DatasetList).await, ErrorCode::NotInitialised);
        let short = Action::Init { passphrase: Secret::new("short".into()) };
        assert_eq!(code(&fixture, &ROOT, short).await, ErrorCode::BadRequest);
    }

    #[tokio::test]
    async fn a_stopping_appliance_takes_no_new_work() {
        let fixture = Fixture::unsealed("").await;
        fixture.app.stop().await;
        assert_eq!(fixture.app.readiness().store, SealState::Sealed);
        assert!(fixture.folder.path().join("stop.seal").exists());
        assert!(fixture.app.readiness().draining);
    }
}
