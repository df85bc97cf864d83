//! The appliance: authorises, acts and audits each action, once, here. The doors (`http`, `admin`) only translate; how
//! an action works inside is known to the modules it calls.

use crate::action::Action;
use crate::actor::Actor;
use empathd_proto::admin::AdminReply;
use empathd_proto::chat::{AnswerNotes, FinishReason, ModelList, Usage};
use empathd_proto::ids::RequestId;
use empathd_proto::problem::{ErrorCode, Problem};
use std::sync::Arc;
use tokio::sync::{mpsc, watch};

/// The appliance.
pub struct App {
    changed: watch::Sender<u64>,
}

/// What an action gives back.
#[derive(Debug)]
pub enum Reply {
    /// To a request of the admin socket.
    Admin(AdminReply),
    /// To [`Action::Chat`].
    Answer(Answer),
    /// To [`Action::ModelList`].
    Models(ModelList),
    /// To [`Action::Metrics`] and [`Action::Health`]: the caller may read them.
    Granted,
}

/// An answer under way. Dropping the receiver cancels the generation.
#[derive(Debug)]
pub struct Answer {
    /// The request.
    pub id: RequestId,
    /// Model that answers.
    pub model: String,
    /// Seconds since the Unix epoch.
    pub created_s: u64,
    /// Its text as it comes, then exactly one `Finished` or `Failed`.
    pub events: mpsc::Receiver<AnswerEvent>,
}

/// One event of an answer.
pub enum AnswerEvent {
    /// More text.
    Text(String),
    /// The answer is complete.
    Finished {
        /// Why it ended.
        reason: FinishReason,
        /// Tokens used.
        usage: Usage,
        /// What Empathd adds.
        notes: AnswerNotes,
    },
    /// The answer ended before it was complete.
    Failed(Problem),
}

impl std::fmt::Debug for AnswerEvent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            AnswerEvent::Text(text) => write!(f, "Text({} bytes)", text.len()),
            AnswerEvent::Finished { reason, .. } => write!(f, "Finished({reason:?})"),
            AnswerEvent::Failed(problem) => write!(f, "Failed({})", problem.code),
        }
    }
}

/// Where an enrolled certificate stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CertState {
    /// Enrolled.
    Valid,
    /// Enrolled once, refused now.
    Revoked,
    /// Not of this appliance, or the store is sealed.
    Unknown,
}

/// Whether the appliance can do its work, for `/readyz`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Readiness {
    /// State of the store.
    pub store: empathd_proto::admin::SealState,
    /// State of the engine.
    pub engine: empathd_proto::admin::EngineState,
    /// Whether it is draining before a stop.
    pub draining: bool,
}

impl Readiness {
    /// Whether everything works.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        use empathd_proto::admin::{EngineState, SealState};
        self.store == SealState::Unsealed && self.engine == EngineState::Ready && !self.draining
    }
}

impl App {
    /// Authorises, acts and audits.
    ///
    /// # Errors
    /// The problem to show to the caller; it was recorded.
    pub async fn perform(self: &Arc<Self>, actor: &Actor, action: Action) -> Result<Reply, Problem> {
        let _ = (actor, action);
        Err(Problem::new(ErrorCode::NotInitialised, "The appliance has no store yet.", "Run: empathctl init"))
    }

    /// How the API is spoken to; `None` while there are no keys, and then each connection is closed at once.
    #[must_use]
    pub fn tls_config(&self) -> Option<Arc<rustls::ServerConfig>> {
        None
    }

    /// Where the certificate with this serial number (hexadecimal) stands. Asked at the handshake and at every request.
    #[must_use]
    pub fn certificate(&self, serial: &str) -> CertState {
        let _ = serial;
        CertState::Unknown
    }

    /// A counter that changes whenever [`App::certificate`] may answer otherwise: live connections then ask again.
    #[must_use]
    pub fn revocations(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Whether the appliance can do its work.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        use empathd_proto::admin::{EngineState, SealState};
        Readiness { store: SealState::Uninitialised, engine: EngineState::Down, draining: false }
    }

    /// The newest audit checkpoint for the header `Empathd-Audit-Checkpoint`: the signed note in base64.
    #[must_use]
    pub fn checkpoint_note(&self) -> Option<String> {
        None
    }

    /// A fresh identifier for a request.
    #[must_use]
    pub fn request_id(&self) -> RequestId {
        RequestId::from_bytes([0; 16])
    }

    /// Milliseconds since the Unix epoch.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        0
    }
}
