//! Behaviour of the store as a whole. What one file alone promises is tested in that file.

mod backing;
mod behaviour;
mod engine;
mod erasure;
mod faults;
mod flips;
mod model;
mod older;
mod scrub;
pub(crate) mod support;
mod tamper;
mod turning;
