//! The closed list of everything the appliance can do, each with who may and when. What an action does is not known
//! here: `app.rs` performs it.

use crate::actor::{Actor, AdminRole};
use crate::admin::upload::{FileSink, ProgressSink, Upload};
use crate::inference::call::{AnswerCall, EmbedCall};
use empathd_proto::admin::{ApiRole, ImportOptions, TrainOptions};
use empathd_proto::audit::{ActionKind, SignedCheckpoint};
use empathd_proto::ids::{AdapterId, JobId};
use empathd_proto::keys::{EraseReason, Rekey};
use empathd_proto::secret::Secret;

/// One thing the appliance is asked to do.
#[derive(Debug)]
pub enum Action {
    /// How the appliance is. Any local user, in any state.
    Status,
    /// Create the store; ends unsealed and serving. Administrators, once.
    Init {
        /// The passphrase that will open it.
        passphrase: Secret,
    },
    /// Bring the keys into memory. Administrators, once there is a store.
    Unseal {
        /// The passphrase.
        passphrase: Secret,
    },
    /// Take the keys out of memory. Administrators, while unsealed.
    Seal,
    /// Issue a client certificate. Administrators, while unsealed.
    CertEnroll {
        /// Name of the system that will hold it.
        name: String,
        /// What it may do.
        role: ApiRole,
        /// Days until it expires, 1 to 398.
        valid_days: u16,
    },
    /// List certificates. Administrators, while unsealed.
    CertList,
    /// Refuse a certificate from now on. Administrators, while unsealed.
    CertRevoke {
        /// Its serial number, hexadecimal.
        serial: String,
    },
    /// Replace the roster of names. Administrators, while unsealed.
    RosterSet {
        /// One name a line.
        upload: Upload,
    },
    /// Take in one source file. Administrators, while unsealed.
    Ingest {
        /// File name; only its extension is used.
        file_name: String,
        /// The file.
        upload: Upload,
        /// Only report what would happen.
        dry_run: bool,
        /// Where progress goes.
        progress: ProgressSink,
    },
    /// Freeze a cut of the records. Administrators, while unsealed.
    DatasetCut {
        /// Share of clients held out, in percent, 1 to 50.
        validation_percent: u8,
        /// Seed of the split.
        seed: u64,
    },
    /// List cuts. Administrators, while unsealed.
    DatasetList,
    /// Begin training or go on with a paused job. Administrators, while unsealed.
    TrainStart(TrainOptions),
    /// How a training job is. Administrators, while unsealed.
    TrainStatus {
        /// Which; the last one when absent.
        job: Option<JobId>,
        /// Stay until it ends.
        follow: bool,
        /// Where progress goes.
        progress: ProgressSink,
    },
    /// Read everything known of a training job. Administrators, while unsealed.
    TrainReport {
        /// Which; the last one when absent.
        job: Option<JobId>,
    },
    /// Pause training after a checkpoint. Administrators, while unsealed.
    TrainStop,
    /// List adapter generations. Administrators, while unsealed.
    AdapterList,
    /// Make an approved generation the active one. Administrators and the training job, while unsealed.
    AdapterPromote {
        /// Which.
        id: AdapterId,
    },
    /// Give a generation that passed its gate as files. Administrators, while unsealed.
    AdapterExport {
        /// Which.
        id: AdapterId,
        /// Where its files go.
        files: FileSink,
    },
    /// Make a public LoRA an expert and train the routers to use it. Administrators, while unsealed.
    AdapterImport {
        /// How.
        options: ImportOptions,
        /// Configuration, then weights.
        upload: Upload,
    },
    /// Go back to the generation before. Administrators, while unsealed.
    AdapterRollback,
    /// Read the newest audit entries. Administrators, while unsealed.
    AuditTail {
        /// How many.
        count: u32,
    },
    /// Give the whole trail as files. Administrators, while unsealed.
    AuditExport {
        /// Where they go.
        files: FileSink,
    },
    /// Check the whole trail. Administrators, while unsealed.
    AuditVerify {
        /// The newest checkpoint that the caller has seen.
        known: Option<SignedCheckpoint>,
        /// Where progress goes.
        progress: ProgressSink,
    },
    /// Answer a conversation. Certificates of role `ehr`, while unsealed.
    Chat(Box<AnswerCall>),
    /// Go on with texts. Certificates of role `ehr`, while unsealed.
    Complete(Box<AnswerCall>),
    /// Make embeddings of texts. Certificates of role `ehr`, while unsealed.
    Embed(EmbedCall),
    /// List models. Certificates of role `ehr`, while unsealed.
    ModelList,
    /// Read metrics. Any enrolled certificate, while unsealed.
    Metrics,
    /// Ask for liveness or readiness. Any enrolled certificate, while unsealed. Leaves no trace: it shows no record and
    /// is asked every few seconds.
    Health,
    /// Bring the keys into memory with recovery shares. Administrators, once there is a store.
    UnsealShares {
        /// The shares, as they are on paper.
        shares: Vec<Secret>,
    },
    /// Look at keys and copies. Administrators, while unsealed.
    KeysStatus,
    /// Begin a new epoch. Administrators, while unsealed.
    KeysRotate,
    /// Exchange, make or take away a way in. Administrators, while unsealed.
    KeysRekey(Rekey),
    /// Make a key file. Administrators, while unsealed.
    KeysEscrow {
        /// Where it goes.
        files: FileSink,
    },
    /// Erase a client. Administrators, while unsealed.
    ClientErase {
        /// Its identifier, or what its source calls it.
        client: Secret,
        /// Why.
        reason: EraseReason,
    },
    /// Put a client under a legal hold, or lift it. Administrators, while unsealed.
    ClientHold {
        /// Its identifier, or what its source calls it.
        client: Secret,
        /// Whether it is to be held.
        held: bool,
    },
    /// Give a client's whole record. Administrators, while unsealed.
    ClientExport {
        /// Its identifier, or what its source calls it.
        client: Secret,
        /// Where its files go.
        files: FileSink,
    },
    /// Make and check a backup. Administrators, while unsealed.
    BackupCreate {
        /// Index of the backup to go on from; empty for a whole one.
        index: Upload,
        /// Where it goes.
        files: FileSink,
    },
    /// Restore into a scratch folder and check. Administrators, while unsealed.
    BackupDrill {
        /// Recovery shares, as they are on paper.
        shares: Vec<Secret>,
    },
    /// Go through the checklist. Any local user, in any state.
    Doctor,
    /// Anything that is not in this list. Nobody may; the refusal is recorded.
    Unknown,
}

/// What state an action needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Any state.
    Nothing,
    /// A store, sealed or not.
    Initialised,
    /// Keys in memory.
    Unsealed,
}

impl Action {
    /// How the audit trail names it.
    #[must_use]
    pub fn kind(&self) -> ActionKind {
        match self {
            Action::Status | Action::Health => ActionKind::Status,
            Action::Init { .. } => ActionKind::Init,
            Action::Unseal { .. } => ActionKind::Unseal,
            Action::Seal => ActionKind::Seal,
            Action::CertEnroll { .. } => ActionKind::CertEnroll,
            Action::CertList => ActionKind::CertList,
            Action::CertRevoke { .. } => ActionKind::CertRevoke,
            Action::RosterSet { .. } => ActionKind::RosterSet,
            Action::Ingest { .. } => ActionKind::Ingest,
            Action::DatasetCut { .. } => ActionKind::DatasetCut,
            Action::DatasetList => ActionKind::DatasetList,
            Action::TrainStart(_) => ActionKind::TrainStart,
            Action::TrainStatus { .. } => ActionKind::TrainStatus,
            Action::TrainReport { .. } => ActionKind::TrainReport,
            Action::TrainStop => ActionKind::TrainStop,
            Action::AdapterList => ActionKind::AdapterList,
            Action::AdapterPromote { .. } => ActionKind::AdapterPromote,
            Action::AdapterExport { .. } => ActionKind::AdapterExport,
            Action::AdapterImport { .. } => ActionKind::AdapterImport,
            Action::AdapterRollback => ActionKind::AdapterRollback,
            Action::AuditTail { .. } => ActionKind::AuditTail,
            Action::AuditExport { .. } => ActionKind::AuditExport,
            Action::AuditVerify { .. } => ActionKind::AuditVerify,
            Action::Chat(_) => ActionKind::Chat,
            Action::Complete(_) => ActionKind::Complete,
            Action::Embed(_) => ActionKind::Embed,
            Action::ModelList => ActionKind::ModelList,
            Action::Metrics => ActionKind::Metrics,
            Action::UnsealShares { .. } => ActionKind::Unseal,
            Action::KeysStatus => ActionKind::KeysStatus,
            Action::KeysRotate => ActionKind::KeysRotate,
            Action::KeysRekey(_) => ActionKind::KeysRekey,
            Action::KeysEscrow { .. } => ActionKind::KeysEscrow,
            Action::ClientErase { .. } => ActionKind::ClientErase,
            Action::ClientHold { held: true, .. } => ActionKind::ClientHold,
            Action::ClientHold { held: false, .. } => ActionKind::ClientRelease,
            Action::ClientExport { .. } => ActionKind::ClientExport,
            Action::BackupCreate { .. } => ActionKind::BackupCreate,
            Action::BackupDrill { .. } => ActionKind::BackupDrill,
            Action::Doctor => ActionKind::Doctor,
            Action::Unknown => ActionKind::Unknown,
        }
    }

    /// Whether this actor may ask for it at all.
    #[must_use]
    pub fn allowed(&self, actor: &Actor) -> bool {
        match actor {
            Actor::Stranger { .. } => false,
            Actor::Appliance => matches!(self, Action::AdapterPromote { .. }),
            Actor::LocalUser { role: AdminRole::Observer, .. } => matches!(self, Action::Status | Action::Doctor),
            Actor::LocalUser { role: AdminRole::Administrator, .. } => {
                !self.is_of_the_api() && !matches!(self, Action::Unknown)
            }
            Actor::Certificate { role: ApiRole::Ehr, .. } => self.is_of_the_api(),
            Actor::Certificate { role: ApiRole::Monitor, .. } => matches!(self, Action::Metrics | Action::Health),
        }
    }

    /// Whether only certificates may ask for it.
    fn is_of_the_api(&self) -> bool {
        matches!(
            self,
            Action::Chat(_)
                | Action::Complete(_)
                | Action::Embed(_)
                | Action::ModelList
                | Action::Metrics
                | Action::Health
        )
    }

    /// Whether it begins something that takes its time: an appliance that stops does not.
    #[must_use]
    pub fn begins_work(&self) -> bool {
        matches!(
            self,
            Action::Chat(_)
                | Action::Complete(_)
                | Action::Embed(_)
                | Action::Ingest { .. }
                | Action::TrainStart(_)
                | Action::AdapterImport { .. }
        )
    }

    /// The state it needs.
    #[must_use]
    pub fn needs(&self) -> Needs {
        match self {
            Action::Status | Action::Doctor | Action::Init { .. } | Action::Unknown => Needs::Nothing,
            Action::Unseal { .. } | Action::UnsealShares { .. } => Needs::Initialised,
            _ => Needs::Unsealed,
        }
    }

    /// Whether doing it is recorded. Refusals always are.
    #[must_use]
    pub fn leaves_trace(&self) -> bool {
        !matches!(self, Action::Health)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upload() -> Upload {
        Upload::new(0, 0).1
    }

    /// Every action with who may: `s` for observers, `a` for administrators, `e` and `m` for certificates by role, `i` for
    /// the appliance itself.
    fn all() -> Vec<(Action, &'static str, Needs)> {
        use Needs::{Initialised, Nothing, Unsealed};
        let (secret, sink) = (|| Secret::new(String::new()), ProgressSink::default);
        let options =
            TrainOptions { dataset: None, steps: None, minutes: None, seed: 0, promote: false, until_ms: None };
        let import = ImportOptions {
            domain: None,
            alone: false,
            attention_to_shared: false,
            config_bytes: 1,
            weights_bytes: 1,
            train: options.clone(),
        };
        let id = AdapterId::from_bytes([0; 16]);
        vec![
            (Action::Status, "sa", Nothing),
            (Action::Init { passphrase: secret() }, "a", Nothing),
            (Action::Unseal { passphrase: secret() }, "a", Initialised),
            (Action::Seal, "a", Unsealed),
            (Action::CertEnroll { name: String::new(), role: ApiRole::Ehr, valid_days: 1 }, "a", Unsealed),
            (Action::CertList, "a", Unsealed),
            (Action::CertRevoke { serial: String::new() }, "a", Unsealed),
            (Action::RosterSet { upload: upload() }, "a", Unsealed),
            (
                Action::Ingest { file_name: String::new(), upload: upload(), dry_run: true, progress: sink() },
                "a",
                Unsealed,
            ),
            (Action::DatasetCut { validation_percent: 1, seed: 0 }, "a", Unsealed),
            (Action::DatasetList, "a", Unsealed),
            (Action::AdapterImport { options: import, upload: upload() }, "a", Unsealed),
            (Action::TrainStart(options), "a", Unsealed),
            (Action::TrainStatus { job: None, follow: false, progress: sink() }, "a", Unsealed),
            (Action::TrainReport { job: None }, "a", Unsealed),
            (Action::TrainStop, "a", Unsealed),
            (Action::AdapterList, "a", Unsealed),
            (Action::AdapterPromote { id }, "ai", Unsealed),
            (Action::AdapterExport { id, files: FileSink::default() }, "a", Unsealed),
            (Action::AdapterRollback, "a", Unsealed),
            (Action::AuditTail { count: 1 }, "a", Unsealed),
            (Action::AuditExport { files: FileSink::default() }, "a", Unsealed),
            (Action::AuditVerify { known: None, progress: sink() }, "a", Unsealed),
            (Action::Chat(Box::new(crate::fixture::call("x"))), "e", Unsealed),
            (Action::Complete(Box::new(crate::fixture::call("x"))), "e", Unsealed),
            (Action::Embed(EmbedCall { model: String::new(), texts: Vec::new(), dimensions: None }), "e", Unsealed),
            (Action::ModelList, "e", Unsealed),
            (Action::Metrics, "em", Unsealed),
            (Action::Health, "em", Unsealed),
            (Action::UnsealShares { shares: Vec::new() }, "a", Initialised),
            (Action::KeysStatus, "a", Unsealed),
            (Action::KeysRotate, "a", Unsealed),
            (Action::KeysRekey(Rekey::Shares), "a", Unsealed),
            (Action::KeysEscrow { files: FileSink::default() }, "a", Unsealed),
            (Action::ClientErase { client: secret(), reason: EraseReason::Order }, "a", Unsealed),
            (Action::ClientHold { client: secret(), held: true }, "a", Unsealed),
            (Action::ClientHold { client: secret(), held: false }, "a", Unsealed),
            (Action::ClientExport { client: secret(), files: FileSink::default() }, "a", Unsealed),
            (Action::BackupCreate { index: upload(), files: FileSink::default() }, "a", Unsealed),
            (Action::BackupDrill { shares: Vec::new() }, "a", Unsealed),
            (Action::Doctor, "sa", Nothing),
            (Action::Unknown, "", Nothing),
        ]
    }

    #[test]
    fn each_actor_may_do_what_the_table_says_and_nothing_else() {
        let certificate = |role| Actor::Certificate { serial: "00".into(), number: 0, name: "x".into(), role };
        let local = |role| Actor::LocalUser { uid: 1000, role };
        let actors = [
            ('i', Actor::Appliance),
            ('s', local(AdminRole::Observer)),
            ('a', local(AdminRole::Administrator)),
            ('e', certificate(ApiRole::Ehr)),
            ('m', certificate(ApiRole::Monitor)),
            ('-', Actor::Stranger { number: 0 }),
        ];
        for (action, who, needs) in all() {
            assert_eq!(action.needs(), needs, "{action:?}");
            for (letter, actor) in &actors {
                assert_eq!(action.allowed(actor), who.contains(*letter), "{action:?} by {actor:?}");
            }
        }
    }
}
