//! Progress bars on standard error, for a person who watches. The time left of training is the daemon's own estimate;
//! of uploads and checks it comes from the rate so far. It refuses to know what the work is.

use crate::render::words::duration;
use empathd_proto::admin::Progress;
use empathd_proto::engine::StepPoint;
use empathd_proto::report::TrainProgress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::Duration;

/// Heights of a column, the lowest first.
const COLUMNS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

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

/// A training bar and what its experts did last.
pub struct TrainingBar<'a> {
    bar: &'a ProgressBar,
    experts: String,
}

impl<'a> TrainingBar<'a> {
    /// Nothing is known of the experts yet.
    #[must_use]
    pub fn new(bar: &'a ProgressBar) -> Self {
        Self { bar, experts: String::new() }
    }

    /// Moves the bar.
    pub fn hear(&mut self, progress: &Progress) {
        match progress {
            Progress::Train(progress) => {
                self.bar.set_length(progress.steps.into());
                self.bar.set_position(progress.step.into());
                self.bar.set_message(format!("{}{}", training_line(progress), self.experts));
            }
            Progress::Step(step) => self.experts = experts(step),
            Progress::Ingest { .. } | Progress::Audit { .. } => {}
        }
    }
}

/// How the choices of the last step were spread over the experts, as columns, and how decided the routers were.
fn experts(step: &StepPoint) -> String {
    let most = step.expert_load.iter().copied().fold(0f32, f32::max);
    if most <= 0.0 {
        return String::new();
    }
    let column = |load: &f32| COLUMNS[((load / most * 7.0).round() as usize).min(7)];
    let columns: String = step.expert_load.iter().map(column).collect();
    format!("  experts {columns} entropy {:.2}", step.routing_entropy)
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
        let load = vec![0.5, 0.25, 0.0, 0.25];
        let step = StepPoint { expert_load: load, routing_entropy: 1.204, ..StepPoint::default() };
        assert_eq!(experts(&step), "  experts █▅▁▅ entropy 1.20");
        assert_eq!(experts(&StepPoint::default()), "", "a plain LoRA has none");
        assert_eq!(training_line(&progress), "validating  loss 2.500  validation 2.750  181 tok/s  2 min 5 s left");
    }
}
