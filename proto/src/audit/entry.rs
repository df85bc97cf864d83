//! One audit entry: who did what to what, and how it ended. The type cannot hold free text: identifiers are random
//! bytes or keyed digests, everything else is a word of a closed list or a count.

use crate::ids::{AdapterId, ClientId, DatasetId, JobId, RecordId};
use crate::problem::ErrorCode;
use crate::record::words;
use serde::{Deserialize, Serialize};

words! {
    /// Everything that leaves a trace. Mirrors `daemon/src/action.rs`, plus what the appliance does by itself.
    ActionKind {
        /// The store was created.
        Init = "init",
        /// Keys came into memory.
        Unseal = "unseal",
        /// Keys left memory.
        Seal = "seal",
        /// The daemon started with this store.
        Start = "start",
        /// The daemon stopped in order.
        Stop = "stop",
        /// A client certificate was issued.
        CertEnroll = "cert_enroll",
        /// Certificates were listed.
        CertList = "cert_list",
        /// A client certificate was revoked.
        CertRevoke = "cert_revoke",
        /// The roster of names was replaced.
        RosterSet = "roster_set",
        /// A source file was taken in.
        Ingest = "ingest",
        /// A dataset was cut.
        DatasetCut = "dataset_cut",
        /// Cuts were listed.
        DatasetList = "dataset_list",
        /// Training began or went on.
        TrainStart = "train_start",
        /// Training was asked for its state.
        TrainStatus = "train_status",
        /// Training was paused.
        TrainStop = "train_stop",
        /// Training ended.
        TrainEnd = "train_end",
        /// A candidate went through its gate.
        Gate = "gate",
        /// Generations were listed.
        AdapterList = "adapter_list",
        /// A generation became active.
        AdapterPromote = "adapter_promote",
        /// The earlier generation became active again.
        AdapterRollback = "adapter_rollback",
        /// Entries were read.
        AuditTail = "audit_tail",
        /// The trail was checked.
        AuditVerify = "audit_verify",
        /// A conversation was answered.
        Chat = "chat",
        /// Models were listed.
        ModelList = "model_list",
        /// Metrics were read.
        Metrics = "metrics",
        /// A request that names no known action.
        Unknown = "unknown",
        /// The appliance's state was asked for.
        Status = "status",
        /// A text was gone on with.
        Complete = "complete",
        /// Embeddings were made.
        Embed = "embed",
        /// Everything known of a training job was read.
        TrainReport = "train_report",
        /// A generation left the appliance as files.
        AdapterExport = "adapter_export",
        /// A public LoRA became an expert.
        AdapterImport = "adapter_import",
        /// The trail left the appliance as files.
        AuditExport = "audit_export",
        /// State of keys and copies was asked for.
        KeysStatus = "keys_status",
        /// A new epoch of keys began.
        KeysRotate = "keys_rotate",
        /// A way in was exchanged, made or taken away.
        KeysRekey = "keys_rekey",
        /// A key file was made.
        KeysEscrow = "keys_escrow",
        /// A client was erased.
        ClientErase = "client_erase",
        /// A client was put under a legal hold.
        ClientHold = "client_hold",
        /// A legal hold was lifted.
        ClientRelease = "client_release",
        /// A client's whole record left the appliance.
        ClientExport = "client_export",
        /// A backup was made and checked.
        BackupCreate = "backup_create",
        /// A backup was restored into a scratch folder and checked.
        BackupDrill = "backup_drill",
        /// The store came out of a backup.
        Restore = "restore",
        /// The checklist was asked for.
        Doctor = "doctor",
    }

    /// What kind of caller it was.
    PrincipalKind {
        /// The appliance itself.
        Appliance = "appliance",
        /// A local user on the admin socket.
        LocalUser = "local_user",
        /// A client certificate.
        Certificate = "certificate",
    }
}

/// Who did it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Principal {
    /// What kind of caller.
    pub kind: PrincipalKind,
    /// The user number, or the last eight bytes of the certificate's serial number; 0 for the appliance.
    pub number: u64,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Done.
    Done,
    /// Refused before anything was done.
    Denied(ErrorCode),
    /// Begun and not completed.
    Failed(ErrorCode),
}

/// What it was done to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuditObject {
    /// Nothing in particular.
    None,
    /// A record.
    Record(RecordId),
    /// A client.
    Client(ClientId),
    /// A dataset cut.
    Dataset(DatasetId),
    /// An adapter generation.
    Adapter(AdapterId),
    /// A job.
    Job(JobId),
    /// A certificate, by the last eight bytes of its serial number.
    Certificate(u64),
}

/// One entry of the trail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEntry {
    /// Position in the trail, from 0.
    pub seq: u64,
    /// Wall clock, milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// Who.
    pub principal: Principal,
    /// What.
    pub action: ActionKind,
    /// How it ended.
    pub outcome: Outcome,
    /// To what.
    pub object: AuditObject,
    /// How many things, when it was many.
    pub count: u64,
}

/// First byte of a leaf; a new shape of entry gets a new one.
pub const LEAF_VERSION: u8 = 1;

impl AuditEntry {
    /// The canonical bytes that the tree hashes and the store seals: the version byte, then postcard.
    #[must_use]
    pub fn to_leaf(&self) -> Vec<u8> {
        let mut leaf = vec![LEAF_VERSION];
        // Serialising plain numbers and enums into a growing vector cannot fail.
        leaf.extend(postcard::to_stdvec(self).unwrap_or_default());
        leaf
    }

    /// The entry of a leaf; `None` when the bytes are not canonical.
    #[must_use]
    pub fn from_leaf(leaf: &[u8]) -> Option<Self> {
        let (&LEAF_VERSION, body) = leaf.split_first()? else { return None };
        let entry: Self = postcard::from_bytes(body).ok()?;
        (entry.to_leaf() == leaf).then_some(entry)
    }
}
