//! The hours in which training may run, by the clinic's clock, and who minds them: a job that the end of the window
//! interrupts waits and goes on when it opens again. How a job runs is not known here.

use super::train;
use crate::app::App;
use crate::clock::Clock;
use serde::Deserialize;
use std::sync::Arc;
use std::time::Duration;

/// How often the window is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(20);
/// Minutes and seconds of a day.
const DAY_MIN: u32 = 24 * 60;
const DAY_S: i64 = 24 * 60 * 60;

/// Hours of the local day, such as `20:00-08:00`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Window {
    /// Minute of the day.
    opens: u32,
    /// Minute of the day, another one.
    closes: u32,
}

impl TryFrom<String> for Window {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let minute = |time: &str| -> Option<u32> {
            let (hour, minute) = time.split_once(':')?;
            let number = |digits: &str| {
                digits
                    .parse::<u32>()
                    .ok()
                    .filter(|_| digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_digit()))
            };
            let (hour, minute) = (number(hour)?, number(minute)?);
            (hour < 24 && minute < 60).then_some(60 * hour + minute)
        };
        let ends = text.split_once('-').and_then(|(opens, closes)| Some((minute(opens)?, minute(closes)?)));
        match ends {
            Some((opens, closes)) if opens != closes => Ok(Self { opens, closes }),
            _ => Err("a window is written as two times of the day, such as \"20:00-08:00\""),
        }
    }
}

impl Window {
    /// Whether training may run now.
    pub(crate) fn is_open(self, clock: &dyn Clock) -> bool {
        let minute = u32::try_from(second_of_day(clock, clock.now_ms()) / 60).unwrap_or(0);
        match self.opens < self.closes {
            true => (self.opens..self.closes).contains(&minute),
            false => minute >= self.opens || minute < self.closes,
        }
    }

    /// Seconds for a job that begins now, or when the window opens next: until it closes.
    pub(crate) fn seconds(self, clock: &dyn Clock) -> u64 {
        if !self.is_open(clock) {
            return u64::from((self.closes + DAY_MIN - self.opens) % DAY_MIN) * 60;
        }
        let now_ms = clock.now_ms();
        let by_the_clock = (i64::from(self.closes) * 60 - second_of_day(clock, now_ms)).rem_euclid(DAY_S);
        // One night a year is an hour shorter than the clock shows, and one longer.
        let then_ms = now_ms.saturating_add_signed(by_the_clock * 1000);
        let shift = clock.utc_offset_s(then_ms) - clock.utc_offset_s(now_ms);
        u64::try_from(by_the_clock - i64::from(shift)).unwrap_or(0)
    }
}

/// Second of the local day.
fn second_of_day(clock: &dyn Clock, at_ms: u64) -> i64 {
    let utc_s = i64::try_from(at_ms / 1000).unwrap_or(0);
    (utc_s + i64::from(clock.utc_offset_s(at_ms))).rem_euclid(DAY_S)
}

/// Minds the window as long as the appliance runs.
pub(crate) async fn keep(app: Arc<App>) {
    let Some(window) = app.config.training.window else { return };
    while !app.stopping.is_cancelled() {
        tokio::select! {
            () = app.stopping.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => look(&app, window).await,
        }
    }
}

/// Pauses what runs when the window is closed; takes up what waits when it is open.
pub(crate) async fn look(app: &Arc<App>, window: Window) {
    if !window.is_open(&*app.clock) {
        train::pause(app).await;
    } else if let Err(problem) = train::take_up_waiting(app).await {
        tracing::warn!(code = %problem.code, reason = problem.detail, "a waiting job could not be taken up");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A clock at a time of a day, an hour ahead of UTC until a moment, then two.
    struct At {
        now_ms: u64,
        summer_ms: u64,
    }

    impl Clock for At {
        fn now_ms(&self) -> u64 {
            self.now_ms
        }

        fn uptime(&self) -> Duration {
            Duration::ZERO
        }

        fn utc_offset_s(&self, at_ms: u64) -> i32 {
            if at_ms < self.summer_ms { 3600 } else { 7200 }
        }
    }

    fn window(text: &str) -> Window {
        Window::try_from(text.to_owned()).expect("a window")
    }

    fn at(hour: u64, minute: u64) -> At {
        // Local time is an hour ahead.
        At { now_ms: (100 * 86_400 + hour * 3600 + minute * 60) * 1000 - 3_600_000, summer_ms: u64::MAX }
    }

    #[test]
    fn a_night_goes_over_midnight() {
        let night = window("20:00-08:00");
        let open = |hour, minute| night.is_open(&at(hour, minute));
        assert_eq!(
            [open(19, 59), open(20, 0), open(23, 59), open(0, 0), open(7, 59), open(8, 0)],
            [false, true, true, true, true, false]
        );
        assert_eq!(
            (night.seconds(&at(23, 0)), night.seconds(&at(7, 30)), night.seconds(&at(12, 0))),
            (9 * 3600, 1800, 12 * 3600)
        );
        let noon = window("12:00-13:30");
        assert!(noon.is_open(&at(13, 29)) && !noon.is_open(&at(11, 59)));
        assert_eq!(noon.seconds(&at(12, 30)), 3600);
    }

    #[test]
    fn the_night_of_summer_time_is_an_hour_shorter() {
        let evening = at(22, 0);
        let clock = At { summer_ms: evening.now_ms + 4 * 3_600_000, ..evening };
        assert_eq!(window("20:00-08:00").seconds(&clock), 9 * 3600);
    }

    #[test]
    fn what_is_no_window_is_refused() {
        for text in
            ["", "20:00", "20:00-20:00", "24:00-08:00", "20:60-08:00", "8:00-09:00", "20.00-08.00", "+1:00-02:00"]
        {
            assert!(Window::try_from(text.to_owned()).is_err(), "{text}");
        }
    }
}
