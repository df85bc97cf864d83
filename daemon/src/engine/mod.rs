//! The other process, as the daemon sees it: a connection ([`link`]) that somebody keeps alive ([`supervisor`]), whether
//! it goes on ([`pulse`]), and a view of it that everybody may read. What is asked of the engine is not known here.

pub mod link;
pub mod pulse;
pub mod supervisor;

use empathd_proto::admin::EngineState;
use empathd_proto::engine::{BaseModel, EngineFailure};
use empathd_proto::problem::{ErrorCode, Problem};
use link::Link;
use pulse::Pulse;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// An engine with its base model in memory.
#[derive(Debug)]
pub struct Ready {
    /// The connection.
    pub link: Arc<Link>,
    /// The base model.
    pub base: BaseModel,
    /// Counts connections, so that what was put into one engine is not looked for in the next.
    pub epoch: u64,
    /// Whether it goes on.
    pub pulse: Pulse,
    embedder: Mutex<Embedder>,
}

/// The model of embeddings in an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Embedder {
    /// None is configured.
    None,
    /// Not in memory yet.
    Loading,
    /// In memory.
    Ready {
        /// Numbers of one vector.
        width: u32,
    },
    /// It cannot be used, and why.
    Failed(String),
}

impl Ready {
    /// An engine that has just loaded its base model.
    #[must_use]
    pub fn new(link: Arc<Link>, base: BaseModel, epoch: u64) -> Self {
        Self { link, base, epoch, pulse: Pulse::default(), embedder: Mutex::new(Embedder::None) }
    }

    /// How its model of embeddings is.
    #[must_use]
    pub fn embedder(&self) -> Embedder {
        self.embedder.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_embedder(&self, embedder: Embedder) {
        *self.embedder.lock().unwrap_or_else(PoisonError::into_inner) = embedder;
    }
}

/// How the engine is.
#[derive(Debug, Clone)]
pub enum View {
    /// Not connected, and why.
    Down(String),
    /// Connected, loading its base model.
    Loading,
    /// At work.
    Ready(Arc<Ready>),
}

/// Everybody's view of the engine.
#[derive(Debug, Clone)]
pub struct Engine {
    view: watch::Receiver<View>,
}

impl Engine {
    /// The engine that `view` tells of.
    #[must_use]
    pub fn new(view: watch::Receiver<View>) -> Self {
        Self { view }
    }

    /// The word for status reports.
    #[must_use]
    pub fn state(&self) -> EngineState {
        match &*self.view.borrow() {
            View::Down(_) => EngineState::Down,
            View::Loading => EngineState::Loading,
            View::Ready(ready) if ready.link.is_closed() => EngineState::Down,
            View::Ready(ready) if ready.pulse.is_stuck() => EngineState::Stuck,
            View::Ready(_) => EngineState::Ready,
        }
    }

    /// The engine if it is ready now.
    ///
    /// # Errors
    /// [`ErrorCode::EngineUnavailable`] with the reason.
    pub fn ready(&self) -> Result<Arc<Ready>, Problem> {
        match &*self.view.borrow() {
            View::Ready(ready) if !ready.link.is_closed() => Ok(ready.clone()),
            View::Ready(_) => Err(unavailable("The engine is being restarted.")),
            View::Loading => Err(unavailable("The engine is loading its base model.")),
            View::Down(why) => Err(unavailable(why)),
        }
    }

    /// The engine as soon as it is ready, within `limit`.
    ///
    /// # Errors
    /// As [`Engine::ready`], when the time is over.
    pub async fn wait_ready(&self, limit: Duration) -> Result<Arc<Ready>, Problem> {
        let mut view = self.view.clone();
        let open = |view: &View| matches!(view, View::Ready(ready) if !ready.link.is_closed());
        match tokio::time::timeout(limit, view.wait_for(open)).await {
            Ok(Ok(_)) => self.ready(),
            _ => Err(self.ready().err().unwrap_or_else(|| unavailable("The engine is being restarted."))),
        }
    }

    /// Waits until the view changes; `false` when nobody keeps it any more.
    pub async fn changed(&mut self) -> bool {
        self.view.changed().await.is_ok()
    }
}

fn unavailable(detail: &str) -> Problem {
    let next = "Wait a few seconds and try again; empathctl status shows the engine, its log says more.";
    Problem::new(ErrorCode::EngineUnavailable, detail, next)
}

/// What a lost connection looks like to a caller.
#[must_use]
pub fn lost() -> Problem {
    unavailable("The connection to the engine was lost.")
}

/// What a failure of the engine looks like to a caller.
#[must_use]
pub fn failed(failure: &EngineFailure) -> Problem {
    let (code, next) = match failure {
        EngineFailure::NoBase => {
            (ErrorCode::EngineUnavailable, "Wait until empathctl status says the engine is ready.")
        }
        EngineFailure::BadModel(_) => (ErrorCode::BadModel, "Check engine.model in the configuration and its file."),
        EngineFailure::BadAdapter(_) => (ErrorCode::BadModel, "Train again with the base model that is loaded now."),
        EngineFailure::PromptTooLong { .. } => {
            (ErrorCode::PromptTooLong, "Send fewer or shorter messages, or ask for fewer tokens.")
        }
        EngineFailure::Busy { .. } => (ErrorCode::Busy, "Try again later; the header Retry-After says when."),
        EngineFailure::Late => (ErrorCode::Late, "Try again later, or with `service_tier` \"flex\" when nobody waits."),
        EngineFailure::Refused(_) => (ErrorCode::BadRequest, "Change what is named and ask again."),
        EngineFailure::BadJob(_) => (ErrorCode::Conflict, "Ingest more records, then cut a new dataset."),
        EngineFailure::UnknownAdapter(_)
        | EngineFailure::Protocol(_)
        | EngineFailure::Cancelled
        | EngineFailure::Internal(_) => (ErrorCode::EngineFailed, "Try again; if it stays, see the engine's log."),
    };
    let problem = Problem::new(code, format!("The engine refused: {failure}."), next);
    match failure {
        EngineFailure::Busy { retry_after_ms } => problem.after_s(retry_after_ms.div_ceil(1000).max(1)),
        _ => problem,
    }
}
