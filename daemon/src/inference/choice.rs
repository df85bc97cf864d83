//! One work of the engine, from its request to its end. An engine that dies in the middle is waited for and asked again for
//! the rest: the same request gives the same tokens. What becomes of the tokens is not known here.

use crate::adapters;
use crate::app::App;
use crate::engine::link::{Event, Lost, Work};
use crate::engine::{self, Ready};
use empathd_proto::engine::{FromEngineBody, ToEngineBody};
use empathd_proto::generate::{Finished, GenerateSpec, TokenLogprobs};
use empathd_proto::problem::Problem;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::Instant;

/// Times a work is taken up again after the engine was lost.
const RESUMES_MAX: u32 = 3;

/// What is heard of a work.
pub(crate) enum Heard {
    /// One more token.
    Token { text: String, logprobs: Option<TokenLogprobs> },
    /// It is complete. The last thing.
    Finished(Finished),
    /// It cannot be completed. The last thing.
    Failed(Problem),
}

/// One work.
pub(crate) struct Choice {
    pub(crate) app: Arc<App>,
    /// Its place among the works of the answer.
    pub(crate) place: usize,
    /// What is asked of the engine; `skip_tokens` counts those that were delivered.
    pub(crate) spec: GenerateSpec,
    /// Where what is heard goes; there is room for all of it.
    pub(crate) listener: mpsc::Sender<(usize, Heard)>,
    /// Its share of the room, until the engine is done with it.
    pub(crate) permit: Option<OwnedSemaphorePermit>,
}

/// Why a stretch of a work ended before the work did.
enum Cut {
    /// The engine is gone.
    Lost,
    /// Nobody listens.
    Unwanted,
    /// It cannot be done.
    Problem(Problem),
}

impl From<Lost> for Cut {
    fn from(_: Lost) -> Self {
        Cut::Lost
    }
}

/// Things heard of a work that may wait: all there can be. A slow connection never holds up the other works of the engine,
/// nor keeps its place among them.
pub(crate) fn waiting_max(spec: &GenerateSpec) -> usize {
    spec.max_tokens as usize + 8
}

impl Choice {
    /// The whole work. Dropping it cancels the work.
    pub(crate) async fn run(mut self, mut ready: Arc<Ready>) {
        let (mut resumes, started) = (0, Instant::now());
        let last = loop {
            match self.stretch(&ready).await {
                Ok(finished) => {
                    self.app.inference.admission.took(started.elapsed());
                    break Heard::Finished(finished);
                }
                Err(Cut::Unwanted) => return,
                Err(Cut::Problem(problem)) => break Heard::Failed(problem),
                Err(Cut::Lost) if resumes == RESUMES_MAX => break Heard::Failed(engine::lost()),
                Err(Cut::Lost) => {}
            }
            resumes += 1;
            tracing::info!(count = self.spec.skip_tokens, "engine lost in mid-answer, waiting for it");
            let again = tokio::select! {
                () = self.listener.closed() => return,
                again = self.app.engine.wait_ready(self.app.config.serving.reconnect) => again,
            };
            match again {
                Ok(again) => ready = again,
                Err(problem) => break Heard::Failed(problem),
            }
        };
        drop(self.permit.take());
        let _ = self.listener.send((self.place, last)).await;
    }

    /// One engine's part of the work.
    async fn stretch(&mut self, ready: &Ready) -> Result<Finished, Cut> {
        if let Some(adapter) = self.spec.adapter {
            let loaded = adapters::ensure(&self.app, ready, adapter).await;
            loaded.map_err(|problem| if ready.link.is_closed() { Cut::Lost } else { Cut::Problem(problem) })?;
        }
        let generate = ToEngineBody::Generate(self.spec.clone());
        let mut work: Work = ready.link.begin(generate, waiting_max(&self.spec)).await?;
        loop {
            let event = tokio::select! {
                () = self.listener.closed() => return Err(Cut::Unwanted),
                event = work.next() => event?,
            };
            match event {
                Event::Said(FromEngineBody::Token { index, text, logprobs }) if index >= self.spec.skip_tokens => {
                    self.spec.skip_tokens = index + 1;
                    let token = Heard::Token { text, logprobs: logprobs.map(|logprobs| *logprobs) };
                    self.listener.send((self.place, token)).await.map_err(|_| Cut::Unwanted)?;
                }
                Event::Said(FromEngineBody::Finished(finished)) => return Ok(finished),
                Event::Said(FromEngineBody::Failed(failure)) => return Err(Cut::Problem(engine::failed(&failure))),
                _ => {}
            }
        }
    }
}
