//! What happened, provably. An entry is canonical bytes ([`entry`]); entries are leaves of an RFC 6962 Merkle tree
//! ([`tree`]); a signed checkpoint fixes the tree at a size ([`checkpoint`]). All of it is pure, so that the store, the
//! admin tool and an offline verifier compute the same.

pub mod checkpoint;
pub mod entry;
pub mod export;
pub mod log;
#[doc(hidden)]
pub mod tamper;
pub mod tile;
pub mod tree;

pub use checkpoint::{Checkpoint, CheckpointError, SignedCheckpoint};
pub use entry::{ActionKind, AuditEntry, AuditObject, Outcome, Principal, PrincipalKind};
pub use log::{LogCheck, LogError, verify_log};
pub use tree::{
    Frontier, Hash, consistency_proof, inclusion_proof, leaf_hash, root_hash, verify_consistency, verify_inclusion,
};
