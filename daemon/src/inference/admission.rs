//! How many works of the engine may be under way at once. Whoever finds no room is told when to come back, by what answers
//! took of late. Answers for people in danger need no room: only the engine bounds them. What an answer is, is not known here.

use empathd_proto::generate::ServiceClass;
use empathd_proto::problem::{ErrorCode, Problem};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Latest time a caller is told to come back after, in seconds.
const RETRY_S_MAX: u64 = 60;
/// What an answer is thought to take before one was seen.
const FIRST_MEAN_MS: u64 = 2_000;

/// The room there is.
pub(crate) struct Admission {
    room: Arc<Semaphore>,
    works_max: usize,
    mean_ms: AtomicU64,
}

impl Admission {
    pub(crate) fn new(works_max: usize) -> Self {
        Self { room: Arc::new(Semaphore::new(works_max)), works_max, mean_ms: AtomicU64::new(FIRST_MEAN_MS) }
    }

    /// Room for so many works.
    ///
    /// # Errors
    /// [`ErrorCode::Busy`] with the time after which it is worth to try again.
    pub(crate) fn enter(&self, class: ServiceClass, works: usize) -> Result<Option<OwnedSemaphorePermit>, Problem> {
        if class == ServiceClass::Crisis {
            return Ok(None);
        }
        let count = u32::try_from(works).ok().filter(|_| works <= self.works_max);
        let count = count.ok_or_else(|| {
            let detail = format!("The request asks for {works} choices, at most {} can be under way.", self.works_max);
            Problem::new(ErrorCode::BadRequest, detail, "Ask for fewer choices or send fewer prompts at once.")
        })?;
        self.room.clone().try_acquire_many_owned(count).map(Some).map_err(|_| {
            let next = "Try again later; the header Retry-After says when.";
            Problem::new(ErrorCode::Busy, "As many answers as can be are under way.", next).after_s(self.retry_s())
        })
    }

    /// An answer took so long.
    pub(crate) fn took(&self, elapsed: Duration) {
        let ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).min(RETRY_S_MAX * 2_000);
        // Two at once may lose one of them: a mean does not mind.
        let mean_ms = self.mean_ms.load(Ordering::Relaxed);
        self.mean_ms.store((mean_ms * 7 + ms) / 8, Ordering::Relaxed);
    }

    /// By then half of those under way have ended.
    fn retry_s(&self) -> u32 {
        let half_ms = self.mean_ms.load(Ordering::Relaxed) / 2;
        u32::try_from(half_ms.div_ceil(1_000).clamp(1, RETRY_S_MAX)).unwrap_or(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_finds_no_room_is_told_when_to_come_back_and_danger_always_finds_some() {
        let admission = Admission::new(4);
        let held = admission.enter(ServiceClass::Interactive, 3).expect("room");
        let problem = admission.enter(ServiceClass::Batch, 2).expect_err("full");
        assert_eq!((problem.code, problem.retry_after_s), (ErrorCode::Busy, Some(1)));
        assert!(admission.enter(ServiceClass::Crisis, 8).expect("never shed").is_none());
        for _ in 0..100 {
            admission.took(Duration::from_secs(30));
        }
        let slow = admission.enter(ServiceClass::Interactive, 2).expect_err("full");
        assert!((14..=15).contains(&slow.retry_after_s.expect("told")), "{:?}", slow.retry_after_s);
        assert_eq!(admission.enter(ServiceClass::Interactive, 5).expect_err("never").code, ErrorCode::BadRequest);
        drop(held);
        assert!(admission.enter(ServiceClass::Interactive, 4).is_ok());
    }
}
