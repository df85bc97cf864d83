//! The edge to the machine's clocks and randomness. Everything else takes them as arguments. It knows nothing of what
//! the time or the random bytes are for.
#![expect(clippy::disallowed_methods, reason = "the one place that reads the clock and the system's randomness")]

use empathd_store::Entropy;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Wall clock and monotonic time, as an argument.
pub trait Clock: Send + Sync {
    /// Milliseconds since the Unix epoch.
    fn now_ms(&self) -> u64;
    /// Time since the process began; never goes back.
    fn uptime(&self) -> Duration;
    /// Seconds that the clinic's clock is ahead of UTC at a moment, milliseconds since the Unix epoch.
    fn utc_offset_s(&self, at_ms: u64) -> i32;
}

/// The machine's clocks.
#[derive(Debug)]
pub struct SystemClock {
    started: Instant,
}

impl SystemClock {
    /// Uptime counts from here.
    #[must_use]
    pub fn start() -> Self {
        Self { started: Instant::now() }
    }
}

impl Clock for SystemClock {
    fn now_ms(&self) -> u64 {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
    }

    fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    fn utc_offset_s(&self, at_ms: u64) -> i32 {
        let at = jiff::Timestamp::from_millisecond(i64::try_from(at_ms).unwrap_or(i64::MAX)).unwrap_or_default();
        jiff::tz::TimeZone::system().to_offset(at).seconds()
    }
}

/// The operating system's randomness.
#[derive(Debug, Clone, Copy)]
pub struct OsEntropy;

impl OsEntropy {
    /// Fills `bytes` with fresh random bytes.
    ///
    /// # Panics
    /// When the operating system has no randomness to give: no key may be made without it.
    pub fn fill(self, bytes: &mut [u8]) {
        getrandom::fill(bytes).expect("the operating system gives randomness");
    }
}

impl Entropy for OsEntropy {
    fn fill(&self, bytes: &mut [u8]) {
        OsEntropy::fill(*self, bytes);
    }
}
