//! How training jobs are shown.

use super::table::facts;
use super::words::{count, duration};
use empathd_proto::report::{JobState, TrainProgress, TrainStatus};

/// One job.
pub(crate) fn status(status: &TrainStatus) -> String {
    let mut lines = vec![("state", status.state.to_string()), ("cut", status.dataset.to_string())];
    if let Some(progress) = &status.progress {
        lines.extend(measured(progress, status.state));
    }
    if let Some(adapter) = status.adapter {
        lines.push(("adapter", adapter.to_string()));
    }
    format!("{}\n\n{}\nNext: {}\n", status.job, facts(&lines), next(status))
}

fn measured(progress: &TrainProgress, state: JobState) -> Vec<(&'static str, String)> {
    let mut lines = vec![("step", format!("{} of {}, {}", progress.step, progress.steps, progress.phase))];
    if progress.step > 0 {
        lines.push(("loss", format!("{:.4}", progress.loss)));
    }
    if let Some(loss) = progress.val_loss {
        lines.push(("validation", format!("{loss:.4}")));
    }
    lines.push(("tokens", format!("{}, {:.0} a second", count(progress.tokens), progress.tok_s)));
    if state == JobState::Running && progress.left_s.is_finite() && progress.left_s > 0.0 {
        lines.push(("left", duration(progress.left_s as u64)));
    }
    lines
}

fn next(status: &TrainStatus) -> &'static str {
    match status.state {
        JobState::Running => "empathctl train status --follow",
        JobState::Waiting => "empathctl train status --follow; it goes on by itself when its window opens",
        JobState::Paused => "empathctl train start goes on from the checkpoint",
        JobState::Failed => "journalctl -u empathd -n 50",
        JobState::Finished => "empathctl adapter list",
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use empathd_proto::report::TrainPhase;
    use empathd_proto::{DatasetId, JobId};
    use expect_test::expect;

    pub(crate) fn progress() -> TrainProgress {
        TrainProgress {
            phase: TrainPhase::Stepping,
            step: 40,
            steps: 200,
            loss: 2.512_345,
            val_loss: Some(2.75),
            tokens: 123_456,
            tok_s: 181.4,
            left_s: 725.0,
        }
    }

    #[test]
    fn a_running_job_says_how_far_it_is() {
        let status = TrainStatus {
            job: JobId::from_bytes([2; 16]),
            state: JobState::Running,
            dataset: DatasetId::from_bytes([3; 16]),
            progress: Some(progress()),
            adapter: None,
            error: None,
        };
        expect![[r#"
            job_02020202020202020202020202020202

              state       running
              cut         cut_03030303030303030303030303030303
              step        40 of 200, stepping
              loss        2.5123
              validation  2.7500
              tokens      123,456, 181 a second
              left        12 min 5 s

            Next: empathctl train status --follow
        "#]]
        .assert_eq(&super::status(&status));
    }
}
