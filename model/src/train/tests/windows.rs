//! Training on a machine that is slowed at random, in a time that is its own: it never ends too late, whatever happens, and
//! always leaves something that can be used.

use super::*;
use crate::counter::{Counter, Site};

/// A machine with a clock of its own: each stretch between two layers takes time, at random more of it.
struct Machine {
    counter: Counter,
    seconds: Cell<f64>,
    stretches: Cell<u64>,
    /// Times slower, and for how many stretches more.
    slowed: Cell<(f64, u64)>,
    stretch_s: f64,
}

impl Machine {
    fn new(seed: u64, stretch_s: f64) -> Self {
        let counter = Counter::new(seed);
        Self { counter, seconds: Cell::new(0.0), stretches: Cell::new(0), slowed: Cell::new((1.0, 0)), stretch_s }
    }

    /// One stretch goes by: in one of forty begins a time in which everything takes up to six times as long.
    fn work(&self) {
        let at = self.stretches.get();
        self.stretches.set(at + 1);
        let draw = |word| self.counter.uniform(Site::new(word, 0), at);
        let (times, left) = match self.slowed.get() {
            (_, 0) if draw("begins") < 0.025 => (1.0 + 5.0 * draw("times"), (400.0 * draw("long")) as u64),
            (_, 0) => (1.0, 0),
            (times, left) => (times, left - 1),
        };
        self.slowed.set((times, left));
        self.seconds.set(self.seconds.get() + self.stretch_s * times * (0.8 + 0.4 * draw("jitter")));
    }

    fn now(&self) -> Duration {
        Duration::from_secs_f64(self.seconds.get())
    }
}

struct OnMachine<'a>(&'a Machine);

impl Observer for OnMachine<'_> {
    fn progress(&mut self, _: &TrainProgress) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    fn checkpoint(&mut self, _: u32, _: Vec<u8>) {
        self.0.work();
    }

    fn between_layers(&mut self) {
        self.0.work();
    }
}

#[test]
fn twenty_windows_are_never_missed() {
    let mut ended = Vec::new();
    for window in 0..20u64 {
        let machine = Machine::new(window, 0.05 + 0.01 * window as f64);
        let seconds_max = 60 + 15 * window as u32;
        let spec = TrainSpec { steps: 100_000, seconds_max, seed: window, validate_every: 12, patience: 0, ..job() };
        let now = || machine.now();
        let trained = train_on(&spec, &examples(), Start::Fresh, &now, &mut OnMachine(&machine)).unwrap();
        // Handing out the adapter takes as long as handing out a state.
        machine.work();
        let (took, report) = (machine.seconds.get(), trained.report);
        assert!(took <= f64::from(seconds_max), "window {window}: {took:.1} of {seconds_max} s, {:?}", report.plans);
        assert!(report.steps > 0 && report.val_loss_after < report.val_loss_before, "window {window}");
        assert!(took > 0.5 * f64::from(seconds_max), "window {window} was not used: {took:.1} of {seconds_max} s");
        ended.push(report.ended);
    }
    let planned = ended.iter().filter(|end| **end == EndReason::Steps).count();
    assert!(planned >= 15, "decay comes to its end in most windows: {ended:?}");
}
