//! The daemon: the only crate that sees store, ingestion, clinic rules and engine together, and joins them. It knows no
//! tensor operation and no file format.
//!
//! Reading order: [`actor`] and [`action`] (who may do what), [`app`] (authorise, act, audit), [`admin`] and `http` (the
//! two doors), [`engine`] (the other process), [`jobs`] (long work).

pub mod action;
pub mod actor;
pub mod app;

pub mod admin;
pub mod certs;
pub mod http;

pub mod engine;
pub mod measure;
pub mod model_file;

mod acts;
mod adapters;
mod answer_cache;
mod backups;
mod care;
mod clients;
mod doctor;
pub mod inference;
mod jobs;
mod keys;
pub use jobs::examples;
mod records;
mod refusals;
mod scrub;
mod stored;
mod trail;
mod vault;

pub mod clock;
pub mod config;
pub mod problem;
pub mod restore;
pub mod serve;
pub mod telemetry;
pub mod verify;
mod wire;

#[cfg(test)]
mod fixture;
