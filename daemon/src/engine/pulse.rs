//! Whether the engine goes on: what it last said of itself, and for how long nothing has moved in it. How it is asked is
//! not known here.

use crate::measure;
use empathd_proto::engine::{EngineStatus, ServingStatus};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// An engine that has answers and took no step for so long is stuck; so is one that says nothing for so long.
pub const STUCK_AFTER: Duration = Duration::from_secs(15);

/// The engine's last words about itself.
#[derive(Debug)]
pub struct Pulse {
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    status: Option<EngineStatus>,
    /// When a step was last seen to have been taken, or that there was nothing to do.
    moved_at: Instant,
}

impl Default for Pulse {
    fn default() -> Self {
        Self { seen: Mutex::new(Seen { status: None, moved_at: Instant::now() }) }
    }
}

impl Pulse {
    /// The engine has said how it is.
    pub fn heard(&self, status: EngineStatus) {
        self.heard_at(status, Instant::now());
    }

    fn heard_at(&self, status: EngineStatus, at: Instant) {
        let mut seen = self.seen();
        // What the engine counted before this connection was counted then.
        let before = seen.status.take().unwrap_or_else(|| status.clone()).serving;
        let now = &status.serving;
        measure::engine(&before, now);
        if before.steps != now.steps || is_idle(now) {
            seen.moved_at = at;
        }
        seen.status = Some(status);
    }

    /// Whether nothing has moved for [`STUCK_AFTER`] although something should.
    #[must_use]
    pub fn is_stuck(&self) -> bool {
        self.is_stuck_at(Instant::now())
    }

    fn is_stuck_at(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.seen().moved_at) >= STUCK_AFTER
    }

    /// What it said last.
    #[must_use]
    pub fn status(&self) -> Option<EngineStatus> {
        self.seen().status.clone()
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_idle(serving: &ServingStatus) -> bool {
    serving.running == 0 && serving.waiting.iter().all(|waiting| *waiting == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(running: u32, steps: u64) -> EngineStatus {
        let serving = ServingStatus { running, steps, ..ServingStatus::default() };
        EngineStatus { base: None, adapters: Vec::new(), generating: 0, training: false, embedder: false, serving }
    }

    /// A pulse, and the time so many seconds after it began.
    fn begun() -> (Pulse, impl Fn(u64) -> Instant) {
        let (pulse, began) = (Pulse::default(), Instant::now());
        (pulse, move |seconds| began + Duration::from_secs(seconds))
    }

    #[test]
    fn an_engine_is_stuck_when_answers_wait_and_no_step_is_taken() {
        let (pulse, at) = begun();
        (0..40).for_each(|second| pulse.heard_at(status(0, 5), at(second)));
        assert!(!pulse.is_stuck_at(at(40)), "an idle engine takes no steps");
        (40..80).for_each(|second| pulse.heard_at(status(1, second), at(second)));
        assert!(!pulse.is_stuck_at(at(80)), "a busy one does");
        (80..120).for_each(|second| pulse.heard_at(status(1, 79), at(second)));
        assert!(!pulse.is_stuck_at(at(93)), "a long step is no fault yet");
        assert!(pulse.is_stuck_at(at(95)));
        pulse.heard_at(status(1, 80), at(120));
        assert!(!pulse.is_stuck_at(at(120)), "it goes on");
    }

    #[test]
    fn an_engine_that_says_nothing_is_stuck() {
        let (pulse, at) = begun();
        pulse.heard_at(status(0, 1), at(0));
        assert!(!pulse.is_stuck_at(at(14)) && pulse.is_stuck_at(at(16)));
    }
}
