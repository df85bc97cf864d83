//! The side of a scheduler that any thread may speak to without waiting for a step: places, the count of steps, and how
//! answers are served. It outlives the scheduler, so that counts go on when a base model is replaced. Refuses to know
//! answers.

use super::admission::{Admission, Ask, Place};
use empathd_proto::engine::{EngineFailure, ServingStatus};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Time since some fixed moment; never goes back.
pub type Clock = Arc<dyn Fn() -> Duration + Send + Sync>;

/// Places, steps and counts.
pub struct Desk {
    clock: Clock,
    pub(super) admission: Admission,
    steps: AtomicU64,
    /// Microseconds of the clock when the last step ended.
    last_step_us: AtomicU64,
    status: Mutex<ServingStatus>,
}

impl Desk {
    /// One with nothing counted.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self {
            clock,
            admission: Admission::default(),
            steps: AtomicU64::new(0),
            last_step_us: AtomicU64::new(0),
            status: Mutex::default(),
        }
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> Duration {
        (self.clock)()
    }

    /// A place for an answer, counted from now on, or when to come again.
    ///
    /// # Errors
    /// [`EngineFailure::Busy`].
    pub fn reserve(&self, ask: Ask) -> Result<Place, EngineFailure> {
        self.admission.reserve(ask).map_err(|refusal| EngineFailure::Busy { retry_after_ms: refusal.retry_after_ms })
    }

    /// Steps taken since the start.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps.load(Ordering::Relaxed)
    }

    /// How answers are served at this moment.
    #[must_use]
    pub fn status(&self) -> ServingStatus {
        let mut status = self.lock().clone();
        (status.waiting, status.refused) = self.admission.counts();
        status.steps = self.steps();
        if status.steps > 0 {
            let last = Duration::from_micros(self.last_step_us.load(Ordering::Relaxed));
            status.last_step_age_ms = u64::try_from(self.now().saturating_sub(last).as_millis()).unwrap_or(u64::MAX);
        }
        status
    }

    /// A step ended.
    pub(super) fn stepped(&self) {
        let now = u64::try_from(self.now().as_micros()).unwrap_or(u64::MAX);
        self.last_step_us.store(now, Ordering::Relaxed);
        self.steps.fetch_add(1, Ordering::Relaxed);
    }

    /// Changes what the scheduler itself counts.
    pub(super) fn count(&self, change: impl FnOnce(&mut ServingStatus)) {
        change(&mut self.lock());
    }

    fn lock(&self) -> MutexGuard<'_, ServingStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
