//! The scheduler over a tiny real model, in both ways to compute, with and without adapters: not a bit of an answer
//! depends on who is answered beside it.

use super::answers::same;
use super::*;
use crate::adapter::Mixture;
use crate::backbone::tests::{hearing_mixture, random_mixture};
use crate::infer::Model;
use crate::infer::compute::Compute;
use crate::ops::check::device;
use empathd_proto::engine::ComputePath;
use sha2::{Digest, Sha256};
use std::time::Duration;
use tempfile::TempDir;

const WAYS: [ComputePath; 2] = [ComputePath::Packed, ComputePath::Reference];
const ANSWERS: u64 = 18;

/// A tiny model with two adapter generations, one of which hears what a session is about.
struct House {
    model: Model,
    adapters: [Option<AdapterGeneration>; 3],
    /// Its file.
    _folder: TempDir,
}

impl House {
    fn new(path: ComputePath, kv_mib: u32) -> Self {
        let folder = tempfile::tempdir().expect("scratch");
        let file = folder.path().join("tiny.gguf");
        tiny::write_gguf(&file, 1).expect("written");
        let sha256 = Sha256::digest(std::fs::read(&file).expect("read")).into();
        let spec = ServingSpec { path, kv_mib, ..ServingSpec::default() };
        let model = Model::open(&file, sha256, device(), &spec, 2).expect("opened");
        let generation = |number: u64, mixture: Mixture| {
            let serving = model.adapter(mixture).expect("fits");
            Some(AdapterGeneration { number, serving: Arc::new(serving) })
        };
        let plain = generation(1, random_mixture(&tiny::config(), 1));
        let hearing = generation(2, hearing_mixture(&tiny::config(), 2));
        Self { adapters: [None, plain, hearing], model, _folder: folder }
    }

    fn stage(&self, spec: &ServingSpec) -> Stage<Compute> {
        let desk = Arc::new(Desk::new(Arc::new(|| Duration::ZERO)));
        let compute = self.model.compute().expect("computes");
        let scheduler = Scheduler::new(compute, Arc::clone(&self.model.format), spec, desk);
        Stage { scheduler, seen: BTreeMap::new() }
    }

    /// Prompts of many lengths that repeat themselves; some begin alike.
    fn request(&self, number: u64) -> Request {
        let (kind, length) = (number as u32 % 2, 18 + 5 * (number as usize % 3));
        let temperature = if number.is_multiple_of(3) { 0.9 } else { 0.0 };
        // With few tokens to choose from an answer repeats itself.
        let logit_bias = if number % 3 == 1 { vec![(40, 50.0), (41, 50.0)] } else { vec![] };
        let sampling = SamplingSpec { temperature, seed: number, logit_bias, ..SamplingSpec::greedy() };
        Request {
            adapter: self.adapters[number as usize % 3].clone(),
            caller: CallerKey(number % 4),
            ignore_end: true,
            sampling: SamplingSpec { logprobs: Some(1), ..sampling },
            ..request(number, prompt(kind, length).repeat(1 + number as usize % 4), 20 + 4 * (number as u32 % 7))
        }
    }

    fn alone(&self, number: u64) -> Seen {
        self.stage(&plain()).answer(self.request(number))
    }
}

/// Whether two answers are the same: to the bit with own kernels, within rounding with candle's, whose sums depend on
/// the number of rows.
fn is_same(path: ComputePath, a: &Seen, b: &Seen) -> bool {
    let near = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-3;
    match path {
        ComputePath::Packed => same(a, b),
        ComputePath::Reference => a.text == b.text && a.logprobs.iter().zip(&b.logprobs).all(near),
    }
}

#[test]
fn an_answer_has_the_same_bits_alone_and_in_a_full_batch() {
    for path in WAYS {
        let house = House::new(path, 64);
        let alone: Vec<Seen> = (0..ANSWERS).map(|number| house.alone(number)).collect();
        assert!(alone[1].text != alone[2].text && alone[0].text != alone[3].text);
        for (drafting, prefix_cache) in [(false, false), (true, false), (false, true), (true, true)] {
            let mut stage = house.stage(&ServingSpec { drafting, prefix_cache, ..ServingSpec::default() });
            for number in 0..ANSWERS {
                stage.submit(house.request(number));
                stage.steps(u64::from(number % 5 == 4));
            }
            stage.run();
            for (number, alone) in (0..ANSWERS).zip(&alone) {
                assert!(
                    is_same(path, &stage.seen[&number], alone),
                    "{path:?} {number} drafts {drafting} shares {prefix_cache}"
                );
            }
            let status = stage.status();
            assert_eq!((status.draft_tokens.1 > 0, status.prefix_tokens.1 > 0), (drafting, prefix_cache), "{status:?}");
            assert!(status.expert_chosen.iter().all(|times| *times > 0));
        }
    }
}

#[test]
fn an_answer_that_lost_its_place_in_memory_has_the_same_bits() {
    for path in WAYS {
        let house = House::new(path, 0);
        let mut stage = house.stage(&ServingSpec::default());
        for number in 0..3 {
            stage.submit(Request { class: ServiceClass::Batch, ..house.request(number) });
        }
        stage.steps(8);
        assert!((0..3).all(|number| stage.tokens(number) > 0), "{:?}", stage.status());
        for number in 3..8 {
            let class = if number < 5 { ServiceClass::Crisis } else { ServiceClass::Interactive };
            stage.submit(Request { class, ..house.request(number) });
            stage.step();
        }
        assert!(stage.status().waiting[ServiceClass::Batch as usize] > 0, "{:?}", stage.status());
        stage.run();
        for number in 0..8 {
            assert!(is_same(path, &stage.seen[&number], &house.alone(number)), "{path:?} {number}");
        }
    }
}

#[test]
fn both_ways_to_compute_agree_on_how_likely_an_answer_begins() {
    let [packed, reference] = WAYS.map(|path| House::new(path, 64));
    for number in 0..ANSWERS {
        let (packed, reference) = (packed.alone(number), reference.alone(number));
        let apart = (packed.logprobs[0] - reference.logprobs[0]).abs();
        // Whether a session near the threshold is in a crisis may fall otherwise, and weighs more than a choice near a tie.
        let bound = if number % 3 == 2 { 0.2 } else { 0.1 };
        assert!(apart < bound, "{number}: {apart}");
        let shares = |seen: &Seen| seen.finished().expert_share.clone();
        let near = |(a, b): (&f32, &f32)| (a - b).abs() < bound;
        assert_eq!(shares(&packed).len(), if number % 3 == 0 { 0 } else { 3 });
        assert!(shares(&packed).iter().zip(&shares(&reference)).all(near));
    }
}
