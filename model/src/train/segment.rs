//! Gradients of one pass, a layer at a time. Forward keeps the input of each layer; backward runs each layer once more
//! with a graph one layer deep. Where memory allows, the graphs of the last layers are kept instead of made again.

use super::batch::Batch;
use crate::adapter::{ExpertLoad, Mixture};
use crate::backbone::{Backbone, Routed};
use crate::config::BackboneConfig;
use crate::ops::host::host;
use crate::ops::{RouterGoal, linear_cross_entropy, router_loss};
use candle_core::{Result, Tensor, Var};
use std::sync::Arc;

/// Memory for graphs that are kept between forward and backward.
const GRAPH_BYTES_MAX: usize = 2 << 30;
/// Weight of the balance term beside the label term of routers.
const BALANCE: f32 = 0.1;
/// Weight of the square of the routers' logsumexp beside the label term.
const LOGIT_SQUARE: f32 = 0.01;

/// What routers are told about the rows of a pass.
pub struct RouterPlan {
    /// For each row the wanted share of each expert, rows summing to one.
    pub wanted: Arc<[f32]>,
    /// For each expert the share of choices it should have.
    pub prior: Arc<[f32]>,
    /// Weight of the routers' own loss in this pass.
    pub weight: f32,
    /// For each layer and row the experts it must take; 0 lets the router choose.
    pub forced: Option<Vec<Vec<u64>>>,
}

/// One pass whose gradients are wanted.
pub struct Work<'a> {
    /// Frozen weights.
    pub base: &'a Backbone,
    /// Trained tensors, each a candle variable.
    pub mixture: &'a Mixture,
    /// Conversations.
    pub batch: &'a Batch,
    /// Weight of each target's loss: one over the targets of the optimiser step.
    pub weight: f32,
    /// What routers are told, unless there are none.
    pub routers: Option<&'a RouterPlan>,
}

/// What forward leaves for backward.
struct Kept {
    input: Var,
    /// The graph, when it was kept.
    output: Option<(Tensor, Option<Routed>)>,
}

impl Work<'_> {
    /// Adds the gradient of each parameter, in the order of [`Mixture::parameters`], to `sums`, and the routing to `load`.
    /// Returns the weighted language loss of the pass.
    ///
    /// # Errors
    /// A tensor operation failed.
    pub fn gradients(
        &self,
        sums: &mut [Vec<f32>],
        load: &mut ExpertLoad,
        between_layers: &mut dyn FnMut(),
    ) -> Result<f64> {
        let (kept, last) = self.forward(load, between_layers)?;
        let (loss, mut d_stream) = self.loss(last)?;
        let per_layer = sums.len() / kept.len().max(1);
        for (index, kept) in kept.into_iter().enumerate().rev() {
            let sums = &mut sums[index * per_layer..][..per_layer];
            d_stream = self.backward(index, kept, &d_stream, sums)?;
            between_layers();
        }
        Ok(loss)
    }

    fn run(&self, index: usize, x: &Tensor) -> Result<(Tensor, Option<Routed>)> {
        let forced = self.routers.and_then(|r| r.forced.as_ref()).map(|f| f[index].as_slice());
        self.base.layer_forward(index, x, &self.batch.pass, Some(self.mixture), forced)
    }

    fn forward(&self, load: &mut ExpertLoad, between_layers: &mut dyn FnMut()) -> Result<(Vec<Kept>, Tensor)> {
        let layers = self.base.config().layers;
        let graphs = GRAPH_BYTES_MAX / graph_bytes(self.base.config(), self.batch.tokens()).max(1);
        let mut x = self.base.embed(&self.batch.ids)?;
        let mut all = Vec::with_capacity(layers);
        for index in 0..layers {
            let input = Var::from_tensor(&x)?;
            let (next, routed) = self.run(index, input.as_tensor())?;
            if let Some(routed) = &routed {
                load.count(&routed.choice, &routed.gates)?;
            }
            x = next.detach();
            let output = (layers - index <= graphs).then_some((next, routed));
            all.push(Kept { input, output });
            between_layers();
        }
        Ok((all, x))
    }

    /// The loss and the gradient of the stream after the last layer.
    fn loss(&self, last: Tensor) -> Result<(f64, Tensor)> {
        let last = Var::from_tensor(&last)?;
        let normed = self.base.normed(last.as_tensor())?;
        let loss = linear_cross_entropy(&normed, self.base.head(), &self.batch.targets, self.weight)?;
        let mut grads = loss.backward()?;
        let value = f64::from(loss.to_vec1::<f32>()?.iter().sum::<f32>());
        Ok((value, grads.remove(last.as_tensor()).map_or_else(|| last.zeros_like(), Ok)?))
    }

    /// Adds the gradients of a layer to `sums`; gives the gradient of the stream before it.
    fn backward(&self, index: usize, kept: Kept, d_stream: &Tensor, sums: &mut [Vec<f32>]) -> Result<Tensor> {
        let (output, routed) = match kept.output {
            Some(output) => output,
            None => self.run(index, kept.input.as_tensor())?,
        };
        let mut root = output.mul(d_stream)?.sum_all()?;
        if let (Some(plan), Some(routed)) = (self.routers, &routed) {
            root = (root + (plan.loss(routed)? * f64::from(plan.weight))?.sum_all()?)?;
        }
        let mut grads = root.backward()?;
        for (sum, parameter) in sums.iter_mut().zip(self.mixture.layer_parameters(index)) {
            if let Some(grad) = grads.remove(parameter.tensor) {
                let grad = grad.contiguous()?;
                sum.iter_mut().zip(host(&grad)?.iter()).for_each(|(sum, g)| *sum += g);
            }
        }
        grads.remove(kept.input.as_tensor()).map_or_else(|| d_stream.zeros_like(), Ok)
    }
}

impl RouterPlan {
    /// The router's own loss for what it decided.
    fn loss(&self, routed: &Routed) -> Result<Tensor> {
        let experts = self.prior.len();
        let mut counts = vec![0f32; experts];
        for bits in routed.choice.taken.iter() {
            counts.iter_mut().enumerate().for_each(|(e, count)| *count += (bits >> e & 1) as f32);
        }
        let total: f32 = counts.iter().sum();
        let excess = counts.iter().zip(self.prior.iter()).map(|(count, prior)| count / (total * prior.max(1e-3)));
        let goal = RouterGoal {
            wanted: self.wanted.clone(),
            excess: excess.collect(),
            label: 1.0,
            balance: BALANCE,
            z: LOGIT_SQUARE,
        };
        router_loss(&routed.logits, &goal)
    }
}

/// About what the graph of one layer holds for this many rows: the stream and its norms, queries, keys, values, and four
/// times the feed-forward width, with a tenth for the low-rank rows.
const fn graph_bytes(config: &BackboneConfig, rows: usize) -> usize {
    let width = 6 * config.hidden + 3 * config.query_width() + 3 * config.kv_width() + 4 * config.ffn;
    rows * width * size_of::<f32>() * 11 / 10
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backbone::tests::{random_backbone, random_mixture};
    use crate::config::tests::tiny;
    use crate::train::Encoded;

    const WEIGHT: f32 = 0.2;

    fn batch() -> Batch {
        let one = |ids: &[u32]| Encoded { ids: ids.to_vec(), target: ids.iter().map(|id| id % 3 != 0).collect() };
        Batch::pack(&[one(&[4, 8, 2, 13, 22, 7]), one(&[10, 25, 1, 28])])
    }

    fn plan(batch: &Batch, forced: bool) -> RouterPlan {
        let rows = batch.tokens();
        RouterPlan {
            wanted: [0.6f32, 0.3, 0.1].repeat(rows).into(),
            prior: vec![0.5, 0.3, 0.2].into(),
            weight: 0.3,
            forced: forced.then(|| vec![(0..rows as u64).map(|row| [0b011, 0b110, 0][row as usize % 3]).collect(); 2]),
        }
    }

    /// The whole loss with one graph through every layer.
    fn whole(base: &Backbone, mixture: &Mixture, batch: &Batch, plan: &RouterPlan) -> Tensor {
        let work = Work { base, mixture, batch, weight: WEIGHT, routers: Some(plan) };
        let mut x = base.embed(&batch.ids).unwrap();
        let mut total = Tensor::zeros(1, candle_core::DType::F32, base.device()).unwrap();
        for index in 0..2 {
            let (next, routed) = work.run(index, &x).unwrap();
            total = (total + (plan.loss(&routed.unwrap()).unwrap() * f64::from(plan.weight)).unwrap()).unwrap();
            x = next;
        }
        let loss = linear_cross_entropy(&base.normed(&x).unwrap(), base.head(), &batch.targets, WEIGHT).unwrap();
        (total + loss).unwrap()
    }

    fn variables(mixture: &Mixture) -> Mixture {
        mixture.map(|_, t| Var::from_tensor(t).map(Var::into_inner)).unwrap()
    }

    fn value(tensor: &Tensor) -> f64 {
        f64::from(tensor.to_vec1::<f32>().unwrap()[0])
    }

    /// Gradients by the segment engine.
    fn found(base: &Backbone, mixture: &Mixture, plan: &RouterPlan) -> (f64, Vec<Vec<f32>>, ExpertLoad) {
        let mut sums: Vec<Vec<f32>> = mixture.parameters().iter().map(|p| vec![0.0; p.tensor.elem_count()]).collect();
        let (batch, mut load, mut yields) = (batch(), ExpertLoad::default(), 0);
        let work = Work { base, mixture, batch: &batch, weight: WEIGHT, routers: Some(plan) };
        let loss = work.gradients(&mut sums, &mut load, &mut || yields += 1).unwrap();
        assert_eq!(yields, 4, "once a layer each way");
        (loss, sums, load)
    }

    #[test]
    fn gradients_equal_those_of_one_whole_graph() {
        let base = random_backbone(tiny(), 3);
        let mixture = variables(&random_mixture(&tiny(), 4));
        for forced in [false, true] {
            let plan = plan(&batch(), forced);
            let (_, sums, load) = found(&base, &mixture, &plan);
            assert_eq!(load.chosen.iter().sum::<u64>(), 10 * 2 * 2);
            let grads = whole(&base, &mixture, &batch(), &plan).backward().unwrap();
            for (sum, parameter) in sums.iter().zip(mixture.parameters()) {
                let expected = grads.get(parameter.tensor).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
                let scale = expected.iter().fold(0f32, |top, x| top.max(x.abs()));
                assert!(scale > 0.0, "{} has no gradient", parameter.name);
                let worst = sum.iter().zip(&expected).fold(0f32, |top, (a, b)| top.max((a - b).abs()));
                assert!(worst <= 1e-4 * scale, "{}: {worst} of {scale}", parameter.name);
            }
        }
    }

    /// What routers choose by themselves, to be held while a parameter is moved: a choice that flips has no derivative.
    fn choices(base: &Backbone, mixture: &Mixture) -> Vec<Vec<u64>> {
        let batch = batch();
        let mut x = base.embed(&batch.ids).unwrap();
        let layer = |index| {
            let (next, routed) = base.layer_forward(index, &x, &batch.pass, Some(mixture), None).unwrap();
            x = next;
            routed.unwrap().choice.taken.to_vec()
        };
        (0..2).map(layer).collect()
    }

    #[test]
    fn every_parameter_has_the_gradient_of_central_differences() {
        const STEP: f32 = 4e-3;
        let base = random_backbone(tiny(), 3);
        let mixture = variables(&random_mixture(&tiny(), 4));
        let (_, sums, _) = found(&base, &mixture, &plan(&batch(), false));
        let plan = RouterPlan { forced: Some(choices(&base, &mixture)), ..plan(&batch(), false) };
        let largest = sums.iter().flatten().fold(0f32, |top, x| top.max(x.abs()));
        for (which, (sum, parameter)) in sums.iter().zip(mixture.parameters()).enumerate() {
            let at = (0..sum.len()).reduce(|best, i| if sum[i].abs() > sum[best].abs() { i } else { best }).unwrap();
            assert!(sum[at] != 0.0, "{} has no gradient", parameter.name);
            for at in [at, sum.len() / 2] {
                let moved = |step: f32| {
                    let shifted = mixture.map(|i, t| {
                        let mut data = t.flatten_all()?.to_vec1::<f32>()?;
                        if i == which {
                            data[at] += step;
                        }
                        Tensor::from_vec(data, t.dims(), t.device())
                    });
                    value(&whole(&base, &shifted.unwrap(), &batch(), &plan))
                };
                let expected = (moved(STEP) - moved(-STEP)) / f64::from(2.0 * STEP);
                let apart = (expected - f64::from(sum[at])).abs();
                let allowed = 0.01 * f64::from(sum[at].abs()) + 1e-3 * f64::from(largest);
                assert!(apart <= allowed, "{}[{at}]: {} is not {expected}", parameter.name, sum[at]);
            }
        }
    }

    #[test]
    fn two_passes_give_what_one_gives() {
        let base = random_backbone(tiny(), 3);
        let mixture = variables(&random_mixture(&tiny(), 4));
        let one = |ids: &[u32]| Encoded { ids: ids.to_vec(), target: vec![true; ids.len()] };
        let (a, b) = (one(&[4, 8, 2, 13, 22, 7]), one(&[10, 25, 1, 28]));
        let sum = |batches: &[Batch]| {
            let mut sums: Vec<Vec<f32>> =
                mixture.parameters().iter().map(|p| vec![0.0; p.tensor.elem_count()]).collect();
            for batch in batches {
                let work = Work { base: &base, mixture: &mixture, batch, weight: 1.0 / 8.0, routers: None };
                work.gradients(&mut sums, &mut ExpertLoad::default(), &mut || ()).unwrap();
            }
            sums.concat()
        };
        let (whole, parts) = (sum(&[Batch::pack([&a, &b])]), sum(&[Batch::pack([&a]), Batch::pack([&b])]));
        let scale = whole.iter().fold(0f32, |top, x| top.max(x.abs()));
        assert!(whole.iter().zip(&parts).all(|(a, b)| (a - b).abs() < 1e-4 * scale));
    }
}
