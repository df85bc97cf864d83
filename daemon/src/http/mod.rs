//! The API's door: certificates in, OpenAI-shaped JSON out. It translates and bounds; what an action does, who may ask
//! for it and what is recorded are known to the appliance behind it.
//!
//! Reading order: [`server`] (connections and their limits), [`tls`] and [`identity`] (who is there), [`routes`] (the
//! table), [`request`] (what bodies share), [`chat`], [`completions`], [`answer`], [`face`] and [`sse`] (answers),
//! [`embeddings`], [`health`], [`models`], [`metrics`].

mod answer;
mod appliance;
mod body;
mod chat;
mod completions;
mod embeddings;
mod face;
mod health;
mod identity;
pub mod metrics;
mod models;
mod places;
mod problem;
mod request;
mod routes;
mod server;
mod sse;
pub mod tls;

#[cfg(test)]
mod tests;

pub use server::{HttpLimits, serve};

use appliance::Appliance;
use empathd_proto::ids::RequestId;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use tokio_util::sync::CancellationToken;

/// What every request shares.
struct Door {
    appliance: Arc<dyn Appliance>,
    limits: HttpLimits,
    /// Cancelled when answers still under way must end now.
    ending: CancellationToken,
    /// Whether somebody has been told that it can do its work.
    started: AtomicBool,
}

/// A fresh request id.
fn request_id() -> RequestId {
    let mut bytes = [0; 16];
    crate::clock::OsEntropy.fill(&mut bytes);
    RequestId::from_bytes(bytes)
}
