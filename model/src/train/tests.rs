//! Whole jobs on a tiny model: they learn, they resume bit for bit, they obey time, patience and command.

use super::prepare::tests::{Bytes, message};
use super::schedule::tests::spec;
use super::*;
use crate::backbone::tests::random_backbone;
use crate::config::BackboneConfig;
use crate::config::tests::tiny;
use empathd_proto::chat::ChatRole;
use empathd_proto::engine::{Evaluation, MixtureSpec};
use empathd_proto::record::Domain;
use std::cell::Cell;

const SHA: [u8; 32] = [9; 32];

/// Writes down what it is told; stops when told to.
#[derive(Default)]
struct Notes {
    seen: Vec<TrainProgress>,
    checkpoints: Vec<(u32, Vec<u8>)>,
    yields: u64,
    stop_at: Option<u32>,
}

impl Observer for Notes {
    fn progress(&mut self, progress: &TrainProgress) -> ControlFlow<()> {
        self.seen.push(progress.clone());
        if self.stop_at == Some(progress.step) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn checkpoint(&mut self, step: u32, bytes: Vec<u8>) {
        self.checkpoints.push((step, bytes));
    }

    fn between_layers(&mut self) {
        self.yields += 1;
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
    TrainSpec { mixture, steps: 24, validate_every: 6, checkpoint_every: 8, ..spec() }
}

/// A clock that moves by a second each time it is read.
fn ticking() -> impl Fn() -> Duration {
    let seconds = Cell::new(0);
    move || {
        seconds.set(seconds.get() + 1);
        Duration::from_secs(seconds.get())
    }
}

fn go(spec: &TrainSpec, resume: Option<&[u8]>, notes: &mut Notes) -> Result<Trained, TrainError> {
    train(&base(), SHA, &Bytes, spec, &examples(), resume, &ticking(), notes)
}

#[test]
fn a_job_learns_and_reports_what_happened() {
    let mut notes = Notes::default();
    let trained = go(&job(), None, &mut notes).unwrap();
    let report = &trained.report;
    assert_eq!((report.steps, report.loss_curve.len(), report.stopped_early), (24, 24, false));
    assert!(
        report.val_loss_after < 0.7 * report.val_loss_before,
        "{} {}",
        report.val_loss_before,
        report.val_loss_after
    );
    assert!(report.val_by_domain.values().all(|(before, after)| after < before));
    assert_eq!(report.experts, ["crisis", "bias", "assessment", "free_3"]);
    assert_eq!(report.folded_domains, [Domain::Assessment]);
    assert!((report.expert_load.iter().sum::<f64>() - 1.0).abs() < 1e-9);
    assert!(report.expert_load.iter().all(|load| *load > 0.02), "{:?}", report.expert_load);
    assert_eq!(notes.checkpoints.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [8, 16, 24]);
    assert_eq!(notes.seen.last().map(|p| (p.step, p.steps)), Some((24, 24)));
    assert!(notes.yields > 24 * 4);
    let held: Vec<Example> = examples().into_iter().filter(|e| e.part == Part::HeldOut).collect();
    let scores = score(&base(), &Bytes, Some(&trained.mixture), &held, 32, &mut || ()).unwrap();
    let again = Evaluation::of(held.iter().map(|example| example.domain).zip(&scores));
    assert!((again.loss - report.val_loss_after).abs() < 1e-6, "the report is what anyone measures");
    let served = Mixture::from_bytes(&trained.bytes, base().config(), SHA).unwrap();
    let served = served.to_device(base().device()).unwrap();
    let logits = |m: &Mixture| base().logits_all(&[3, 4, 5], Some(m)).unwrap().to_vec2::<f32>().unwrap();
    assert_eq!(logits(&trained.mixture), logits(&served), "the trained forward is the served one");
}

#[test]
fn routers_learn_their_domains() {
    let trained = go(&TrainSpec { steps: 60, ..job() }, None, &mut Notes::default()).unwrap();
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
    let straight = go(&job(), None, &mut whole).unwrap();
    for (step, checkpoint) in &whole.checkpoints {
        let mut rest = Notes::default();
        let resumed = go(&job(), Some(checkpoint), &mut rest).unwrap();
        assert_eq!(resumed.report.resumed_from, Some(*step));
        assert_eq!(resumed.bytes, straight.bytes, "resumed at {step}");
        assert_eq!(resumed.report.loss_curve, straight.report.loss_curve);
        assert_eq!(resumed.report.expert_load, straight.report.expert_load);
        let weights = |notes: &Notes| notes.checkpoints.last().map(|(_, bytes)| numbers(bytes));
        if *step < 24 {
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
    let early = go(&job(), None, &mut stopped).unwrap();
    assert!(early.report.stopped_early && early.report.steps == 5);
    assert!(early.report.val_loss_after <= early.report.val_loss_before, "the artefact is never worse than the base");
    let (step, checkpoint) = stopped.checkpoints.last().unwrap();
    assert_eq!(*step, 5);
    let resumed = go(&job(), Some(checkpoint), &mut Notes::default()).unwrap();
    assert_eq!(resumed.bytes, go(&job(), None, &mut Notes::default()).unwrap().bytes);
}

#[test]
fn a_foreign_checkpoint_is_refused() {
    let mut notes = Notes::default();
    go(&job(), None, &mut notes).unwrap();
    let checkpoint = &notes.checkpoints[0].1.clone();
    let refused = |spec: &TrainSpec, bytes: &[u8]| {
        matches!(go(spec, Some(bytes), &mut Notes::default()), Err(TrainError::BadCheckpoint(_)))
    };
    assert!(refused(&TrainSpec { seed: 2, ..job() }, checkpoint));
    assert!(refused(&job(), &checkpoint[..checkpoint.len() - 1]));
    assert!(refused(&job(), &checkpoint[..40]));
    let other_base = train(&base(), [1; 32], &Bytes, &job(), &examples(), Some(checkpoint), &ticking(), &mut notes);
    assert!(matches!(other_base, Err(TrainError::BadCheckpoint(_))));
}

#[test]
fn the_deadline_ends_the_job_with_its_decay_done() {
    let mut notes = Notes::default();
    let spec = TrainSpec { steps: 1000, seconds_max: 60, validate_every: 0, ..job() };
    let trained = go(&spec, None, &mut notes).unwrap();
    assert!(trained.report.steps > 3 && trained.report.steps < 60, "{}", trained.report.steps);
    assert!(!trained.report.stopped_early);
    assert!(trained.report.val_loss_after < trained.report.val_loss_before);
    let planned: Vec<u32> = notes.seen.iter().map(|p| p.steps).collect();
    assert!(planned[0] == 1000 && *planned.last().unwrap() == trained.report.steps, "{planned:?}");
}

#[test]
fn patience_ends_a_job_that_gets_worse() {
    let spec = TrainSpec { learning_rate: 3.0, clip: 1e9, validate_every: 2, patience: 2, steps: 40, ..job() };
    let trained = go(&spec, None, &mut Notes::default()).unwrap();
    assert!(trained.report.stopped_early && trained.report.steps < 40);
    assert!(trained.report.val_loss_after <= trained.report.val_loss_before);
}

#[test]
fn jobs_that_cannot_work_are_refused() {
    let bad = |spec: TrainSpec, examples: &[Example]| {
        let found = train(&base(), SHA, &Bytes, &spec, examples, None, &ticking(), &mut Notes::default());
        matches!(found, Err(TrainError::BadJob(_)))
    };
    assert!(bad(job(), &[]));
    let none_held: Vec<Example> = examples().into_iter().filter(|e| e.part != Part::HeldOut).collect();
    assert!(bad(job(), &none_held));
    assert!(bad(TrainSpec { steps: 0, ..job() }, &examples()));
    assert!(bad(TrainSpec { learning_rate: f32::NAN, ..job() }, &examples()));
    assert!(bad(TrainSpec { warmup: 1.0, ..job() }, &examples()));
}
