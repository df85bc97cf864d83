//! The words of Empathd: what its processes say to each other and to the outside, and the pure audit maths that
//! the store, the admin tool and an offline verifier share. This crate refuses to know IO, async runtimes, databases
//! and tensors.
//!
//! Reading order: [`ids`] and [`problem`] (nouns and errors), [`record`] (what a clinic's conversation becomes),
//! [`frame`] (how a message travels on a Unix socket), [`admin`] and [`engine`] (the two closed conversations),
//! [`generate`] (what is asked of the engine for one answer),
//! [`chat`] (the OpenAI face), [`audit`] (what happened, provably).

pub mod ids;
pub mod problem;
pub mod secret;

pub mod record;
pub mod report;

pub mod frame;

pub mod admin;
pub mod chat;
pub mod engine;
pub mod generate;
pub mod keys;
pub mod manifest;
pub mod train;

pub mod audit;

pub use ids::{AdapterId, BlobId, ClientId, DatasetId, JobId, RecordId, RequestId, StoreId};
pub use problem::{ErrorCode, Problem};
pub use secret::Secret;
