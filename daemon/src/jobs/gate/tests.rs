//! The gate on scores made by hand: each bound can refuse, and a good candidate passes. No engine is asked here.

use super::bounds::Measured;
use super::canary::{CANARIES, CANDIDATES};
use super::figures::{Figures, Memorisation, RUN_TOKENS};
use super::suite::{Data, Suite};
use super::{extras, probes};
use crate::config::Gate;
use empathd_proto::engine::{Example, ExampleScore, Part};
use empathd_proto::ids::JobId;
use empathd_proto::record::Domain;
use empathd_proto::report::{GateBound, GateReport, TrainReport};

const JOB: JobId = JobId::from_bytes([7; 16]);

fn some(part: Part, domain: Domain, count: usize) -> Vec<Example> {
    let text = |index: usize| format!("This is the answer with the number {index}.");
    (0..count).map(|index| probes::example(part, domain, "A question", &text(index))).collect()
}

fn suite() -> Suite {
    let held_out = [some(Part::HeldOut, Domain::Crisis, 4), some(Part::HeldOut, Domain::TherapyDialogue, 6)].concat();
    let mut learn = some(Part::Learn, Domain::TherapyDialogue, 100);
    learn.extend(extras(JOB, &learn));
    Suite::new(&Data { job: JOB, learn: &learn, held_out: &held_out, seq_len: 256 })
}

/// What a model is like, for [`scores`]. Losses are per token.
#[derive(Clone, Copy)]
struct Like {
    crisis: f64,
    therapy: f64,
    general: f64,
    /// Crises of 24 in which the unsafe answer is likelier.
    misses: usize,
    /// The same of requests.
    careless: usize,
    gap: f64,
    /// Canaries of 8 that are known by heart.
    known: usize,
    /// Learnt examples of 64 that are said word for word.
    repeated: usize,
}

const BASE: Like =
    Like { crisis: 2.0, therapy: 2.0, general: 3.0, misses: 6, careless: 0, gap: 0.05, known: 0, repeated: 0 };
const GOOD: Like = Like { crisis: 1.9, therapy: 1.7, misses: 5, ..BASE };

fn score(loss: f64) -> ExampleScore {
    ExampleScore { nll: loss * 100.0, targets: 100, longest_run: 3, session: Vec::new() }
}

fn pairs(count: usize, wrong: usize) -> Vec<ExampleScore> {
    (0..count).flat_map(|index| if index < wrong { [3.5, 3.0] } else { [3.0, 3.5] }).map(score).collect()
}

/// Scores of the whole suite.
fn scores(like: Like) -> Vec<ExampleScore> {
    let mut all = vec![score(like.crisis); 4];
    all.extend(vec![score(like.therapy); 6]);
    all.extend(vec![score(like.general); probes::general().len()]);
    all.extend(pairs(probes::crisis().len(), like.misses));
    all.extend(pairs(probes::safety().len(), like.careless));
    all.extend(probes::fairness().iter().flat_map(|_| [score(2.0), score(2.0 + like.gap)]));
    for canary in 0..CANARIES {
        // Unknown secrets stand at every rank; known ones before all others.
        let rank = if canary < like.known { 0.0 } else { (canary * CANDIDATES / CANARIES) as f64 + 0.5 };
        all.extend((0..CANDIDATES).map(|other| score(if other == 0 { rank } else { other as f64 })));
    }
    all.extend((0..64).map(|index| {
        let longest_run = if index < like.repeated { RUN_TOKENS } else { 3 };
        ExampleScore { longest_run, ..score(1.5) }
    }));
    all
}

fn trained(load: &[f64]) -> TrainReport {
    let experts = (0..load.len()).map(|index| index.to_string()).collect();
    TrainReport { experts, expert_load: load.to_vec(), ..TrainReport::default() }
}

/// The bounds of a candidate after training, with an active generation when there is one.
fn bounds(candidate: &[ExampleScore], active: Option<Like>, load: &[f64], altered: bool) -> Vec<GateBound> {
    let suite = suite();
    assert_eq!(suite.all().len(), candidate.len(), "the scores are of the suite");
    let common = suite.common().len();
    let of = |like: Like| Figures::of(suite.read(&scores(like)[..common]));
    let (after, train) = (suite.read(candidate), trained(load));
    let measured = Measured {
        base: of(BASE),
        active: active.map(of),
        candidate: Figures::of(after),
        memorisation: Memorisation::of(after),
        unmeasured: after.unmeasured(candidate.len()),
        items: candidate.len(),
        train: &train,
        altered,
    };
    assert!(measured.figures().iter().all(|figure| figure.items > 0));
    measured.bounds(&Gate::default())
}

fn failed(bounds: &[GateBound]) -> Vec<&str> {
    bounds.iter().filter(|bound| !bound.held).map(|bound| bound.name.as_str()).collect()
}

#[track_caller]
fn refuses(like: Like, active: Option<Like>, names: &[&str]) {
    assert_eq!(failed(&bounds(&scores(like), active, &[0.5, 0.5], false)), names);
}

#[test]
fn each_bound_against_the_base_model_can_refuse() {
    refuses(GOOD, None, &[]);
    refuses(Like { therapy: 2.07, ..GOOD }, None, &["validation_loss"]);
    refuses(Like { therapy: 2.11, ..GOOD }, None, &["validation_loss", "validation_loss.therapy_dialogue"]);
    refuses(Like { crisis: 2.05, ..GOOD }, None, &["validation_loss.crisis"]);
    refuses(Like { general: 3.06, ..GOOD }, None, &["general_loss_rise"]);
    refuses(Like { misses: 7, ..GOOD }, None, &["crisis_recall_fall"]);
    refuses(Like { misses: 10, ..GOOD }, None, &["crisis_recall_fall", "safety_flips", "crisis_recall"]);
    refuses(Like { careless: 3, ..GOOD }, None, &["safety_flips"]);
    refuses(Like { gap: 0.08, ..GOOD }, None, &["bias_gap_rise"]);
}

#[test]
fn what_is_known_by_heart_refuses() {
    refuses(Like { known: 1, ..GOOD }, None, &[]);
    refuses(Like { known: 5, ..GOOD }, None, &["canary_exposure"]);
    refuses(Like { repeated: 1, ..GOOD }, None, &[]);
    refuses(Like { repeated: 4, ..GOOD }, None, &["extraction"]);
}

#[test]
fn the_active_generation_is_only_replaced_by_something_better() {
    refuses(GOOD, Some(BASE), &[]);
    refuses(GOOD, Some(GOOD), &["improved_figures"]);
    let better = Like { therapy: 1.5, ..GOOD };
    refuses(
        GOOD,
        Some(better),
        &["active.validation_loss", "active.validation_loss.therapy_dialogue", "improved_figures"],
    );
    refuses(Like { crisis: 1.8, ..GOOD }, Some(Like { misses: 3, ..GOOD }), &["active.crisis_recall_fall"]);
}

#[test]
fn unsound_candidates_are_refused_whatever_they_measure() {
    let good = scores(GOOD);
    assert_eq!(failed(&bounds(&good, None, &[1.0, 0.0], false)), ["idle_experts"]);
    assert_eq!(failed(&bounds(&good, None, &[], false)), ["idle_experts"]);
    assert_eq!(failed(&bounds(&good, None, &[0.5, 0.5], true)), ["altered_weights"]);
    let mut broken = good;
    broken[20].nll = f64::NAN;
    assert_eq!(failed(&bounds(&broken, None, &[0.5, 0.5], false)), ["general_loss_rise", "unmeasured_items"]);
}

#[test]
fn what_was_not_measured_does_not_hold() {
    let nothing = vec![ExampleScore { nll: 0.0, targets: 0, longest_run: 0, session: Vec::new() }; scores(GOOD).len()];
    let suite = suite();
    let figures = Figures::of(suite.read(&nothing));
    assert!(figures.validation_loss.value.is_nan() && figures.general_loss.value.is_nan());
    assert!(!GateReport::default().passed());
    assert!(!GateBound::new("x", f64::NAN, empathd_proto::report::BoundRule::AtMost, 1.0, 1).held);
}

#[test]
fn few_items_are_said_to_be_few() {
    let bounds = bounds(&scores(GOOD), None, &[0.5, 0.5], false);
    let small = |name: &str| bounds.iter().find(|bound| bound.name == name).expect("a bound").is_small();
    assert!(small("crisis_recall") && small("validation_loss") && small("canary_exposure"));
    assert!(!small("general_loss_rise") && !small("bias_gap_rise") && !small("altered_weights"));
}

#[test]
fn a_job_is_given_what_guards_it_and_its_canaries() {
    let learn = some(Part::Learn, Domain::Assessment, 3);
    let extras = extras(JOB, &learn);
    let count = |part| extras.iter().filter(|example| example.part == part).count();
    assert_eq!(count(Part::Learn), 2 * CANARIES);
    assert!(count(Part::Replay) >= 20 && count(Part::General) >= 40 && count(Part::CrisisItem) >= 20);
    let planted = extras.iter().filter(|example| example.part == Part::Learn);
    assert!(planted.clone().all(|example| example.domain == Domain::Assessment), "no expert comes from canaries");
}
