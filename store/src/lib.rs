//! Data at rest and the only door to it. [`Store`] is made, unsealed, read and changed; what enters is sealed, what leaves
//! authenticates, and every change carries its audit entry in the same transaction. This crate refuses to know HTTP,
//! async runtimes, tensors and what a record says.
//!
//! From the outside in: [`store`](Store) (the whole), `reader` and `writer` (the two sides of the barrier), `records`,
//! `documents`, `dataset`, `adapters`, `blobs`, `audit` (one kind of thing each), `heads`, `doubt`, `mark` (nothing vanishes unseen), `keys`,
//! `keyring`, `recipient`, `shares`, `wrapped`, `memory` (keys), `turn` (new epochs), `erase` (of a client), `backup` (out and back), `export` (signatures), `transient` (values that stay in memory), `envelope`, `padding`, `format` (bytes), `tables`, `engine`, `backend` (the database under it), `stop`,
//! `scrub`, `verify` (the check of a whole state, in small steps and at once). docs/FORMAT.md has the byte maps.

mod adapters;
mod audit;
mod backend;
mod backup;
mod blobs;
mod dataset;
mod documents;
mod doubt;
mod engine;
mod entropy;
mod envelope;
mod erase;
mod error;
mod export;
mod files;
mod findings;
mod format;
mod gather;
mod heads;
mod keyring;
mod keys;
mod mark;
mod memory;
mod padding;
mod reader;
mod recipient;
mod records;
mod scrub;
mod shares;
mod stop;
mod store;
mod tables;
mod tiles;
mod transient;
mod turn;
mod verify;
mod wrapped;
mod writer;

#[cfg(test)]
mod tests;

pub use adapters::{NewAdapter, StoredAdapter};
pub use audit::{AuditDraft, AuditFindings, InclusionProof, MAX_TAIL};
pub use backend::{Disk, RealDisk, Storage};
pub use backup::{Backup, BackupCounts, RestoreError, RestoreFrom, Restored, fuzz_backup, fuzz_key_file};
pub use blobs::{BlobInfo, MAX_BLOB_BYTES};
pub use dataset::{CutRule, DatasetCut, MAX_CANDIDATES, VALIDATION_PERCENT};
pub use documents::DocKind;
pub use entropy::Entropy;
pub use envelope::fuzz_envelope;
pub use erase::{Erasure, Tombstone};
pub use error::{CreateError, KeyError, OpenError, ReadError, SealError, UnsealError, VerifyError, WriteError};
pub use export::ExportSignature;
pub use keyring::{KdfCost, Unlock, UnlockSource};
pub use reader::Reader;
pub use records::{DataClass, NewRecord, PutOutcome, RecordVisitor, StoredRecord};
pub use scrub::ScrubStep;
pub use shares::{RecoveryShare, SHARES, SHARES_NEEDED, ShareError};
pub use store::Store;
pub use transient::TransientKey;
pub use verify::{StateFindings, verify_stopped};
pub use writer::Writer;
