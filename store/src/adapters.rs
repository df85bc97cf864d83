//! The registry of adapter generations: `Candidate → Approved → Active → Retired`, and which were active before, so that
//! a rollback knows where to go. What an adapter is made of and what its gate measures is not known here.

use crate::error::{ReadError, WriteError};
use crate::format;
use crate::keys::{Purpose, Shared};
use crate::reader::Reader;
use crate::tables::Table;
use crate::writer::Writer;
use empathd_proto::report::AdapterState;
use empathd_proto::{AdapterId, BlobId, DatasetId, JobId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Generations that a rollback can go back over.
const MAX_HISTORY: usize = 64;
/// Key of the generations that were active, the present one last.
const ACTIVE_KEY: &[u8] = b"active";

/// A trained adapter.
pub struct NewAdapter {
    /// The job that made it.
    pub job: JobId,
    /// The cut it learned from.
    pub dataset: DatasetId,
    /// Its weights.
    pub blob: BlobId,
    /// What the daemon says of it.
    pub body: Vec<u8>,
}

/// An adapter generation as the registry has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredAdapter {
    /// Its identifier.
    pub id: AdapterId,
    /// Where it stands.
    pub state: AdapterState,
    /// The job that made it.
    pub job: JobId,
    /// The cut it learned from.
    pub dataset: DatasetId,
    /// Its weights.
    pub blob: BlobId,
    /// What the daemon says of it.
    pub body: Vec<u8>,
    /// What its gate found, once it ran.
    pub gate: Option<Vec<u8>>,
    /// Retired for good: a rollback passes over it.
    withdrawn: bool,
}

impl Writer<'_> {
    /// Registers a trained adapter as a candidate.
    ///
    /// # Errors
    /// [`WriteError::NotFound`] when its cut or its blob is not in the store.
    pub fn put_adapter(&mut self, new: NewAdapter) -> Result<AdapterId, WriteError> {
        if self.dataset(new.dataset)?.is_none() {
            return Err(WriteError::NotFound("dataset"));
        }
        if self.blob_info(new.blob)?.is_none() {
            return Err(WriteError::NotFound("blob"));
        }
        let id = AdapterId::from_bytes(self.random());
        self.store_adapter(&StoredAdapter {
            id,
            state: AdapterState::Candidate,
            job: new.job,
            dataset: new.dataset,
            blob: new.blob,
            body: new.body,
            gate: None,
            withdrawn: false,
        })?;
        Ok(id)
    }

    /// A candidate passed its gate.
    ///
    /// # Errors
    /// [`WriteError::Transition`] when it is no candidate, [`WriteError::NotFound`].
    pub fn approve_adapter(&mut self, id: AdapterId, gate: Vec<u8>) -> Result<(), WriteError> {
        let adapter = self.candidate(id)?;
        self.store_adapter(&StoredAdapter { state: AdapterState::Approved, gate: Some(gate), ..adapter })
    }

    /// A candidate did not pass its gate: it stays a candidate and keeps what the gate found.
    ///
    /// # Errors
    /// As [`Writer::approve_adapter`].
    pub fn refuse_adapter(&mut self, id: AdapterId, gate: Vec<u8>) -> Result<(), WriteError> {
        let adapter = self.candidate(id)?;
        self.store_adapter(&StoredAdapter { gate: Some(gate), ..adapter })
    }

    /// Makes an approved generation the active one; the one before retires. Returns the one before.
    ///
    /// # Errors
    /// [`WriteError::Transition`] when it is not approved, [`WriteError::NotFound`].
    pub fn activate_adapter(&mut self, id: AdapterId) -> Result<Option<AdapterId>, WriteError> {
        let adapter = self.known_adapter(id)?;
        if adapter.state != AdapterState::Approved {
            return Err(WriteError::Transition(
                "only an approved adapter can become active; let it pass its gate first",
            ));
        }
        let mut history = self.history()?;
        let before = history.last().copied();
        if let Some(before) = before {
            self.move_adapter(before, AdapterState::Retired)?;
        }
        self.store_adapter(&StoredAdapter { state: AdapterState::Active, ..adapter })?;
        history.push(id);
        history.drain(..history.len().saturating_sub(MAX_HISTORY));
        self.set_history(&history)?;
        Ok(before)
    }

    /// Retires the active generation and goes back to the one that was active before it, or to the base model when there
    /// was none. Returns what is active now.
    ///
    /// # Errors
    /// [`WriteError::Transition`] when no adapter is active.
    pub fn rollback_adapter(&mut self) -> Result<Option<AdapterId>, WriteError> {
        let mut history = self.history()?;
        let Some(active) = history.pop() else {
            return Err(WriteError::Transition("no adapter is active; the base model answers already"));
        };
        self.move_adapter(active, AdapterState::Retired)?;
        while let Some(before) = history.last().copied() {
            if !self.known_adapter(before)?.withdrawn {
                self.move_adapter(before, AdapterState::Active)?;
                break;
            }
            history.pop();
        }
        self.set_history(&history)?;
        Ok(history.last().copied())
    }

    /// Retires a generation for good, for example because its data was erased.
    ///
    /// # Errors
    /// [`WriteError::Transition`] for the active one, [`WriteError::NotFound`].
    pub fn retire_adapter(&mut self, id: AdapterId) -> Result<(), WriteError> {
        let adapter = self.known_adapter(id)?;
        if adapter.state == AdapterState::Active {
            return Err(WriteError::Transition(
                "the active adapter cannot be retired; roll back or promote another first",
            ));
        }
        self.store_adapter(&StoredAdapter { state: AdapterState::Retired, withdrawn: true, ..adapter })
    }

    /// Retires for good every generation that learned from one of these cuts. When the active one is among them, the one
    /// before it that is not answers again, or the base model.
    pub(crate) fn withdraw_adapters(&mut self, datasets: &BTreeSet<DatasetId>) -> Result<Vec<AdapterId>, WriteError> {
        let learned: Vec<_> = self.adapters()?.into_iter().filter(|one| datasets.contains(&one.dataset)).collect();
        let mut history = self.history()?;
        let before = history.last().copied();
        let ids: Vec<AdapterId> = learned.iter().map(|adapter| adapter.id).collect();
        for adapter in learned {
            self.store_adapter(&StoredAdapter { state: AdapterState::Retired, withdrawn: true, ..adapter })?;
        }
        history.retain(|id| !ids.contains(id));
        if before != history.last().copied() {
            while let Some(earlier) = history.last().copied() {
                if !self.known_adapter(earlier)?.withdrawn {
                    self.move_adapter(earlier, AdapterState::Active)?;
                    break;
                }
                history.pop();
            }
        }
        self.set_history(&history)?;
        Ok(ids)
    }

    pub(crate) fn set_history(&mut self, history: &[AdapterId]) -> Result<(), WriteError> {
        self.put(Table::Meta, ACTIVE_KEY, Purpose::Shared(Shared::Meta), &format::encode(&history))
    }

    fn candidate(&self, id: AdapterId) -> Result<StoredAdapter, WriteError> {
        let adapter = self.known_adapter(id)?;
        match adapter.state {
            AdapterState::Candidate => Ok(adapter),
            _ => Err(WriteError::Transition("only a candidate goes through the gate; train a new one")),
        }
    }

    fn known_adapter(&self, id: AdapterId) -> Result<StoredAdapter, WriteError> {
        self.adapter(id)?.ok_or(WriteError::NotFound("adapter"))
    }

    fn move_adapter(&mut self, id: AdapterId, state: AdapterState) -> Result<(), WriteError> {
        let adapter = self.known_adapter(id)?;
        self.store_adapter(&StoredAdapter { state, ..adapter })
    }

    fn store_adapter(&mut self, adapter: &StoredAdapter) -> Result<(), WriteError> {
        let purpose = Purpose::Adapter(adapter.id);
        self.put(Table::Adapters, adapter.id.as_bytes(), purpose, &format::encode(adapter))
    }
}

impl Reader<'_> {
    /// A generation.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn adapter(&self, id: AdapterId) -> Result<Option<StoredAdapter>, ReadError> {
        self.decoded(Table::Adapters, id.as_bytes())
    }

    /// All generations, in the order of their identifiers.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn adapters(&self) -> Result<Vec<StoredAdapter>, ReadError> {
        self.rows(Table::Adapters, &[])
            .map(|row| {
                let (key, sealed) = row?;
                format::decode(&self.open(Table::Adapters, &key, &sealed)?.1)
            })
            .collect()
    }

    /// The generation that answers; `None` while the base model does.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn active_adapter(&self) -> Result<Option<StoredAdapter>, ReadError> {
        let Some(id) = self.history()?.last().copied() else { return Ok(None) };
        let adapter = self.adapter(id)?.ok_or(ReadError::Integrity("the active adapter is missing"))?;
        Ok(Some(adapter))
    }

    /// Generations that were active and are one rollback or more away, the present one last.
    pub(crate) fn history(&self) -> Result<Vec<AdapterId>, ReadError> {
        self.decoded(Table::Meta, ACTIVE_KEY)?.ok_or(ReadError::Integrity("the history of adapters is missing"))
    }
}
