//! How alike the experts' narrowing sides are, and the push that keeps them apart. A function of the weights alone, added
//! once an optimiser step. Refuses to know passes.

use crate::adapter::{Linear, Mixture};
use crate::kernels::{Matrix, Threads, multiply};

/// Adds `weight` times the gradient of `Σ_{e<f} ‖A_e·A_fᵀ‖²` over all routed linear maps to `sums`, both in the order of
/// [`Mixture::parameters`]; returns the sum before its weight. With `G = A·Aᵀ` of the stacked experts, its own blocks cleared, the
/// sum is `½‖G‖²` and its gradient `2·G·A`.
pub(super) fn orthogonal(
    shape: &Mixture,
    layers: usize,
    weights: &[Vec<f32>],
    weight: f32,
    sums: &mut [Vec<f32>],
) -> f64 {
    let spec = shape.spec();
    let (experts, rank) = (spec.experts.len(), spec.expert_rank as usize);
    if experts < 2 || weight == 0.0 {
        return 0.0;
    }
    let mut total = 0.0;
    for index in 0..layers {
        let mut at = shape.layer_range(index).start;
        for linear in Linear::ALL {
            let Some(pair) = shape.layer(index).pair(linear) else { continue };
            if linear.is_routed() {
                let inner = weights[at].len() / (pair.shared + experts * rank);
                let routed = pair.shared * inner..;
                total += apart(&weights[at][routed.clone()], (experts, rank), weight, &mut sums[at][routed]);
            }
            at += 2;
        }
    }
    total
}

/// The same for the experts `a[experts·rank, in]` of one linear map.
fn apart(a: &[f32], (experts, rank): (usize, usize), weight: f32, sum: &mut [f32]) -> f64 {
    let rows = experts * rank;
    let inner = a.len() / rows;
    let stack = Matrix::new(a, rows, inner);
    let mut likeness = vec![0f32; rows * rows];
    multiply(&mut likeness, rows, stack, Matrix::new(a, rows, inner).transposed(), false, Threads::All);
    for (row, likeness) in likeness.chunks_exact_mut(rows).enumerate() {
        likeness[row / rank * rank..][..rank].fill(0.0);
    }
    let square: f64 = likeness.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
    likeness.iter_mut().for_each(|x| *x *= 2.0 * weight);
    multiply(sum, inner, Matrix::new(&likeness, rows, rows), Matrix::new(a, rows, inner), true, Threads::All);
    0.5 * square
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::tiny;
    use crate::ops::check::random;
    use empathd_proto::engine::{LinearName, MixtureSpec};

    fn shape() -> Mixture {
        let spec = MixtureSpec {
            shared_rank: 2,
            expert_rank: 3,
            experts: vec![None; 4],
            top_k: 2,
            shared_on: vec![LinearName::Query, LinearName::Down],
            ..MixtureSpec::default()
        };
        Mixture::init(&tiny(), &spec, 1).unwrap()
    }

    /// `Σ_{e<f} ‖A_e·A_fᵀ‖²` in f64.
    fn likeness(shape: &Mixture, weights: &[Vec<f32>]) -> f64 {
        let mut total = 0.0;
        for (parameter, numbers) in shape.parameters().iter().zip(weights) {
            if !(parameter.name.contains("mlp") && parameter.name.ends_with(".a")) {
                continue;
            }
            let inner = parameter.tensor.dims()[1];
            let rows: Vec<&[f32]> = numbers.chunks(inner).collect();
            let routed = &rows[rows.len() - 12..];
            for (i, one) in routed.iter().enumerate() {
                for other in routed.iter().skip((i / 3 + 1) * 3) {
                    total += one.iter().zip(*other).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>().powi(2);
                }
            }
        }
        total
    }

    #[test]
    fn it_is_the_likeness_of_experts_and_has_its_gradient() {
        let shape = shape();
        let weights: Vec<Vec<f32>> = shape
            .parameters()
            .iter()
            .enumerate()
            .map(|(i, p)| random(p.tensor.dims(), i as u64).flatten_all().unwrap().to_vec1().unwrap())
            .collect();
        let mut sums: Vec<Vec<f32>> = weights.iter().map(|w| vec![0.0; w.len()]).collect();
        let found = orthogonal(&shape, 2, &weights, 0.5, &mut sums);
        let expected = likeness(&shape, &weights);
        assert!((found - expected).abs() < 1e-5 * expected);
        let scale = sums.iter().flatten().fold(0f32, |top, x| top.max(x.abs()));
        for (which, parameter) in shape.parameters().iter().enumerate() {
            let at = weights[which].len() - 2;
            let moved = |step: f32| {
                let mut weights = weights.clone();
                weights[which][at] += step;
                likeness(&shape, &weights)
            };
            let expected = 0.5 * (moved(1e-2) - moved(-1e-2)) / 2e-2;
            let apart = (f64::from(sums[which][at]) - expected).abs();
            assert!(apart < 1e-3 * f64::from(scale), "{}: {} {expected}", parameter.name, sums[which][at]);
        }
    }
}
