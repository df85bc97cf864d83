//! The wish that an answer end, and since which step it is there. Refuses to know what is ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const NEVER: u64 = u64::MAX;

/// Set, by any thread, when a work is to end; cloning shares it.
#[derive(Debug, Clone)]
pub struct Cancel(Arc<AtomicU64>);

impl Default for Cancel {
    fn default() -> Self {
        Self(Arc::new(AtomicU64::new(NEVER)))
    }
}

impl Cancel {
    /// The work shall end; `steps` were taken until now. Only the first time counts.
    pub fn set(&self, steps: u64) {
        let _ = self.0.compare_exchange(NEVER, steps.min(NEVER - 1), Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Steps that were taken when the wish came.
    #[must_use]
    pub fn since(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|steps| *steps != NEVER)
    }

    /// Whether the work shall end.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.since().is_some()
    }
}
