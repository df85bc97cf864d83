//! Answers for people: calm text, at most [`WIDTH`] columns, the next command at its end. Pure functions from an answer
//! to a text; they refuse to know sockets and terminals.

pub(crate) mod adapter;
pub(crate) mod audit;
pub(crate) mod cert;
pub(crate) mod chart;
pub(crate) mod copies;
pub(crate) mod dataset;
pub(crate) mod ingest;
pub(crate) mod report;
pub(crate) mod status;
pub(crate) mod table;
pub(crate) mod train;
pub(crate) mod words;

/// Widest line.
pub(crate) const WIDTH: usize = 100;
