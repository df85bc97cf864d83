//! What the store keeps of a training job, so that it can go on after a stop. What a job does is not known here.

use crate::problem::{self, Fault};
use crate::stored::{Stored, decode, encode};
use empathd_proto::engine::TrainSpec;
use empathd_proto::ids::{AdapterId, BlobId, DatasetId, JobId};
use empathd_proto::problem::Problem;
use empathd_proto::report::{JobState, TrainProgress, TrainStatus};
use empathd_store::{AuditDraft, DocKind, Reader, Store, WriteError, Writer};
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
    /// A checkpoint of an earlier release, which goes with the next change.
    pub(crate) outdated: Option<BlobId>,
    /// The adapter whose weights it begins with; a fresh one when absent.
    pub(crate) beginning: Option<Beginning>,
}

/// What a job begins with: a public LoRA, made one more expert.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Beginning {
    /// The mixture's file; dropped when the job has an adapter of its own.
    pub(crate) blob: BlobId,
    /// The generation that got the expert; none when the mixture is of this expert alone.
    pub(crate) onto: Option<AdapterId>,
    /// SHA-256 of the LoRA's weights file.
    pub(crate) imported_sha256: [u8; 32],
}

impl Stored for JobDoc {
    type First = v1::JobDoc;
    type Second = v2::JobDoc;
}

impl JobDoc {
    /// A job that has not begun.
    pub(crate) fn fresh(started_at_ms: u64, dataset: DatasetId, spec: TrainSpec, promote: bool) -> Self {
        Self {
            id: spec.job,
            started_at_ms,
            dataset,
            spec,
            promote,
            state: JobState::Running,
            checkpoint: None,
            progress: None,
            adapter: None,
            error: None,
            outdated: None,
            beginning: None,
        }
    }

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
        if let Some(blob) = self.outdated {
            writer.drop_blob(blob)?;
        }
        let kept = Self { outdated: None, ..self.clone() };
        Ok(writer.put_doc(DocKind::Job, *self.id.as_bytes(), &encode(&kept)?)?)
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

/// Throws away the checkpoints of jobs that learned from these cuts; they end as failed. Gives their number.
pub(crate) fn forget_lessons(
    writer: &mut Writer<'_>,
    jobs: Vec<JobDoc>,
    cuts: &[DatasetId],
) -> Result<u64, WriteError> {
    let unfinished = |job: &JobDoc| !matches!(job.state, JobState::Finished) && cuts.contains(&job.dataset);
    let mut dropped = 0;
    for mut job in jobs.into_iter().filter(unfinished) {
        if let Some((_, blob)) = job.checkpoint.take() {
            writer.drop_blob(blob)?;
            dropped += 1;
        }
        job.state = JobState::Failed;
        job.error = Some("What it learned from was erased; cut the records again.".to_owned());
        let unwritable = |_| WriteError::Integrity("a job could not be written");
        job.put(writer).map_err(unwritable)?;
    }
    Ok(dropped)
}

/// Jobs as the first release kept them.
mod v1 {
    use empathd_proto::engine::{Guards, LossSpec, MixtureSpec, Plateau, Stages, TrainOnly, TrainSpec};
    use empathd_proto::ids::{AdapterId, BlobId, DatasetId, JobId};
    use empathd_proto::record::Domain;
    use empathd_proto::report::{JobState, TrainProgress};
    use serde::{Deserialize, Serialize};

    #[derive(Serialize, Deserialize)]
    pub(crate) struct JobDoc {
        pub(super) id: JobId,
        pub(super) started_at_ms: u64,
        pub(super) dataset: DatasetId,
        pub(super) spec: Spec,
        pub(super) promote: bool,
        pub(super) state: JobState,
        pub(super) checkpoint: Option<(u32, BlobId)>,
        pub(super) progress: Option<TrainProgress>,
        pub(super) adapter: Option<AdapterId>,
        pub(super) error: Option<String>,
    }

    #[derive(Clone, Serialize, Deserialize)]
    pub(crate) struct Spec {
        pub(super) job: JobId,
        pub(super) mixture: Mixture,
        pub(super) seq_len: u32,
        pub(super) tokens_per_step: u32,
        pub(super) steps: u32,
        pub(super) seconds_max: u32,
        pub(super) learning_rate: f32,
        pub(super) router_learning_rate: f32,
        pub(super) weight_decay: f32,
        pub(super) warmup: f32,
        pub(super) clip: f32,
        pub(super) validate_every: u32,
        pub(super) checkpoint_every: u32,
        pub(super) patience: u32,
        pub(super) seed: u64,
    }

    #[derive(Clone, Serialize, Deserialize)]
    pub(crate) struct Mixture {
        pub(super) shared_rank: u32,
        pub(super) expert_rank: u32,
        pub(super) experts: Vec<Option<Domain>>,
        pub(super) top_k: u32,
        pub(super) scale: f32,
    }

    impl From<Spec> for TrainSpec {
        fn from(old: Spec) -> Self {
            let Mixture { shared_rank, expert_rank, experts, top_k, scale } = old.mixture;
            let mixture = MixtureSpec { shared_rank, expert_rank, experts, top_k, scale, ..MixtureSpec::default() };
            Self {
                job: old.job,
                mixture,
                only: TrainOnly::All,
                seq_len: old.seq_len,
                tokens_per_step: old.tokens_per_step,
                pass_tokens: None,
                steps: old.steps,
                seconds_max: old.seconds_max,
                learning_rate: old.learning_rate,
                b_rate_ratio: 1.0,
                router_learning_rate: old.router_learning_rate,
                weight_decay: old.weight_decay,
                warmup: old.warmup,
                clip: old.clip,
                validate_every: old.validate_every,
                checkpoint_every: old.checkpoint_every,
                patience: old.patience,
                plateau: Plateau::default(),
                stages: Stages::default(),
                losses: LossSpec::default(),
                guards: Guards::default(),
                seed: old.seed,
            }
        }
    }

    impl From<JobDoc> for super::JobDoc {
        /// A checkpoint of that time cannot be gone on from: the job begins anew.
        fn from(old: JobDoc) -> Self {
            Self {
                id: old.id,
                started_at_ms: old.started_at_ms,
                dataset: old.dataset,
                spec: old.spec.into(),
                promote: old.promote,
                state: old.state,
                checkpoint: None,
                progress: old.progress,
                adapter: old.adapter,
                error: old.error,
                outdated: old.checkpoint.map(|(_, blob)| blob),
                beginning: None,
            }
        }
    }
}

/// Jobs before one could begin with an imported adapter.
mod v2 {
    use empathd_proto::engine::TrainSpec;
    use empathd_proto::ids::{AdapterId, BlobId, DatasetId, JobId};
    use empathd_proto::report::{JobState, TrainProgress};
    use serde::{Deserialize, Serialize};

    #[derive(Serialize, Deserialize)]
    pub(crate) struct JobDoc {
        pub(super) id: JobId,
        pub(super) started_at_ms: u64,
        pub(super) dataset: DatasetId,
        pub(super) spec: TrainSpec,
        pub(super) promote: bool,
        pub(super) state: JobState,
        pub(super) checkpoint: Option<(u32, BlobId)>,
        pub(super) progress: Option<TrainProgress>,
        pub(super) adapter: Option<AdapterId>,
        pub(super) error: Option<String>,
        pub(super) outdated: Option<BlobId>,
    }

    impl From<JobDoc> for super::JobDoc {
        fn from(old: JobDoc) -> Self {
            Self {
                id: old.id,
                started_at_ms: old.started_at_ms,
                dataset: old.dataset,
                spec: old.spec,
                promote: old.promote,
                state: old.state,
                checkpoint: old.checkpoint,
                progress: old.progress,
                adapter: old.adapter,
                error: old.error,
                outdated: old.outdated,
                beginning: None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use empathd_proto::record::Domain;

    #[test]
    fn a_job_of_the_first_release_is_read_and_begins_anew() {
        let mixture = v1::Mixture {
            shared_rank: 8,
            expert_rank: 4,
            experts: vec![Some(Domain::Crisis), None],
            top_k: 2,
            scale: 2.0,
        };
        let spec = v1::Spec {
            job: JobId::from_bytes([1; 16]),
            mixture,
            seq_len: 256,
            tokens_per_step: 1024,
            steps: 24,
            seconds_max: 60,
            learning_rate: 1e-3,
            router_learning_rate: 2e-3,
            weight_decay: 0.01,
            warmup: 0.1,
            clip: 1.0,
            validate_every: 12,
            checkpoint_every: 8,
            patience: 4,
            seed: 9,
        };
        let blob = BlobId::from_bytes([3; 16]);
        let old = v1::JobDoc {
            id: JobId::from_bytes([1; 16]),
            started_at_ms: 5,
            dataset: DatasetId::from_bytes([2; 16]),
            spec,
            promote: true,
            state: JobState::Paused,
            checkpoint: Some((8, blob)),
            progress: None,
            adapter: None,
            error: None,
        };
        let mut body = vec![1];
        body.extend(postcard::to_stdvec(&old).expect("encoded"));
        let job: JobDoc = decode(&body).expect("read");
        assert_eq!((job.steps_safe(), job.outdated, job.state), (0, Some(blob), JobState::Paused));
        assert_eq!((job.spec.seed, job.spec.mixture.experts.len(), job.spec.steps), (9, 2, 24));
        let again: JobDoc = decode(&encode(&job).expect("encoded")).expect("read");
        assert_eq!(again.spec, job.spec);
        let second = v2::JobDoc {
            id: job.id,
            started_at_ms: 5,
            dataset: job.dataset,
            spec: job.spec.clone(),
            promote: false,
            state: JobState::Paused,
            checkpoint: Some((8, blob)),
            progress: None,
            adapter: None,
            error: None,
            outdated: None,
        };
        let body = [vec![2], postcard::to_stdvec(&second).expect("encoded")].concat();
        let job: JobDoc = decode(&body).expect("read");
        assert_eq!((job.steps_safe(), job.beginning.is_none(), job.spec), (8, true, second.spec), "it goes on");
    }
}
