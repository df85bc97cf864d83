//! What is counted and timed, and `GET /metrics`. Names, units and meaning are in docs/METRICS.md; values of labels come
//! from closed lists, never from callers.

use super::Door;
use super::problem::Refusal;
use super::routes::{Caller, Route};
use crate::action::Action;
use axum::extract::{Extension, State};
use axum::response::{IntoResponse, Response};
use empathd_proto::AdapterId;
use empathd_proto::Problem;
use empathd_proto::admin::EngineState;
use empathd_proto::chat::{FinishReason, Usage};
use empathd_proto::keys::Care;
use hyper::StatusCode;
use hyper::header::CONTENT_TYPE;
use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::time::Instant;

/// Of what kind a metric is.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Counter,
    Gauge,
    /// With these boundaries in seconds: all those of vLLM, so that dashboards made for it fit, and where theirs begin
    /// above what is usual here, finer ones below them.
    Histogram(&'static [f64]),
}

use Kind::{Counter, Gauge, Histogram};

/// Until something first comes.
const FIRST: Kind = Histogram(&[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
]);
/// From one token to the next; vLLM's begin at 0.01.
const BETWEEN: Kind = Histogram(&[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0,
]);
/// Of a whole answer and its parts; vLLM's begin at 0.3.
const WHOLE: Kind = Histogram(&[
    0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0,
    50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
]);

/// Every metric, as docs/METRICS.md has them.
const ALL: &[(Kind, &str, &str)] = &[
    (Counter, "empathd_http_requests_total", "requests that got a response"),
    (FIRST, "empathd_http_request_duration_seconds", "from the head of a request to the head of its response"),
    (FIRST, "empathd_time_to_first_token_seconds", "from the request to the first text of its answer"),
    (BETWEEN, "empathd_inter_token_latency_seconds", "from one piece of an answer's text to the next"),
    (WHOLE, "empathd_answer_duration_seconds", "from the request to the end of its answer"),
    (WHOLE, "empathd_queue_wait_seconds", "from an answer's arrival in the engine to its first step"),
    (WHOLE, "empathd_prefill_seconds", "from an answer's first step to its first token"),
    (WHOLE, "empathd_decode_seconds", "from an answer's first token to its last"),
    (Counter, "empathd_answers_total", "answers that ended"),
    (Counter, "empathd_prompt_tokens_total", "prompt tokens of complete answers"),
    (Counter, "empathd_prompt_tokens_cached_total", "those whose keys and values were in memory already"),
    (Counter, "empathd_generation_tokens_total", "tokens of complete answers"),
    (Gauge, "empathd_requests_running", "answers and embeddings under way"),
    (Counter, "empathd_answer_cache_lookups_total", "look-ups in the cache of answers"),
    (Gauge, "empathd_answer_cache_bytes", "memory that the cache of answers holds"),
    (Gauge, "empathd_connections_open", "connections, those in their handshake included"),
    (Counter, "empathd_connections_refused_total", "connections that never came to a request"),
    (Gauge, "empathd_engine_up", "whether the engine is connected, has its base model and goes on"),
    (Gauge, "empathd_engine_running", "answers with keys and values in memory"),
    (Gauge, "empathd_engine_waiting", "answers that wait in the engine"),
    (Counter, "empathd_engine_refused_total", "answers that the engine refused at arrival"),
    (Counter, "empathd_engine_late_total", "answers that came too late for their deadline"),
    (Counter, "empathd_engine_steps_total", "steps of the engine"),
    (Gauge, "empathd_engine_last_step_age_seconds", "time since the engine's last step"),
    (Gauge, "empathd_engine_cancel_steps_max", "most steps that a cancelled answer went on for"),
    (Gauge, "empathd_engine_kv_tokens", "tokens whose keys and values are in memory"),
    (Gauge, "empathd_engine_kv_tokens_max", "tokens for which there is room"),
    (Counter, "empathd_kv_wiped_bytes_total", "bytes of keys and values overwritten"),
    (Counter, "empathd_prefix_cache_queries_total", "prompt tokens looked up among those in memory"),
    (Counter, "empathd_prefix_cache_hits_total", "prompt tokens found there"),
    (Counter, "empathd_draft_tokens_proposed_total", "tokens proposed by look-up"),
    (Counter, "empathd_draft_tokens_accepted_total", "proposed tokens that were right"),
    (Counter, "empathd_expert_chosen_total", "times an expert was chosen, over tokens and layers"),
    (Gauge, "empathd_adapter_info", "the generation that answers"),
    (Gauge, "empathd_records", "sealed records"),
    (Gauge, "empathd_audit_entries", "entries of the audit trail"),
    (Counter, "empathd_scrub_bytes_total", "sealed bytes that were authenticated in the background"),
    (Counter, "empathd_scrub_rounds_total", "times that the whole store was"),
    (Counter, "empathd_scrub_findings_total", "values and chunks that did not authenticate"),
    (Gauge, "empathd_scrub_findings", "those of the last whole round or the one under way"),
    (Gauge, "empathd_backup_last_timestamp_seconds", "when the last backup was made"),
    (Gauge, "empathd_drill_last_timestamp_seconds", "when a restore was last tried"),
    (Gauge, "empathd_key_file_due", "whether a new key file has to be made"),
    (Gauge, "process_resident_memory_bytes", "memory of the daemon"),
    (Gauge, "empathd_build_info", "release of the daemon"),
];

/// The process has one recorder.
static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();

/// Begins to count. Later calls change nothing.
pub fn install() -> &'static PrometheusHandle {
    RECORDER.get_or_init(|| {
        let recorder = builder().build_recorder();
        let handle = recorder.handle();
        // Fails only when a test has its own recorder: then that one counts.
        if metrics::set_global_recorder(recorder).is_ok() {
            describe();
        }
        handle
    })
}

fn builder() -> PrometheusBuilder {
    let with_boundaries = |builder: PrometheusBuilder, (kind, name, _): &(Kind, &str, &str)| match kind {
        Histogram(boundaries) => builder
            .set_buckets_for_metric(Matcher::Full((*name).to_owned()), boundaries)
            .expect("only an empty list of boundaries is refused"),
        Counter | Gauge => builder,
    };
    ALL.iter().fold(PrometheusBuilder::new(), with_boundaries)
}

fn describe() {
    for (kind, name, help) in ALL.iter().copied() {
        match kind {
            Counter => describe_counter!(name, help),
            Gauge => describe_gauge!(name, help),
            Histogram(_) => describe_histogram!(name, help),
        }
    }
}

/// Moves what was timed into its buckets; without it, samples would gather between two readings.
pub(super) fn upkeep() {
    install().run_upkeep();
}

pub(super) fn request(route: Route, status: StatusCode, elapsed: Duration) {
    let class = match status.as_u16() / 100 {
        2 => "2xx",
        4 => "4xx",
        _ => "5xx",
    };
    counter!("empathd_http_requests_total", "route" => route.path(), "status" => class).increment(1);
    histogram!("empathd_http_request_duration_seconds", "route" => route.path()).record(elapsed);
}

/// Why a connection never came to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lost {
    NoPlace,
    Sealed,
    Timeout,
    NoCertificate,
    BadCertificate,
    Protocol,
}

impl Lost {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Lost::NoPlace => "no_place",
            Lost::Sealed => "sealed",
            Lost::Timeout => "timeout",
            Lost::NoCertificate => "no_certificate",
            Lost::BadCertificate => "bad_certificate",
            Lost::Protocol => "protocol",
        }
    }
}

pub(super) fn connection_lost(why: Lost) {
    counter!("empathd_connections_refused_total", "reason" => why.as_str()).increment(1);
}

/// Counts something as open for as long as it lives.
pub(super) struct Open(&'static str);

impl Open {
    pub(super) fn connection() -> Self {
        Self::count("empathd_connections_open")
    }

    fn count(name: &'static str) -> Self {
        gauge!(name).increment(1.0);
        Self(name)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        gauge!(self.0).decrement(1.0);
    }
}

/// Times one answer from its request on.
pub(super) struct Meter {
    started: Instant,
    text_at: Option<Instant>,
    ended: bool,
    _running: Open,
}

impl Meter {
    pub(super) fn start() -> Self {
        let _running = Open::count("empathd_requests_running");
        Self { started: Instant::now(), text_at: None, ended: false, _running }
    }

    /// More text came.
    pub(super) fn text(&mut self) {
        match self.text_at.replace(Instant::now()) {
            None => histogram!("empathd_time_to_first_token_seconds").record(self.started.elapsed()),
            Some(before) => histogram!("empathd_inter_token_latency_seconds").record(before.elapsed()),
        }
    }

    /// The answer is complete.
    pub(super) fn finished(&mut self, reason: FinishReason, usage: Usage) {
        counter!("empathd_prompt_tokens_total").increment(usage.prompt_tokens.into());
        counter!("empathd_generation_tokens_total").increment(usage.completion_tokens.into());
        self.ended(reason.as_str());
    }

    /// The answer failed.
    pub(super) fn failed(&mut self, problem: &Problem) {
        self.ended(problem.code.as_str());
    }

    /// [`Self::failed`] for a problem on its way out.
    pub(super) fn failing(&mut self, problem: Problem) -> Problem {
        self.failed(&problem);
        problem
    }

    fn ended(&mut self, how: &'static str) {
        self.ended = true;
        histogram!("empathd_answer_duration_seconds").record(self.started.elapsed());
        counter!("empathd_answers_total", "ended" => how).increment(1);
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if self.text_at.is_some() && !self.ended {
            self.ended("cancelled");
        }
    }
}

pub(super) async fn read(
    State(door): State<Arc<Door>>,
    Extension(Caller(actor)): Extension<Caller>,
) -> Result<Response, Refusal> {
    door.appliance.perform(&actor, Action::Metrics).await?;
    // Counting reads the store and the process table.
    let text = tokio::task::spawn_blocking(move || render(&door)).await.unwrap_or_default();
    Ok(([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response())
}

/// Everything counted so far, and the values that are looked up when somebody reads them.
fn render(door: &Door) -> String {
    let ready = door.appliance.readiness().engine == EngineState::Ready;
    look_up(ready, door.appliance.counts(), door.appliance.care());
    install().render() + &adapter_info(door.appliance.adapter())
}

fn look_up(ready: bool, counts: Option<(u64, u64)>, care: Option<Care>) {
    gauge!("empathd_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    gauge!("empathd_engine_up").set(f64::from(u8::from(ready)));
    if let Some((records, audit_entries)) = counts {
        gauge!("empathd_records").set(records as f64);
        gauge!("empathd_audit_entries").set(audit_entries as f64);
    }
    if let Some(care) = care {
        let seconds = |at_ms: Option<u64>| at_ms.unwrap_or(0) as f64 / 1000.0;
        gauge!("empathd_backup_last_timestamp_seconds").set(seconds(care.backup_at_ms));
        gauge!("empathd_drill_last_timestamp_seconds").set(seconds(care.drill.map(|drill| drill.at_ms)));
        gauge!("empathd_key_file_due").set(f64::from(u8::from(care.key_file_due.is_some())));
    }
    if let Some(bytes) = resident_bytes() {
        gauge!("process_resident_memory_bytes").set(bytes as f64);
    }
}

/// The generation that answers. Not a value of the recorder, which would go on telling of every earlier one.
fn adapter_info(adapter: Option<AdapterId>) -> String {
    let generation = adapter.map_or_else(|| "none".to_owned(), |id| id.to_string());
    format!(
        "# HELP empathd_adapter_info the generation that answers\n# TYPE empathd_adapter_info gauge\n\
         empathd_adapter_info{{generation=\"{generation}\"}} 1\n"
    )
}

/// Memory of this process that is in use, in bytes.
fn resident_bytes() -> Option<u64> {
    use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System, get_current_pid};
    let pid = get_current_pid().ok()?;
    let mut system = System::new();
    system.refresh_processes_specifics(
        ProcessesToUpdate::Some(&[pid]),
        true,
        ProcessRefreshKind::nothing().with_memory(),
    );
    system.process(pid).map(sysinfo::Process::memory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure;
    use empathd_proto::engine::ServingStatus;
    use empathd_proto::generate::{AnswerTimes, Finished, ServiceClass};
    use std::collections::{BTreeMap, BTreeSet};

    /// Of each metric in a text for Prometheus its kind and, where it has values, the names of its labels.
    fn exported(text: &str) -> BTreeMap<&str, (&str, BTreeSet<&str>)> {
        let kinds = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
        let mut found: BTreeMap<_, _> = kinds.map(|(name, kind)| (name, (kind, BTreeSet::new()))).collect();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((name, labels)) = line.rsplit_once("} ").and_then(|(head, _)| head.split_once('{')) else {
                continue;
            };
            let name = name.strip_suffix("_bucket").unwrap_or(name).trim_end_matches("_sum").trim_end_matches("_count");
            let labels = labels.split(',').filter_map(|label| label.split_once('=')).map(|(label, _)| label);
            let metric = found.get_mut(name).expect("a value has a kind");
            metric.1.extend(labels.filter(|label| *label != "le"));
        }
        found
    }

    /// The same of the document's table: `| name | kind, unit | labels | meaning |`.
    fn documented() -> BTreeMap<&'static str, (&'static str, BTreeSet<&'static str>)> {
        // The chapters behind the table of metrics have tables of their own.
        let document = include_str!("../../../docs/METRICS.md").split("\n## ").next().unwrap_or_default();
        let rows = document.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
        let read = |(name, rest): (&'static str, &'static str)| {
            let mut cells = rest.split(" | ");
            let kind = cells.next().and_then(|cell| cell.split(',').next()).unwrap_or_default();
            let labels = cells.next().unwrap_or_default().split("; ");
            (name, (kind, labels.filter_map(|label| label.strip_prefix('`')?.split('`').next()).collect()))
        };
        rows.map(read).collect()
    }

    /// Everything that counts something, once.
    fn exercise() {
        request(Route::Chat, StatusCode::OK, Duration::from_millis(3));
        connection_lost(Lost::Sealed);
        drop(Open::connection());
        let mut meter = Meter::start();
        meter.text();
        meter.text();
        meter.finished(FinishReason::Stop, Usage::default());
        let times = AnswerTimes { queued_us: 1_000, prefill_us: 20_000, decode_us: 3_000_000 };
        let finished = Finished {
            reason: FinishReason::Stop,
            prompt_tokens: 3,
            cached_tokens: 2,
            completion_tokens: 1,
            drafted_tokens: 0,
            accepted_tokens: 0,
            expert_share: Vec::new(),
            times,
        };
        measure::served(ServiceClass::Crisis, &finished);
        measure::answer_cache(true);
        measure::answer_cache_holds(9);
        measure::scrubbed(1, 0, true, 0);
        let before = ServingStatus { expert_chosen: vec![7, 7], steps: 5, ..ServingStatus::default() };
        let now = ServingStatus { expert_chosen: vec![9, 1], steps: 8, ..ServingStatus::default() };
        measure::engine(&before, &now);
        look_up(true, Some((1, 2)), Some(Care::default()));
    }

    #[test]
    fn the_document_the_table_and_the_export_name_the_same_metrics() {
        let recorder = builder().build_recorder();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, || {
            describe();
            exercise();
        });
        let text = handle.render() + &adapter_info(None);
        let of_kind = |kind| match kind {
            Counter => "counter",
            Gauge => "gauge",
            Histogram(_) => "histogram",
        };
        let table: BTreeMap<&str, &str> = ALL.iter().map(|(kind, name, _)| (*name, of_kind(*kind))).collect();
        let exported = exported(&text);
        let kinds: BTreeMap<&str, &str> = exported.iter().map(|(name, (kind, _))| (*name, *kind)).collect();
        assert_eq!(kinds, table, "what is exported is in the table, and the reverse");
        assert_eq!(documented(), exported, "what is documented is exported with these labels, and the reverse");
        for line in [
            "empathd_queue_wait_seconds_bucket{class=\"crisis\",le=\"0.001\"} 1",
            "empathd_decode_seconds_bucket{le=\"5\"} 1",
            "empathd_engine_steps_total 3",
            "empathd_expert_chosen_total{expert=\"0\"} 2",
            "empathd_expert_chosen_total{expert=\"1\"} 1",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }
}
