//! Whose turn it is: the most urgent class first; within a class the caller who was served least (virtual token counters,
//! Sheng et al. 2024); of one caller, whoever came first. How many may wait is decided at admission. Refuses to know
//! slots and what an answer is.

use empathd_proto::generate::{CallerKey, ServiceClass};
use std::collections::{BTreeMap, VecDeque};

/// Works that wait, and how much their callers were served.
pub(super) struct Queue<T> {
    lanes: [Lane<T>; ServiceClass::ALL.len()],
    arrivals: u64,
}

/// One class.
struct Lane<T> {
    callers: BTreeMap<CallerKey, Caller<T>>,
}

/// A caller with works of this class that wait or run.
struct Caller<T> {
    waiting: VecDeque<(u64, T)>,
    running: usize,
    /// Tokens served, counted from where the least served one was when this caller came.
    served: u64,
}

impl<T> Queue<T> {
    pub(super) fn new() -> Self {
        Self { lanes: ServiceClass::ALL.map(|_| Lane { callers: BTreeMap::new() }), arrivals: 0 }
    }

    /// A new work.
    pub(super) fn push(&mut self, class: ServiceClass, caller: CallerKey, work: T) {
        self.arrivals += 1;
        self.lanes[class as usize].join(caller).waiting.push_back((self.arrivals, work));
    }

    /// The work whose turn it is.
    pub(super) fn peek(&self) -> Option<&T> {
        let (lane, caller) = self.turn()?;
        self.lanes[lane].callers.get(&caller)?.waiting.front().map(|(_, work)| work)
    }

    /// Takes the work whose turn it is; it runs from now on.
    pub(super) fn begin(&mut self) -> Option<T> {
        let (lane, caller) = self.turn()?;
        let caller = self.lanes[lane].callers.get_mut(&caller)?;
        caller.running += 1;
        caller.waiting.pop_front().map(|(_, work)| work)
    }

    /// A running work was pre-empted and waits again, before the others of its caller.
    pub(super) fn put_back(&mut self, class: ServiceClass, caller: CallerKey, work: T) {
        let lane = &mut self.lanes[class as usize];
        lane.join(caller).waiting.push_front((0, work));
        lane.leave(caller);
    }

    /// A running work is over.
    pub(super) fn end(&mut self, class: ServiceClass, caller: CallerKey) {
        self.lanes[class as usize].leave(caller);
    }

    /// A caller was served so many tokens.
    pub(super) fn charge(&mut self, class: ServiceClass, caller: CallerKey, tokens: u64) {
        if let Some(caller) = self.lanes[class as usize].callers.get_mut(&caller) {
            caller.served += tokens;
        }
    }

    /// Takes the waiting works that `leaves` names.
    pub(super) fn take(&mut self, mut leaves: impl FnMut(&T) -> bool) -> Vec<T> {
        let mut taken = Vec::new();
        for lane in &mut self.lanes {
            for caller in lane.callers.values_mut() {
                let waiting = std::mem::take(&mut caller.waiting);
                for (arrival, work) in waiting {
                    if leaves(&work) { taken.push(work) } else { caller.waiting.push_back((arrival, work)) }
                }
            }
            lane.callers.retain(|_, caller| caller.is_present());
        }
        taken
    }

    pub(super) fn is_empty(&self) -> bool {
        self.turn().is_none()
    }

    /// Class and caller whose turn it is.
    fn turn(&self) -> Option<(usize, CallerKey)> {
        let of_lane = |(number, lane): (usize, &Lane<T>)| Some((number, lane.turn()?));
        self.lanes.iter().enumerate().find_map(of_lane)
    }
}

impl<T> Lane<T> {
    fn turn(&self) -> Option<CallerKey> {
        let waits = |(key, caller): (&CallerKey, &Caller<T>)| {
            caller.waiting.front().map(|(arrival, _)| (caller.served, *arrival, *key))
        };
        self.callers.iter().filter_map(waits).min().map(|(_, _, key)| key)
    }

    /// The caller; one who comes anew has been served as much as the least served one.
    fn join(&mut self, key: CallerKey) -> &mut Caller<T> {
        let least = self.callers.values().map(|caller| caller.served).min().unwrap_or(0);
        self.callers.entry(key).or_insert_with(|| Caller { waiting: VecDeque::new(), running: 0, served: least })
    }

    fn leave(&mut self, key: CallerKey) {
        if let Some(caller) = self.callers.get_mut(&key) {
            caller.running = caller.running.saturating_sub(1);
            if !caller.is_present() {
                self.callers.remove(&key);
            }
        }
    }
}

impl<T> Caller<T> {
    fn is_present(&self) -> bool {
        self.running > 0 || !self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(queue: &mut Queue<&'static str>) -> Vec<&'static str> {
        std::iter::from_fn(|| queue.begin()).collect()
    }

    #[test]
    fn urgent_classes_come_first_and_callers_share_a_class() {
        let (a, b) = (CallerKey(1), CallerKey(2));
        let mut queue = Queue::new();
        queue.push(ServiceClass::Batch, a, "batch");
        for work in ["a1", "a2", "a3"] {
            queue.push(ServiceClass::Interactive, a, work);
        }
        assert_eq!(queue.begin(), Some("a1"));
        queue.charge(ServiceClass::Interactive, a, 100);
        queue.push(ServiceClass::Interactive, b, "b1");
        queue.charge(ServiceClass::Interactive, a, 1);
        queue.push(ServiceClass::Crisis, b, "crisis");
        assert_eq!(drain(&mut queue), ["crisis", "b1", "a2", "a3", "batch"]);
    }

    #[test]
    fn a_work_that_was_put_back_is_the_next_of_its_caller_and_those_who_left_are_forgotten() {
        let a = CallerKey(1);
        let mut queue = Queue::new();
        for work in ["first", "second", "third"] {
            queue.push(ServiceClass::Batch, a, work);
        }
        assert_eq!(queue.begin(), Some("first"));
        queue.put_back(ServiceClass::Batch, a, "first");
        assert_eq!(queue.take(|work| *work == "second"), ["second"]);
        assert_eq!(drain(&mut queue), ["first", "third"]);
        queue.end(ServiceClass::Batch, a);
        queue.end(ServiceClass::Batch, a);
        assert!(queue.is_empty() && queue.lanes.iter().all(|lane| lane.callers.is_empty()));
    }
}
