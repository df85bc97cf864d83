//! The admin socket: a Unix socket whose callers the kernel names. It translates frames to actions and back, and knows
//! nothing of what an action does.

mod members;
pub mod server;
mod translate;
pub mod upload;
