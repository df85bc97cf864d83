//! Between two layers: who waits for an answer gets the processor, and work that must not go on is given up at once, by a
//! command or because its time is over. Refuses to know what the work is.

use super::{Host, Observer, TrainError};
use empathd_proto::engine::CurvePoint;
use empathd_proto::report::TrainProgress;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// What each moment leaves of the longest gap seen, so that one long sleep is forgotten.
const FADES: f64 = 0.99;

/// Why work was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GivenUp {
    /// It was told to pause.
    Paused,
    /// Its time was over.
    Late,
}

/// The observer and the clock of a job.
pub(super) struct Watch<'a> {
    observer: &'a mut dyn Observer,
    host: &'a Host<'a>,
    /// Time at which the job would have begun without interruptions, seconds.
    began_s: f64,
    /// Longest time between two moments, lately.
    gap_s: f64,
}

impl<'a> Watch<'a> {
    /// A watch over a job that has been at it for `elapsed_s`.
    pub(super) fn new(observer: &'a mut dyn Observer, host: &'a Host<'a>, elapsed_s: f64) -> Self {
        Self { observer, host, began_s: (host.now)().as_secs_f64() - elapsed_s, gap_s: 0.0 }
    }

    /// Seconds since the job began, without interruptions.
    pub(super) fn elapsed_s(&self) -> f64 {
        (self.host.now)().as_secs_f64() - self.began_s
    }

    /// Longest time between two moments at which work could be given up, lately.
    pub(super) const fn gap_s(&self) -> f64 {
        self.gap_s
    }

    pub(super) fn tell(&mut self, progress: &TrainProgress) -> ControlFlow<()> {
        self.observer.progress(progress)
    }

    pub(super) fn draw(&mut self, point: &CurvePoint) {
        self.observer.curve(point);
    }

    pub(super) fn hand_out(&mut self, step: u32, bytes: Vec<u8>) {
        self.observer.checkpoint(step, bytes);
    }

    /// Does work that calls what it is given between two layers. It is given up when that is after `until_s` seconds of
    /// the job, or on command; what it had done so far is lost.
    pub(super) fn over<T>(
        &mut self,
        until_s: f64,
        work: impl FnOnce(&mut dyn FnMut()) -> Result<T, TrainError>,
    ) -> Result<Result<T, GivenUp>, TrainError> {
        let (host, began_s) = (self.host, self.began_s);
        let (observer, gap_s) = (&mut *self.observer, &mut self.gap_s);
        let elapsed_s = || (host.now)().as_secs_f64() - began_s;
        let mut last_s = elapsed_s();
        let mut between_layers = || {
            observer.between_layers();
            let now_s = elapsed_s();
            *gap_s = (FADES * *gap_s).max(now_s - last_s);
            last_s = now_s;
            if observer.wants_pause() {
                resume_unwind(Box::new(GivenUp::Paused));
            }
            if now_s > until_s {
                resume_unwind(Box::new(GivenUp::Late));
            }
        };
        match catch_unwind(AssertUnwindSafe(|| work(&mut between_layers))) {
            Ok(done) => done.map(Ok),
            Err(cause) => match cause.downcast::<GivenUp>() {
                Ok(why) => Ok(Err(*why)),
                Err(other) => resume_unwind(other),
            },
        }
    }
}
