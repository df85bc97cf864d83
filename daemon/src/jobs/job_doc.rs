//! What the store keeps of a training job, so that it can go on after a stop. What a job does is not known here.

use crate::problem::{self, Fault};
use crate::stored::{Stored, decode, encode};
use empathd_proto::engine::TrainSpec;
use empathd_proto::ids::{AdapterId, BlobId, DatasetId, JobId};
use empathd_proto::problem::Problem;
use empathd_proto::report::{JobState, TrainProgress, TrainStatus};
use empathd_store::{AuditDraft, DocKind, Reader, Store, Writer};
use serde::{Deserialize, Serialize};

/// A training job.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct JobDoc {
    pub(crate) id: JobId,
    /// Milliseconds since the Unix epoch.
    pub(crate) started_at_ms: u64,
    pub(crate) dataset: DatasetId,
    pub(crate) spec: TrainSpec,
    /// Whether the adapter answers as soon as it passes its gate.
    pub(crate) promote: bool,
    pub(crate) state: JobState,
    /// The last checkpoint: steps taken, and its bytes.
    pub(crate) checkpoint: Option<(u32, BlobId)>,
    pub(crate) progress: Option<TrainProgress>,
    pub(crate) adapter: Option<AdapterId>,
    pub(crate) error: Option<String>,
}

impl Stored for JobDoc {
    type First = Self;
}

impl JobDoc {
    /// Steps that are safe.
    pub(crate) fn steps_safe(&self) -> u32 {
        self.checkpoint.map_or(0, |(step, _)| step)
    }

    pub(crate) fn status(&self) -> TrainStatus {
        TrainStatus {
            job: self.id,
            state: self.state,
            dataset: self.dataset,
            progress: self.progress.clone(),
            adapter: self.adapter,
            error: self.error.clone(),
        }
    }

    /// Keeps the job as it is now.
    pub(crate) fn put(&self, writer: &mut Writer<'_>) -> Result<(), Fault> {
        Ok(writer.put_doc(DocKind::Job, *self.id.as_bytes(), &encode(self)?)?)
    }

    /// Keeps the job as it is now, as a change of its own.
    pub(crate) fn save(&self, store: &Store, audit: AuditDraft) -> Result<(), Problem> {
        Ok(store.change(audit, |writer, _| self.put(writer))?)
    }
}

/// Every job, the newest last.
pub(crate) fn all(store: &Store) -> Result<Vec<JobDoc>, Problem> {
    let docs = store.read(|reader: &Reader<'_>| reader.docs(DocKind::Job)).map_err(problem::from_read)?;
    let mut jobs: Vec<JobDoc> = docs.iter().map(|(_, body)| decode(body)).collect::<Result<_, _>>()?;
    jobs.sort_by_key(|job| (job.started_at_ms, job.id));
    Ok(jobs)
}
