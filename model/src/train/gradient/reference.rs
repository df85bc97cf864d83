//! Gradients by candle's tensors, a layer at a time, on any device. Forward keeps the input of each layer; backward runs
//! each layer once more with a graph one layer deep. Where memory allows, the graphs of the last layers are kept instead
//! of made again. Refuses to know how weights move.

use super::goals::{Goals, PassLoss, PassScores, RouterPlan};
use crate::adapter::{ExpertLoad, Mixture};
use crate::backbone::{Backbone, Routed};
use crate::config::BackboneConfig;
use crate::ops::host::host;
use crate::ops::{RouterGoal, Target, frozen_linear, linear_cross_entropy, linear_nll, router_loss};
use crate::train::TrainError;
use crate::train::batch::Batch;
use candle_core::{D, DType, Result, Tensor, Var};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Memory for graphs that are kept between forward and backward.
const GRAPH_BYTES_MAX: usize = 2 << 30;
/// Weight of the balance term beside the label term of routers.
const BALANCE: f32 = 0.1;
/// Weight of the square of the routers' logsumexp beside the label term.
const LOGIT_SQUARE: f32 = 0.01;
/// Rows whose logits are held at a time where the likeliest token is looked for.
const SCORED_ROWS: usize = 96;

/// A backbone and the variables trained over it.
pub struct Trainer {
    base: Backbone,
    /// Each tensor a candle variable; none before a mixture is held.
    mixture: Option<Mixture>,
}

impl Trainer {
    pub(super) const fn new(base: Backbone) -> Self {
        Self { base, mixture: None }
    }

    pub(super) fn config(&self) -> &BackboneConfig {
        self.base.config()
    }

    pub(super) fn hold(&mut self, mixture: &Mixture) -> std::result::Result<(), TrainError> {
        let device = self.base.device();
        let variable = |tensor: &Tensor| Var::from_tensor(&tensor.to_device(device)?).map(Var::into_inner);
        self.mixture = Some(mixture.map(|_, tensor| variable(tensor))?);
        Ok(())
    }

    pub(super) fn set_weights(&mut self, weights: &[Vec<f32>]) -> std::result::Result<(), TrainError> {
        let (held, device) = (self.held()?, self.base.device());
        let like = held.parameters();
        let fits = like.len() == weights.len()
            && like.iter().zip(weights).all(|(p, numbers)| p.tensor.elem_count() == numbers.len());
        if !fits {
            return Err(TrainError::BadJob("the weights are not of the held mixture".into()));
        }
        let fresh = held.map(|i, like| Var::from_slice(&weights[i], like.dims(), device).map(Var::into_inner))?;
        self.mixture = Some(fresh);
        Ok(())
    }

    fn held(&self) -> std::result::Result<&Mixture, TrainError> {
        self.mixture.as_ref().ok_or_else(|| TrainError::BadJob("no mixture is held".into()))
    }

    pub(super) fn pass(
        &self,
        batch: &Batch,
        goals: &Goals<'_>,
        sums: &mut [Vec<f32>],
        between_layers: &mut dyn FnMut(),
    ) -> std::result::Result<PassLoss, TrainError> {
        let work = Work { base: &self.base, mixture: self.held()?, batch, goals };
        Ok(work.gradients(sums, between_layers)?)
    }

    pub(super) fn scores(
        &self,
        batch: &Batch,
        adapted: bool,
        between_layers: &mut dyn FnMut(),
    ) -> std::result::Result<PassScores, TrainError> {
        let mixture = if adapted { Some(self.held()?) } else { None };
        let mut x = self.base.embed(&batch.ids)?;
        for index in 0..self.base.config().layers {
            x = self.base.layer_forward(index, &x, &batch.pass, mixture, None)?.0.detach();
            between_layers();
        }
        let (normed, head) = (self.base.normed(&x)?, self.base.head());
        let nll = linear_nll(&normed, head, &batch.targets)?;
        let mut hit = Vec::with_capacity(nll.len());
        for targets in batch.targets.chunks(SCORED_ROWS) {
            let rows: Vec<u32> = targets.iter().map(|target| target.row).collect();
            let rows = normed.index_select(&Tensor::new(rows, normed.device())?, 0)?;
            let likeliest = frozen_linear(&rows, head)?.argmax(D::Minus1)?.to_vec1::<u32>()?;
            hit.extend(targets.iter().zip(likeliest).map(|(target, id)| target.id == id));
        }
        Ok(PassScores { nll, hit, priors: Vec::new() })
    }
}

/// One pass whose gradients are wanted.
struct Work<'a> {
    /// Frozen weights.
    base: &'a Backbone,
    /// Trained tensors, each a candle variable.
    mixture: &'a Mixture,
    /// Conversations.
    batch: &'a Batch,
    /// What the gradients are of.
    goals: &'a Goals<'a>,
}

/// What forward leaves for backward.
struct Kept {
    input: Var,
    /// The graph, when it was kept.
    output: Option<(Tensor, Option<Routed>)>,
}

impl Work<'_> {
    /// Adds the gradient of each parameter, in the order of [`Mixture::parameters`], to `sums`.
    ///
    /// # Errors
    /// A tensor operation failed.
    fn gradients(&self, sums: &mut [Vec<f32>], between_layers: &mut dyn FnMut()) -> Result<PassLoss> {
        let mut found = PassLoss::default();
        let (kept, last) = self.forward(&mut found.load, between_layers)?;
        let (loss, mut d_stream) = self.loss(last)?;
        found.language = loss;
        let per_layer = sums.len() / kept.len().max(1);
        for (index, kept) in kept.into_iter().enumerate().rev() {
            let sums = &mut sums[index * per_layer..][..per_layer];
            d_stream = self.backward(index, kept, &d_stream, sums, &mut found.routers)?;
            between_layers();
        }
        Ok(found)
    }

    fn run(&self, index: usize, x: &Tensor) -> Result<(Tensor, Option<Routed>)> {
        let forced = self.goals.routers.and_then(|r| r.forced.as_ref()).map(|f| f[index].as_slice());
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

    /// The weighted language loss, as `[1]`: targets of one weight together.
    fn language(&self, last: &Tensor) -> Result<Tensor> {
        let mut by_weight: BTreeMap<u32, Vec<Target>> = BTreeMap::new();
        for (target, weight) in self.batch.targets.iter().zip(self.goals.weights) {
            by_weight.entry(weight.to_bits()).or_default().push(*target);
        }
        let normed = self.base.normed(last)?;
        let mut total = Tensor::zeros(1, DType::F32, last.device())?;
        for (weight, targets) in by_weight {
            let targets: Arc<[Target]> = targets.into();
            let loss = linear_cross_entropy(&normed, self.base.head(), &targets, f32::from_bits(weight))?;
            total = (total + loss)?;
        }
        Ok(total)
    }

    /// The loss and the gradient of the stream after the last layer.
    fn loss(&self, last: Tensor) -> Result<(f64, Tensor)> {
        let last = Var::from_tensor(&last)?;
        let loss = self.language(last.as_tensor())?;
        let mut grads = loss.backward()?;
        Ok((sum(&loss)?, grads.remove(last.as_tensor()).map_or_else(|| last.zeros_like(), Ok)?))
    }

    /// Adds the gradients of a layer to `sums` and its routers' loss to `lost`; gives the gradient of the stream before it.
    fn backward(
        &self,
        index: usize,
        kept: Kept,
        d_stream: &Tensor,
        sums: &mut [Vec<f32>],
        lost: &mut f64,
    ) -> Result<Tensor> {
        let (output, routed) = match kept.output {
            Some(output) => output,
            None => self.run(index, kept.input.as_tensor())?,
        };
        let mut root = output.mul(d_stream)?.sum_all()?;
        if let (Some(plan), Some(routed)) = (self.goals.routers, &routed) {
            let own = (plan.loss(routed)? * f64::from(plan.weight))?;
            *lost += sum(&own)?;
            root = (root + own.sum_all()?)?;
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

/// The sum of a tensor's few numbers.
fn sum(tensor: &Tensor) -> Result<f64> {
    Ok(tensor.flatten_all()?.to_vec1::<f32>()?.iter().copied().map(f64::from).sum())
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
    use crate::train::{Encoded, Gradients};

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
        let weights = vec![WEIGHT; batch.target_tokens()];
        let goals = Goals { weights: &weights, kept: &[], routers: Some(plan) };
        let work = Work { base, mixture, batch, goals: &goals };
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

    fn zeros(mixture: &Mixture) -> Vec<Vec<f32>> {
        mixture.parameters().iter().map(|p| vec![0.0; p.tensor.elem_count()]).collect()
    }

    fn value(tensor: &Tensor) -> f64 {
        f64::from(tensor.to_vec1::<f32>().unwrap()[0])
    }

    /// Gradients a layer at a time.
    fn found(base: &Backbone, mixture: &Mixture, plan: &RouterPlan) -> (f64, Vec<Vec<f32>>, ExpertLoad) {
        let (mut sums, batch, mut yields) = (zeros(mixture), batch(), 0);
        let weights = vec![WEIGHT; batch.target_tokens()];
        let mut trainer = Gradients::reference(base.clone());
        trainer.hold(mixture, batch.tokens()).unwrap();
        let goals = Goals { weights: &weights, kept: &[], routers: Some(plan) };
        let lost = trainer.pass(&batch, &goals, &mut sums, &mut || yields += 1).unwrap();
        assert_eq!(yields, 4, "once a layer each way");
        let whole = f64::from(whole(base, mixture, &batch, plan).to_vec1::<f32>().unwrap()[0]);
        assert!((lost.language + lost.routers - whole).abs() < 1e-4 * whole);
        (lost.language, sums, lost.load)
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
        let mut trainer = Gradients::reference(base);
        trainer.hold(&mixture, 10).unwrap();
        let mut sum = |batches: &[Batch]| {
            let mut sums = zeros(&mixture);
            for batch in batches {
                let weights = vec![1.0 / 8.0; batch.target_tokens()];
                let goals = Goals { weights: &weights, kept: &[], routers: None };
                trainer.pass(batch, &goals, &mut sums, &mut || ()).unwrap();
            }
            sums.concat()
        };
        let (whole, parts) = (sum(&[Batch::pack([&a, &b])]), sum(&[Batch::pack([&a]), Batch::pack([&b])]));
        let scale = whole.iter().fold(0f32, |top, x| top.max(x.abs()));
        assert!(whole.iter().zip(&parts).all(|(a, b)| (a - b).abs() < 1e-4 * scale));
    }
}
