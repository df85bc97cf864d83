//! The administrator's tool as a library: a typed client of the admin socket, the commands over it, and how their
//! answers are shown. It refuses to know the store, the model and the daemon; all it knows of them is `proto`. Clock,
//! environment and terminal are arguments, filled in by `main.rs`.
//!
//! Reading order: [`cli`] (what can be typed), [`client`] (the connection), [`commands`] (one file per group of
//! verbs), [`render`] (answers for people), [`error`] (what went wrong and what to do next).

pub mod checkpoint;
pub mod cli;
pub mod client;
pub mod commands;
pub mod error;
mod folder;
pub mod passphrase;
pub mod progress;
pub mod render;
pub mod session;
mod shares;
pub mod sources;

pub use client::Client;
pub use error::CtlError;
pub use session::Session;
