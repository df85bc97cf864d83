//! Long work: taking in sources, cutting datasets, training, the gate. Jobs know store, ingestion and engine; they know
//! no connection and no caller.

pub(crate) mod course;
pub(crate) mod curves;
pub(crate) mod cut;
pub mod examples;
mod gate;
pub(crate) mod import;
pub(crate) mod ingest;
pub(crate) mod job_doc;
pub(crate) mod report;
pub(crate) mod roster;
pub(crate) mod train;
pub(crate) mod window;
