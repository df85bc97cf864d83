//! From a request of the admin socket to an action, one to one.

use super::upload::{FilePart, FileSink, ProgressSink, Upload};
use crate::action::Action;
use empathd_proto::admin::{AdminRequest, Progress};
use empathd_proto::keys::MAX_INDEX_BYTES;
use tokio::sync::mpsc;

/// An action, and where the chunks of its upload go.
pub(super) struct Incoming {
    pub(super) action: Action,
    pub(super) chunks: Option<mpsc::Sender<Vec<u8>>>,
}

/// Where an action sends what it says before its reply.
pub(super) struct Outgoing {
    pub(super) progress: mpsc::Sender<Progress>,
    pub(super) files: mpsc::Sender<FilePart>,
}

/// The action of a request.
pub(super) fn incoming(request: AdminRequest, upload_bytes_max: u64, outgoing: Outgoing) -> Incoming {
    let (progress, files) = (ProgressSink::new(outgoing.progress), FileSink::new(outgoing.files));
    let action = match request {
        AdminRequest::RosterSet { bytes } => {
            let (chunks, upload) = Upload::new(bytes, upload_bytes_max);
            return Incoming { action: Action::RosterSet { upload }, chunks: Some(chunks) };
        }
        AdminRequest::AdapterImport(options) => {
            let bytes = options.config_bytes.saturating_add(options.weights_bytes);
            let (chunks, upload) = Upload::new(bytes, upload_bytes_max);
            return Incoming { action: Action::AdapterImport { options, upload }, chunks: Some(chunks) };
        }
        AdminRequest::Ingest { file_name, bytes, dry_run } => {
            let (chunks, upload) = Upload::new(bytes, upload_bytes_max);
            let action = Action::Ingest { file_name, upload, dry_run, progress };
            return Incoming { action, chunks: Some(chunks) };
        }
        AdminRequest::BackupCreate { index_bytes } => {
            let (chunks, index) = Upload::new(index_bytes, MAX_INDEX_BYTES);
            return Incoming { action: Action::BackupCreate { index, files }, chunks: Some(chunks) };
        }
        AdminRequest::Status => Action::Status,
        AdminRequest::Init { passphrase } => Action::Init { passphrase },
        AdminRequest::Unseal { passphrase } => Action::Unseal { passphrase },
        AdminRequest::Seal => Action::Seal,
        AdminRequest::CertEnroll { name, role, valid_days } => Action::CertEnroll { name, role, valid_days },
        AdminRequest::CertList => Action::CertList,
        AdminRequest::CertRevoke { serial } => Action::CertRevoke { serial },
        AdminRequest::DatasetCut { validation_percent, seed } => Action::DatasetCut { validation_percent, seed },
        AdminRequest::DatasetList => Action::DatasetList,
        AdminRequest::TrainStart(options) => Action::TrainStart(options),
        AdminRequest::TrainStatus { job, follow } => Action::TrainStatus { job, follow, progress },
        AdminRequest::TrainReport { job } => Action::TrainReport { job },
        AdminRequest::TrainStop => Action::TrainStop,
        AdminRequest::AdapterList => Action::AdapterList,
        AdminRequest::AdapterPromote { id } => Action::AdapterPromote { id },
        AdminRequest::AdapterExport { id } => Action::AdapterExport { id, files },
        AdminRequest::AdapterRollback => Action::AdapterRollback,
        AdminRequest::AuditTail { count } => Action::AuditTail { count },
        AdminRequest::AuditExport => Action::AuditExport { files },
        AdminRequest::AuditVerify { known } => Action::AuditVerify { known, progress },
        AdminRequest::UnsealShares { shares } => Action::UnsealShares { shares },
        AdminRequest::KeysStatus => Action::KeysStatus,
        AdminRequest::KeysRotate => Action::KeysRotate,
        AdminRequest::KeysRekey(rekey) => Action::KeysRekey(rekey),
        AdminRequest::KeysEscrow => Action::KeysEscrow { files },
        AdminRequest::ClientErase { client, reason } => Action::ClientErase { client, reason },
        AdminRequest::ClientHold { client, held } => Action::ClientHold { client, held },
        AdminRequest::ClientExport { client } => Action::ClientExport { client, files },
        AdminRequest::BackupDrill { shares } => Action::BackupDrill { shares },
        AdminRequest::Doctor => Action::Doctor,
    };
    Incoming { action, chunks: None }
}
