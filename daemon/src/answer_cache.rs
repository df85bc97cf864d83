//! Whole answers that are given again to the very same request of the same caller for the same client: in memory only,
//! bounded, overwritten when they leave. What makes two requests the same is decided by whoever makes the key.

use crate::measure;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
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
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    entries: HashMap<Key, Entry>,
    /// Keys by their last use, oldest first.
    used: BTreeMap<u64, Key>,
    bytes: usize,
    uses: u64,
    wipes: u64,
}

struct Entry {
    value: Zeroizing<Vec<u8>>,
    used: u64,
    until: Duration,
}

/// The right to put an answer that was begun before; a wipe in between takes it away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket(u64);

impl AnswerCache {
    /// One of at most so many bytes; none for 0.
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { bytes_max, kept: Mutex::default() }
    }

    /// The answer to this request, if it was given less than [`KEPT_FOR`] ago; otherwise the right to put it.
    pub(crate) fn get(&self, key: &Key, now: Duration) -> Result<Zeroizing<Vec<u8>>, Ticket> {
        let mut kept = self.kept();
        if kept.entries.get(key).is_some_and(|entry| entry.until <= now) {
            kept.remove(key);
        }
        kept.uses += 1;
        let uses = kept.uses;
        let Kept { entries, used, wipes, .. } = &mut *kept;
        let found = entries.get_mut(key).map(|entry| {
            used.remove(&entry.used);
            entry.used = uses;
            used.insert(uses, *key);
            entry.value.clone()
        });
        let found = found.ok_or(Ticket(*wipes));
        drop(kept);
        measure::answer_cache(found.is_ok());
        found
    }

    /// Keeps an answer. The least lately used make room.
    pub(crate) fn put(&self, key: Key, value: Zeroizing<Vec<u8>>, ticket: Ticket, now: Duration) {
        let bytes = value.len() + ENTRY_COST;
        let mut kept = self.kept();
        if value.len() > ENTRY_BYTES_MAX || bytes > self.bytes_max || ticket.0 != kept.wipes {
            return;
        }
        kept.remove(&key);
        while kept.bytes + bytes > self.bytes_max || kept.entries.len() >= ENTRIES_MAX {
            let Some((_, oldest)) = kept.used.pop_first() else { break };
            kept.remove(&oldest);
        }
        kept.uses += 1;
        let used = kept.uses;
        kept.used.insert(used, key);
        kept.bytes += bytes;
        kept.entries.insert(key, Entry { value, used, until: now + KEPT_FOR });
        measure::answer_cache_holds(kept.bytes as u64);
    }

    /// Overwrites all of them. Answers under way are not kept either.
    pub(crate) fn wipe(&self) {
        let mut kept = self.kept();
        *kept = Kept { wipes: kept.wipes + 1, uses: kept.uses, ..Kept::default() };
        measure::answer_cache_holds(0);
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn remove(&mut self, key: &Key) {
        if let Some(entry) = self.entries.remove(key) {
            self.used.remove(&entry.used);
            self.bytes -= entry.value.len() + ENTRY_COST;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(10);

    fn key(number: usize) -> Key {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&number.to_le_bytes());
        key
    }

    fn put(cache: &AnswerCache, number: usize, bytes: usize) {
        let Err(ticket) = cache.get(&key(number), NOW) else { return };
        cache.put(key(number), vec![7; bytes].into(), ticket, NOW);
    }

    fn has(cache: &AnswerCache, number: usize, now: Duration) -> bool {
        cache.get(&key(number), now).is_ok()
    }

    #[test]
    fn an_answer_is_kept_for_its_time_and_no_longer() {
        let cache = AnswerCache::new(10_000);
        put(&cache, 1, 100);
        assert_eq!(cache.get(&key(1), NOW).expect("kept").len(), 100);
        assert!(has(&cache, 1, NOW + KEPT_FOR - Duration::from_millis(1)));
        assert!(!has(&cache, 1, NOW + KEPT_FOR));
        assert_eq!(cache.kept().bytes, 0, "what is too old is overwritten when it is seen");
    }

    #[test]
    fn the_least_lately_used_make_room() {
        let cache = AnswerCache::new(3 * (1000 + ENTRY_COST));
        for number in 0..3 {
            put(&cache, number, 1000);
        }
        assert!(has(&cache, 0, NOW));
        put(&cache, 3, 1000);
        assert_eq!([0, 1, 2, 3].map(|number| has(&cache, number, NOW)), [true, false, true, true]);
        put(&cache, 4, 3 * 1000);
        assert!(cache.kept().bytes <= 3 * (1000 + ENTRY_COST));
    }

    #[test]
    fn bytes_and_entries_are_bounded() {
        let cache = AnswerCache::new(usize::MAX);
        for number in 0..ENTRIES_MAX + 10 {
            put(&cache, number, 1);
        }
        let (entries, used) = {
            let kept = cache.kept();
            (kept.entries.len(), kept.used.len())
        };
        assert_eq!((entries, used), (ENTRIES_MAX, ENTRIES_MAX));
        put(&cache, usize::MAX, ENTRY_BYTES_MAX + 1);
        assert!(!has(&cache, usize::MAX, NOW));
        let none = AnswerCache::new(0);
        put(&none, 1, 1);
        assert!(!has(&none, 1, NOW));
    }

    #[test]
    fn a_wipe_takes_what_is_there_and_what_is_on_its_way() {
        let cache = AnswerCache::new(10_000);
        put(&cache, 1, 100);
        let on_its_way = cache.get(&key(2), NOW).expect_err("not there");
        cache.wipe();
        cache.put(key(2), vec![1].into(), on_its_way, NOW);
        assert!(!has(&cache, 1, NOW) && !has(&cache, 2, NOW));
        put(&cache, 2, 100);
        assert!(has(&cache, 2, NOW), "afterwards it keeps again");
    }
}
