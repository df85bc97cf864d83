//! What outlives a connection or is shared by its threads: the base model, adapters in memory, counters, and who may
//! use the processor. Refuses to know messages.

use crate::adapter::Mixture;
use crate::infer::Model;
use candle_core::Device;
use empathd_proto::ids::AdapterId;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Most adapter generations in memory: the active one, its predecessor, candidates at their gate.
pub(super) const MAX_ADAPTERS: usize = 8;
/// Longest a trainer waits for answers between two layers, so that it moves on under any load.
const MAX_YIELD: Duration = Duration::from_secs(2);

/// The state of the process.
pub(super) struct State {
    pub(super) device: Device,
    base: Mutex<Option<Arc<Model>>>,
    adapters: Mutex<BTreeMap<AdapterId, Arc<Mixture>>>,
    kv_wiped_bytes: AtomicU64,
    answering: Mutex<bool>,
    answered: Condvar,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    pub(super) fn new(device: Device) -> Self {
        Self {
            device,
            base: Mutex::default(),
            adapters: Mutex::default(),
            kv_wiped_bytes: AtomicU64::new(0),
            answering: Mutex::new(false),
            answered: Condvar::new(),
        }
    }

    pub(super) fn base(&self) -> Option<Arc<Model>> {
        lock(&self.base).clone()
    }

    /// Takes another base model; adapters belong to the one before and go with it.
    pub(super) fn set_base(&self, model: Option<Arc<Model>>) {
        self.drop_adapters();
        *lock(&self.base) = model;
    }

    pub(super) fn adapter(&self, id: AdapterId) -> Option<Arc<Mixture>> {
        lock(&self.adapters).get(&id).cloned()
    }

    pub(super) fn adapters(&self) -> Vec<AdapterId> {
        lock(&self.adapters).keys().copied().collect()
    }

    /// Keeps an adapter; whether there was room.
    pub(super) fn put_adapter(&self, id: AdapterId, mixture: Mixture) -> bool {
        let mut adapters = lock(&self.adapters);
        let room = adapters.len() < MAX_ADAPTERS || adapters.contains_key(&id);
        if room {
            adapters.insert(id, Arc::new(mixture));
        }
        room
    }

    pub(super) fn drop_adapter(&self, id: AdapterId) {
        lock(&self.adapters).remove(&id);
    }

    pub(super) fn drop_adapters(&self) {
        lock(&self.adapters).clear();
    }

    pub(super) fn count_wiped(&self, bytes: u64) {
        self.kv_wiped_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn kv_wiped_bytes(&self) -> u64 {
        self.kv_wiped_bytes.load(Ordering::Relaxed)
    }

    /// The executor says whether it has answers under way.
    pub(super) fn set_answering(&self, answering: bool) {
        *lock(&self.answering) = answering;
        if !answering {
            self.answered.notify_all();
        }
    }

    /// The trainer waits until no answer is under way, or for the longest time it may.
    pub(super) fn yield_to_answers(&self) {
        let waited = self.answered.wait_timeout_while(lock(&self.answering), MAX_YIELD, |answering| *answering);
        drop(waited);
    }
}
