//! Dataset cuts: which records are learned from and which are held out, fixed once. The split is by client, so that no
//! person is on both sides. Who may be a candidate is decided elsewhere.

use crate::error::{ReadError, WriteError};
use crate::format;
use crate::keys::{Purpose, Shared};
use crate::reader::{Reader, owner};
use crate::tables::Table;
use crate::writer::Writer;
use empathd_proto::report::DatasetSummary;
use empathd_proto::{ClientId, DatasetId, RecordId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

/// Shares of clients that may be held out, in percent.
pub const VALIDATION_PERCENT: RangeInclusive<u8> = 1..=50;
/// Most records in one cut.
pub const MAX_CANDIDATES: usize = 8_000_000;
/// Key of the consent epoch.
const CONSENT_KEY: &[u8] = b"consent";

/// How to cut.
pub struct CutRule {
    /// Share of clients to hold out, in percent; see [`VALIDATION_PERCENT`].
    pub validation_percent: u8,
    /// Chooses which clients. The same seed holds out the same clients in every cut.
    pub seed: u64,
    /// Milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// Records to choose from, each with its client.
    pub candidates: Vec<(RecordId, ClientId)>,
}

/// An immutable cut. Only [`Writer::cut_dataset`] makes one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetCut {
    id: DatasetId,
    hash: [u8; 32],
    consent_epoch: u64,
    validation_percent: u8,
    seed: u64,
    at_ms: u64,
    train: Vec<RecordId>,
    validation: Vec<RecordId>,
}

impl DatasetCut {
    /// Its identifier.
    #[must_use]
    pub const fn id(&self) -> DatasetId {
        self.id
    }

    /// BLAKE3 over the rule, the consent epoch and the records of both sides in order.
    #[must_use]
    pub const fn hash(&self) -> &[u8; 32] {
        &self.hash
    }

    /// The consent epoch it was cut in.
    #[must_use]
    pub const fn consent_epoch(&self) -> u64 {
        self.consent_epoch
    }

    /// Milliseconds since the Unix epoch.
    #[must_use]
    pub const fn cut_at_ms(&self) -> u64 {
        self.at_ms
    }

    /// Records to learn from, in order.
    #[must_use]
    pub fn train(&self) -> &[RecordId] {
        &self.train
    }

    /// Records held out, in order.
    #[must_use]
    pub fn validation(&self) -> &[RecordId] {
        &self.validation
    }

    /// What is shown of it.
    #[must_use]
    pub fn summary(&self) -> DatasetSummary {
        DatasetSummary {
            id: self.id,
            hash: self.hash.iter().map(|byte| format!("{byte:02x}")).collect(),
            consent_epoch: self.consent_epoch,
            train: self.train.len() as u64,
            validation: self.validation.len() as u64,
            cut_at_ms: self.at_ms,
        }
    }

    /// What the hash must be.
    pub(crate) fn computed_hash(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"empathd/dataset-cut/1").update(&[self.validation_percent]);
        for number in [self.seed, self.consent_epoch, self.train.len() as u64, self.validation.len() as u64] {
            hasher.update(&number.to_le_bytes());
        }
        for id in self.train.iter().chain(&self.validation) {
            hasher.update(id.as_bytes());
        }
        *hasher.finalize().as_bytes()
    }
}

impl Writer<'_> {
    /// Cuts a dataset and stores the cut.
    ///
    /// # Errors
    /// [`WriteError::Invalid`] for a rule that cannot be followed, [`WriteError::NotFound`] for a candidate that is no
    /// record of its client, and those of the disk or of integrity.
    pub fn cut_dataset(&mut self, rule: CutRule) -> Result<DatasetCut, WriteError> {
        check(&rule)?;
        for (record, client) in &rule.candidates {
            if self.owner_of(*record)? != Some(*client) {
                return Err(WriteError::NotFound("record of that client"));
            }
        }
        let held_out = held_out(&rule);
        let (validation, train): (BTreeSet<_>, BTreeSet<_>) =
            rule.candidates.iter().partition(|(_, client)| held_out.contains(client));
        let ids = |side: BTreeSet<(RecordId, ClientId)>| side.into_iter().map(|(record, _)| record).collect();
        let mut cut = DatasetCut {
            id: DatasetId::from_bytes(self.random()),
            hash: [0; 32],
            consent_epoch: self.consent_epoch()?,
            validation_percent: rule.validation_percent,
            seed: rule.seed,
            at_ms: rule.at_ms,
            train: ids(train),
            validation: ids(validation),
        };
        cut.hash = cut.computed_hash();
        self.put(Table::Datasets, cut.id.as_bytes(), Purpose::Shared(Shared::Meta), &format::encode(&cut))?;
        Ok(cut)
    }

    /// Begins a new consent epoch, after a consent changed; returns its number.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn advance_consent_epoch(&mut self) -> Result<u64, WriteError> {
        let next = self.consent_epoch()?.saturating_add(1);
        self.set_consent_epoch(next)?;
        Ok(next)
    }

    pub(crate) fn set_consent_epoch(&mut self, epoch: u64) -> Result<(), WriteError> {
        self.put(Table::Meta, CONSENT_KEY, Purpose::Shared(Shared::Meta), &format::encode(&epoch))
    }
}

impl Reader<'_> {
    /// A cut.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn dataset(&self, id: DatasetId) -> Result<Option<DatasetCut>, ReadError> {
        self.decoded(Table::Datasets, id.as_bytes())
    }

    /// All cuts, the oldest first.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn datasets(&self) -> Result<Vec<DatasetCut>, ReadError> {
        let mut cuts = Vec::new();
        for row in self.rows(Table::Datasets, &[]) {
            let (key, sealed) = row?;
            cuts.push(format::decode::<DatasetCut>(&self.open(Table::Datasets, &key, &sealed)?.1)?);
        }
        cuts.sort_by_key(|cut| (cut.at_ms, cut.id));
        Ok(cuts)
    }

    /// The number of the consent epoch, from 1.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn consent_epoch(&self) -> Result<u64, ReadError> {
        self.decoded(Table::Meta, CONSENT_KEY)?.ok_or(ReadError::Integrity("the consent epoch is missing"))
    }

    /// Whose a record is, without opening it.
    pub(crate) fn owner_of(&self, record: RecordId) -> Result<Option<ClientId>, ReadError> {
        let Some(sealed) = self.raw(Table::Records, record.as_bytes())? else { return Ok(None) };
        let id = crate::envelope::key_id(&sealed).ok_or(ReadError::Integrity("a record is no envelope"))?;
        Ok(Some(owner(self.key(id)?.0)?.0))
    }
}

fn check(rule: &CutRule) -> Result<(), WriteError> {
    if !VALIDATION_PERCENT.contains(&rule.validation_percent) {
        return Err(WriteError::Invalid("the share to hold out must be 1 to 50 percent"));
    }
    if rule.candidates.is_empty() {
        return Err(WriteError::Invalid("there are no records to cut a dataset from; ingest some first"));
    }
    if rule.candidates.len() > MAX_CANDIDATES {
        return Err(WriteError::Invalid("a dataset holds at most 8,000,000 records; cut a smaller one"));
    }
    Ok(())
}

/// The clients to hold out: those whose hash falls into the share. With two clients or more, neither side stays empty.
fn held_out(rule: &CutRule) -> BTreeSet<ClientId> {
    let clients: BTreeMap<u64, ClientId> =
        rule.candidates.iter().map(|(_, client)| (place(rule.seed, *client), *client)).collect();
    let limit = u64::MAX / 100 * u64::from(rule.validation_percent);
    let inside = clients.range(..limit).count();
    let wanted = if clients.len() < 2 { 0 } else { inside.clamp(1, clients.len() - 1) };
    clients.into_values().take(wanted).collect()
}

/// Where a client falls, evenly over all numbers.
fn place(seed: u64, client: ClientId) -> u64 {
    let mut hasher = blake3::Hasher::new_derive_key("empathd 1 validation split by client");
    hasher.update(&seed.to_le_bytes()).update(client.as_bytes());
    let digest = hasher.finalize();
    let (place, _) = digest.as_bytes().split_first_chunk().expect("32 bytes have 8");
    u64::from_le_bytes(*place)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(clients: u8, percent: u8, seed: u64) -> CutRule {
        let candidates = (0..clients)
            .flat_map(|n| {
                (0..3).map(move |r| (RecordId::from_bytes([n, r, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), n))
            })
            .map(|(record, n)| (record, ClientId::from_bytes([n; 16])))
            .collect();
        CutRule { validation_percent: percent, seed, at_ms: 0, candidates }
    }

    #[test]
    fn the_share_is_near_what_was_asked_and_no_side_is_empty() {
        let share = held_out(&rule(250, 20, 7)).len();
        assert!((35..=65).contains(&share), "{share} of 250");
        for seed in 0..40 {
            for clients in 2..6 {
                let held = held_out(&rule(clients, 1, seed)).len();
                assert!(held >= 1 && held < clients as usize);
            }
        }
        assert_eq!(held_out(&rule(1, 50, 7)).len(), 0);
    }

    #[test]
    fn a_client_stays_on_its_side_when_others_come() {
        let (few, many) = (held_out(&rule(100, 20, 3)), held_out(&rule(200, 20, 3)));
        assert!(few.is_subset(&many));
        assert_ne!(few, held_out(&rule(100, 20, 4)));
    }
}
