//! What is counted and timed, and `GET /metrics`. Names, units and meaning are in docs/METRICS.md; values of labels come
//! from closed lists, never from callers.

use super::Door;
use super::problem::Refusal;
use super::routes::{Caller, Route};
use crate::action::Action;
use axum::extract::{Extension, State};
use axum::response::{IntoResponse, Response};
use empathd_proto::Problem;
use empathd_proto::admin::EngineState;
use empathd_proto::chat::{FinishReason, Usage};
use hyper::StatusCode;
use hyper::header::CONTENT_TYPE;
use metrics::{counter, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::time::Instant;

/// Boundaries in seconds, those of vLLM, so that dashboards made for it fit.
const SECONDS: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
];

/// The process has one recorder.
static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();

/// Begins to count. Later calls change nothing.
pub fn install() -> &'static PrometheusHandle {
    RECORDER.get_or_init(|| {
        let builder = PrometheusBuilder::new();
        // Fails only for an empty list of boundaries.
        let builder = builder
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)
            .unwrap_or_else(|_| PrometheusBuilder::new());
        let recorder = builder.build_recorder();
        let handle = recorder.handle();
        // Fails only when a test has its own recorder: then that one counts.
        let _ = metrics::set_global_recorder(recorder);
        handle
    })
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
    first_seen: bool,
    ended: bool,
    _running: Open,
}

impl Meter {
    pub(super) fn start() -> Self {
        let _running = Open::count("empathd_requests_running");
        Self { started: Instant::now(), first_seen: false, ended: false, _running }
    }

    /// More text came.
    pub(super) fn text(&mut self) {
        if !self.first_seen {
            self.first_seen = true;
            histogram!("empathd_time_to_first_token_seconds").record(self.started.elapsed());
        }
    }

    /// The answer is complete.
    pub(super) fn finished(&mut self, reason: FinishReason, usage: Usage) {
        counter!("empathd_prompt_tokens_total").increment(usage.prompt_tokens.into());
        counter!("empathd_generation_tokens_total").increment(usage.completion_tokens.into());
        self.ended(match reason {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::Cancelled => "cancelled",
        });
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
        if self.first_seen && !self.ended {
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
    gauge!("empathd_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    let ready = door.appliance.readiness().engine == EngineState::Ready;
    gauge!("empathd_engine_up").set(f64::from(u8::from(ready)));
    if let Some((records, audit_entries)) = door.appliance.counts() {
        gauge!("empathd_records").set(records as f64);
        gauge!("empathd_audit_entries").set(audit_entries as f64);
    }
    if let Some(bytes) = resident_bytes() {
        gauge!("process_resident_memory_bytes").set(bytes as f64);
    }
    install().render()
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
