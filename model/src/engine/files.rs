//! The thread that gives adapters as public files and takes public files in, one after the other, beside answers and
//! training. Refuses to know how jobs arrive.

use super::export::Export;
use super::import::Import;
use super::works::Works;
use empathd_proto::engine::EngineFailure;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::Receiver;

/// Most jobs waiting or running.
pub(super) const MAX_JOBS: usize = 2;

/// What is to be done.
pub(super) enum Job {
    /// Give an adapter.
    Export(Export),
    /// Take a LoRA in.
    Import(Import),
}

/// Does jobs until none can come any more.
pub(super) fn run(jobs: &Receiver<Job>, works: &Works) {
    for job in jobs {
        let tag = match &job {
            Job::Export(export) => export.tag,
            Job::Import(import) => import.tag,
        };
        let done = catch_unwind(AssertUnwindSafe(|| match job {
            Job::Export(export) => export.run(works),
            Job::Import(import) => import.run(works),
        }));
        if let Err(failure) = done.unwrap_or_else(|_| Err(EngineFailure::Internal("public files panicked".to_owned())))
        {
            works.fail(tag, failure);
        }
    }
}
