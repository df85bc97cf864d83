//! The audit trail: entries sealed one by one, in the same transaction as what they tell of; the frontier of their tree and
//! a signed checkpoint kept beside them. Who must be audited is not known here.

use crate::error::{ReadError, WriteError};
use crate::findings::Findings;
use crate::format;
use crate::keys::{Keys, Purpose, Shared};
use crate::reader::Reader;
use crate::tables::{Row, Table};
use crate::tiles::{SeenTiles, Tower};
use crate::writer::Writer;
use ed25519_dalek::SigningKey;
use empathd_proto::audit::tile::{consistency_by_nodes, inclusion_by_nodes};
use empathd_proto::audit::{
    ActionKind, AuditEntry, AuditObject, Checkpoint, Frontier, Hash, Outcome, Principal, SignedCheckpoint, leaf_hash,
};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Key of the trail's end in the anchor table.
const TRAIL_KEY: &[u8] = b"audit";
/// Most entries that are shown at once.
pub const MAX_TAIL: u32 = 10_000;
/// Progress is told once for this many entries.
const PROGRESS_ENTRIES: u64 = 256;

/// An audit entry before it has its place in the trail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuditDraft {
    /// Wall clock, milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// Who.
    pub principal: Principal,
    /// What.
    pub action: ActionKind,
    /// How it ended.
    pub outcome: Outcome,
    /// To what.
    pub object: AuditObject,
    /// How many things, when it was many.
    pub count: u64,
}

/// What a check of the trail found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditFindings {
    /// Entries that were there.
    pub entries: u64,
    /// What did not fit, without identifiers. Empty when all did.
    pub findings: Vec<String>,
    /// The stored checkpoint; absent when it is missing or does not authenticate.
    pub checkpoint: Option<SignedCheckpoint>,
}

impl AuditFindings {
    /// Whether every entry, the tree and the checkpoint fit each other.
    #[must_use]
    pub fn verified(&self) -> bool {
        self.findings.is_empty() && self.checkpoint.is_some()
    }
}

/// An entry, and the proof that the trail a checkpoint fixes holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InclusionProof {
    /// The entry; its leaf is what is proved.
    pub entry: AuditEntry,
    /// The path from the leaf to the root.
    pub hashes: Vec<Hash>,
    /// The checkpoint it leads to.
    pub checkpoint: SignedCheckpoint,
}

/// The end of the trail.
#[derive(Serialize, Deserialize)]
struct Trail {
    size: u64,
    subtrees: Vec<Hash>,
    checkpoint: SignedCheckpoint,
}

impl AuditDraft {
    fn at(&self, seq: u64) -> AuditEntry {
        let AuditDraft { at_ms, principal, action, outcome, object, count } = *self;
        AuditEntry { seq, at_ms, principal, action, outcome, object, count }
    }
}

impl Writer<'_> {
    /// Appends entries and moves the trail's end.
    pub(crate) fn append_audit(&mut self, drafts: &[AuditDraft]) -> Result<(), WriteError> {
        let mut frontier = match self.count(Table::Audit)? {
            0 => Frontier::default(),
            _ => frontier(&self.expected_trail()?)?,
        };
        for draft in drafts {
            let seq = frontier.size();
            let leaf = draft.at(seq).to_leaf();
            self.put(Table::Audit, &seq.to_be_bytes(), Purpose::Shared(Shared::Audit), &leaf)?;
            frontier.push(leaf_hash(&leaf));
            self.grow_tiles(frontier.size())?;
        }
        let checkpoint = checkpoint_of(self.keys(), &frontier).sign(&signing_key(self.keys()));
        self.entries = frontier.size();
        let trail = Trail { size: frontier.size(), subtrees: frontier.subtrees().to_vec(), checkpoint };
        self.put(Table::Anchor, TRAIL_KEY, Purpose::Shared(Shared::Meta), &format::encode(&trail))
    }
}

impl Reader<'_> {
    /// How many audit entries there are.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn audit_count(&self) -> Result<u64, ReadError> {
        Ok(self.expected_trail()?.size)
    }

    /// The signed checkpoint over all entries.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn checkpoint(&self) -> Result<SignedCheckpoint, ReadError> {
        Ok(self.expected_trail()?.checkpoint)
    }

    /// The newest entries, oldest first; at most [`MAX_TAIL`].
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn audit_tail(&self, count: u32) -> Result<Vec<AuditEntry>, ReadError> {
        let size = self.expected_trail()?.size;
        self.audit_entries(size.saturating_sub(count.min(MAX_TAIL).into())..size)
    }

    /// The entries with these numbers; all of them are in memory at once.
    ///
    /// # Errors
    /// [`ReadError`]; an entry that is not there is one.
    pub fn audit_entries(&self, numbers: Range<u64>) -> Result<Vec<AuditEntry>, ReadError> {
        numbers
            .map(|seq| {
                let leaf = self.value(Table::Audit, &seq.to_be_bytes())?;
                leaf.and_then(|(_, leaf)| AuditEntry::from_leaf(&leaf))
                    .ok_or(ReadError::Integrity("an audit entry is missing or not canonical"))
            })
            .collect()
    }

    /// Proof that the trail of today extends the one of `old_size` entries.
    ///
    /// # Errors
    /// [`ReadError::NotFound`] when the trail was never that long.
    pub fn consistency_proof(&self, old_size: u64) -> Result<Vec<Hash>, ReadError> {
        let size = self.expected_trail()?.size;
        if old_size > size {
            return Err(ReadError::NotFound("audit entry"));
        }
        let mut seen = SeenTiles::default();
        consistency_by_nodes(size, old_size, |at| self.audit_node(at, size, &mut seen))
    }

    /// Proof that an entry is in the trail of today.
    ///
    /// # Errors
    /// [`ReadError::NotFound`] when there is no such entry.
    pub fn inclusion_proof(&self, seq: u64) -> Result<InclusionProof, ReadError> {
        let trail = self.expected_trail()?;
        if seq >= trail.size {
            return Err(ReadError::NotFound("audit entry"));
        }
        let mut seen = SeenTiles::default();
        let hashes = inclusion_by_nodes(trail.size, seq, |at| self.audit_node(at, trail.size, &mut seen))?;
        let leaf = self.value(Table::Audit, &seq.to_be_bytes())?;
        let leaf = leaf.and_then(|(_, leaf)| AuditEntry::from_leaf(&leaf));
        let entry = leaf.ok_or(ReadError::Integrity("an audit entry is missing or not canonical"))?;
        Ok(InclusionProof { entry, hashes, checkpoint: trail.checkpoint })
    }

    /// Recomputes the tree from the entries and compares it with the trail's end.
    pub(crate) fn check_audit(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<AuditFindings, ReadError> {
        let mut findings = Findings::default();
        let trail = match self.expected_trail() {
            Ok(trail) => Some(trail),
            Err(ReadError::Integrity(what)) => {
                findings.add(format!("the end of the audit trail: {what}"));
                None
            }
            Err(other) => return Err(other),
        };
        let total = self.count(Table::Audit)?;
        let (mut computed, mut tower) = (Frontier::default(), Tower::default());
        for row in self.rows(Table::Audit, &[]) {
            let seq = computed.size();
            let leaf = self.check_entry(seq, &row?, &mut findings)?;
            computed.push(leaf);
            tower.push(leaf, self, &mut findings)?;
            if seq.is_multiple_of(PROGRESS_ENTRIES) {
                progress(seq, total);
            }
        }
        tower.finish(self, &mut findings)?;
        progress(computed.size(), total);
        if let Some(trail) = &trail {
            self.check_trail(trail, &computed, &mut findings);
        }
        let checkpoint = trail.map(|trail| trail.checkpoint);
        Ok(AuditFindings { entries: computed.size(), findings: findings.into_texts(), checkpoint })
    }

    /// The leaf hash of an entry that should be the one numbered `seq`.
    fn check_entry(&self, seq: u64, row: &Row, findings: &mut Findings) -> Result<Hash, ReadError> {
        let (key, sealed) = row;
        if *key != seq.to_be_bytes() {
            findings.add(format!("audit entry {seq} is missing or out of order"));
        }
        let leaf = match self.open(Table::Audit, key, sealed) {
            Ok((_, leaf)) => leaf,
            Err(ReadError::Integrity(_)) => {
                findings.add(format!("audit entry {seq} does not authenticate"));
                return Ok(leaf_hash(sealed));
            }
            Err(other) => return Err(other),
        };
        match AuditEntry::from_leaf(&leaf) {
            None => findings.add(format!("audit entry {seq} is not canonical")),
            Some(entry) if entry.seq != seq => findings.add(format!("audit entry {seq} carries another number")),
            Some(_) => {}
        }
        Ok(leaf_hash(&leaf))
    }

    fn check_trail(&self, trail: &Trail, computed: &Frontier, findings: &mut Findings) {
        if trail.size != computed.size() {
            findings.add(format!("the audit trail has {} entries and should have {}", computed.size(), trail.size));
        }
        if trail.subtrees != computed.subtrees() {
            findings.add("the audit tree does not follow from the entries".to_owned());
        }
        match trail.checkpoint.verify_with(&signing_key(self.keys()).verifying_key()) {
            Ok(checkpoint) if checkpoint == checkpoint_of(self.keys(), computed) => {}
            Ok(_) => findings.add("the checkpoint is of another audit trail".to_owned()),
            Err(error) => findings.add(error.to_string()),
        }
    }

    /// Whether a row of the trail is the entry that its place says.
    pub(crate) fn check_entry_in_place(&self, key: &[u8], leaf: &[u8]) -> Result<(), ReadError> {
        match AuditEntry::from_leaf(leaf) {
            Some(entry) if entry.seq.to_be_bytes() == key => Ok(()),
            _ => Err(ReadError::Integrity("an entry is not canonical or stands in another's place")),
        }
    }

    fn expected_trail(&self) -> Result<Trail, ReadError> {
        self.decoded(Table::Anchor, TRAIL_KEY)?.ok_or(ReadError::Integrity("the end of the audit trail is missing"))
    }
}

fn frontier(trail: &Trail) -> Result<Frontier, ReadError> {
    Frontier::from_parts(trail.size, trail.subtrees.clone())
        .ok_or(ReadError::Integrity("the end of the audit trail is not a tree"))
}

fn checkpoint_of(keys: &Keys, frontier: &Frontier) -> Checkpoint {
    Checkpoint { origin: format!("empathd/{}", keys.store()), size: frontier.size(), root: frontier.root() }
}

/// The key that signs checkpoints. It opens nothing.
pub(crate) fn signing_key(keys: &Keys) -> SigningKey {
    SigningKey::from_bytes(keys.shared(Shared::Signing))
}
