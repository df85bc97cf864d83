//! The kernels of training on slices against the operations on tensors, which define them: both ways, within rounding.

use super::check::random;
use super::*;
use crate::kernels::backward::attention::{Attention, Heads};
use crate::kernels::backward::loss::{self, Aim, Score};
use crate::kernels::backward::{Span, SpanMut, gate as gates, norm, rope as turns, swiglu as gated};
use crate::kernels::{Instructions, Pool, Turns};
use candle_core::{Tensor, Var};
use std::sync::Arc;

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[track_caller]
fn near(found: &[f32], expected: &Tensor) {
    let expected = numbers(expected);
    assert_eq!(found.len(), expected.len());
    let scale = expected.iter().fold(1f32, |top, x| top.max(x.abs()));
    let worst = found.iter().zip(&expected).fold(0f32, |top, (a, b)| top.max((a - b).abs()));
    assert!(worst <= 1e-5 * scale, "{worst} of {scale}");
}

/// An operation's output, and the gradients of `sum(output · dy)`.
fn own(inputs: &[&Tensor], dy: &Tensor, f: impl Fn(&[Tensor]) -> candle_core::Result<Tensor>) -> (Tensor, Vec<Tensor>) {
    let vars: Vec<Tensor> = inputs.iter().map(|t| Var::from_tensor(t).unwrap().into_inner()).collect();
    let y = f(&vars).unwrap();
    let mut grads = (&y * dy).unwrap().sum_all().unwrap().backward().unwrap();
    (y, vars.iter().map(|var| grads.remove(var).unwrap()).collect())
}

#[test]
fn norm_and_activation_agree() {
    let (mut pool, set, width) = (Pool::new(2), Instructions::best(), 37);
    let (x, y, dy, w) = (random(&[9, 37], 1), random(&[9, 37], 2), random(&[9, 37], 3), random(&[37], 4));
    let (wide, other, d, scale) = (numbers(&x), numbers(&y), numbers(&dy), numbers(&w));
    let (mut out, mut inverse, mut dx) = (vec![0f32; 9 * 37], vec![0f32; 9], vec![0f32; 9 * 37]);
    let (out_norm, d_norm) = own(&[&x], &dy, |v| rms_norm(&v[0], &w, 1e-5));
    let to = SpanMut::packed(&mut out, width);
    norm::forward(&mut pool, set, Span::packed(&wide, width), (&scale, 1e-5), to, &mut inverse);
    near(&out, &out_norm);
    let (from, to) = (Span::packed(&d, width), SpanMut::packed(&mut dx, width));
    norm::backward(&mut pool, set, Span::packed(&wide, width), (&scale, &inverse), from, to);
    near(&dx, &d_norm[0]);
    let (out_gated, d_gated) = own(&[&x, &y], &dy, |v| swiglu(&v[0], &v[1]));
    let pair = (Span::packed(&wide, width), Span::packed(&other, width));
    gated::forward(&mut pool, set, pair, SpanMut::packed(&mut out, width));
    near(&out, &out_gated);
    let mut d_up = out.clone();
    let to = (SpanMut::packed(&mut dx, width), SpanMut::packed(&mut d_up, width));
    gated::backward(&mut pool, set, pair, Span::packed(&d, width), to, None);
    near(&dx, &d_gated[0]);
    near(&d_up, &d_gated[1]);
}

#[test]
fn positions_and_attention_agree() {
    let (mut pool, set) = (Pool::new(2), Instructions::best());
    let config = crate::config::tests::tiny();
    let (table, heads, lengths) = (RopeTable::new(&config), config.heads, [7, 1, 9]);
    let (wide, narrow) = (config.query_width(), config.kv_width());
    let positions: Arc<[u32]> = lengths.iter().flat_map(|len| 0..*len as u32).collect();
    let [q, dy] = [1, 4].map(|seed| random(&[17, wide], seed));
    let [k, v] = [2, 3].map(|seed| random(&[17, narrow], seed));
    let half = config.head_dim / 2;
    let kernel = Turns::new(half, 9, |position| table.turns(position));
    let (turned, back) = own(&[&q], &dy, |v| rope(&v[0], &table, &positions));
    let (mut rows, mut d) = (numbers(&q), numbers(&dy));
    turns::turn(&mut pool, set, SpanMut::packed(&mut rows, wide), &kernel, &positions, turns::Way::Forward);
    turns::turn(&mut pool, set, SpanMut::packed(&mut d, wide), &kernel, &positions, turns::Way::Back);
    near(&rows, &turned);
    near(&d, &back[0]);
    let segments: Arc<[Segment]> = Segment::packed(&lengths).into();
    let kv_heads = config.kv_heads;
    let (y, grads) = own(&[&q, &k, &v], &dy, |t| attention((&t[0], &t[1], &t[2]), heads, kv_heads, &segments));
    let [q, k, v, d] = [&q, &k, &v, &dy].map(numbers);
    let mut kernel = Attention::new(Heads { heads, kv_heads, head_dim: config.head_dim }, 9, 2);
    let (mut out, mut lse) = (vec![0f32; 17 * wide], vec![0f32; 17 * heads]);
    let spans = [Span::packed(&q, wide), Span::packed(&k, narrow), Span::packed(&v, narrow)];
    kernel.forward(&mut pool, set, spans, &lengths, SpanMut::packed(&mut out, wide), &mut lse);
    near(&out, &y);
    let spans = [spans[0], spans[1], spans[2], Span::packed(&out, wide)];
    let mut found = [wide, narrow, narrow].map(|width| vec![0f32; 17 * width]);
    let [dq, dk, dv] = &mut found;
    let to = [SpanMut::packed(dq, wide), SpanMut::packed(dk, narrow), SpanMut::packed(dv, narrow)];
    kernel.backward(&mut pool, set, spans, &lse, Span::packed(&d, wide), &lengths, to);
    found.iter().zip(&grads).for_each(|(found, expected)| near(found, expected));
}

#[test]
fn gates_and_loss_agree() {
    let (mut pool, set) = (Pool::new(2), Instructions::best());
    let (logits, dg) = (random(&[6, 5], 1), random(&[6, 5], 2));
    let policy = crate::adapter::route::Policy { top_k: 2, crisis: None };
    let choice = choose(&logits, |_, row, gates| (policy.decide(row, None, 0, gates).taken, 0)).unwrap();
    let (gates_of, d_logits) = own(&[&logits], &dg, |v| gate(&v[0], &choice));
    let mut d = numbers(&dg);
    gates::softmax_back(&numbers(&gates_of), &[], 5, &mut d);
    near(&d, &d_logits[0]);
    let (u, dh) = (random(&[6, 13], 3), random(&[6, 13], 4));
    let (h, grads) = own(&[&u, &logits], &dh, |v| spread(&v[0], &v[1], 3, 0.7));
    let (mut out, mut du, mut d_gates) = (vec![0f32; 6 * 13], vec![0f32; 6 * 13], vec![0f32; 30]);
    let (rows, gates, down) = (numbers(&u), numbers(&logits), numbers(&dh));
    let stack = (&gates[..], gates::Stack { shared: 3, rank: 2, scale: 0.7 });
    gates::spread(&mut pool, set, Span::packed(&rows, 13), stack, SpanMut::packed(&mut out, 13));
    let (from, to) = (Span::packed(&down, 13), SpanMut::packed(&mut du, 13));
    gates::spread_back(&mut pool, set, Span::packed(&rows, 13), stack, from, to, &mut d_gates);
    near(&out, &h);
    near(&du, &grads[0]);
    near(&d_gates, &grads[1]);
    // With a head of identity rows are their own logits.
    let (x, head) = (random(&[4, 11], 5), Tensor::eye(11, candle_core::DType::F32, super::check::device()).unwrap());
    let targets: Arc<[Target]> = (0..4).map(|i| Target { row: i, id: i * 3 % 11 }).collect();
    let one = Tensor::ones(1, candle_core::DType::F32, x.device()).unwrap();
    let (loss, dx) = own(&[&x], &one, |v| linear_cross_entropy(&v[0], &head, &targets, 0.5));
    let aims: Vec<Aim> = targets.iter().map(|target| Aim { id: target.id, weight: 0.5 }).collect();
    let (mut place, mut scores) = (numbers(&x), vec![Score::default(); 4]);
    near(loss::likelihood::<f32>(&mut pool, set, &mut place, &aims, &mut scores).data(), &dx[0]);
    near(&[scores.iter().map(|score| 0.5 * score.nll).sum::<f32>()], &loss);
}
