//! The check of a whole trail by whoever holds its leaves: each leaf canonical and at its place, the tree as the signed
//! checkpoint has it, and a checkpoint seen earlier a prefix of it. It needs no appliance and no secret. Where leaves
//! come from is not known here; they are taken one by one, so that memory does not grow with the trail.

use super::checkpoint::{Checkpoint, CheckpointError, SignedCheckpoint};
use super::entry::AuditEntry;
use super::tree::{Frontier, leaf_hash};
use ed25519_dalek::VerifyingKey;

/// Longest leaf that is read. Those of today are shorter than half of it.
pub const MAX_LEAF_BYTES: usize = 256;

/// Why a trail does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// The checkpoint is no good.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The leaf is not the canonical form of an entry.
    #[error("entry {0} is not canonical")]
    Leaf(u64),
    /// The entry carries another number than its place.
    #[error("entry {0} is missing or out of order")]
    Order(u64),
    /// Entries and checkpoint are not of the same length.
    #[error("there are {found} entries, and the checkpoint is over {expected}")]
    Size {
        /// Entries that were there.
        found: u64,
        /// Entries that the checkpoint fixes.
        expected: u64,
    },
    /// The entries are not those that the checkpoint fixes.
    #[error("the entries are not those that the checkpoint fixes")]
    Root,
    /// The trail does not extend the checkpoint that was seen earlier.
    #[error("the trail does not extend the checkpoint of {0} entries that was seen earlier: it was rewritten")]
    Earlier(u64),
}

/// The check of a trail under way. A copy goes on from the same place.
#[derive(Debug, Clone)]
pub struct LogCheck {
    frontier: Frontier,
    earlier: Option<Checkpoint>,
    extends: bool,
}

impl LogCheck {
    /// Begins; `earlier` is a checkpoint whose signature was verified when it was seen.
    #[must_use]
    pub fn new(earlier: Option<Checkpoint>) -> Self {
        let mut check = Self { frontier: Frontier::default(), earlier, extends: false };
        check.compare();
        check
    }

    /// Takes the next leaf.
    ///
    /// # Errors
    /// [`LogError::Leaf`], [`LogError::Order`], [`LogError::Earlier`].
    pub fn push(&mut self, leaf: &[u8]) -> Result<AuditEntry, LogError> {
        let seq = self.frontier.size();
        let bounded = leaf.len() <= MAX_LEAF_BYTES;
        let entry = bounded.then(|| AuditEntry::from_leaf(leaf)).flatten().ok_or(LogError::Leaf(seq))?;
        if entry.seq != seq {
            return Err(LogError::Order(seq));
        }
        self.frontier.push(leaf_hash(leaf));
        self.compare();
        match &self.earlier {
            Some(earlier) if earlier.size == seq + 1 && !self.extends => Err(LogError::Earlier(earlier.size)),
            _ => Ok(entry),
        }
    }

    /// Ends with the trail's checkpoint, which must be signed by this key.
    ///
    /// # Errors
    /// [`LogError`].
    pub fn finish(self, signed: &SignedCheckpoint, key: &VerifyingKey) -> Result<Checkpoint, LogError> {
        let checkpoint = signed.verify_with(key)?;
        let found = self.frontier.size();
        if found != checkpoint.size {
            return Err(LogError::Size { found, expected: checkpoint.size });
        }
        if self.frontier.root() != checkpoint.root {
            return Err(LogError::Root);
        }
        match self.earlier {
            Some(earlier) if !self.extends || earlier.origin != checkpoint.origin => {
                Err(LogError::Earlier(earlier.size))
            }
            _ => Ok(checkpoint),
        }
    }

    fn compare(&mut self) {
        if let Some(earlier) = &self.earlier
            && earlier.size == self.frontier.size()
        {
            self.extends = earlier.root == self.frontier.root();
        }
    }
}

/// Checks a trail that is held in memory.
///
/// # Errors
/// [`LogError`].
pub fn verify_log<L: AsRef<[u8]>>(
    leaves: impl IntoIterator<Item = L>,
    signed: &SignedCheckpoint,
    key: &VerifyingKey,
    earlier: Option<Checkpoint>,
) -> Result<Checkpoint, LogError> {
    let mut check = LogCheck::new(earlier);
    for leaf in leaves {
        check.push(leaf.as_ref())?;
    }
    check.finish(signed, key)
}
