//! The status screen: where each part stands, and one thing to do next.

use super::copies;
use super::table::facts;
use super::words::{count, duration};
use empathd_proto::admin::{EmbedderState, EngineState, ScrubReport, SealState, StatusReport};
use empathd_proto::engine::ServingStatus;
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
    if let Some(seen) = &status.scrub {
        lines.push(("scrub", scrub(seen)));
    }
    lines.push(("API", api(status)));
    lines.push(("engine", engine(status)));
    lines.push(("model", status.model.clone().unwrap_or_else(|| "none".into())));
    if let Some(embeddings) = embeddings(status) {
        lines.push(("embeddings", embeddings));
    }
    if let Some(serving) = &status.serving {
        lines.push(("answers", answers(serving)));
        lines.push(("memory", memory(serving)));
    }
    if status.state == SealState::Unsealed {
        lines.push((
            "adapter",
            status.adapter.map_or_else(|| "none, the base model answers".into(), |id| id.to_string()),
        ));
    }
    if let Some(care) = &status.care {
        lines.push(("copies", copies::in_a_line(care)));
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

/// Whether everything that is stored still authenticates.
fn scrub(seen: &ScrubReport) -> String {
    let round =
        seen.round_age_s.map_or_else(|| "no whole round yet".into(), |age| format!("whole {} ago", duration(age)));
    match seen.findings {
        0 => format!("nothing found, {round}"),
        found => format!("{} FOUND, {round}; stop the appliance, then: empathd verify", count(found)),
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
        EngineState::Stuck => "stuck: answers wait and it takes no step".into(),
    }
}

fn embeddings(status: &StatusReport) -> Option<String> {
    match (status.embedder, &status.embedder_problem) {
        (EmbedderState::None, _) => None,
        (EmbedderState::Failed, Some(why)) => Some(format!("not possible: {why}")),
        (state, _) => Some(state.to_string()),
    }
}

/// Who is being answered now, and what became of the others since the engine started.
fn answers(serving: &ServingStatus) -> String {
    let waiting: u64 = serving.waiting.iter().copied().map(u64::from).sum();
    let refused: u64 = serving.refused.iter().sum();
    let mut text = format!("{} running, {} waiting", count(serving.running.into()), count(waiting));
    for (number, what) in [(refused, "refused"), (serving.late, "too late")] {
        if number > 0 {
            text.push_str(&format!(", {} {what} since its start", count(number)));
        }
    }
    text
}

/// How full the memory of keys and values is, and how much of it was of use again.
fn memory(serving: &ServingStatus) -> String {
    let (used, room) = serving.kv_tokens;
    let mut text = format!("{} of {} tokens", count(used), count(room));
    let share = |(asked, found): (u64, u64)| (asked > 0).then(|| 100 * found / asked);
    if let Some(percent) = share(serving.prefix_tokens) {
        text.push_str(&format!(", {percent} % of prompts found in it"));
    }
    text
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
        (_, EngineState::Stuck) => {
            "Next: systemctl restart empathd-engine; answers under way are finished after it".into()
        }
        (_, EngineState::Loading) => "Next: wait a moment, then empathctl status".into(),
        _ if status.care.as_ref().is_some_and(|care| care.erasure_at_ms.is_some() && care.key_file_due.is_some()) => {
            "Next: empathctl keys escrow FILE, then destroy every older key file".into()
        }
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
            serving: None,
            embedder: EmbedderState::None,
            embedder_problem: None,
            care: None,
            uptime_s: 4,
            scrub: None,
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
            serving: Some(ServingStatus {
                running: 3,
                waiting: [0, 2, 1],
                refused: [0, 40, 0],
                kv_tokens: (1_234, 45_000),
                prefix_tokens: (400, 100),
                ..ServingStatus::default()
            }),
            embedder: EmbedderState::Failed,
            embedder_problem: Some("the file is cut short".into()),
            uptime_s: 90_061,
            scrub: Some(ScrubReport { findings: 2, round_age_s: Some(1_800) }),
            ..fresh()
        };
        expect![[r#"
            Empathd 0.1.0, up 1 d 1 h

              store       unsealed, 12,345 records
              audit       678 entries
              scrub       2 FOUND, whole 30 min ago; stop the appliance, then: empathd verify
              API         serving on https://127.0.0.1:8443
              engine      ready
              model       SmolLM2-135M-Instruct
              embeddings  not possible: the file is cut short
              answers     3 running, 3 waiting, 40 refused since its start
              memory      1,234 of 45,000 tokens, 25 % of prompts found in it
              adapter     adapter_01010101010101010101010101010101
              training    running, step 40 of 200, 12 min 5 s left

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
            (StatusReport { engine: EngineState::Stuck, ..unsealed.clone() }, "restart empathd-engine"),
            (StatusReport { engine: EngineState::Loading, ..unsealed.clone() }, "wait"),
            (StatusReport { records: Some(0), ..unsealed.clone() }, "ingest"),
            (StatusReport { records: Some(5), ..unsealed.clone() }, "train start"),
        ];
        for (status, expected) in steps {
            assert!(next(&status).contains(expected), "{}", next(&status));
        }
    }
}
