//! The conversation on the admin socket. A connection carries one request: the tool sends [`ToDaemon::Request`], for
//! uploads then [`ToDaemon::Chunk`]s and [`ToDaemon::End`]; the daemon answers with any number of
//! [`FromDaemon::Progress`] and exactly one [`FromDaemon::Done`].

use crate::audit::{AuditEntry, SignedCheckpoint};
use crate::engine::ServingStatus;
use crate::ids::{AdapterId, DatasetId, JobId, StoreId};
use crate::keys::{
    BackupSummary, Check, ClientExportSummary, Drill, EraseReason, ErasureSummary, EscrowSummary, KeysReport, Papers,
    Rekey,
};
use crate::problem::Problem;
use crate::record::{Domain, words};
use crate::report::{AdapterSummary, DatasetSummary, IngestReport, TrainProgress, TrainStatus};
use crate::secret::Secret;
use crate::train::{CurvePoint, StepPoint};
use serde::{Deserialize, Serialize};

/// Largest source file that can be uploaded.
pub const MAX_SOURCE_BYTES: u64 = 2 * 1024 * 1024 * 1024;

/// From the tool to the daemon.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToDaemon {
    /// The first frame of a connection.
    Request(AdminRequest),
    /// More of an upload, at most [`crate::frame::CHUNK_BYTES`].
    Chunk(#[serde(with = "bytes")] Vec<u8>),
    /// The upload is complete.
    End,
}

/// From the daemon to the tool.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromDaemon {
    /// Work goes on.
    Progress(Progress),
    /// A file follows in chunks.
    File {
        /// Its place in the folder: see [`crate::manifest::is_inside`].
        path: String,
        /// Its size.
        bytes: u64,
    },
    /// More of the file, at most [`crate::frame::CHUNK_BYTES`].
    Chunk(#[serde(with = "bytes")] Vec<u8>),
    /// The last frame.
    Done(Box<Result<AdminReply, Problem>>),
}

/// Everything the tool can ask. The closed list; `daemon/src/action.rs` says who may and when.
#[derive(Debug, Serialize, Deserialize)]
pub enum AdminRequest {
    /// How the appliance is. Answered to anyone on the machine, also when sealed.
    Status,
    /// Create the store; ends unsealed and serving.
    Init {
        /// The passphrase that will open it.
        passphrase: Secret,
    },
    /// Bring the keys into memory.
    Unseal {
        /// The passphrase.
        passphrase: Secret,
    },
    /// Take the keys out of memory.
    Seal,
    /// Issue a client certificate of the clinic's own authority.
    CertEnroll {
        /// Name of the system that will hold it: letters, digits, `-`, `_`, `.`; at most 64.
        name: String,
        /// What it may do.
        role: ApiRole,
        /// Days until it expires, 1 to 398.
        valid_days: u16,
    },
    /// All certificates.
    CertList,
    /// Refuse a certificate from now on, its live connections included.
    CertRevoke {
        /// Its serial number, hexadecimal, as `CertList` shows it.
        serial: String,
    },
    /// Replace the roster of names that de-identification searches for. Followed by an upload: one name a line.
    RosterSet {
        /// Bytes that will follow.
        bytes: u64,
    },
    /// Take in one source file. Followed by an upload.
    Ingest {
        /// File name without folders; only its extension is used.
        file_name: String,
        /// Bytes that will follow, at most [`MAX_SOURCE_BYTES`].
        bytes: u64,
        /// Only report what would happen.
        dry_run: bool,
    },
    /// Freeze a cut of the records for training.
    DatasetCut {
        /// Share of clients held out, in percent, 1 to 50.
        validation_percent: u8,
        /// Seed of the split.
        seed: u64,
    },
    /// All cuts.
    DatasetList,
    /// Begin training, or go on with a paused job of the same cut.
    TrainStart(TrainOptions),
    /// The last job, or one; with `follow`, progress until it ends.
    TrainStatus {
        /// Which job; the last one when absent.
        job: Option<JobId>,
        /// Stay until it ends.
        follow: bool,
    },
    /// Everything that is known of a job: state, curves, and what its gate found.
    TrainReport {
        /// Which job; the last one when absent.
        job: Option<JobId>,
    },
    /// Pause training after a checkpoint.
    TrainStop,
    /// All adapter generations.
    AdapterList,
    /// Make an approved generation the active one.
    AdapterPromote {
        /// Which.
        id: AdapterId,
    },
    /// Go back to the generation that was active before.
    AdapterRollback,
    /// Give a generation that passed its gate as files of public formats, with manifest, signature and model card. Answered
    /// with [`FromDaemon::File`]s and their chunks.
    AdapterExport {
        /// Which.
        id: AdapterId,
    },
    /// Make a public LoRA one more expert and train the routers to use it. Followed by an upload: `adapter_config.json`, then
    /// `adapter_model.safetensors`.
    AdapterImport(ImportOptions),
    /// The newest audit entries.
    AuditTail {
        /// How many, at most [`MAX_AUDIT_TAIL`].
        count: u32,
    },
    /// Give the whole audit trail as files that are checked without an appliance. Answered with [`FromDaemon::File`]s and their
    /// chunks.
    AuditExport,
    /// Check the whole audit trail and, when the tool has seen an earlier checkpoint, that it was only extended.
    AuditVerify {
        /// The newest checkpoint this tool has seen.
        known: Option<SignedCheckpoint>,
    },
    /// Bring the keys into memory with two or three recovery shares.
    UnsealShares {
        /// The shares, as they are on paper.
        shares: Vec<Secret>,
    },
    /// How keys and the copies of them stand.
    KeysStatus,
    /// Begin a new epoch: every data key is wrapped again.
    KeysRotate,
    /// Exchange, make or take away a way in.
    KeysRekey(Rekey),
    /// Make a key file. Answered with one [`FromDaemon::File`] and its chunks.
    KeysEscrow,
    /// Erase a client for good.
    ClientErase {
        /// The client: its identifier, or what its source calls it.
        client: Secret,
        /// Why.
        reason: EraseReason,
    },
    /// Put a client under a legal hold, which blocks erasure, or lift it.
    ClientHold {
        /// The client: its identifier, or what its source calls it.
        client: Secret,
        /// Whether it is to be held.
        held: bool,
    },
    /// Give a client's whole record. Answered with [`FromDaemon::File`]s and their chunks.
    ClientExport {
        /// The client: its identifier, or what its source calls it.
        client: Secret,
    },
    /// Make and check a backup. Followed by an upload: the index of the backup to go on from, empty for a whole one.
    /// Answered with two [`FromDaemon::File`]s, the backup and its index.
    BackupCreate {
        /// Bytes of the index that will follow.
        index_bytes: u64,
    },
    /// Restore the present state into a scratch folder, check all of it and remove it.
    BackupDrill {
        /// Two or three recovery shares, as they are on paper.
        shares: Vec<Secret>,
    },
    /// The observer's checklist. Answered to anyone on the machine, also when sealed.
    Doctor,
}

/// Most entries of one tail.
pub const MAX_AUDIT_TAIL: u32 = 10_000;

/// Options of a training job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainOptions {
    /// The cut; the newest when absent.
    pub dataset: Option<DatasetId>,
    /// Optimiser steps; the configured number when absent.
    pub steps: Option<u32>,
    /// Most wall-clock minutes, 1 to 720; the configured number when absent.
    pub minutes: Option<u16>,
    /// Seed of initialisation and order.
    pub seed: u64,
    /// Promote the adapter when it passes its gate.
    pub promote: bool,
    /// When it must have ended, milliseconds since the Unix epoch.
    pub until_ms: Option<u64>,
}

/// Options of an import.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImportOptions {
    /// What the expert is for; free when absent.
    pub domain: Option<Domain>,
    /// A mixture of this expert alone, instead of the active generation with one more.
    pub alone: bool,
    /// Whether the LoRA's attention part may be added to the shared pair, where every conversation then uses it.
    pub attention_to_shared: bool,
    /// Bytes of `adapter_config.json`, which come first.
    pub config_bytes: u64,
    /// Bytes of `adapter_model.safetensors`, which come behind.
    pub weights_bytes: u64,
    /// How the routers are trained.
    pub train: TrainOptions,
}

words! {
    /// What a certificate may do.
    ApiRole {
        /// The clinic's record system: answers and models.
        Ehr = "ehr",
        /// Monitoring: health and metrics only.
        Monitor = "monitor",
    }
}

/// What the tool gets back.
#[expect(clippy::large_enum_variant, reason = "one reply at a time is in memory")]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdminReply {
    /// To `Status`.
    Status(StatusReport),
    /// To `Init`.
    Initialised {
        /// The new store.
        store: StoreId,
        /// The recovery shares, shown this once.
        shares: Papers,
    },
    /// To `Unseal`, `Seal` and other requests that need no more.
    Ok,
    /// To `CertEnroll`.
    Enrolled(EnrolledCert),
    /// To `CertList`.
    Certs(Vec<CertSummary>),
    /// To `RosterSet`.
    Roster {
        /// Names now on it.
        names: u64,
    },
    /// To `Ingest`.
    Ingested(IngestReport),
    /// To `DatasetCut`.
    Dataset(DatasetSummary),
    /// To `DatasetList`.
    Datasets(Vec<DatasetSummary>),
    /// To `TrainStart`, `TrainStatus` and `AdapterImport`.
    Train(TrainStatus),
    /// To `TrainReport`.
    TrainReport(Box<JobReport>),
    /// To `AdapterExport`, behind the last file.
    Exported(ExportSummary),
    /// To `AdapterList`.
    Adapters(Vec<AdapterSummary>),
    /// To `AdapterPromote` and `AdapterRollback`: the active generation, if any.
    Active {
        /// The generation that answers now; absent for the plain base model.
        adapter: Option<AdapterId>,
    },
    /// To `AuditTail`, oldest first.
    AuditEntries(Vec<AuditEntry>),
    /// To `AuditVerify`.
    AuditVerified(AuditVerdict),
    /// To `AuditExport`, behind the last file.
    AuditExported(TrailSummary),
    /// To `KeysStatus`.
    Keys(KeysReport),
    /// To `KeysRekey` with [`Rekey::Shares`]: the recovery shares, shown this once.
    Shares(Papers),
    /// To `KeysEscrow`, behind the file.
    Escrowed(EscrowSummary),
    /// To `ClientErase`.
    Erased(ErasureSummary),
    /// To `ClientExport`, behind the last file.
    ClientExported(ClientExportSummary),
    /// To `BackupCreate`, behind the last file.
    BackedUp(BackupSummary),
    /// To `BackupDrill`.
    Drilled(Drill),
    /// To `Doctor`.
    Checklist(Vec<Check>),
}

/// Everything that is known of a training job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobReport {
    /// Where it stands.
    pub status: TrainStatus,
    /// What it made, with what its gate found.
    pub adapter: Option<AdapterSummary>,
    /// Its curves, oldest first; evenly thinned to [`MAX_CURVE_POINTS`].
    pub curves: Vec<CurvePoint>,
}

/// Most points of one report.
pub const MAX_CURVE_POINTS: usize = 4000;

/// What was exported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportSummary {
    /// The generation.
    pub adapter: AdapterId,
    /// Files, manifest and signature included.
    pub files: u32,
    /// Bytes of all of them.
    pub bytes: u64,
    /// The key that signed the manifest, base64.
    pub public_key: String,
}

/// An audit trail that was exported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrailSummary {
    /// Its entries.
    pub entries: u64,
    /// Files, that of the checkpoint included.
    pub files: u32,
    /// The checkpoint over all entries.
    pub checkpoint: SignedCheckpoint,
}

/// How the appliance is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StatusReport {
    /// Release of the daemon.
    pub version: String,
    /// Store state.
    pub state: SealState,
    /// Address of the API, once bound.
    pub api: Option<String>,
    /// Whether the engine is connected and has its base model.
    pub engine: EngineState,
    /// Name of the base model.
    pub model: Option<String>,
    /// Active adapter.
    pub adapter: Option<AdapterId>,
    /// Sealed records; absent while sealed.
    pub records: Option<u64>,
    /// Audit entries; absent while sealed.
    pub audit_entries: Option<u64>,
    /// Newest checkpoint; absent while sealed.
    pub checkpoint: Option<SignedCheckpoint>,
    /// The running training job, if any.
    pub train: Option<TrainStatus>,
    /// How answers are served; absent while the engine has not said.
    pub serving: Option<ServingStatus>,
    /// The model of embeddings.
    pub embedder: EmbedderState,
    /// Why there is no model of embeddings, when one is configured.
    pub embedder_problem: Option<String>,
    /// When copies were last made, and whether a new key file is due; absent while sealed.
    pub care: Option<crate::keys::Care>,
    /// Seconds since start.
    pub uptime_s: u64,
    /// What the scrub of the store has seen; absent until there is something to tell.
    pub scrub: Option<ScrubReport>,
}

/// What the scrub of the store has seen since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubReport {
    /// What did not authenticate, in the last whole round or the one under way.
    pub findings: u64,
    /// Seconds since the last whole round ended.
    pub round_age_s: Option<u64>,
}

words! {
    /// State of the store.
    SealState {
        /// No store yet.
        Uninitialised = "uninitialised",
        /// Keys are not in memory.
        Sealed = "sealed",
        /// Serving.
        Unsealed = "unsealed",
    }

    /// State of the engine.
    EngineState {
        /// Connected, with a base model.
        Ready = "ready",
        /// Connected, loading.
        Loading = "loading",
        /// Not connected; being restarted or awaited.
        Down = "down",
        /// Connected, but answers wait and no step was taken for too long.
        Stuck = "stuck",
    }

    /// State of the model of embeddings.
    EmbedderState {
        /// None is configured.
        None = "none",
        /// Configured; not in the engine's memory yet.
        Loading = "loading",
        /// In the engine's memory.
        Ready = "ready",
        /// It cannot be used; everything else works.
        Failed = "failed",
    }
}

/// A new client certificate. The key is shown once and kept nowhere.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct EnrolledCert {
    /// What `CertList` will show.
    pub summary: CertSummary,
    /// Certificate, PEM.
    pub cert_pem: String,
    /// Private key, PEM.
    pub key_pem: String,
    /// The authority's certificate, PEM.
    pub ca_pem: String,
}

impl std::fmt::Debug for EnrolledCert {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "EnrolledCert({:?})", self.summary)
    }
}

/// One client certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertSummary {
    /// Serial number, hexadecimal.
    pub serial: String,
    /// Name of the system.
    pub name: String,
    /// What it may do.
    pub role: ApiRole,
    /// URI in the certificate.
    pub uri: String,
    /// Milliseconds since the Unix epoch.
    pub not_after_ms: u64,
    /// When it was revoked.
    pub revoked_at_ms: Option<u64>,
}

/// What the check of the audit trail found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditVerdict {
    /// Entries checked.
    pub entries: u64,
    /// Whether every entry, the tree and the checkpoint fit each other.
    pub verified: bool,
    /// Whether the trail extends the checkpoint the tool knew; absent when it knew none.
    pub extends_known: Option<bool>,
    /// What did not fit, without identifiers.
    pub findings: Vec<String>,
    /// The newest checkpoint.
    pub checkpoint: SignedCheckpoint,
}

/// Work under way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Progress {
    /// Bytes of an upload taken in, then records handled.
    Ingest {
        /// Records handled.
        done: u64,
        /// Records found.
        total: u64,
    },
    /// A training step.
    Train(TrainProgress),
    /// What the last training step measured.
    Step(Box<StepPoint>),
    /// Audit entries checked.
    Audit {
        /// Checked.
        done: u64,
        /// There are.
        total: u64,
    },
}

/// Byte vectors as one run of bytes instead of a sequence of numbers.
pub(crate) mod bytes {
    use serde::{Deserializer, Serializer, de::Visitor};

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    struct Bytes;

    impl<'de> Visitor<'de> for Bytes {
        type Value = Vec<u8>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("bytes")
        }

        fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
            Ok(bytes.to_vec())
        }

        fn visit_borrowed_bytes<E>(self, bytes: &'de [u8]) -> Result<Vec<u8>, E> {
            Ok(bytes.to_vec())
        }

        fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Vec<u8>, E> {
            Ok(bytes)
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        deserializer.deserialize_byte_buf(Bytes)
    }
}
