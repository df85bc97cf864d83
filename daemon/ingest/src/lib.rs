//! From the bytes of a source to reviewed training records: profile, read, de-identify, measure, validate. Pure: it opens no
//! file, reads no clock and knows neither the store nor the daemon.
//!
//! ```text
//! bytes -- detect --> Profile -- read --> Draft -- assess --> Assessed -- validate --> ValidRecord
//!                                    \-> Rejection                     \-> Rejection
//! ```
//!
//! Each arrow has one place that can take it. Nothing is dropped silently: what does not go on leaves a [`Rejection`] with
//! the rule, what was measured and the bound, and never a word of the text.

pub mod deid;
mod detect;
mod draft;
pub mod limits;
mod profile;
pub mod quality;
mod read;
mod rule;
mod text;
mod validate;

pub use deid::{Roster, RosterError};
pub use detect::{DetectError, detect};
pub use draft::{Assessed, Draft, Drafts};
pub use profile::{Format, Profile, profiles};
pub use read::{ReadError, read};
pub use rule::{Rejection, Rule};
pub use validate::{Policy, ValidRecord, validate};
