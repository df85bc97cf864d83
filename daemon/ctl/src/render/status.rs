//! The status screen: where each part stands, and one thing to do next.

use super::table::facts;
use super::words::{count, duration};
use empathd_proto::admin::{EngineState, SealState, StatusReport};
use empathd_proto::report::{JobState, TrainStatus};

/// The whole screen.
pub(crate) fn screen(status: &StatusReport) -> String {
    let head = format!("Empathd {}, up {}", status.version, duration(status.uptime_s));
    format!("{head}\n\n{}\n{}\n", facts(&lines(status)), next(status))
}

fn lines(status: &StatusReport) -> Vec<(&'static str, String)> {
    let mut lines = vec![("store", store(status))];
    if let Some(entries) = status.audit_entries {
        lines.push(("audit", format!("{} entries", count(entries))));
    }
    lines.push(("API", api(status)));
    lines.push(("engine", engine(status)));
    lines.push(("model", status.model.clone().unwrap_or_else(|| "none".into())));
    if status.state == SealState::Unsealed {
        lines.push((
            "adapter",
            status.adapter.map_or_else(|| "none, the base model answers".into(), |id| id.to_string()),
        ));
    }
    if let Some(job) = &status.train {
        lines.push(("training", training(job)));
    }
    lines
}

fn store(status: &StatusReport) -> String {
    match (status.state, status.records) {
        (SealState::Unsealed, Some(records)) => format!("unsealed, {} records", count(records)),
        (SealState::Uninitialised, _) => "none yet".into(),
        (state, _) => state.to_string(),
    }
}

fn api(status: &StatusReport) -> String {
    match (&status.api, status.state) {
        (None, _) => "not bound".into(),
        (Some(address), SealState::Unsealed) => format!("serving on https://{address}"),
        (Some(address), _) => format!("closed while there are no keys (https://{address})"),
    }
}

fn engine(status: &StatusReport) -> String {
    match status.engine {
        EngineState::Ready => "ready".into(),
        EngineState::Loading => "loading the model".into(),
        EngineState::Down => "not connected; nothing is answered until it is".into(),
    }
}

fn training(job: &TrainStatus) -> String {
    let mut text = job.state.to_string();
    if let Some(progress) = &job.progress {
        text.push_str(&format!(", step {} of {}", progress.step, progress.steps));
        if job.state == JobState::Running && progress.left_s.is_finite() && progress.left_s > 0.0 {
            text.push_str(&format!(", {} left", duration(progress.left_s as u64)));
        }
    }
    text
}

/// The one thing to do next, the most pressing first.
fn next(status: &StatusReport) -> String {
    let running = status.train.as_ref().is_some_and(|job| job.state == JobState::Running);
    let paused = status.train.as_ref().is_some_and(|job| job.state == JobState::Paused);
    match (status.state, status.engine) {
        (SealState::Uninitialised, _) => "Next: empathctl init".into(),
        (SealState::Sealed, _) => "Next: empathctl unseal".into(),
        (_, EngineState::Down) => "Next: systemctl status empathd-engine; journalctl -u empathd-engine -n 50".into(),
        (_, EngineState::Loading) => "Next: wait a moment, then empathctl status".into(),
        _ if running => "Next: empathctl train status --follow".into(),
        _ if paused => "Next: empathctl train start goes on with the paused job".into(),
        _ if status.records == Some(0) => "Next: empathctl cert enroll NAME --out DIR; empathctl ingest FILE...".into(),
        _ if status.adapter.is_none() => "Next: empathctl dataset cut; empathctl train start --promote --follow".into(),
        _ => "Nothing to do.".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::fake::checkpoint;
    use empathd_proto::{AdapterId, DatasetId, JobId, StoreId};
    use expect_test::expect;

    fn fresh() -> StatusReport {
        StatusReport {
            version: "0.1.0".into(),
            state: SealState::Uninitialised,
            api: Some("127.0.0.1:8443".into()),
            engine: EngineState::Loading,
            model: None,
            adapter: None,
            records: None,
            audit_entries: None,
            checkpoint: None,
            train: None,
            uptime_s: 4,
        }
    }

    #[test]
    fn before_the_first_day() {
        expect![[r#"
            Empathd 0.1.0, up 4 s

              store   none yet
              API     closed while there are no keys (https://127.0.0.1:8443)
              engine  loading the model
              model   none

            Next: empathctl init
        "#]]
        .assert_eq(&screen(&fresh()));
    }

    #[test]
    fn at_work() {
        let job = TrainStatus {
            job: JobId::from_bytes([2; 16]),
            state: JobState::Running,
            dataset: DatasetId::from_bytes([3; 16]),
            progress: Some(super::super::train::tests::progress()),
            adapter: None,
            error: None,
        };
        let status = StatusReport {
            state: SealState::Unsealed,
            engine: EngineState::Ready,
            model: Some("SmolLM2-135M-Instruct".into()),
            adapter: Some(AdapterId::from_bytes([1; 16])),
            records: Some(12_345),
            audit_entries: Some(678),
            checkpoint: Some(checkpoint(StoreId::from_bytes([9; 16]), 678, 1)),
            train: Some(job),
            uptime_s: 90_061,
            ..fresh()
        };
        expect![[r#"
            Empathd 0.1.0, up 1 d 1 h

              store     unsealed, 12,345 records
              audit     678 entries
              API       serving on https://127.0.0.1:8443
              engine    ready
              model     SmolLM2-135M-Instruct
              adapter   adapter_01010101010101010101010101010101
              training  running, step 40 of 200, 12 min 5 s left

            Next: empathctl train status --follow
        "#]]
        .assert_eq(&screen(&status));
    }

    #[test]
    fn each_state_has_its_next_step() {
        let unsealed = StatusReport { state: SealState::Unsealed, engine: EngineState::Ready, ..fresh() };
        let steps = [
            (StatusReport { state: SealState::Sealed, ..fresh() }, "unseal"),
            (StatusReport { engine: EngineState::Down, ..unsealed.clone() }, "systemctl status empathd-engine"),
            (StatusReport { engine: EngineState::Loading, ..unsealed.clone() }, "wait"),
            (StatusReport { records: Some(0), ..unsealed.clone() }, "ingest"),
            (StatusReport { records: Some(5), ..unsealed.clone() }, "train start"),
        ];
        for (status, expected) in steps {
            assert!(next(&status).contains(expected), "{}", next(&status));
        }
    }
}
