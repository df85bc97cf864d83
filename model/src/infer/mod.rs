//! Answers: a base model ready to answer, and one answer under way from its prompt to its last token. Refuses to know
//! sockets, threads and who asks.

pub mod compute;
mod draft;
mod grammar;
mod model;
mod sample;
mod text;

pub use draft::{Lookup, MAX_DRAFT};
pub use grammar::{GrammarError, GrammarFactory, Matcher};
pub use model::{MAX_CONTEXT, Model, ModelError};
pub use sample::{ChooseError, Chooser, Chosen, Logprobs, SpecError};
pub use text::{Pushed, TextStream, spelled};
