//! What is counted of answers, of the engine and of the scrub. Names, units and meaning are in docs/METRICS.md; how the numbers are
//! read is known to `http/metrics.rs`, which also says of what kind each is.

use empathd_proto::engine::ServingStatus;
use empathd_proto::generate::{AnswerTimes, Finished, ServiceClass};
use metrics::{counter, gauge, histogram};
use std::time::Duration;

/// An answer that the engine completed.
pub fn served(class: ServiceClass, finished: &Finished) {
    let AnswerTimes { queued_us, prefill_us, decode_us } = finished.times;
    let seconds = |us| Duration::from_micros(us).as_secs_f64();
    histogram!("empathd_queue_wait_seconds", "class" => class.as_str()).record(seconds(queued_us));
    histogram!("empathd_prefill_seconds").record(seconds(prefill_us));
    histogram!("empathd_decode_seconds").record(seconds(decode_us));
    counter!("empathd_prompt_tokens_cached_total").increment(finished.cached_tokens.into());
}

/// A look-up in the cache of answers.
pub fn answer_cache(hit: bool) {
    let result = if hit { "hit" } else { "miss" };
    counter!("empathd_answer_cache_lookups_total", "result" => result).increment(1);
}

/// The cache of answers holds so many bytes from now on.
pub fn answer_cache_holds(bytes: u64) {
    gauge!("empathd_answer_cache_bytes").set(bytes as f64);
}

/// A step of the scrub; `standing` findings are those that are shown now.
pub fn scrubbed(bytes: u64, findings: u64, is_round_over: bool, standing: u64) {
    counter!("empathd_scrub_bytes_total").increment(bytes);
    counter!("empathd_scrub_findings_total").increment(findings);
    counter!("empathd_scrub_rounds_total").increment(is_round_over.into());
    gauge!("empathd_scrub_findings").set(standing as f64);
}

/// The engine has said how it is; what it counts since its start is counted on here across its restarts.
pub fn engine(before: &ServingStatus, now: &ServingStatus) {
    for (at, class) in ServiceClass::ALL.into_iter().enumerate() {
        gauge!("empathd_engine_waiting", "class" => class.as_str()).set(f64::from(now.waiting[at]));
        let refused = counter!("empathd_engine_refused_total", "class" => class.as_str());
        refused.increment(now.refused[at].saturating_sub(before.refused[at]));
    }
    gauge!("empathd_engine_running").set(f64::from(now.running));
    gauge!("empathd_engine_kv_tokens").set(now.kv_tokens.0 as f64);
    gauge!("empathd_engine_kv_tokens_max").set(now.kv_tokens.1 as f64);
    gauge!("empathd_engine_cancel_steps_max").set(f64::from(now.cancel_steps_max));
    gauge!("empathd_engine_last_step_age_seconds").set(now.last_step_age_ms as f64 / 1000.0);
    let on = |name: &'static str, before: u64, now: u64| counter!(name).increment(now.saturating_sub(before));
    on("empathd_engine_steps_total", before.steps, now.steps);
    on("empathd_engine_late_total", before.late, now.late);
    on("empathd_prefix_cache_queries_total", before.prefix_tokens.0, now.prefix_tokens.0);
    on("empathd_prefix_cache_hits_total", before.prefix_tokens.1, now.prefix_tokens.1);
    on("empathd_draft_tokens_proposed_total", before.draft_tokens.0, now.draft_tokens.0);
    on("empathd_draft_tokens_accepted_total", before.draft_tokens.1, now.draft_tokens.1);
    on("empathd_kv_wiped_bytes_total", before.kv_wiped_bytes, now.kv_wiped_bytes);
    for (expert, chosen) in now.expert_chosen.iter().enumerate() {
        let known = before.expert_chosen.get(expert).copied().unwrap_or(0);
        // Another generation begins to count at 0.
        let more = if *chosen >= known { chosen - known } else { *chosen };
        counter!("empathd_expert_chosen_total", "expert" => expert.to_string()).increment(more);
    }
}
