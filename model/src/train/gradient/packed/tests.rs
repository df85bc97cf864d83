//! Packed gradients against those of tensors, and what they must not depend on: neighbours, threads, memory.

use super::*;
use crate::backbone::Backbone;
use crate::config::tests::tiny;
use crate::counter::{Counter, Site};
use crate::train::gradient::goals::{Keep, Labelled, PlannedRouting, RouterPlan, RouterWeights, Wanted};
use crate::train::{Encoded, Gradients};
use candle_core::{Device, Tensor};
use empathd_proto::engine::{CrisisFloor, LinearName};
use empathd_proto::record::Domain;

fn config() -> BackboneConfig {
    BackboneConfig { hidden: 48, ffn: 40, layers: 4, heads: 6, kv_heads: 2, head_dim: 8, ..tiny() }
}

/// Weights by name, wherever they are asked for.
fn numbers(name: &str, shape: &[usize], spread: f64) -> Vec<f32> {
    let (counter, site) = (Counter::new(7), Site::new(name, 0));
    let (middle, spread) = if name.contains("norm") { (1.0, 0.1) } else { (0.0, spread) };
    let one = |i| (middle + spread * counter.normal(site, i)) as f32;
    (0..shape.iter().product::<usize>() as u64).map(one).collect()
}

fn weight(name: &str, shape: &[usize]) -> Vec<f32> {
    let spread = if shape.len() == 2 { 0.7 / (shape[1] as f64).sqrt() } else { 0.1 };
    numbers(name, shape, if name.contains("embed") { 0.15 } else { spread })
}

fn reference() -> Gradients {
    let mut give = |name: &str, shape: &[usize]| Tensor::from_vec(weight(name, shape), shape, &Device::Cpu);
    Gradients::reference(Backbone::new(config(), &mut give, &Device::Cpu).unwrap())
}

fn trainer(precision: Precision, threads: usize) -> Trainer {
    let mut give = |name: &str, shape: &[usize], take: &mut dyn FnMut(usize, &[f32])| {
        let width = *shape.last().unwrap();
        weight(name, shape).chunks_exact(width).enumerate().for_each(|(row, numbers)| take(row, numbers));
        Ok(())
    };
    Trainer::open(config(), &mut give, precision, threads).unwrap()
}

fn mixture(spec: &MixtureSpec) -> Mixture {
    let fresh = Mixture::init(&config(), spec, 3).unwrap();
    let names: Vec<String> = fresh.parameters().into_iter().map(|p| p.name).collect();
    fresh
        .map(|i, like| {
            let spread = if names[i].ends_with('b') { 0.05 } else { 0.15 };
            let middle = if names[i].ends_with("prior_weight") { 1.0 } else { 0.0 };
            let numbers: Vec<f32> = numbers(&names[i], like.dims(), spread).iter().map(|x| x + middle).collect();
            Tensor::from_vec(numbers, like.dims(), &Device::Cpu)
        })
        .unwrap()
}

fn lora() -> MixtureSpec {
    MixtureSpec { shared_rank: 3, ..MixtureSpec::default() }
}

fn experts() -> MixtureSpec {
    MixtureSpec {
        shared_rank: 3,
        expert_rank: 5,
        experts: vec![Some(Domain::Crisis), None, Some(Domain::Bias)],
        top_k: 2,
        shared_on: vec![LinearName::Query, LinearName::Output, LinearName::Gate, LinearName::Down],
        session_prior: true,
        crisis_floor: Some(CrisisFloor { above: 0.3, floor: 0.4 }),
        ..MixtureSpec::default()
    }
}

fn conversation(length: u32, seed: u32) -> Encoded {
    let ids: Vec<u32> = (0..length).map(|i| (i * i * 7 + i * 5 + seed * 11) % 29).collect();
    Encoded { target: ids.iter().map(|id| id % 3 != 0).collect(), ids }
}

fn batch() -> Batch {
    Batch::pack(&[conversation(19, 1), conversation(7, 2), conversation(40, 3)])
}

fn plan(routing: PlannedRouting) -> RouterPlan {
    let wants = |route: [f32; 3]| Wanted {
        route: route.to_vec().into(),
        session: [0.6, 0.1, 0.3].to_vec().into(),
        weight: 1.5,
    };
    let labelled = |rows, wanted: Option<[f32; 3]>| Labelled { rows, wanted: wanted.map(wants) };
    RouterPlan {
        routing,
        documents: vec![labelled(19, Some([0.8, 0.1, 0.1])), labelled(7, None), labelled(40, Some([0.1, 0.2, 0.7]))],
        prior: vec![0.5, 0.3, 0.2].into(),
        weights: RouterWeights { session: 0.7, label: 0.9, balance: 0.4, z: 0.2 },
        share: 0.6,
    }
}

fn forced() -> PlannedRouting {
    PlannedRouting::Forced(vec![(0..66).map(|row| [0b011, 0b110, 0b101][row % 3]).collect(); 4])
}

fn zeros(mixture: &Mixture) -> Vec<Vec<f32>> {
    mixture.parameters().iter().map(|p| vec![0.0; p.tensor.elem_count()]).collect()
}

/// What a trainer finds for the batch.
fn found(trainer: &mut Gradients, mixture: &Mixture, plan: Option<&RouterPlan>) -> (PassLoss, Vec<Vec<f32>>) {
    let (batch, mut sums) = (batch(), zeros(mixture));
    let weights: Vec<f32> = (0..batch.target_tokens()).map(|i| [0.02, 0.05, 0.0][i % 3]).collect();
    let kept: Vec<Keep> = (19..26).map(|row| Keep { row, weight: 0.1 }).collect();
    trainer.hold(mixture, 16).unwrap();
    let goals = Goals { weights: &weights, kept: &kept, routers: plan };
    (trainer.pass(&batch, &goals, &mut sums, &mut || ()).unwrap(), sums)
}

fn packed(precision: Precision, threads: usize) -> Gradients {
    Gradients::Packed(Box::new(trainer(precision, threads)))
}

/// How far two gradients are apart, over the size of the second.
fn apart(found: &[f32], expected: &[f32]) -> f64 {
    let size = |all: &mut dyn Iterator<Item = f64>| all.map(|x| x * x).sum::<f64>().sqrt();
    let wide = |x: &f32| f64::from(*x);
    size(&mut found.iter().zip(expected).map(|(a, b)| wide(a) - wide(b)))
        / size(&mut expected.iter().map(wide)).max(1e-12)
}

fn cases() -> Vec<(MixtureSpec, Option<RouterPlan>)> {
    vec![
        (lora(), None),
        (experts(), Some(plan(PlannedRouting::Own))),
        (experts(), Some(plan(forced()))),
        (experts(), Some(plan(PlannedRouting::Off))),
    ]
}

#[test]
fn single_precision_gives_the_gradients_of_tensors() {
    for (spec, plan) in cases() {
        let mixture = mixture(&spec);
        let (lost, sums) = found(&mut packed(Precision::Single, 2), &mixture, plan.as_ref());
        let (expected_loss, expected) = found(&mut reference(), &mixture, plan.as_ref());
        let close = |a: f64, b: f64| (a - b).abs() <= 1e-5 * b.abs().max(1e-3);
        assert!(close(lost.language, expected_loss.language), "{lost:?} {expected_loss:?}");
        assert!(close(lost.kept, expected_loss.kept) && lost.kept > 0.0, "{lost:?} {expected_loss:?}");
        assert!(close(lost.routers, expected_loss.routers), "{lost:?} {expected_loss:?}");
        assert_eq!(lost.load.chosen, expected_loss.load.chosen);
        for ((found, expected), parameter) in sums.iter().zip(&expected).zip(mixture.parameters()) {
            let apart = apart(found, expected);
            assert!(apart < 1e-4, "{}: {apart}", parameter.name);
        }
    }
}

/// How far gradients in bf16 may be from those in f32, by their common norm: bf16 has 8 bits, so each of the roundings on the
/// way errs by up to 0.4 %, and a gradient is behind about fifty of them, half of them cancelling.
const HALF_APART: f64 = 0.04;

#[test]
fn half_precision_is_within_its_bound() {
    for (spec, plan) in cases() {
        // Choices may differ where two experts are about equal, and so may whether a session is in a crisis: both are
        // fixed here.
        let spec = MixtureSpec { crisis_floor: None, ..spec };
        let plan = plan.filter(|plan| plan.routing != PlannedRouting::Own);
        if plan.is_none() && !spec.experts.is_empty() {
            continue;
        }
        let mixture = mixture(&spec);
        let (lost, sums) = found(&mut packed(Precision::Half, 2), &mixture, plan.as_ref());
        let (expected_loss, expected) = found(&mut packed(Precision::Single, 2), &mixture, plan.as_ref());
        assert!((lost.language - expected_loss.language).abs() < 0.01 * expected_loss.language);
        let whole = apart(&sums.concat(), &expected.concat());
        assert!(whole < HALF_APART, "all gradients together: {whole}");
    }
}

#[test]
fn neither_memory_nor_threads_nor_another_run_change_a_bit() {
    let (mixture, plan) = (mixture(&experts()), plan(PlannedRouting::Own));
    for precision in [Precision::Half, Precision::Single] {
        let first = found(&mut packed(precision, 1), &mixture, Some(&plan)).1;
        let mut again = packed(precision, 3);
        assert_eq!(first, found(&mut again, &mixture, Some(&plan)).1, "{precision:?}, three threads");
        assert_eq!(first, found(&mut again, &mixture, Some(&plan)).1, "{precision:?}, once more");
        let mut forgetful = trainer(precision, 2);
        each!(&mut forgetful.0, core => core.keep_at_most(0));
        let mut forgetful = Gradients::Packed(Box::new(forgetful));
        assert_eq!(first, found(&mut forgetful, &mixture, Some(&plan)).1, "{precision:?}, every layer run again");
    }
}

#[test]
fn a_conversation_does_not_see_its_neighbours() {
    let mixture = mixture(&experts());
    let (a, b) = (conversation(23, 4), conversation(37, 5));
    for precision in [Precision::Half, Precision::Single] {
        let mut trainer = packed(precision, 2);
        trainer.hold(&mixture, 64).unwrap();
        let mut run = |batch: &Batch| {
            let mut sums = zeros(&mixture);
            let weights = vec![0.03; batch.target_tokens()];
            let goals = Goals { weights: &weights, kept: &[], routers: None };
            trainer.pass(batch, &goals, &mut sums, &mut || ()).unwrap();
            (trainer.scores(batch, true, &mut || ()).unwrap(), sums)
        };
        let (alone, first) = run(&Batch::pack([&a]));
        let (_, second) = run(&Batch::pack([&b]));
        let (behind, both) = run(&Batch::pack([&b, &a]));
        assert_eq!(
            alone.nll,
            behind.nll[behind.nll.len() - alone.nll.len()..],
            "{precision:?}: the same loss, bit for bit"
        );
        assert_eq!(alone.priors[0], behind.priors[1]);
        let sum: Vec<Vec<f32>> =
            first.iter().zip(&second).map(|(a, b)| a.iter().zip(b).map(|(a, b)| a + b).collect()).collect();
        let apart = apart(&both.concat(), &sum.concat());
        assert!(apart < 1e-5, "{precision:?}: gradients add up: {apart}");
    }
}

#[test]
fn scores_are_those_of_tensors() {
    let (mixture, batch) = (mixture(&experts()), batch());
    let (mut packed, mut tensors) = (packed(Precision::Single, 2), reference());
    packed.hold(&mixture, 8).unwrap();
    tensors.hold(&mixture, 8).unwrap();
    for adapted in [true, false] {
        let found = packed.scores(&batch, adapted, &mut || ()).unwrap();
        let expected = tensors.scores(&batch, adapted, &mut || ()).unwrap();
        assert!(apart(&found.nll, &expected.nll) < 1e-5);
        assert_eq!(found.hit, expected.hit);
        assert_eq!(found.priors.len(), if adapted { 3 } else { 0 });
        assert_eq!(found.priors.len(), expected.priors.len());
        for (found, expected) in found.priors.iter().zip(&expected.priors) {
            assert!(apart(found, expected) < 1e-5);
        }
    }
}

#[test]
fn new_weights_are_taken_and_strange_ones_refused() {
    let (first, batch) = (mixture(&lora()), batch());
    let mut trainer = packed(Precision::Half, 2);
    let weights = vec![0.1; batch.target_tokens()];
    let goals = Goals { weights: &weights, kept: &[], routers: None };
    assert!(trainer.pass(&batch, &goals, &mut [], &mut || ()).is_err(), "nothing is held");
    trainer.hold(&first, 80).unwrap();
    let before = trainer.scores(&batch, true, &mut || ()).unwrap();
    let numbers: Vec<Vec<f32>> =
        first.parameters().iter().map(|p| p.tensor.flatten_all().unwrap().to_vec1().unwrap()).collect();
    let doubled: Vec<Vec<f32>> = numbers.iter().map(|all| all.iter().map(|x| 2.0 * x).collect()).collect();
    trainer.set_weights(&doubled).unwrap();
    assert_ne!(before, trainer.scores(&batch, true, &mut || ()).unwrap());
    trainer.set_weights(&numbers).unwrap();
    assert_eq!(before, trainer.scores(&batch, true, &mut || ()).unwrap());
    assert!(trainer.set_weights(&numbers[1..]).is_err());
    let strange = Batch::pack(&[Encoded { ids: vec![1, 29], target: vec![true; 2] }]);
    assert!(trainer.scores(&strange, false, &mut || ()).is_err(), "a token that the model does not know");
    let long = Batch::pack(&[Encoded { ids: vec![1; 65], target: vec![true; 65] }]);
    assert!(trainer.scores(&long, false, &mut || ()).is_err(), "longer than the context");
    let goals = Goals { weights: &weights[1..], kept: &[], routers: None };
    assert!(trainer.pass(&batch, &goals, &mut zeros(&first), &mut || ()).is_err(), "a weight for each target");
}

#[test]
fn weights_that_are_no_numbers_are_refused() {
    for bad in [f32::NAN, f32::INFINITY] {
        let mut give = |name: &str, shape: &[usize], take: &mut dyn FnMut(usize, &[f32])| {
            let width = *shape.last().unwrap();
            let mut numbers = weight(name, shape);
            if name.ends_with("layers.2.mlp.up_proj.weight") {
                numbers[5] = bad;
            }
            numbers.chunks_exact(width).enumerate().for_each(|(row, numbers)| take(row, numbers));
            Ok(())
        };
        assert!(Trainer::open(config(), &mut give, Precision::Half, 1).is_err());
    }
    let mut short = |_: &str, _: &[usize], take: &mut dyn FnMut(usize, &[f32])| {
        take(0, &[1.0]);
        Ok(())
    };
    assert!(Trainer::open(config(), &mut short, Precision::Single, 1).is_err());
}
