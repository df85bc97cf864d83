//! Clinical rules: what the scores of instruments mean, when a change is real, how a course runs over weeks, what in a
//! conversation is a sign of danger, and what an answer must then carry. Pure functions; no input or output of any
//! kind, no clock, no model. Every rule names its source.
//!
//! Reading order: [`crisis`] and [`scaffold`] (safety first), [`instruments`], [`change`], [`trend`].

pub mod change;
pub mod crisis;
pub mod instruments;
pub mod scaffold;
pub mod trend;
