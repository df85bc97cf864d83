//! The scrub at work: a step of the store's round every second, as many bytes as the configuration allows; what was found is
//! counted, shown and told to the journal. What a finding means is said by the store, without content.

use crate::app::App;
use crate::measure;
use crate::problem;
use empathd_proto::admin::{ScrubReport, SealState};
use empathd_store::ScrubStep;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// From one step to the next.
const STEP_EVERY: Duration = Duration::from_secs(1);
/// After the disk failed.
const RETRY_AFTER: Duration = Duration::from_secs(60);

/// What was seen since the start.
#[derive(Debug, Default)]
pub(crate) struct Scrub(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    /// Findings of the round before, and of the one under way.
    before: u64,
    now: u64,
    /// When the last whole round ended, in uptime.
    ended: Option<Duration>,
}

impl Scrub {
    /// What is shown of it; nothing before the first whole round when nothing was found.
    pub(crate) fn report(&self, uptime: Duration) -> Option<ScrubReport> {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let findings = seen.before.max(seen.now);
        let round_age_s = seen.ended.map(|ended| uptime.saturating_sub(ended).as_secs());
        (findings > 0 || round_age_s.is_some()).then_some(ScrubReport { findings, round_age_s })
    }

    fn take(&self, step: &ScrubStep, uptime: Duration) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.now += step.findings.len() as u64;
        if step.is_round_over {
            (seen.before, seen.now, seen.ended) = (seen.now, 0, Some(uptime));
        }
        let standing = seen.before.max(seen.now);
        measure::scrubbed(step.bytes, step.findings.len() as u64, step.is_round_over, standing);
    }
}

/// Takes steps for as long as the appliance runs and is unsealed.
pub(crate) async fn keep(app: Arc<App>) {
    let bytes_per_step = app.config.scrub_bytes_s;
    if bytes_per_step == 0 {
        return;
    }
    loop {
        let pause = match step(&app, bytes_per_step).await {
            Ok(()) => STEP_EVERY,
            Err(()) => RETRY_AFTER,
        };
        tokio::select! {
            () = app.stopping.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn step(app: &Arc<App>, bytes_max: u64) -> Result<(), ()> {
    if app.vault.state() != SealState::Unsealed {
        return Ok(());
    }
    let done = app.blocking(move |app| app.vault.unsealed()?.scrub(bytes_max).map_err(problem::from_read)).await;
    match done {
        Ok(step) => {
            app.scrub.take(&step, app.clock.uptime());
            if !step.findings.is_empty() {
                tracing::error!(
                    findings = ?step.findings,
                    "the scrub found what does not authenticate: stop the appliance and run empathd verify"
                );
            }
            Ok(())
        }
        // It was sealed meanwhile, or the disk fails: what is read for people says so.
        Err(problem) => {
            tracing::warn!(code = %problem.code, "the scrub waits");
            Err(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_shown_until_a_whole_round_is_clean() {
        let (scrub, at) = (Scrub::default(), Duration::from_secs);
        let step = |findings: u64, is_round_over| ScrubStep {
            findings: vec!["docs: a finding".to_owned(); findings as usize],
            is_round_over,
            ..ScrubStep::default()
        };
        assert_eq!(scrub.report(at(1)), None);
        scrub.take(&step(2, false), at(2));
        assert_eq!(scrub.report(at(3)), Some(ScrubReport { findings: 2, round_age_s: None }));
        scrub.take(&step(0, true), at(4));
        scrub.take(&step(0, false), at(5));
        assert_eq!(scrub.report(at(9)), Some(ScrubReport { findings: 2, round_age_s: Some(5) }));
        scrub.take(&step(0, true), at(10));
        assert_eq!(scrub.report(at(10)), Some(ScrubReport { findings: 0, round_age_s: Some(0) }));
    }
}
