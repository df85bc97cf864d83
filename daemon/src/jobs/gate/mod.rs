//! The gate: what a candidate must hold to before it may answer. Every figure is measured anew by the engine, example by
//! example, with the weights as the store has them; everything else is arithmetic of this room. What happens to a candidate
//! that passes is not known here.
//!
//! Reading order: [`probes`] (the built-in texts), [`canary`] (planted secrets), [`suite`] (everything that is measured),
//! `figures` (what the scores say), `bounds` (what they must hold to).

mod bounds;
mod canary;
mod figures;
pub(crate) mod probes;
mod suite;
#[cfg(test)]
mod tests;

pub(crate) use suite::Data;

use crate::adapters::{self, Description};
use crate::app::App;
use crate::engine::link::{Event, Lost};
use crate::engine::{self, Ready};
use crate::problem::{self, Fault, defect};
use crate::stored;
use bounds::Measured;
use empathd_proto::audit::{ActionKind, AuditObject, Outcome};
use empathd_proto::engine::{Example, ExampleScore, FromEngineBody, ToEngineBody};
use empathd_proto::ids::{AdapterId, JobId};
use empathd_proto::problem::{ErrorCode, Problem};
use empathd_proto::report::GateReport;
use empathd_store::AuditDraft;
use figures::{Figures, Memorisation};
use std::sync::Arc;
use suite::{PROBE_TOKENS, Suite};
use zeroize::Zeroizing;

/// Examples of one message to the engine.
pub(crate) const EXAMPLES_PER_MESSAGE: usize = 64;
/// Events of a measurement that may wait.
const WAITING_MAX: usize = 16;
/// Times a measurement is begun again after the engine was lost.
const TRIES_MAX: u32 = 3;

/// What a job gets beside its lesson: canaries to learn, general text to replay, and what training is guarded with. The same
/// for the same job and lesson.
pub(crate) fn extras(job: JobId, learn: &[Example]) -> Vec<Example> {
    let planted = canary::examples(job, suite::main_domain(learn));
    planted.into_iter().chain(probes::replay()).chain(probes::general()).chain(probes::crisis_items()).collect()
}

/// Measures a candidate and records what was found; gives the report.
pub(crate) async fn run(app: &Arc<App>, id: AdapterId, data: &Data<'_>) -> Result<GateReport, Problem> {
    let active = app.adapters.active().filter(|active| *active != id);
    let candidate = app.blocking(move |app| candidate(app, id)).await?;
    let suite = Suite::new(data);
    let mut tries = 0;
    let scores = loop {
        let ready = app.engine.wait_ready(app.config.serving.reconnect).await?;
        let measuring = Measuring { app, ready: &ready, seq_len: data.seq_len.max(PROBE_TOKENS) };
        let measured = measuring.all(&suite, id, active, &candidate.bytes).await;
        adapters::put_away(&ready, id).await;
        match measured {
            Ok(measured) => break measured,
            Err(_) if ready.link.is_closed() && tries < TRIES_MAX => tries += 1,
            Err(problem) => return Err(problem),
        }
    };
    let report = judge(app, &suite, &scores, &candidate, active);
    let kept = report.clone();
    app.blocking(move |app| keep(app, id, &kept)).await?;
    Ok(report)
}

/// A candidate as the store has it, and whether its weights differ from those that training announced.
struct Candidate {
    bytes: Zeroizing<Vec<u8>>,
    description: Description,
    altered: bool,
}

fn candidate(app: &App, id: AdapterId) -> Result<Candidate, Problem> {
    let store = app.vault.unsealed()?;
    let found = store.read(|reader| reader.adapter(id)).map_err(problem::from_read)?;
    let found = found.ok_or_else(|| defect("A candidate is not in the registry."))?;
    let description: Description = stored::decode(&found.body)?;
    let bytes = store.read(|reader| reader.blob(found.blob)).map_err(problem::from_read)?;
    let altered = *blake3::hash(&bytes).as_bytes() != description.digest;
    Ok(Candidate { bytes, description, altered })
}

/// Scores of everyone who is measured.
struct Scores {
    base: Vec<ExampleScore>,
    active: Option<Vec<ExampleScore>>,
    candidate: Vec<ExampleScore>,
}

fn judge(app: &App, suite: &Suite, scores: &Scores, candidate: &Candidate, active: Option<AdapterId>) -> GateReport {
    let base = suite.read(&scores.base);
    let before = scores.active.as_ref().map(|scores| suite.read(scores));
    let after = suite.read(&scores.candidate);
    let (common, all) = (suite.common().len(), suite.all().len());
    let unmeasured =
        base.unmeasured(common) + before.map_or(0, |scores| scores.unmeasured(common)) + after.unmeasured(all);
    let measured = Measured {
        base: Figures::of(base),
        active: before.map(Figures::of),
        candidate: Figures::of(after),
        memorisation: Memorisation::of(after),
        unmeasured,
        items: all,
        train: &candidate.description.train,
        altered: candidate.altered,
    };
    let bounds = measured.bounds(&app.config.gate);
    GateReport { suite: probes::SUITE, against: active, figures: measured.figures(), bounds }
}

fn keep(app: &App, id: AdapterId, report: &GateReport) -> Result<(), Problem> {
    let outcome = if report.passed() { Outcome::Done } else { Outcome::Denied(ErrorCode::GateRefused) };
    let draft = AuditDraft { outcome, object: AuditObject::Adapter(id), ..app.own_draft(ActionKind::Gate) };
    let body = stored::encode(report)?;
    app.vault.unsealed()?.change(draft, |writer, _| -> Result<(), Fault> {
        if report.passed() {
            writer.approve_adapter(id, body)?
        } else {
            writer.refuse_adapter(id, body)?
        }
        Ok(())
    })?;
    Ok(())
}

/// One engine's measurements.
struct Measuring<'a> {
    app: &'a Arc<App>,
    ready: &'a Ready,
    seq_len: u32,
}

impl Measuring<'_> {
    /// Base model, active generation and candidate on the same examples, in the same run.
    async fn all(
        &self,
        suite: &Suite,
        id: AdapterId,
        active: Option<AdapterId>,
        bytes: &[u8],
    ) -> Result<Scores, Problem> {
        adapters::put(self.ready, id, bytes).await?;
        let base = self.scores(None, suite.common()).await?;
        let active = match active {
            Some(active) => {
                adapters::ensure(self.app, self.ready, active).await?;
                Some(self.scores(Some(active), suite.common()).await?)
            }
            None => None,
        };
        let candidate = self.scores(Some(id), suite.all()).await?;
        Ok(Scores { base, active, candidate })
    }

    async fn scores(&self, adapter: Option<AdapterId>, examples: &[Example]) -> Result<Vec<ExampleScore>, Problem> {
        let lost = |_: Lost| engine::lost();
        let evaluate = ToEngineBody::Evaluate { adapter, seq_len: self.seq_len };
        let mut work = self.ready.link.begin(evaluate, WAITING_MAX).await.map_err(lost)?;
        for some in examples.chunks(EXAMPLES_PER_MESSAGE) {
            work.send(ToEngineBody::Examples(some.to_vec())).await.map_err(lost)?;
        }
        work.send(ToEngineBody::Go).await.map_err(lost)?;
        loop {
            match work.next().await.map_err(lost)? {
                Event::Said(FromEngineBody::Evaluated(scores)) if scores.len() == examples.len() => return Ok(scores),
                Event::Said(FromEngineBody::Evaluated(_)) => {
                    return Err(defect("The engine measured another number of examples than it was given."));
                }
                Event::Said(FromEngineBody::Failed(failure)) => return Err(engine::failed(&failure)),
                _ => {}
            }
        }
    }
}
