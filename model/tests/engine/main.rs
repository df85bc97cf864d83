//! The engine over its socket, by what is tested.

mod answers;
mod files;
mod hostile;
mod load;
mod support;
mod swap;
mod training;
mod wire;
