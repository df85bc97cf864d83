//! Whole jobs on a tiny model: they learn, they resume bit for bit, they obey time, patience and command.

use super::prepare::tests::{Bytes, message};
use super::schedule::tests::spec;
use super::*;
use crate::backbone::Backbone;
use crate::backbone::tests::random_backbone;
use crate::config::BackboneConfig;
use crate::config::tests::tiny;
use empathd_proto::chat::ChatRole;
use empathd_proto::engine::{Evaluation, Guards, LossSpec, MixtureSpec, Part, Plateau, Stages};
use empathd_proto::record::Domain;
use empathd_proto::report::EndReason;
use std::cell::Cell;

const SHA: [u8; 32] = [9; 32];

/// Writes down what it is told; stops when told to.
#[derive(Default)]
struct Notes {
    seen: Vec<TrainProgress>,
    points: Vec<CurvePoint>,
    checkpoints: Vec<(u32, Vec<u8>)>,
    yields: u64,
    stop_at: Option<u32>,
    /// Number of yields after which a pause is wanted.
    pause_after: Option<u64>,
}

impl Observer for Notes {
    fn progress(&mut self, progress: &TrainProgress) -> ControlFlow<()> {
        self.seen.push(progress.clone());
        if self.stop_at == Some(progress.step) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn checkpoint(&mut self, step: u32, bytes: Vec<u8>) {
        self.checkpoints.push((step, bytes));
    }

    fn curve(&mut self, point: &CurvePoint) {
        self.points.push(point.clone());
    }

    fn between_layers(&mut self) {
        self.yields += 1;
    }

    fn wants_pause(&mut self) -> bool {
        self.pause_after.is_some_and(|yields| self.yields >= yields)
    }
}

fn base() -> Backbone {
    random_backbone(BackboneConfig { hidden: 16, ..tiny() }, 5)
}

/// Two domains that answer with a word of their own.
fn examples() -> Vec<Example> {
    let example = |i: usize| {
        let (domain, answer) = [(Domain::Crisis, "call now"), (Domain::Bias, "be fair")][i % 2];
        let question = message(ChatRole::User, ["how", "why", "what", "who", "when"][i % 5]);
        Example {
            domain,
            part: if i % 4 == 3 || i % 8 == 2 { Part::HeldOut } else { Part::Learn },
            messages: vec![question, message(ChatRole::Assistant, answer)],
        }
    };
    (0..160).map(example).collect()
}

fn job() -> TrainSpec {
    let experts = vec![Some(Domain::Crisis), Some(Domain::Bias), Some(Domain::Assessment), None];
    let mixture =
        MixtureSpec { shared_rank: 2, expert_rank: 2, experts, top_k: 2, scale: 2.0, ..MixtureSpec::default() };
    TrainSpec { mixture, steps: 24, b_rate_ratio: 4.0, validate_every: 6, checkpoint_every: 8, ..spec() }
}

/// A clock that moves by a hundredth of a second each time it is read.
fn ticking() -> impl Fn() -> Duration {
    let ticks = Cell::new(0);
    move || {
        ticks.set(ticks.get() + 1);
        Duration::from_millis(10 * ticks.get())
    }
}

fn train_on(
    spec: &TrainSpec,
    examples: &[Example],
    start: Start<'_>,
    now: &dyn Fn() -> Duration,
    observer: &mut dyn Observer,
) -> Result<Trained, TrainError> {
    let host = Host { now, memory: &Memory::unknown };
    train(&mut Gradients::reference(base()), SHA, &Bytes, spec, examples, start, &host, observer)
}

fn go(spec: &TrainSpec, start: Start<'_>, notes: &mut Notes) -> Result<Trained, TrainError> {
    train_on(spec, &examples(), start, &ticking(), notes)
}

#[test]
fn a_job_learns_and_reports_what_happened() {
    let mut notes = Notes::default();
    let trained = go(&job(), Start::Fresh, &mut notes).unwrap();
    let report = &trained.report;
    assert_eq!((report.steps, report.loss_curve.len(), report.stopped_early), (24, 24, false));
    assert!(
        report.val_loss_after < 0.7 * report.val_loss_before,
        "{} {}",
        report.val_loss_before,
        report.val_loss_after
    );
    assert!(report.val_by_domain.values().all(|(before, after)| after < before));
    assert_eq!(report.experts, ["crisis", "bias", "free_2"], "no expert without data");
    assert_eq!(report.folded_domains, [Domain::Assessment]);
    assert!((report.expert_load.iter().sum::<f64>() - 1.0).abs() < 1e-9);
    assert!(report.expert_load.iter().all(|load| *load > 0.02), "{:?}", report.expert_load);
    assert_eq!(notes.checkpoints.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [0, 8, 16]);
    assert_eq!(notes.seen.last().map(|p| (p.step, p.steps)), Some((24, 24)));
    assert!(notes.yields > 24 * 4);
    let held: Vec<Example> = examples().into_iter().filter(|e| e.part == Part::HeldOut).collect();
    let scores =
        score(&mut Gradients::reference(base()), &Bytes, Some(&trained.mixture), &held, 32, &mut || ()).unwrap();
    let again = Evaluation::of(held.iter().map(|example| example.domain).zip(&scores));
    assert!((again.loss - report.val_loss_after).abs() < 1e-6, "the report is what anyone measures");
    let served = Mixture::from_bytes(&trained.bytes, base().config(), SHA).unwrap();
    let served = served.to_device(base().device()).unwrap();
    let logits = |m: &Mixture| base().logits_all(&[3, 4, 5], Some(m)).unwrap().to_vec2::<f32>().unwrap();
    assert_eq!(logits(&trained.mixture), logits(&served), "the trained forward is the served one");
}

#[test]
fn routers_learn_their_domains() {
    let trained = go(&TrainSpec { steps: 60, ..job() }, Start::Fresh, &mut Notes::default()).unwrap();
    let base = base();
    let favourite = |text: &str| {
        let encoded = Bytes.encode(&[message(ChatRole::User, "how"), message(ChatRole::Assistant, text)]).unwrap();
        let (mut cache, mut load) =
            (crate::backbone::KvCache::new(base.config(), base.device()), crate::adapter::ExpertLoad::default());
        base.forward(&encoded.ids, &mut cache, Some(&trained.mixture), Some(&mut load)).unwrap();
        let shares = load.shares();
        if shares[0] > shares[1] { "crisis" } else { "bias" }
    };
    assert_eq!((favourite("call now"), favourite("be fair")), ("crisis", "bias"));
}

#[test]
fn a_resumed_job_is_the_same_job() {
    let mut whole = Notes::default();
    let straight = go(&job(), Start::Fresh, &mut whole).unwrap();
    for (step, checkpoint) in &whole.checkpoints {
        let mut rest = Notes::default();
        let resumed = go(&job(), Start::Checkpoint(checkpoint), &mut rest).unwrap();
        assert_eq!(resumed.report.resumed_from, Some(*step));
        assert_eq!(resumed.bytes, straight.bytes, "resumed at {step}");
        assert_eq!(resumed.report.loss_curve, straight.report.loss_curve);
        assert_eq!(resumed.report.expert_load, straight.report.expert_load);
        let weights = |notes: &Notes| notes.checkpoints.last().map(|(_, bytes)| numbers(bytes));
        if *step < 16 {
            assert!(weights(&rest) == weights(&whole), "weights, moments and best weights, bit for bit");
        }
    }
}

/// The tensors of a checkpoint; its counters hold times, which differ.
fn numbers(bytes: &[u8]) -> Vec<u8> {
    let head = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    bytes[8 + usize::try_from(head).unwrap()..].to_vec()
}

#[test]
fn a_stopped_job_goes_on_where_it_stopped() {
    let mut stopped = Notes { stop_at: Some(5), ..Notes::default() };
    let early = go(&job(), Start::Fresh, &mut stopped).unwrap();
    assert!(early.report.stopped_early && early.report.steps == 5);
    assert!(early.report.val_loss_after <= early.report.val_loss_before, "the artefact is never worse than the base");
    let (step, checkpoint) = stopped.checkpoints.last().unwrap();
    assert_eq!(*step, 5);
    let resumed = go(&job(), Start::Checkpoint(checkpoint), &mut Notes::default()).unwrap();
    assert_eq!(resumed.bytes, go(&job(), Start::Fresh, &mut Notes::default()).unwrap().bytes);
}

#[test]
fn a_foreign_checkpoint_is_refused() {
    let mut notes = Notes::default();
    go(&job(), Start::Fresh, &mut notes).unwrap();
    let checkpoint = &notes.checkpoints[0].1.clone();
    let refused = |spec: &TrainSpec, bytes: &[u8]| {
        matches!(go(spec, Start::Checkpoint(bytes), &mut Notes::default()), Err(TrainError::BadCheckpoint(_)))
    };
    assert!(refused(&TrainSpec { seed: 2, ..job() }, checkpoint));
    assert!(refused(&job(), &checkpoint[..checkpoint.len() - 1]));
    assert!(refused(&job(), &checkpoint[..40]));
    let mut altered = checkpoint.clone();
    let last = altered.len() - 3;
    altered[last] ^= 1;
    assert!(refused(&job(), &altered), "one bit of one number");
    let (now, sha256) = (ticking(), [1; 32]);
    let host = Host { now: &now, memory: &Memory::unknown };
    let (mut gradients, start) = (Gradients::reference(base()), Start::Checkpoint(checkpoint));
    let other = train(&mut gradients, sha256, &Bytes, &job(), &examples(), start, &host, &mut notes);
    assert!(matches!(other, Err(TrainError::BadCheckpoint(_))));
}

#[test]
fn the_deadline_ends_the_job_with_its_decay_done() {
    let mut notes = Notes::default();
    let spec = TrainSpec { steps: 1000, seconds_max: 10, validate_every: 0, ..job() };
    let trained = go(&spec, Start::Fresh, &mut notes).unwrap();
    let report = &trained.report;
    assert!(report.steps > 20 && report.steps < 500, "{}", report.steps);
    assert_eq!((report.ended, report.stopped_early), (EndReason::Steps, false));
    assert!(report.val_loss_after < report.val_loss_before);
    assert_eq!(report.plans.last().map(|plan| plan.steps), Some(report.steps), "{:?}", report.plans);
    let mut rates = notes.points.iter().filter_map(|point| match point {
        CurvePoint::Step(step) => Some(step.rate),
        CurvePoint::Validation(_) => None,
    });
    let last = rates.next_back().unwrap() / spec.learning_rate;
    assert!((last - 0.1).abs() < 1e-3, "the rate ends at a tenth: {last}");
}

#[test]
fn patience_ends_a_job_that_gets_worse() {
    let spec = TrainSpec { learning_rate: 3.0, clip: 1e9, validate_every: 2, patience: 2, steps: 40, ..job() };
    let trained = go(&spec, Start::Fresh, &mut Notes::default()).unwrap();
    assert!(trained.report.stopped_early && trained.report.steps < 40);
    assert_eq!(trained.report.ended, EndReason::Patience);
    assert!(trained.report.val_loss_after <= trained.report.val_loss_before);
}

#[test]
fn a_pause_between_any_two_layers_loses_the_step_and_changes_nothing() {
    let straight = go(&job(), Start::Fresh, &mut Notes::default()).unwrap();
    let mut whole = Notes::default();
    go(&job(), Start::Fresh, &mut whole).unwrap();
    let mut goes_on = 0;
    for part in 0..8 {
        let pause_after = Some(whole.yields * part / 8);
        let mut paused = Notes { pause_after, ..Notes::default() };
        let early = match go(&job(), Start::Fresh, &mut paused) {
            Ok(early) => early,
            Err(TrainError::Paused) => continue,
            Err(other) => panic!("{other}"),
        };
        goes_on += 1;
        assert_eq!(early.report.ended, EndReason::Command);
        let (step, checkpoint) = paused.checkpoints.last().unwrap();
        assert_eq!(*step, early.report.steps);
        let resumed = go(&job(), Start::Checkpoint(checkpoint), &mut Notes::default()).unwrap();
        assert!(resumed.bytes == straight.bytes, "paused at {pause_after:?}, step {step}");
        assert_eq!(resumed.report.loss_curve, straight.report.loss_curve);
    }
    assert!((5..8).contains(&goes_on), "before the first step there is nothing to go on from");
}

#[test]
fn a_job_that_diverges_keeps_what_was_good() {
    let wild = TrainSpec { learning_rate: 1e30, router_learning_rate: 1e30, clip: 1e9, warmup: 0.0, ..job() };
    let refused = go(&wild, Start::Fresh, &mut Notes::default());
    assert!(matches!(refused, Err(TrainError::Diverged(_))), "nothing was learnt");
    // The decay is small while the rate rises, and then turns weights about, ever larger.
    let plateau = Plateau { patience: 0, factor: 1.0 };
    let late =
        TrainSpec { weight_decay: 3e4, warmup: 0.9, steps: 100, validate_every: 1, patience: 0, plateau, ..job() };
    let trained = go(&late, Start::Fresh, &mut Notes::default()).unwrap();
    assert_eq!(trained.report.ended, EndReason::Diverged);
    assert!(trained.report.val_loss_after < trained.report.val_loss_before && trained.report.steps < 100);
    assert!(Mixture::from_bytes(&trained.bytes, base().config(), SHA).is_ok(), "every number is one");
}

#[test]
fn training_goes_on_from_an_adapter_and_may_move_routers_alone() {
    let first = go(&job(), Start::Fresh, &mut Notes::default()).unwrap();
    let mixture = first.mixture.spec().clone();
    let spec = TrainSpec { only: TrainOnly::Routers, steps: 6, mixture, ..job() };
    let second = go(&spec, Start::Adapter(&first.bytes), &mut Notes::default()).unwrap();
    let macro_loss = |trained: &Trained| trained.report.val_by_domain.values().map(|(_, after)| after).sum::<f64>();
    assert!(macro_loss(&second) <= macro_loss(&first) + 1e-9, "it begins where the other ended");
    for (before, after) in first.mixture.parameters().iter().zip(second.mixture.parameters()) {
        let same = |a: &candle_core::Tensor, b: &candle_core::Tensor| {
            let all = |t: &candle_core::Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            all(a) == all(b)
        };
        use crate::adapter::ParameterKind::{Router, Session};
        let is_router = matches!(before.kind, Router | Session);
        assert!(is_router || same(before.tensor, after.tensor), "{} moved", before.name);
    }
    let other = TrainSpec { mixture: MixtureSpec { shared_rank: 3, ..job().mixture }, ..job() };
    let refused = go(&other, Start::Adapter(&first.bytes), &mut Notes::default());
    assert!(matches!(refused, Err(TrainError::BadJob(_))));
}

#[test]
fn guards_are_measured_and_replay_is_not_learnt_as_words() {
    let mut all = examples();
    for (part, answer) in [(Part::Replay, "zzzz"), (Part::General, "the sun"), (Part::CrisisItem, "call now")] {
        let messages = vec![message(ChatRole::User, "how"), message(ChatRole::Assistant, answer)];
        all.push(Example { domain: Domain::Psychoeducation, part, messages });
    }
    let mut notes = Notes::default();
    let guards = Guards { general_rise_max: -1e3, crisis_rise_max: 1e3 };
    let spec = TrainSpec { guards, ..job() };
    let trained = train_on(&spec, &all, Start::Fresh, &ticking(), &mut notes).unwrap();
    assert_eq!(trained.report.val_loss_after, trained.report.val_loss_before, "no weights hold such a guard");
    let measured = notes.points.iter().filter_map(|point| match point {
        CurvePoint::Validation(one) => Some(one.general.is_some() && one.crisis_items.is_some() && !one.is_best),
        CurvePoint::Step(_) => None,
    });
    assert_eq!(measured.collect::<Vec<_>>(), [true; 4]);
    assert!(!trained.report.val_by_domain.contains_key("psychoeducation"));
}

#[test]
fn jobs_that_cannot_work_are_refused() {
    let refused = |spec: TrainSpec, examples: &[Example]| {
        let found = train_on(&spec, examples, Start::Fresh, &ticking(), &mut Notes::default());
        match found {
            Err(TrainError::BadJob(why)) => why,
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("it worked"),
        }
    };
    assert!(refused(job(), &[]).contains("to learn from"));
    let of = |part| examples().into_iter().filter(|e| e.part == part).collect::<Vec<Example>>();
    assert!(refused(job(), &of(Part::Learn)).contains("held out"));
    assert!(refused(job(), &of(Part::Learn)[..1]).contains("held out"));
    let masked = |mut example: Example| {
        example.messages.retain(|message| message.role != ChatRole::Assistant);
        example
    };
    let all_masked: Vec<Example> = examples().into_iter().map(masked).collect();
    assert!(refused(job(), &all_masked).contains("holds an answer"));
    let long = |mut example: Example| {
        example.messages[0].text = "x".repeat(400);
        example
    };
    let too_long: Vec<Example> = examples().into_iter().map(long).collect();
    let why = refused(job(), &too_long);
    assert!(why.contains("longer than 32 tokens"), "{why}");
    for bad in [
        TrainSpec { steps: 0, ..job() },
        TrainSpec { pass_tokens: Some(0), ..job() },
        TrainSpec { learning_rate: f32::NAN, ..job() },
        TrainSpec { b_rate_ratio: 0.0, ..job() },
        TrainSpec { warmup: 1.0, ..job() },
        TrainSpec { stages: Stages { shared_until: 0.6, forced_until: 0.5 }, ..job() },
        TrainSpec { losses: LossSpec { replay_share: 1.0, ..LossSpec::default() }, ..job() },
    ] {
        refused(bad, &examples());
    }
}

#[test]
fn one_example_of_a_domain_without_an_expert_is_enough() {
    let one = |part| Example {
        domain: Domain::Documentation,
        part,
        messages: vec![message(ChatRole::User, "how"), message(ChatRole::Assistant, "so")],
    };
    let all = [one(Part::Learn), one(Part::HeldOut)];
    let trained = train_on(&TrainSpec { steps: 4, ..job() }, &all, Start::Fresh, &ticking(), &mut Notes::default());
    let report = trained.unwrap().report;
    assert_eq!((report.steps, report.val_by_domain.len()), (4, 1));
    assert_eq!(report.folded_domains.len(), 3, "no expert has enough data");
}

#[test]
fn a_time_shorter_than_one_step_is_refused_in_words() {
    let slow = || {
        let clock = ticking();
        move || clock() * 100
    };
    let spec = TrainSpec { seconds_max: 30, ..job() };
    let found = train_on(&spec, &examples(), Start::Fresh, &slow(), &mut Notes::default());
    let Err(TrainError::BadJob(why)) = found else { panic!("it worked") };
    assert!(why.contains("shorter than one step"), "{why}");
}

mod windows;
