//! The gate: what a candidate must hold to before it may answer. Every figure is measured anew, on held-out records, with
//! the weights as the store has them. What happens to a candidate that passes is not known here.

use crate::adapters::{self, Description};
use crate::app::App;
use crate::config::Gate;
use crate::engine::link::{Event, Lost};
use crate::engine::{self, Ready};
use crate::problem::{self, Fault, defect};
use empathd_proto::audit::{ActionKind, AuditObject, Outcome};
use empathd_proto::engine::{Evaluation, Example, FromEngineBody, ToEngineBody};
use empathd_proto::ids::AdapterId;
use empathd_proto::problem::{ErrorCode, Problem};
use empathd_proto::record::Domain;
use empathd_proto::report::{GateBound, GateReport, TrainReport};
use empathd_store::AuditDraft;
use std::sync::Arc;

/// Examples of one message to the engine.
pub(crate) const EXAMPLES_PER_MESSAGE: usize = 64;
/// Events of a measurement that may wait.
const WAITING_MAX: usize = 16;
/// Times a measurement is begun again after the engine was lost.
const TRIES_MAX: u32 = 3;

/// Measures a candidate and records what was found; gives the report.
pub(crate) async fn run(
    app: &Arc<App>,
    id: AdapterId,
    held_out: &[Example],
    seq_len: u32,
) -> Result<GateReport, Problem> {
    let (bytes, description, altered) = app.blocking(move |app| candidate(app, id)).await?;
    let mut tries = 0;
    let (base, adapted) = loop {
        let ready = app.engine.wait_ready(app.config.serving.reconnect).await?;
        let measured = both(&ready, id, &bytes, held_out, seq_len).await;
        adapters::put_away(&ready, id).await;
        match measured {
            Ok(measured) => break measured,
            Err(_) if ready.link.is_closed() && tries < TRIES_MAX => tries += 1,
            Err(problem) => return Err(problem),
        }
    };
    let report = GateReport { bounds: bounds(&app.config.gate, &base, &adapted, &description.train, altered) };
    let kept = report.clone();
    app.blocking(move |app| keep(app, id, &kept)).await?;
    Ok(report)
}

type Candidate = (zeroize::Zeroizing<Vec<u8>>, Description, bool);

/// The weights as the store has them, and whether they differ from those that training announced.
fn candidate(app: &App, id: AdapterId) -> Result<Candidate, Problem> {
    let store = app.vault.unsealed()?;
    let stored = store.read(|reader| reader.adapter(id)).map_err(problem::from_read)?;
    let stored = stored.ok_or_else(|| defect("A candidate is not in the registry."))?;
    let description: Description = adapters::decode(&stored.body)?;
    let bytes = store.read(|reader| reader.blob(stored.blob)).map_err(problem::from_read)?;
    let altered = *blake3::hash(&bytes).as_bytes() != description.digest;
    Ok((bytes, description, altered))
}

fn keep(app: &App, id: AdapterId, report: &GateReport) -> Result<(), Problem> {
    let outcome = if report.passed() { Outcome::Done } else { Outcome::Denied(ErrorCode::GateRefused) };
    let draft = AuditDraft { outcome, object: AuditObject::Adapter(id), ..app.own_draft(ActionKind::Gate) };
    let body = adapters::encode(report)?;
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

/// The loss of the plain base model and of the candidate on the same examples.
async fn both(
    ready: &Ready,
    id: AdapterId,
    bytes: &[u8],
    held_out: &[Example],
    seq_len: u32,
) -> Result<(Evaluation, Evaluation), Problem> {
    adapters::put(ready, id, bytes).await?;
    let base = evaluate(ready, None, held_out, seq_len).await?;
    let adapted = evaluate(ready, Some(id), held_out, seq_len).await?;
    Ok((base, adapted))
}

async fn evaluate(
    ready: &Ready,
    adapter: Option<AdapterId>,
    held_out: &[Example],
    seq_len: u32,
) -> Result<Evaluation, Problem> {
    let lost = |_: Lost| engine::lost();
    let begun = ready.link.begin(ToEngineBody::Evaluate { adapter, seq_len }, WAITING_MAX).await;
    let mut work = begun.map_err(lost)?;
    for some in held_out.chunks(EXAMPLES_PER_MESSAGE) {
        work.send(ToEngineBody::Examples(some.to_vec())).await.map_err(lost)?;
    }
    work.send(ToEngineBody::Go).await.map_err(lost)?;
    loop {
        match work.next().await.map_err(lost)? {
            Event::Said(FromEngineBody::Evaluated(scores)) => {
                return Ok(Evaluation::of(held_out.iter().map(|example| example.domain).zip(&scores)));
            }
            Event::Said(FromEngineBody::Failed(failure)) => return Err(engine::failed(&failure)),
            _ => {}
        }
    }
}

/// Every bound with what was measured.
fn bounds(gate: &Gate, base: &Evaluation, adapted: &Evaluation, train: &TrainReport, altered: bool) -> Vec<GateBound> {
    let mut bounds = vec![bound("validation_loss", ratio(adapted.loss, base.loss), gate.validation_ratio_max)];
    for (domain, before) in &base.by_domain {
        let crisis = domain == Domain::Crisis.as_str();
        let limit = if crisis { gate.crisis_ratio_max } else { gate.domain_ratio_max };
        // A domain that was not measured with the candidate has not held.
        let after = adapted.by_domain.get(domain).copied().unwrap_or(f64::NAN);
        bounds.push(bound(&format!("validation_loss.{domain}"), ratio(after, *before), limit));
    }
    let unmeasured = base.target_tokens.abs_diff(adapted.target_tokens) + u64::from(adapted.target_tokens == 0);
    bounds.push(bound("unmeasured_tokens", unmeasured as f64, 0.0));
    let idle = train.expert_load.iter().filter(|load| load.is_nan() || **load <= 0.0).count();
    let idle = if train.expert_load.len() < train.experts.len().max(1) { train.experts.len().max(1) } else { idle };
    bounds.push(bound("idle_experts", idle as f64, 0.0));
    bounds.push(bound("altered_weights", f64::from(u8::from(altered)), 0.0));
    bounds
}

/// How the loss changed; the largest number there is when it cannot be told.
fn ratio(after: f64, before: f64) -> f64 {
    let ratio = after / before;
    if ratio.is_finite() && after > 0.0 && before > 0.0 { ratio } else { f64::MAX }
}

fn bound(name: &str, measured: f64, limit: f64) -> GateBound {
    GateBound { name: name.to_owned(), measured, limit, held: measured <= limit }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evaluation(loss: f64, crisis: f64, therapy: f64) -> Evaluation {
        let by_domain = [("crisis".to_owned(), crisis), ("therapy_dialogue".to_owned(), therapy)].into();
        Evaluation { loss, by_domain, target_tokens: 100 }
    }

    fn trained(load: &[f64]) -> TrainReport {
        let experts = (0..load.len()).map(|index| index.to_string()).collect();
        TrainReport { experts, expert_load: load.to_vec(), ..TrainReport::default() }
    }

    fn failed(adapted: &Evaluation, load: &[f64], altered: bool) -> Vec<String> {
        let base = evaluation(2.0, 2.0, 2.0);
        let bounds = bounds(&Gate::default(), &base, adapted, &trained(load), altered);
        bounds.into_iter().filter(|bound| !bound.held).map(|bound| bound.name).collect()
    }

    #[test]
    fn each_bound_can_refuse() {
        let good = evaluation(1.8, 1.9, 1.7);
        let none: [&str; 0] = [];
        assert_eq!(failed(&good, &[0.5, 0.5], false), none);
        assert_eq!(failed(&evaluation(1.99, 1.9, 1.7), &[0.5, 0.5], false), ["validation_loss"]);
        assert_eq!(failed(&evaluation(1.8, 2.05, 1.7), &[0.5, 0.5], false), ["validation_loss.crisis"]);
        assert_eq!(failed(&evaluation(1.8, 2.03, 2.08), &[0.5, 0.5], false), none);
        assert_eq!(failed(&evaluation(1.8, 1.9, 2.11), &[0.5, 0.5], false), ["validation_loss.therapy_dialogue"]);
        assert_eq!(failed(&good, &[1.0, 0.0], false), ["idle_experts"]);
        assert_eq!(failed(&good, &[], false), ["idle_experts"]);
        assert_eq!(failed(&good, &[0.5, 0.5], true), ["altered_weights"]);
    }

    #[test]
    fn what_was_not_measured_does_not_hold() {
        let nothing = Evaluation { loss: f64::NAN, by_domain: Default::default(), target_tokens: 0 };
        let names = failed(&nothing, &[0.5, 0.5], false);
        assert_eq!(
            names,
            ["validation_loss", "validation_loss.crisis", "validation_loss.therapy_dialogue", "unmeasured_tokens"]
        );
        assert!(!GateReport { bounds: Vec::new() }.passed());
    }
}
