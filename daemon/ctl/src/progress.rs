//! Progress bars on standard error, for a person who watches. The time left of training is the daemon's own estimate;
//! of uploads and checks it comes from the rate so far. It refuses to know what the work is.

use crate::render::words::duration;
use empathd_proto::report::TrainProgress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::Duration;

/// Makes bars, visible or hidden, and keeps the one on show.
#[derive(Debug)]
pub struct Bars {
    visible: bool,
    current: ProgressBar,
}

impl Bars {
    /// Bars that are drawn only when `visible`.
    #[must_use]
    pub fn new(visible: bool) -> Self {
        Self { visible, current: ProgressBar::hidden() }
    }

    /// A bar over bytes.
    pub fn bytes(&mut self, total: u64) -> ProgressBar {
        self.start(total, "{bar:30} {bytes:>10} of {total_bytes}  {eta:>4} left  {wide_msg}")
    }

    /// A bar over things that are counted, with their name.
    pub fn count(&mut self, what: &'static str) -> ProgressBar {
        let bar = self.start(0, "{bar:30} {human_pos:>10} of {human_len} {prefix}  {eta:>4} left");
        bar.set_prefix(what);
        bar
    }

    /// A bar over training steps.
    pub fn training(&mut self) -> ProgressBar {
        let bar = self.start(0, "{bar:30} {pos:>6} of {len}  {wide_msg}");
        bar.enable_steady_tick(Duration::from_millis(500));
        bar
    }

    /// Writes something above the bar on show.
    pub fn above(&self, write: impl FnOnce()) {
        self.current.suspend(write);
    }

    fn start(&mut self, total: u64, template: &str) -> ProgressBar {
        let target = if self.visible { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::with_draw_target(Some(total), target).with_style(style.progress_chars("=> "));
        self.current = bar.clone();
        bar
    }
}

/// Moves a training bar.
pub fn show_training(bar: &ProgressBar, progress: &TrainProgress) {
    bar.set_length(progress.steps.into());
    bar.set_position(progress.step.into());
    bar.set_message(training_line(progress));
}

/// What stands beside a training bar.
fn training_line(progress: &TrainProgress) -> String {
    let mut parts = vec![progress.phase.to_string()];
    if progress.step > 0 {
        parts.push(format!("loss {:.3}", progress.loss));
    }
    if let Some(loss) = progress.val_loss {
        parts.push(format!("validation {loss:.3}"));
    }
    if progress.tok_s > 0.0 {
        parts.push(format!("{:.0} tok/s", progress.tok_s));
    }
    if progress.left_s.is_finite() && progress.left_s > 0.0 {
        parts.push(format!("{} left", duration(progress.left_s as u64)));
    }
    parts.join("  ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use empathd_proto::report::TrainPhase;

    #[test]
    fn nothing_is_claimed_before_it_is_known() {
        let mut progress = TrainProgress {
            phase: TrainPhase::Validating,
            step: 0,
            steps: 40,
            loss: 0.0,
            val_loss: None,
            tokens: 0,
            tok_s: 0.0,
            left_s: f64::INFINITY,
        };
        assert_eq!(training_line(&progress), "validating");
        progress = TrainProgress { step: 7, loss: 2.5, val_loss: Some(2.75), tok_s: 181.4, left_s: 125.0, ..progress };
        assert_eq!(training_line(&progress), "validating  loss 2.500  validation 2.750  181 tok/s  2 min 5 s left");
    }
}
