//! What this door needs of the appliance, and nothing else of it. A test can stand in for the appliance here.

use crate::action::Action;
use crate::actor::Actor;
use crate::app::{App, CertState, Readiness, Reply};
use empathd_proto::keys::Care;
use empathd_proto::{AdapterId, Problem};
use std::pin::Pin;
use std::sync::Arc;
use tokio::sync::watch;

/// An action under way.
pub(super) type Performing<'a> = Pin<Box<dyn Future<Output = Result<Reply, Problem>> + Send + 'a>>;

/// The appliance as seen from the door.
pub(super) trait Appliance: Send + Sync {
    /// Authorises, acts and audits.
    fn perform<'a>(&'a self, actor: &'a Actor, action: Action) -> Performing<'a>;
    /// How to speak TLS; `None` while there are no keys.
    fn tls_config(&self) -> Option<Arc<rustls::ServerConfig>>;
    /// Where a certificate stands now.
    fn certificate(&self, serial: &str) -> CertState;
    /// Changes whenever [`Self::certificate`] may answer otherwise.
    fn revocations(&self) -> watch::Receiver<u64>;
    /// Whether it can do its work.
    fn readiness(&self) -> Readiness;
    /// The generation that answers; `None` for the plain base model.
    fn adapter(&self) -> Option<AdapterId>;
    /// Sealed records and audit entries; `None` while sealed.
    fn counts(&self) -> Option<(u64, u64)>;
    /// When copies were last made; `None` while sealed.
    fn care(&self) -> Option<Care> {
        None
    }
    /// The newest audit checkpoint as a header value.
    fn checkpoint_note(&self) -> Option<String>;
    /// Milliseconds since the Unix epoch.
    fn now_ms(&self) -> u64;
}

impl Appliance for Arc<App> {
    fn perform<'a>(&'a self, actor: &'a Actor, action: Action) -> Performing<'a> {
        Box::pin(App::perform(self, actor, action))
    }

    fn tls_config(&self) -> Option<Arc<rustls::ServerConfig>> {
        App::tls_config(self)
    }

    fn certificate(&self, serial: &str) -> CertState {
        App::certificate(self, serial)
    }

    fn revocations(&self) -> watch::Receiver<u64> {
        App::revocations(self)
    }

    fn readiness(&self) -> Readiness {
        App::readiness(self)
    }

    fn adapter(&self) -> Option<AdapterId> {
        self.adapters.active()
    }

    fn counts(&self) -> Option<(u64, u64)> {
        App::counts(self)
    }

    fn care(&self) -> Option<Care> {
        App::care(self)
    }

    fn checkpoint_note(&self) -> Option<String> {
        App::checkpoint_note(self)
    }

    fn now_ms(&self) -> u64 {
        App::now_ms(self)
    }
}
