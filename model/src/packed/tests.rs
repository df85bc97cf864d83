//! Packed passes against the plain reference, and the same bits for every shape of work.

use super::executor::Buffers;
use super::*;
use crate::adapter::{ExpertLoad, Mixture};
use crate::backbone::{Backbone, KvCache};
use crate::config::{Architecture, BackboneConfig, RopeScaling};
use crate::infer::compute::{LogitRows, ServingAdapter, SlotId, Span};
use crate::kernels::{Instructions, PackKind, PackedMatrix, WeightFormat};
use crate::ops::check::random;
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use empathd_proto::engine::{CrisisFloor, LinearName, MixtureSpec};
use empathd_proto::record::Domain;
use std::sync::Arc;

fn config() -> BackboneConfig {
    BackboneConfig {
        architecture: Architecture::Llama,
        vocab: 83,
        hidden: 256,
        ffn: 512,
        layers: 2,
        heads: 6,
        kv_heads: 2,
        head_dim: 40,
        context: 700,
        rms_eps: 1e-5,
        rope_theta: 1e4,
        rope_scaling: RopeScaling::None,
        tied_head: true,
    }
}

/// The same random weights, packed and plain. Where a row is no whole number of blocks it is kept in F16.
fn model(config: &BackboneConfig, kind: GgmlDType, format: WeightFormat) -> (Arc<PackedWeights>, Backbone) {
    let weight = |name: &str, shape: &[usize]| -> (QTensor, WeightFormat) {
        let seed = name.bytes().map(u64::from).fold(7, |seed, byte| (seed * 31 + byte) % 100_003);
        let plain = random(shape, seed).to_device(&Device::Cpu).unwrap();
        let whole = shape.len() == 2 && shape[1].is_multiple_of(kind.block_size());
        let (kind, format) = match shape.len() {
            1 => (GgmlDType::F32, WeightFormat::F32),
            _ if whole => (kind, format),
            _ => (GgmlDType::F16, WeightFormat::F16),
        };
        let plain = if shape.len() == 1 { plain.affine(0.2, 1.0) } else { plain.affine(0.12, 0.0) };
        (QTensor::quantize(&plain.unwrap(), kind).unwrap(), format)
    };
    let plain = |name: &str, shape: &[usize]| weight(name, shape).0.dequantize(&Device::Cpu);
    let backbone = Backbone::new(config.clone(), &mut { plain }, &Device::Cpu).unwrap();
    let kind = |name: &str, shape: &[usize]| Ok(PackKind::of(weight(name, shape).1));
    let packed = PackedWeights::new(config.clone(), &kind, &mut |name, shape, arena| {
        let (tensor, format) = weight(name, shape);
        let (rows, cols) = if let [rows, cols] = *shape { (rows, cols) } else { (1, shape[0]) };
        Ok(PackedMatrix::pack_in(arena, format, rows, cols, &tensor.data().unwrap(), &|row| row).unwrap())
    });
    (Arc::new(packed.unwrap()), backbone)
}

fn mixture(config: &BackboneConfig, experts: usize, seed: u64) -> Mixture {
    let top_k = u32::try_from(experts.min(2)).unwrap();
    let spec = MixtureSpec {
        shared_rank: 4,
        expert_rank: 3,
        experts: vec![None; experts],
        top_k,
        scale: 2.0,
        ..MixtureSpec::default()
    };
    let fresh = Mixture::init(config, &spec, seed).unwrap();
    let altered =
        |i: usize, t: &Tensor| random(t.dims(), seed * 1000 + i as u64).to_device(&Device::Cpu)?.affine(0.05, 0.0);
    fresh.map(altered).unwrap()
}

fn adapter(config: &BackboneConfig, experts: usize, seed: u64) -> Arc<ServingAdapter> {
    Arc::new(ServingAdapter::packed(mixture(config, experts, seed), config).unwrap())
}

/// One that hears what the session is about, and whose crisis expert has a floor.
fn hearing(config: &BackboneConfig, seed: u64) -> Arc<ServingAdapter> {
    let spec = MixtureSpec {
        experts: vec![None, Some(Domain::Crisis), None, None],
        session_prior: true,
        crisis_floor: Some(CrisisFloor { above: 0.3, floor: 0.6 }),
        shared_on: vec![LinearName::Query, LinearName::Down],
        ..mixture(config, 4, seed).spec().clone()
    };
    let fresh = Mixture::init(config, &spec, seed).unwrap();
    let altered = |i: usize, t: &Tensor| match t.rank() {
        1 => Tensor::new(&[1.5f32], &Device::Cpu),
        _ => random(t.dims(), seed * 1000 + i as u64).to_device(&Device::Cpu)?.affine(0.05, 0.0),
    };
    Arc::new(ServingAdapter::packed(fresh.map(altered).unwrap(), config).unwrap())
}

fn executor(weights: &Arc<PackedWeights>, threads: usize, instructions: Instructions) -> Executor {
    Executor::with_instructions(Arc::clone(weights), 0, threads, instructions).unwrap()
}

fn ids(count: usize, seed: usize) -> Vec<u32> {
    (0..count).map(|i| u32::try_from((i * 37 + seed * 11) % 83).unwrap()).collect()
}

fn span<'a>(slot: usize, ids: &'a [u32], adapter: Option<&'a Arc<ServingAdapter>>, logits: LogitRows) -> Span<'a> {
    Span { slot: SlotId(slot), ids, adapter, logits }
}

/// Root of the mean square of the difference over that of the expectation.
fn apart(found: &[f32], expected: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let wrong: f64 = found.iter().zip(expected).map(|(a, b)| square(f64::from(a - b))).sum();
    (wrong / expected.iter().map(|b| square(f64::from(*b))).sum::<f64>()).sqrt()
}

/// Each format within its bound. Keys and values have 11 bits, the inputs of quantised weights and of adapters 8 with a scale per
/// 32 numbers (0.5 % of noise each); two layers of noise multiply that by about four. A wrong layout is off by 100 %.
#[test]
fn logits_are_near_the_reference_in_every_format() {
    let formats = [
        (GgmlDType::F32, WeightFormat::F32, 2e-3),
        (GgmlDType::F16, WeightFormat::F16, 2e-3),
        (GgmlDType::BF16, WeightFormat::Bf16, 2e-3),
        (GgmlDType::Q4_0, WeightFormat::Q4_0, 6e-2),
        (GgmlDType::Q4_1, WeightFormat::Q4_1, 6e-2),
        (GgmlDType::Q8_0, WeightFormat::Q8_0, 6e-2),
        (GgmlDType::Q4K, WeightFormat::Q4K, 6e-2),
        (GgmlDType::Q6K, WeightFormat::Q6K, 6e-2),
    ];
    let config = config();
    let ids = ids(70, 1);
    for (kind, format, bound) in formats {
        let (weights, backbone) = model(&config, kind, format);
        for adapter in [None, Some(adapter(&config, 4, 3)), Some(adapter(&config, 0, 4)), Some(hearing(&config, 3))] {
            let mixture = adapter.as_ref().map(|adapter| &adapter.mixture);
            let expected = backbone.logits_all(&ids, mixture).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            for instructions in Instructions::available() {
                let mut executor = executor(&weights, 2, instructions);
                let found = executor.pass(&[span(0, &ids, adapter.as_ref(), LogitRows::All)], &mut []).unwrap();
                let bound = if adapter.is_some() { bound + 8e-3 } else { bound };
                let apart = apart(found, &expected);
                assert!(apart < bound, "{format:?} {instructions:?} adapter {}: {apart}", adapter.is_some());
            }
        }
    }
}

/// A number in a range, by case and purpose.
fn pick(case: u64, purpose: u64, range: std::ops::RangeInclusive<usize>) -> usize {
    let span = (range.end() - range.start() + 1) as u64;
    let mixed = (case * 977 + purpose * 131 + 7).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    range.start() + usize::try_from((mixed >> 33) % span).unwrap()
}

fn random_shape(case: u64) -> BackboneConfig {
    let kv_heads = pick(case, 0, 1..=3);
    BackboneConfig {
        vocab: pick(case, 1, 83..=120),
        hidden: pick(case, 2, 1..=9) * if case.is_multiple_of(2) { 32 } else { 25 },
        ffn: pick(case, 3, 2..=12) * if case.is_multiple_of(3) { 31 } else { 32 },
        layers: pick(case, 4, 1..=3),
        heads: kv_heads * pick(case, 5, 1..=5),
        kv_heads,
        head_dim: 2 * pick(case, 6, 1..=40),
        tied_head: case % 4 < 2,
        ..config()
    }
}

/// Shapes whose sides are no multiples of tiles, blocks and registers, in every set of instructions. Narrow models have more noise.
#[test]
fn random_shapes_are_near_the_reference() {
    let kinds = [
        (GgmlDType::F32, WeightFormat::F32, 1e-2),
        (GgmlDType::Q4_1, WeightFormat::Q4_1, 0.15),
        (GgmlDType::BF16, WeightFormat::Bf16, 1e-2),
        (GgmlDType::Q8_0, WeightFormat::Q8_0, 0.15),
    ];
    for (case, (kind, format, bound)) in (0..20).zip(kinds.into_iter().cycle()) {
        let config = random_shape(case);
        let (weights, backbone) = model(&config, kind, format);
        let adapter = adapter(&config, pick(case, 7, 2..=9), case + 1);
        let ids = ids(pick(case, 8, 1..=120), 3);
        for adapter in [None, Some(&adapter)] {
            let mixture = adapter.map(|adapter| &adapter.mixture);
            let expected = backbone.logits_all(&ids, mixture).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let bound = if adapter.is_some() { bound + 0.05 } else { bound };
            for instructions in Instructions::available() {
                let mut executor = executor(&weights, 2, instructions);
                let found = executor.pass(&[span(0, &ids, adapter, LogitRows::All)], &mut []).unwrap();
                let apart = apart(found, &expected);
                assert!(apart < bound, "{config:?} {format:?} {instructions:?} {}: {apart}", ids.len());
            }
        }
    }
}

/// What three conversations with different generations give when they are read alone and whole.
fn alone(weights: &Arc<PackedWeights>, talks: &[(Vec<u32>, Option<Arc<ServingAdapter>>)]) -> Vec<Vec<f32>> {
    let each = |(slot, (ids, adapter)): (usize, &(Vec<u32>, Option<Arc<ServingAdapter>>))| {
        let mut executor = executor(weights, 1, Instructions::best());
        let (head, tail) = ids.split_at(ids.len() - 40);
        executor.pass(&[span(slot, head, adapter.as_ref(), LogitRows::None)], &mut []).unwrap();
        executor.pass(&[span(slot, tail, adapter.as_ref(), LogitRows::All)], &mut []).unwrap().to_vec()
    };
    talks.iter().enumerate().map(each).collect()
}

#[test]
fn neither_neighbours_nor_pieces_nor_threads_change_a_bit() {
    let config = config();
    let (weights, _) = model(&config, GgmlDType::Q4_1, WeightFormat::Q4_1);
    let (one, other) = (hearing(&config, 3), adapter(&config, 6, 5));
    let talks = [
        (ids(120, 1), Some(Arc::clone(&one))),
        (ids(330, 2), None),
        (ids(90, 3), Some(other)),
        (ids(75, 4), Some(one)),
    ];
    let expected = alone(&weights, &talks);
    for (threads, size) in [(2, 1), (2, 7), (1, 16), (3, 32)] {
        let mut executor = executor(&weights, threads, Instructions::best());
        for (slot, (ids, adapter)) in talks.iter().enumerate() {
            for piece in ids[..ids.len() - 40].chunks(size * 13) {
                executor.pass(&[span(slot, piece, adapter.as_ref(), LogitRows::None)], &mut []).unwrap();
            }
        }
        let mut found = vec![Vec::new(); talks.len()];
        for at in (0..40).step_by(size) {
            let piece = |(slot, (ids, adapter)): (usize, &'_ (Vec<u32>, Option<Arc<ServingAdapter>>))| {
                let from = ids.len() - 40 + at;
                (slot, ids[from..ids.len().min(from + size)].to_vec(), adapter.clone())
            };
            let pieces: Vec<_> = talks.iter().enumerate().map(piece).collect();
            let spans: Vec<_> = pieces.iter().map(|(s, ids, a)| span(*s, ids, a.as_ref(), LogitRows::All)).collect();
            let logits = executor.pass(&spans, &mut []).unwrap();
            let each = pieces[0].1.len() * config.vocab;
            found.iter_mut().zip(logits.chunks(each)).for_each(|(found, logits)| found.extend_from_slice(logits));
        }
        for (slot, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let same = found.iter().zip(expected).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same && found.len() == expected.len(), "talk {slot}, {threads} threads, pieces of {size}");
        }
    }
}

#[test]
fn routing_is_counted_as_the_reference_counts_it() {
    let config = config();
    let (weights, backbone) = model(&config, GgmlDType::F32, WeightFormat::F32);
    for adapter in [adapter(&config, 5, 3), hearing(&config, 3)] {
        counted_alike(&weights, &backbone, &adapter);
    }
}

fn counted_alike(weights: &Arc<PackedWeights>, backbone: &Backbone, adapter: &Arc<ServingAdapter>) {
    let (config, ids) = (config(), ids(50, 1));
    let mut expected = ExpertLoad::default();
    let mut cache = KvCache::new(&config, &Device::Cpu);
    backbone.forward(&ids, &mut cache, Some(&adapter.mixture), Some(&mut expected)).unwrap();
    let mut executor = executor(weights, 2, Instructions::best());
    let mut loads = vec![ExpertLoad::default(); 2];
    let spans = [span(0, &[1, 2], None, LogitRows::None), span(3, &ids, Some(adapter), LogitRows::Last)];
    executor.pass(&spans, &mut loads).unwrap();
    assert_eq!(loads[0], ExpertLoad::default());
    // A choice near a tie may fall otherwise: nine tenths are the same at least.
    let moved: u64 = expected.chosen.iter().zip(&loads[1].chosen).map(|(a, b)| a.abs_diff(*b)).sum();
    assert!(moved <= 20 && loads[1].chosen.iter().sum::<u64>() == 50 * 2 * 2, "{moved}");
}

#[test]
fn slots_forget_and_copy() {
    let config = config();
    let (weights, _) = model(&config, GgmlDType::Q8_0, WeightFormat::Q8_0);
    let mut executor = executor(&weights, 2, Instructions::best());
    let ids = ids(60, 1);
    let last = |executor: &mut Executor, slot: usize, ids: &[u32]| {
        executor.pass(&[span(slot, ids, None, LogitRows::Last)], &mut []).unwrap().to_vec()
    };
    let expected = last(&mut executor, 0, &ids);
    let token = executor.wipe(SlotId(0)) / 60;
    assert!(token > 0 && executor.len(SlotId(0)) == 0);
    last(&mut executor, 1, &ids[..30]);
    last(&mut executor, 1, &[5, 6, 7]);
    assert_eq!(executor.truncate(SlotId(1), 30), 3 * token);
    assert_eq!(executor.truncate(SlotId(1), 30), 0);
    executor.copy_prefix(SlotId(1), SlotId(2), 25).unwrap();
    assert_eq!(last(&mut executor, 1, &ids[30..]), expected);
    assert_eq!(last(&mut executor, 2, &ids[25..]), expected);
    assert!(executor.copy_prefix(SlotId(1), SlotId(2), 25).is_err(), "the slot is not empty");
    assert!(executor.copy_prefix(SlotId(1), SlotId(1), 25).is_err());
    assert!(executor.copy_prefix(SlotId(1), SlotId(4), 61).is_err());
    assert!(executor.pass(&[span(0, &[83], None, LogitRows::Last)], &mut []).is_err());
    let wide = vec![span(0, &[1; 200], None, LogitRows::All)];
    assert!(executor.pass(&wide, &mut []).is_err(), "more logits than there is room for");
}

#[test]
fn what_is_forgotten_is_no_longer_heard() {
    let config = config();
    let (weights, _) = model(&config, GgmlDType::Q8_0, WeightFormat::Q8_0);
    let (ids, adapter) = (ids(60, 1), hearing(&config, 3));
    let mut executor = executor(&weights, 2, Instructions::best());
    let last = |executor: &mut Executor, slot: usize, ids: &[u32], adapter: Option<&Arc<ServingAdapter>>| {
        executor.pass(&[span(slot, ids, adapter, LogitRows::Last)], &mut []).map(<[f32]>::to_vec)
    };
    let expected = last(&mut executor, 0, &ids, Some(&adapter)).unwrap();
    let token = executor.wipe(SlotId(0)) / 60;
    last(&mut executor, 1, &ids[..30], Some(&adapter)).unwrap();
    last(&mut executor, 1, &[5, 6, 7], Some(&adapter)).unwrap();
    assert_eq!(executor.truncate(SlotId(1), 30), 3 * token, "drafts that were wrong");
    executor.copy_prefix(SlotId(1), SlotId(2), 25).unwrap();
    assert_eq!(last(&mut executor, 1, &ids[30..], Some(&adapter)).unwrap(), expected);
    assert_eq!(last(&mut executor, 2, &ids[25..], Some(&adapter)).unwrap(), expected);
    last(&mut executor, 3, &ids[..2], None).unwrap();
    let deaf = token - executor.wipe(SlotId(3)) / 2;
    assert_eq!(deaf, 4 * size_of::<f32>() as u64, "who hears nothing keeps nothing");
    last(&mut executor, 3, &ids[..2], None).unwrap();
    assert!(last(&mut executor, 3, &ids[2..], Some(&adapter)).is_err(), "it has not heard the beginning");
    executor.wipe(SlotId(3));
    assert_eq!(last(&mut executor, 3, &ids, Some(&adapter)).unwrap(), expected);
}

/// Where every buffer lies and how large it is.
fn places(buffers: &Buffers) -> Vec<(usize, usize)> {
    let b = buffers;
    let floats = [&b.x, &b.seen, &b.q, &b.k, &b.v, &b.mixed, &b.gate, &b.up, &b.last, &b.logits];
    let floats = floats.into_iter().chain([&b.adapted.h, &b.adapted.factors, &b.adapted.priors]);
    let floats = floats.map(|v| (v.as_ptr() as usize, v.capacity()));
    let runs = [&b.adapted.uses].map(|v| (v.as_ptr() as usize, v.capacity()));
    let others = [
        (b.spans.as_ptr() as usize, b.spans.capacity()),
        (b.adapted.groups.as_ptr() as usize, b.adapted.groups.capacity()),
        (b.adapted.tiles.as_ptr() as usize, b.adapted.tiles.capacity()),
    ];
    floats.chain(runs).chain(others).collect()
}

#[test]
fn buffers_stay_where_they_are() {
    let config = config();
    let (weights, _) = model(&config, GgmlDType::Q4_1, WeightFormat::Q4_1);
    let mut executor = executor(&weights, 2, Instructions::best());
    let (ids, adapter) = (ids(100, 1), adapter(&config, 4, 3));
    executor.pass(&[span(0, &ids, Some(&adapter), LogitRows::Last)], &mut []).unwrap();
    let before = places(&executor.buffers);
    for token in 0..20 {
        let next = [token];
        let spans = [span(0, &next, Some(&adapter), LogitRows::Last), span(1, &next, None, LogitRows::All)];
        executor.pass(&spans, &mut []).unwrap();
    }
    assert_eq!(places(&executor.buffers), before);
}

#[test]
fn weights_that_are_no_numbers_are_refused_by_name() {
    for (format, kind) in [(WeightFormat::F32, PackKind::F32), (WeightFormat::Q4_1, PackKind::Q4)] {
        for bad in [f32::NAN, f32::INFINITY] {
            let packed = PackedWeights::new(config(), &|_, _| Ok(kind), &mut |name, shape, _| {
                let (rows, cols) = if let [rows, cols] = *shape { (rows, cols) } else { (1, shape[0]) };
                let mut values = vec![0.5; rows * cols];
                if name.contains("1.self_attn.v_proj") {
                    values[rows * cols - 7] = bad;
                }
                Ok(PackedMatrix::from_f32(kind, rows, cols, &values))
            });
            let error = packed.err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.contains("model.layers.1.self_attn.v_proj.weight"), "{format:?}: {error}");
        }
    }
}

#[test]
fn shapes_that_the_kernels_do_not_take_are_refused_with_the_way_out() {
    let wide = BackboneConfig { head_dim: 514, ..config() };
    let packed = PackedWeights::new(wide, &|_, _| Ok(PackKind::F32), &mut |_, _, _| unreachable!("nothing is read"));
    assert!(packed.err().unwrap().to_string().contains("`reference`"));
}
