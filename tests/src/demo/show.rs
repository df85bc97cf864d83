//! What a person sees while it works: one line a step, with a bar or a spinner on a terminal and plain lines elsewhere.
//! It knows no step.

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::cell::{Cell, RefCell};
use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

/// Width of the names of steps.
const NAME_WIDTH: usize = 34;
/// Without a terminal, the shortest time between two lines of one step.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// The page.
pub(super) struct Show {
    bars: MultiProgress,
    terminal: bool,
    count: Cell<usize>,
}

impl Show {
    /// A page on standard error.
    pub(super) fn new() -> Self {
        Self { bars: MultiProgress::new(), terminal: stderr().is_terminal(), count: Cell::new(0) }
    }

    /// Writes lines below everything so far.
    pub(super) fn line(&self, text: &str) {
        self.bars.suspend(|| eprintln!("{text}"));
    }

    /// Begins a step.
    pub(super) fn step(&self, name: &'static str) -> Step<'_> {
        self.count.set(self.count.get() + 1);
        let bar = if self.terminal { self.bars.add(ProgressBar::new_spinner()) } else { ProgressBar::hidden() };
        bar.set_style(style("{spinner} {prefix} {wide_msg}"));
        bar.set_prefix(format!("{name:NAME_WIDTH$}"));
        bar.enable_steady_tick(Duration::from_millis(120));
        Step {
            show: self,
            name,
            number: self.count.get(),
            bar,
            began: Instant::now(),
            said_at: Cell::new(Instant::now()),
            said: RefCell::default(),
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner()).progress_chars("=> ")
}

/// A step under way.
pub(super) struct Step<'a> {
    show: &'a Show,
    name: &'static str,
    number: usize,
    bar: ProgressBar,
    began: Instant,
    said_at: Cell<Instant>,
    said: RefCell<String>,
}

impl Step<'_> {
    /// What is under way just now.
    pub(super) fn note(&self, text: &str) {
        self.bar.set_message(text.to_owned());
        self.bar.tick();
        let due = !self.show.terminal && self.said_at.get().elapsed() >= LINE_EVERY;
        if due && *self.said.borrow() != text {
            self.said_at.set(Instant::now());
            text.clone_into(&mut self.said.borrow_mut());
            eprintln!("      {} ... {text}", self.name);
        }
    }

    /// How far it is, and what is under way.
    pub(super) fn progress(&self, done: u64, total: u64, text: &str) {
        if self.bar.length() != Some(total) {
            self.bar.set_length(total);
            self.bar.set_style(style("{spinner} {prefix} {bar:24} {pos:>4} of {len}  {wide_msg}"));
        }
        self.bar.set_position(done);
        self.note(text);
    }

    /// It is over; `result` says what came of it.
    pub(super) fn done(self, result: &str) {
        let seconds = self.began.elapsed().as_secs_f64();
        self.bar.finish_and_clear();
        self.show.line(&format!("{:>4}  {:NAME_WIDTH$} {seconds:>6.1} s   {result}", self.number, self.name));
    }
}

impl Drop for Step<'_> {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
