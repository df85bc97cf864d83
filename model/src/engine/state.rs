//! What outlives a connection or is shared by its threads: the base model and its scheduler, adapters and the model of
//! embeddings in memory, the desk, and who may use the processor. Refuses to know messages.

use super::base::Base;
use crate::embed::Embedder;
use crate::infer::compute::ServingAdapter;
use crate::schedule::{AdapterGeneration, Desk, Scheduler};
use candle_core::Device;
use empathd_proto::ids::AdapterId;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Most adapter generations in memory: the active one, its predecessor, candidates at their gate.
pub(super) const MAX_ADAPTERS: usize = 8;
/// Most replaced base models that answer to the end what they began.
const MAX_LEAVING: usize = 2;
/// Longest a trainer waits for answers between two layers, so that it moves on under any load.
const MAX_YIELD: Duration = Duration::from_secs(2);

/// A model of embeddings and the SHA-256 of its file.
pub(super) type KnownEmbedder = ([u8; 32], Arc<Embedder>);

/// The state of the process.
pub(super) struct State {
    pub(super) device: Device,
    pub(super) desk: Arc<Desk>,
    base: Mutex<Option<Arc<Base>>>,
    /// There while no connection has it.
    scheduler: Mutex<Option<Scheduler>>,
    leaving: AtomicUsize,
    adapters: Mutex<BTreeMap<AdapterId, AdapterGeneration>>,
    generations: AtomicU64,
    embedder: Mutex<Option<KnownEmbedder>>,
    answering: Mutex<bool>,
    answered: Condvar,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    pub(super) fn new(device: Device) -> Self {
        let begun = Instant::now();
        Self {
            device,
            desk: Arc::new(Desk::new(Arc::new(move || begun.elapsed()))),
            base: Mutex::default(),
            scheduler: Mutex::default(),
            leaving: AtomicUsize::new(0),
            adapters: Mutex::default(),
            generations: AtomicU64::new(0),
            embedder: Mutex::default(),
            answering: Mutex::new(false),
            answered: Condvar::new(),
        }
    }

    pub(super) fn base(&self) -> Option<Arc<Base>> {
        lock(&self.base).clone()
    }

    /// Takes another base model; adapters belong to the one before and go with it.
    pub(super) fn set_base(&self, base: Option<Arc<Base>>) {
        self.drop_adapters();
        *lock(&self.base) = base;
    }

    /// The scheduler of the base model, for the one thread that steps it.
    pub(super) fn take_scheduler(&self) -> Option<Scheduler> {
        lock(&self.scheduler).take()
    }

    /// Keeps the scheduler for the next connection.
    pub(super) fn keep_scheduler(&self, scheduler: Option<Scheduler>) {
        *lock(&self.scheduler) = scheduler;
    }

    /// The executor says how many replaced base models still have answers under way.
    pub(super) fn set_leaving(&self, models: usize) {
        self.leaving.store(models, Ordering::Relaxed);
    }

    /// Whether there is room for one more base model beside those that were replaced.
    pub(super) fn has_room_for_base(&self) -> bool {
        self.leaving.load(Ordering::Relaxed) < MAX_LEAVING
    }

    pub(super) fn embedder(&self) -> Option<KnownEmbedder> {
        lock(&self.embedder).clone()
    }

    pub(super) fn set_embedder(&self, embedder: Option<KnownEmbedder>) {
        *lock(&self.embedder) = embedder;
    }

    pub(super) fn adapter(&self, id: AdapterId) -> Option<AdapterGeneration> {
        lock(&self.adapters).get(&id).cloned()
    }

    pub(super) fn adapters(&self) -> Vec<AdapterId> {
        lock(&self.adapters).keys().copied().collect()
    }

    /// Whether there is room for an adapter.
    pub(super) fn has_room(&self, id: AdapterId) -> bool {
        let adapters = lock(&self.adapters);
        adapters.len() < MAX_ADAPTERS || adapters.contains_key(&id)
    }

    /// Keeps an adapter, as a generation of its own; the number of the one that it replaces.
    pub(super) fn put_adapter(&self, id: AdapterId, serving: ServingAdapter) -> Option<u64> {
        let number = self.generations.fetch_add(1, Ordering::Relaxed) + 1;
        let generation = AdapterGeneration { number, serving: Arc::new(serving) };
        lock(&self.adapters).insert(id, generation).map(|old| old.number)
    }

    /// Forgets an adapter; answers under way keep it. Its number.
    pub(super) fn drop_adapter(&self, id: AdapterId) -> Option<u64> {
        lock(&self.adapters).remove(&id).map(|old| old.number)
    }

    pub(super) fn drop_adapters(&self) {
        lock(&self.adapters).clear();
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn training_waits_for_answers_but_not_for_ever() {
        let state = Arc::new(State::new(Device::Cpu));
        state.yield_to_answers();
        state.set_answering(true);
        let (sender, went_on) = channel();
        let trainer = state.clone();
        std::thread::spawn(move || {
            for _ in 0..2 {
                let begun = Instant::now();
                trainer.yield_to_answers();
                sender.send(begun.elapsed()).expect("heard");
            }
        });
        assert!(went_on.recv_timeout(MAX_YIELD / 20).is_err(), "it goes on beside an answer");
        // An answer that never ends holds it up for the longest time and no longer.
        assert!(went_on.recv_timeout(2 * MAX_YIELD).expect("it goes on") >= MAX_YIELD);
        state.set_answering(false);
        assert!(went_on.recv_timeout(MAX_YIELD).expect("it goes on") < MAX_YIELD);
    }
}
