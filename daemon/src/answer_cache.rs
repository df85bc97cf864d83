//! Whole answers that are given again to the very same request of the same caller for the same client: in memory only,
//! each sealed under a key in locked memory that a wipe overwrites, bounded in bytes and in age. What makes two requests
//! the same is decided by whoever makes the key.

use crate::measure;
use empathd_store::{Entropy, TransientKey};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use zeroize::Zeroizing;

/// Most answers.
pub(crate) const ENTRIES_MAX: usize = 4096;
/// Largest answer, in bytes.
pub(crate) const ENTRY_BYTES_MAX: usize = 256 * 1024;
/// How long an answer is kept.
pub(crate) const KEPT_FOR: Duration = Duration::from_secs(3600);
/// What an entry takes beside its value, in bytes.
const ENTRY_COST: usize = 256;

/// A request, as a keyed hash.
pub(crate) type Key = [u8; 32];

/// The answers.
pub(crate) struct AnswerCache {
    bytes_max: usize,
    entropy: Arc<dyn Entropy>,
    kept: Mutex<Kept>,
}

struct Kept {
    seal: TransientKey,
    entries: HashMap<Key, Entry>,
    /// Keys by their last use, oldest first.
    used: BTreeMap<u64, Key>,
    /// Keys by their arrival, oldest first.
    arrived: BTreeMap<u64, Key>,
    bytes: usize,
    /// Counts arrivals and uses.
    moments: u64,
    wipes: u64,
}

struct Entry {
    sealed: Vec<u8>,
    used: u64,
    arrived: u64,
    until: Duration,
}

/// The right to put an answer that was begun before; a wipe in between takes it away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket(u64);

impl AnswerCache {
    /// One of at most so many bytes; none for 0.
    ///
    /// # Errors
    /// When there is no memory for its key.
    pub(crate) fn new(bytes_max: usize, entropy: Arc<dyn Entropy>) -> io::Result<Self> {
        let seal = TransientKey::new(&*entropy)?;
        let (entries, used, arrived) = (HashMap::new(), BTreeMap::new(), BTreeMap::new());
        let kept = Mutex::new(Kept { seal, entries, used, arrived, bytes: 0, moments: 0, wipes: 0 });
        Ok(Self { bytes_max, entropy, kept })
    }

    /// The answer to this request, if it was given less than [`KEPT_FOR`] ago; otherwise the right to put it.
    pub(crate) fn get(&self, key: &Key, now: Duration) -> Result<Zeroizing<Vec<u8>>, Ticket> {
        let mut kept = self.kept();
        kept.forget_older(now);
        let found = kept.find(key).ok_or(Ticket(kept.wipes));
        drop(kept);
        measure::answer_cache(found.is_ok());
        found
    }

    /// Keeps an answer. The least lately used make room.
    pub(crate) fn put(&self, key: Key, value: &[u8], ticket: Ticket, now: Duration) {
        let mut kept = self.kept();
        if value.len() > ENTRY_BYTES_MAX || ticket.0 != kept.wipes {
            return;
        }
        kept.forget_older(now);
        kept.remove(&key);
        let sealed = kept.seal.seal(&key, value);
        let bytes = sealed.len() + ENTRY_COST;
        if bytes > self.bytes_max {
            return;
        }
        while kept.bytes + bytes > self.bytes_max || kept.entries.len() >= ENTRIES_MAX {
            let Some((_, oldest)) = kept.used.pop_first() else { break };
            kept.remove(&oldest);
        }
        kept.insert(key, sealed, now + KEPT_FOR);
        measure::answer_cache_holds(kept.bytes as u64);
    }

    /// Forgets what is older than [`KEPT_FOR`].
    pub(crate) fn forget_older(&self, now: Duration) {
        let mut kept = self.kept();
        kept.forget_older(now);
        measure::answer_cache_holds(kept.bytes as u64);
    }

    /// Forgets all of them and overwrites their key. Answers under way are not kept either.
    pub(crate) fn wipe(&self) {
        let mut kept = self.kept();
        kept.seal.renew(&*self.entropy);
        kept.entries.clear();
        kept.used.clear();
        kept.arrived.clear();
        kept.bytes = 0;
        kept.wipes += 1;
        measure::answer_cache_holds(0);
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn find(&mut self, key: &Key) -> Option<Zeroizing<Vec<u8>>> {
        self.moments += 1;
        let entry = self.entries.get_mut(key)?;
        self.used.remove(&entry.used);
        entry.used = self.moments;
        self.used.insert(entry.used, *key);
        self.seal.open(key, &entry.sealed)
    }

    fn insert(&mut self, key: Key, sealed: Vec<u8>, until: Duration) {
        self.moments += 1;
        let moment = self.moments;
        self.used.insert(moment, key);
        self.arrived.insert(moment, key);
        self.bytes += sealed.len() + ENTRY_COST;
        self.entries.insert(key, Entry { sealed, used: moment, arrived: moment, until });
    }

    fn remove(&mut self, key: &Key) {
        if let Some(entry) = self.entries.remove(key) {
            self.used.remove(&entry.used);
            self.arrived.remove(&entry.arrived);
            self.bytes -= entry.sealed.len() + ENTRY_COST;
        }
    }

    /// All are kept equally long, so the first that is young enough ends it.
    fn forget_older(&mut self, now: Duration) {
        while let Some(oldest) = self.arrived.first_entry() {
            let key = *oldest.get();
            if self.entries.get(&key).is_some_and(|entry| entry.until > now) {
                return;
            }
            oldest.remove();
            self.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::OsEntropy;

    const NOW: Duration = Duration::from_secs(10);

    fn holding(bytes_max: usize) -> AnswerCache {
        AnswerCache::new(bytes_max, Arc::new(OsEntropy)).expect("a page")
    }

    fn key(number: usize) -> Key {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&number.to_le_bytes());
        key
    }

    fn put(cache: &AnswerCache, number: usize, bytes: usize) {
        let Err(ticket) = cache.get(&key(number), NOW) else { return };
        cache.put(key(number), &vec![7; bytes], ticket, NOW);
    }

    fn has(cache: &AnswerCache, number: usize, now: Duration) -> bool {
        cache.get(&key(number), now).is_ok()
    }

    #[test]
    fn an_answer_is_kept_for_its_time_and_no_longer() {
        let cache = holding(10_000);
        put(&cache, 1, 100);
        assert_eq!(cache.get(&key(1), NOW).expect("kept").len(), 100);
        assert!(has(&cache, 1, NOW + KEPT_FOR - Duration::from_millis(1)));
        assert!(!has(&cache, 1, NOW + KEPT_FOR));
        put(&cache, 2, 100);
        cache.forget_older(NOW + KEPT_FOR);
        assert_eq!(cache.kept().bytes, 0, "also what nobody asks for");
    }

    #[test]
    fn the_least_lately_used_make_room() {
        let one = holding(usize::MAX);
        put(&one, 0, 1000);
        let bytes_each = one.kept().bytes;
        let cache = holding(3 * bytes_each);
        for number in 0..3 {
            put(&cache, number, 1000);
        }
        assert!(has(&cache, 0, NOW));
        put(&cache, 3, 1000);
        assert_eq!([0, 1, 2, 3].map(|number| has(&cache, number, NOW)), [true, false, true, true]);
        put(&cache, 4, 2500);
        assert_eq!([0, 2, 3, 4].map(|number| has(&cache, number, NOW)), [true, true, true, false], "larger than all");
        assert_eq!(cache.kept().bytes, 3 * bytes_each);
    }

    #[test]
    fn bytes_and_entries_are_bounded() {
        let cache = holding(usize::MAX);
        for number in 0..ENTRIES_MAX + 10 {
            put(&cache, number, 1);
        }
        let (entries, used) = {
            let kept = cache.kept();
            (kept.entries.len(), kept.used.len())
        };
        assert_eq!((entries, used), (ENTRIES_MAX, ENTRIES_MAX));
        assert_eq!(cache.kept().arrived.len(), ENTRIES_MAX);
        put(&cache, usize::MAX, ENTRY_BYTES_MAX + 1);
        assert!(!has(&cache, usize::MAX, NOW));
        let none = holding(0);
        put(&none, 1, 1);
        assert!(!has(&none, 1, NOW));
    }

    #[test]
    fn a_wipe_takes_what_is_there_and_what_is_on_its_way() {
        let cache = holding(10_000);
        put(&cache, 1, 100);
        let on_its_way = cache.get(&key(2), NOW).expect_err("not there");
        cache.wipe();
        cache.put(key(2), &[1], on_its_way, NOW);
        assert!(!has(&cache, 1, NOW) && !has(&cache, 2, NOW));
        assert_eq!(cache.kept().bytes, 0);
        put(&cache, 2, 100);
        assert!(has(&cache, 2, NOW), "afterwards it keeps again");
        let sealed = cache.kept().entries[&key(2)].sealed.clone();
        assert!(!sealed.windows(20).any(|window| window == [7; 20]), "what is kept cannot be read");
    }
}
