//! Training over the reference model's own file: long documents, gradients beside those of tensors, memory beside what was
//! foretold.

use super::cached;
use candle_core::Device;
use empathd_model::adapter::{Mixture, ParameterKind};
use empathd_model::counter::{Counter, Site};
use empathd_model::gguf;
use empathd_model::infer::Model;
use empathd_model::train::{Batch, Encoded, Goals, Gradients, Precision};
use empathd_proto::engine::{MixtureSpec, RopeSpec, ServingSpec};

/// Longest document of the reference model.
const LONG: usize = 8192;
/// Memory of a pass over what was foretold, at least and at most.
const MEMORY_OVER_FORETOLD: (f64, f64) = (0.5, 1.15);

fn model(serving: &ServingSpec) -> Model {
    let path = cached();
    let sha256 = gguf::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).sha256().unwrap();
    Model::open(&path, sha256, &Device::Cpu, serving, 2).unwrap()
}

/// A shared part and routed experts whose B sides are not zero, so that every side has a gradient.
fn mixture(model: &Model) -> Mixture {
    let spec = MixtureSpec {
        shared_rank: 4,
        expert_rank: 4,
        experts: vec![None; 3],
        top_k: 2,
        session_prior: true,
        ..MixtureSpec::default()
    };
    let fresh = Mixture::init(model.config(), &spec, 1).unwrap();
    let kinds: Vec<ParameterKind> = fresh.parameters().iter().map(|p| p.kind).collect();
    let moved = |index: usize, tensor: &candle_core::Tensor| {
        if kinds[index] != ParameterKind::B {
            return Ok(tensor.clone());
        }
        let (site, counter) = (Site::new("b", index as u64), Counter::new(3));
        let numbers: Vec<f32> =
            (0..tensor.elem_count() as u64).map(|i| 0.01 * counter.normal(site, i) as f32).collect();
        candle_core::Tensor::from_vec(numbers, tensor.dims(), &Device::Cpu)
    };
    fresh.map(moved).unwrap()
}

/// A document whose every token is learnt.
fn document(tokens: usize, vocab: usize) -> Batch {
    let id = |i: usize| u32::try_from((i * 7919 + i / 7) % vocab).unwrap();
    Batch::pack(&[Encoded { ids: (0..tokens).map(id).collect(), target: vec![true; tokens] }])
}

/// Loss and gradients of one document.
fn found(gradients: &mut Gradients, mixture: &Mixture, batch: &Batch) -> (f64, Vec<Vec<f32>>) {
    gradients.hold(mixture, batch.tokens()).unwrap();
    let mut sums: Vec<Vec<f32>> = mixture.parameters().iter().map(|p| vec![0.0; p.tensor.elem_count()]).collect();
    let weights = vec![1.0 / batch.target_tokens() as f32; batch.target_tokens()];
    let goals = Goals { weights: &weights, kept: &[], routers: None };
    let lost = gradients.pass(batch, &goals, &mut sums, &mut || ()).unwrap();
    (lost.language, sums)
}

fn size(numbers: impl Iterator<Item = f64>) -> f64 {
    numbers.map(|x| x * x).sum::<f64>().sqrt()
}

/// A line of this process's status in bytes.
fn memory(line: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let found = status.lines().find_map(|text| text.strip_prefix(line)).unwrap();
    1024.0 * found.trim().trim_end_matches(" kB").parse::<f64>().unwrap()
}

/// Set in a process that runs one test, whose memory is then its own.
const ALONE: &str = "EMPATHD_TEST_ALONE";

#[expect(clippy::disallowed_methods, reason = "how a process of this test knows that it is one")]
fn is_alone() -> bool {
    std::env::var_os(ALONE).is_some()
}

/// Runs one test in a process of its own.
fn alone(test: &str) {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "--nocapture", test]).env(ALONE, "1");
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    print!("{said}");
    assert!(output.status.success() && said.contains("1 passed"), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
#[ignore = "slow; needs the reference model in the cache"]
fn a_document_as_long_as_the_context_trains_in_the_foretold_memory() {
    if !is_alone() {
        return alone("reference::a_document_as_long_as_the_context_trains_in_the_foretold_memory");
    }
    let model = model(&ServingSpec::default());
    let (mixture, mut gradients) = (mixture(&model), model.gradients(2).unwrap());
    let batch = document(LONG, model.config().vocab);
    let before = memory("VmRSS:");
    let foretold = gradients.bytes_for(mixture.spec(), LONG) as f64;
    let (loss, sums) = found(&mut gradients, &mixture, &batch);
    // The sums are the caller's.
    let own = 4.0 * sums.iter().map(Vec::len).sum::<usize>() as f64;
    let ratio = (memory("VmHWM:") - before - own) / foretold;
    println!("loss {loss:.4}, memory {ratio:.2} of the foretold {:.0} MiB", foretold / 1_048_576.0);
    assert!(loss.is_finite() && loss > 1.0, "{loss}");
    for (sum, parameter) in sums.iter().zip(mixture.parameters()) {
        // Routers that nobody asks anything of learn from the gates alone; every other side must hear the document.
        let heard = sum.iter().all(|x| x.is_finite()) && sum.iter().any(|x| *x != 0.0);
        assert!(heard || parameter.name.contains("session"), "{} has no gradient", parameter.name);
    }
    assert!((MEMORY_OVER_FORETOLD.0..=MEMORY_OVER_FORETOLD.1).contains(&ratio), "{ratio}");
}

#[test]
#[ignore = "slow; needs the reference model in the cache"]
fn gradients_over_the_real_file_are_those_of_tensors() {
    let yarn = RopeSpec::Yarn { factor: 2.0, original_context: 8192 };
    for serving in [ServingSpec::default(), ServingSpec { rope: Some(yarn), ..ServingSpec::default() }] {
        let model = model(&serving);
        let (mixture, batch) = (mixture(&model), document(96, model.config().vocab));
        let file = gguf::open(&cached()).unwrap();
        let mut rows = |name: &str, shape: &[usize], take: &mut dyn FnMut(usize, &[f32])| {
            file.rows(name, shape, take).map_err(|error| candle_core::Error::wrap(error).into())
        };
        let mut single = Gradients::open(model.config().clone(), &mut rows, Precision::Single, 2).unwrap();
        let mut tensors = Gradients::reference(model.backbone().unwrap());
        let (loss, sums) = found(&mut single, &mixture, &batch);
        let (expected_loss, expected) = found(&mut tensors, &mixture, &batch);
        assert!((loss - expected_loss).abs() < 1e-4 * expected_loss, "{loss} is not {expected_loss}");
        // What has no gradient at all, such as the weight of a prior that says nothing yet, has rounding of the whole.
        let least = 1e-6 * size(expected.iter().flatten().map(|x| f64::from(*x)));
        for ((sum, expected), parameter) in sums.iter().zip(&expected).zip(mixture.parameters()) {
            let off = size(sum.iter().zip(expected).map(|(a, b)| f64::from(*a) - f64::from(*b)));
            let all = size(expected.iter().map(|x| f64::from(*x)));
            assert!(off <= (2e-3 * all).max(least), "{}: {off} of {all}", parameter.name);
        }
    }
}
