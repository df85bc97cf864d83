//! Proofs that take long or need foreign programs: `cargo test -p empathd-model --test slow -- --ignored`. What each
//! needs is in its word for being ignored.
#![expect(clippy::unwrap_used, reason = "what cannot be prepared fails the proof that needs it")]

mod export;
mod reference;
mod session;

use std::path::PathBuf;

/// Where the appliance and its tests keep the reference model.
#[expect(clippy::disallowed_methods, reason = "the cache is where the user has it")]
fn cached() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache");
    let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from);
    cache.join("empathd/models/SmolLM2-135M-Instruct.Q4_1.gguf")
}
