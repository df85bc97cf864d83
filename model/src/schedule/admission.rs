//! Who may come in: a place is counted the moment it is given, before anything is done for it, and given back when it is
//! dropped. Bounded by class and by caller; who is refused is told when there will be room, by what is owed to those
//! before him over the measured speed. Refuses to know what is asked and how it is computed.

use empathd_proto::engine::{MAX_CRISIS_GENERATIONS, MAX_GENERATIONS};
use empathd_proto::generate::{CallerKey, ServiceClass};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Most answers that wait or run, by class in the order of [`ServiceClass::ALL`]; those that are not of
/// [`ServiceClass::Crisis`] are [`MAX_GENERATIONS`] together.
pub const MAX_PLACES: [usize; ServiceClass::ALL.len()] = [MAX_CRISIS_GENERATIONS, 48, 32];
/// Most of them of one caller; for [`ServiceClass::Crisis`] only the bound of the class holds.
pub const MAX_PLACES_PER_CALLER: usize = 24;
/// Most prompt tokens that wait to be read, by class.
pub const MAX_UNREAD_TOKENS: usize = 1 << 20;
/// Earliest and latest moment that a refused caller is told to come again.
const RETRY_AFTER_MS: (u32, u32) = (250, 60_000);
/// Share of what is remembered of a speed at each new step.
const MEMORY: f64 = 0.9;
/// Speed taken for true before one was measured, tokens a second.
const SPEED_UNKNOWN: f64 = 100.0;
/// Tokens of an answer before one has ended.
const ANSWER_TOKENS_UNKNOWN: f64 = 128.0;
/// Fewest prompt tokens of a step that says something of the speed of reading.
const PREFILL_ROWS_MEASURED: usize = 16;

/// What a newcomer asks for.
#[derive(Debug, Clone, Copy)]
pub struct Ask {
    /// How urgent it is.
    pub class: ServiceClass,
    /// Who asks.
    pub caller: CallerKey,
    /// Tokens of the prompt, as far as they are known.
    pub prompt_tokens: usize,
    /// The first token is of no use later than this from now.
    pub first_token_within: Option<Duration>,
}

/// There is no room; when there will be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NoRoom {
    pub(super) retry_after_ms: u32,
}

/// Counts places.
#[derive(Debug, Clone, Default)]
pub(super) struct Admission(Arc<Mutex<Ledger>>);

#[derive(Debug, Default)]
struct Ledger {
    classes: [Class; ServiceClass::ALL.len()],
    callers: HashMap<(ServiceClass, CallerKey), usize>,
    /// Prompt tokens over seconds.
    prefill: Mean,
    /// Tokens of answers over seconds, all answers together.
    decode: Mean,
    /// Tokens of answers over answers.
    length: Mean,
    /// Answers that may run at once.
    running_max: usize,
}

#[derive(Debug, Default)]
struct Class {
    places: usize,
    running: usize,
    /// Prompt tokens of its places that are not read yet.
    unread: usize,
    refused: u64,
}

/// A quotient whose past fades.
#[derive(Debug, Default, Clone, Copy)]
struct Mean {
    sum: f64,
    over: f64,
}

impl Mean {
    fn add(&mut self, sum: f64, over: f64) {
        self.sum = self.sum * MEMORY + sum;
        self.over = self.over * MEMORY + over;
    }

    fn value(self, unknown: f64) -> f64 {
        if self.over > 0.0 && self.sum > 0.0 { self.sum / self.over } else { unknown }
    }
}

impl Admission {
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_running_max(&self, answers: usize) {
        self.ledger().running_max = answers;
    }

    /// A place, counted from now on.
    pub(super) fn reserve(&self, ask: Ask) -> Result<Place, NoRoom> {
        let mut ledger = self.ledger();
        let Ask { class, caller, prompt_tokens, .. } = ask;
        let wait = ledger.wait(class);
        let retry = |wait: Duration| NoRoom {
            retry_after_ms: u32::try_from(wait.as_millis())
                .unwrap_or(u32::MAX)
                .clamp(RETRY_AFTER_MS.0, RETRY_AFTER_MS.1),
        };
        let late = match ask.first_token_within {
            // Where nobody is before him, coming again would not help.
            Some(within) if class != ServiceClass::Crisis && !wait.is_zero() => {
                (wait + ledger.reading(prompt_tokens)).checked_sub(within).filter(|late| !late.is_zero())
            }
            _ => None,
        };
        let refusal = if ledger.is_full(class, caller, prompt_tokens) { Some(retry(wait)) } else { late.map(retry) };
        if let Some(refusal) = refusal {
            ledger.classes[class as usize].refused += 1;
            return Err(refusal);
        }
        let counts = &mut ledger.classes[class as usize];
        counts.places += 1;
        counts.unread += prompt_tokens;
        *ledger.callers.entry((class, caller)).or_default() += 1;
        Ok(Place { admission: self.clone(), class, caller, unread: prompt_tokens, runs: false })
    }

    /// A step took `elapsed` for so many prompt tokens and made so many tokens of answers.
    pub(super) fn stepped(&self, prompt_tokens: usize, answer_tokens: usize, elapsed: Duration) {
        let mut ledger = self.ledger();
        let seconds = elapsed.as_secs_f64();
        if prompt_tokens >= PREFILL_ROWS_MEASURED {
            ledger.prefill.add(prompt_tokens as f64, seconds);
        } else if answer_tokens > 0 {
            ledger.decode.add(answer_tokens as f64, seconds);
        }
    }

    /// An answer of so many tokens came to its end.
    pub(super) fn ended(&self, answer_tokens: u32) {
        self.ledger().length.add(answer_tokens.into(), 1.0);
    }

    /// How long reading so many tokens takes by the measured speed.
    pub(super) fn reading(&self, tokens: usize) -> Duration {
        self.ledger().reading(tokens)
    }

    /// Places that wait, and how many were refused, by class.
    pub(super) fn counts(&self) -> ([u32; ServiceClass::ALL.len()], [u64; ServiceClass::ALL.len()]) {
        let ledger = self.ledger();
        let waiting = |class: &Class| u32::try_from(class.places.saturating_sub(class.running)).unwrap_or(u32::MAX);
        (ledger.classes.each_ref().map(waiting), ledger.classes.each_ref().map(|class| class.refused))
    }
}

impl Ledger {
    fn is_full(&self, class: ServiceClass, caller: CallerKey, prompt_tokens: usize) -> bool {
        let counts = &self.classes[class as usize];
        let shared: usize = self.classes[ServiceClass::Interactive as usize..].iter().map(|class| class.places).sum();
        let of_caller = self.callers.get(&(class, caller)).copied().unwrap_or(0);
        let ordinary = class != ServiceClass::Crisis;
        counts.places >= MAX_PLACES[class as usize]
            || ordinary && shared >= MAX_GENERATIONS
            || ordinary && of_caller >= MAX_PLACES_PER_CALLER
            || ordinary && counts.unread + prompt_tokens > MAX_UNREAD_TOKENS
    }

    fn reading(&self, tokens: usize) -> Duration {
        Duration::from_secs_f64(tokens as f64 / self.prefill.value(SPEED_UNKNOWN))
    }

    /// Time until everything of this class and of more urgent ones that is here now is read, and, when all slots are
    /// taken, until enough answers have ended.
    fn wait(&self, class: ServiceClass) -> Duration {
        let before = &self.classes[..=class as usize];
        let unread = before.iter().map(|class| class.unread).sum();
        let running: usize = self.classes.iter().map(|class| class.running).sum();
        let waiting: usize = before.iter().map(|class| class.places.saturating_sub(class.running)).sum();
        let beyond = (running + waiting + 1).saturating_sub(self.running_max.max(1));
        let tokens = beyond as f64 * self.length.value(ANSWER_TOKENS_UNKNOWN);
        self.reading(unread) + Duration::from_secs_f64(tokens / self.decode.value(SPEED_UNKNOWN))
    }
}

/// A counted place; dropping it gives it back.
#[derive(Debug)]
pub struct Place {
    admission: Admission,
    class: ServiceClass,
    caller: CallerKey,
    unread: usize,
    runs: bool,
}

impl Place {
    /// So many tokens of it are still to be read.
    pub(super) fn owes(&mut self, tokens: usize) {
        if tokens == self.unread {
            return;
        }
        let class = &mut self.admission.ledger().classes[self.class as usize];
        class.unread = class.unread - self.unread + tokens;
        self.unread = tokens;
    }

    /// Whether its answer runs or waits.
    pub(super) fn set_running(&mut self, runs: bool) {
        let class = &mut self.admission.ledger().classes[self.class as usize];
        class.running = class.running + usize::from(runs) - usize::from(self.runs);
        self.runs = runs;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut ledger = self.admission.ledger();
        let class = &mut ledger.classes[self.class as usize];
        class.places -= 1;
        class.unread -= self.unread;
        class.running -= usize::from(self.runs);
        let key = (self.class, self.caller);
        if let Some(places) = ledger.callers.get_mut(&key) {
            *places -= 1;
            if *places == 0 {
                ledger.callers.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(class: ServiceClass, caller: u64) -> Ask {
        Ask { class, caller: CallerKey(caller), prompt_tokens: 100, first_token_within: None }
    }

    #[test]
    fn places_are_bounded_by_caller_class_and_together_and_come_back() {
        let admission = Admission::default();
        let mut places = Vec::new();
        let mut fill = |class, caller| {
            let before = places.len();
            places.extend(std::iter::from_fn(|| admission.reserve(ask(class, caller)).ok()));
            places.len() - before
        };
        assert_eq!(fill(ServiceClass::Interactive, 1), MAX_PLACES_PER_CALLER);
        assert_eq!(fill(ServiceClass::Interactive, 2), MAX_PLACES_PER_CALLER);
        assert_eq!(fill(ServiceClass::Interactive, 3), 0);
        assert_eq!(fill(ServiceClass::Batch, 3), MAX_GENERATIONS - 2 * MAX_PLACES_PER_CALLER);
        assert_eq!(fill(ServiceClass::Crisis, 1), MAX_CRISIS_GENERATIONS);
        assert_eq!(admission.counts(), ([32, 48, 16], [1, 3, 1]));
        places.clear();
        assert_eq!(admission.counts().0, [0, 0, 0]);
        assert!(admission.ledger().callers.is_empty() && admission.ledger().classes[1].unread == 0);
    }

    #[test]
    fn a_refusal_says_when_by_what_is_owed_over_the_measured_speed() {
        let admission = Admission::default();
        admission.set_running_max(1000);
        admission.stepped(500, 0, Duration::from_secs(1));
        let mut place = admission.reserve(ask(ServiceClass::Interactive, 1)).expect("room");
        place.owes(2_000);
        let hurried = Ask { first_token_within: Some(Duration::from_secs(1)), ..ask(ServiceClass::Interactive, 2) };
        assert_eq!(admission.reserve(hurried).map(drop), Err(NoRoom { retry_after_ms: 3_200 }));
        let patient = Ask { first_token_within: Some(Duration::from_secs(5)), ..hurried };
        assert!(admission.reserve(patient).is_ok());
        assert!(admission.reserve(Ask { class: ServiceClass::Crisis, ..hurried }).is_ok(), "a crisis is never shed");
        place.owes(0);
        assert!(admission.reserve(hurried).is_ok());
    }

    #[test]
    fn no_burst_takes_more_than_the_bound() {
        let admission = Admission::default();
        let taken = std::thread::scope(|scope| {
            let burst = |caller| {
                let admission = &admission;
                scope.spawn(move || {
                    let one = |_| admission.reserve(ask(ServiceClass::Interactive, caller)).ok();
                    (0..50).filter_map(one).collect::<Vec<_>>()
                })
            };
            let threads: Vec<_> = (0..8).map(burst).collect();
            let places: Vec<Place> = threads.into_iter().flat_map(|thread| thread.join().expect("ends")).collect();
            places.len()
        });
        assert_eq!(taken, MAX_PLACES[ServiceClass::Interactive as usize]);
        assert_eq!(admission.counts(), ([0, 0, 0], [0, 400 - 48, 0]));
    }
}
