//! The thread that computes embeddings, one text after the other, so that each can be given up. Refuses to know how texts
//! arrive and what vectors are for.

use super::state::State;
use super::works::Works;
use crate::embed::{EmbedError, Embedder};
use crate::schedule::Cancel;
use empathd_proto::engine::{EngineFailure, FromEngineBody};
use empathd_proto::generate::Embedded;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

/// Most jobs waiting or running.
pub(super) const MAX_JOBS: usize = 32;

/// Something to be done.
pub(super) struct Job {
    pub(super) tag: u64,
    pub(super) cancel: Cancel,
    pub(super) task: Task,
}

/// What.
pub(super) enum Task {
    /// Take a model into memory.
    Load { path: PathBuf, sha256: [u8; 32] },
    /// Tell where texts lie.
    Embed(Vec<String>),
}

/// Does jobs until none can come any more.
pub(super) fn run(jobs: &Receiver<Job>, works: &Works, state: &State) {
    for Job { tag, cancel, task } in jobs {
        let done = catch_unwind(AssertUnwindSafe(|| match task {
            Task::Load { path, sha256 } => load(path, sha256, state),
            Task::Embed(texts) => embed(&texts, &cancel, state),
        }));
        let done = done.unwrap_or_else(|_| Err(EngineFailure::Internal("embeddings panicked".to_owned())));
        match done {
            // Whoever is gone needs no answer.
            Ok(body) => drop(works.say(tag, body)),
            Err(failure) => works.fail(tag, failure),
        }
    }
}

fn load(path: PathBuf, sha256: [u8; 32], state: &State) -> Result<FromEngineBody, EngineFailure> {
    let loaded = state.embedder().filter(|(found, _)| *found == sha256);
    let embedder = match loaded {
        Some((_, embedder)) => embedder,
        None => {
            state.set_embedder(None);
            let opened = Embedder::open(&path, sha256);
            let embedder = Arc::new(opened.map_err(|error| EngineFailure::BadModel(error.to_string()))?);
            state.set_embedder(Some((sha256, Arc::clone(&embedder))));
            embedder
        }
    };
    Ok(FromEngineBody::EmbedderLoaded { width: u32::try_from(embedder.width()).unwrap_or(u32::MAX) })
}

fn embed(texts: &[String], cancel: &Cancel, state: &State) -> Result<FromEngineBody, EngineFailure> {
    let Some((_, embedder)) = state.embedder() else {
        return Err(EngineFailure::Refused("no model of embeddings is loaded".to_owned()));
    };
    let read = embedder.read(texts).map_err(failure)?;
    let tokens: usize = read.iter().map(Vec::len).sum();
    let mut vectors = Vec::with_capacity(read.len());
    for text in read {
        if cancel.is_set() {
            return Err(EngineFailure::Cancelled);
        }
        vectors.push(embedder.vector(&text).map_err(failure)?);
    }
    let tokens = u32::try_from(tokens).unwrap_or(u32::MAX);
    Ok(FromEngineBody::Embedded(Embedded { vectors, tokens }))
}

fn failure(error: EmbedError) -> EngineFailure {
    match error {
        EmbedError::Texts(_) | EmbedError::TextBytes { .. } | EmbedError::TextTokens { .. } => {
            EngineFailure::Refused(error.to_string())
        }
        _ => EngineFailure::Internal(error.to_string()),
    }
}
