//! Gradients by candle's tensors, a layer at a time, on any device. Forward keeps the input of each layer; backward runs
//! each layer once more with a graph one layer deep. Where memory allows, the graphs of the last layers are kept instead
//! of made again. Refuses to know how weights move.

use super::goals::{Goals, PassLoss, PassScores, PlannedRouting, RouterPlan};
use super::routing::{Tally, asked_rows};
use crate::adapter::{ExpertLoad, Mixture};
use crate::backbone::{Backbone, Guide, Routed, Routing, Session};
use crate::config::BackboneConfig;
use crate::ops::host::host;
use crate::ops::{Target, frozen_linear, linear_cross_entropy, linear_divergence, linear_nll};
use crate::train::TrainError;
use crate::train::batch::Batch;
use candle_core::{D, DType, Result, Tensor, Var};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Memory for graphs that are kept between forward and backward.
const GRAPH_BYTES_MAX: usize = 2 << 30;
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

    /// The inputs of all layers, and the graphs of as many as may be kept.
    pub(super) fn bytes_for(&self, pass_tokens: usize) -> u64 {
        let config = self.base.config();
        let graph = graph_bytes(config, pass_tokens);
        let inputs = config.layers * pass_tokens * config.hidden * size_of::<f32>();
        (inputs + (config.layers * graph).min(GRAPH_BYTES_MAX.max(graph))) as u64
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
        let mixture = self.held()?;
        let silent = RouterPlan::silent(&batch.lengths, mixture.spec().experts.len());
        let plan = goals.routers.unwrap_or(&silent);
        Ok(Work { base: &self.base, mixture, batch, goals, plan }.gradients(sums, between_layers)?)
    }

    pub(super) fn scores(
        &self,
        batch: &Batch,
        adapted: bool,
        between_layers: &mut dyn FnMut(),
    ) -> std::result::Result<PassScores, TrainError> {
        let mixture = if adapted { Some(self.held()?) } else { None };
        let (x, session) = stream(&self.base, mixture, batch, between_layers)?;
        let (normed, head) = (self.base.normed(&x)?, self.base.head());
        let nll = linear_nll(&normed, head, &batch.targets)?;
        let mut hit = Vec::with_capacity(nll.len());
        for targets in batch.targets.chunks(SCORED_ROWS) {
            let rows: Vec<u32> = targets.iter().map(|target| target.row).collect();
            let rows = normed.index_select(&Tensor::new(rows, normed.device())?, 0)?;
            let likeliest = frozen_linear(&rows, head)?.argmax(D::Minus1)?.to_vec1::<u32>()?;
            hit.extend(targets.iter().zip(likeliest).map(|(target, id)| target.id == id));
        }
        let prior = |session: &Session, row: usize| {
            let experts = session.numbers.len() / batch.tokens();
            session.numbers[row * experts..][..experts].iter().map(|p| p.exp()).collect()
        };
        let priors = session.map(|s| asked_rows(batch).into_iter().map(|row| prior(&s, row)).collect());
        Ok(PassScores { nll, hit, priors: priors.unwrap_or_default() })
    }
}

/// The stream behind the last layer, by the routers' own choices, and what the session prior was.
fn stream(
    base: &Backbone,
    mixture: Option<&Mixture>,
    batch: &Batch,
    between_layers: &mut dyn FnMut(),
) -> Result<(Tensor, Option<Session>)> {
    let (mut x, mut session) = (base.embed(&batch.ids)?, None);
    for index in 0..base.config().layers {
        session = base.session((index, &x), &batch.pass, mixture, &[])?.or(session);
        let guide = Guide { log_prior: session.as_ref().map(|s| &s.log_prior), ..Guide::default() };
        x = base.layer_forward(index, &x, &batch.pass, mixture, guide)?.0.detach();
        between_layers();
    }
    Ok((x, session))
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
    /// What routers are told.
    plan: &'a RouterPlan,
}

/// What forward leaves of a layer for backward.
struct Kept {
    input: Var,
    /// The graph, when it was kept.
    output: Option<(Tensor, Option<Routed>)>,
}

/// What the session says, and what comes back to it.
struct Heard {
    session: Session,
    /// Its log-probabilities as a variable.
    log_prior: Var,
    /// Gradient by them so far, `[rows · experts]`.
    d_log_prior: Vec<f32>,
}

/// What forward leaves for backward.
struct Forward<'a> {
    kept: Vec<Kept>,
    /// The stream behind the last layer.
    last: Tensor,
    heard: Option<Heard>,
    tally: Tally<'a>,
}

impl Work<'_> {
    /// Adds the gradient of each parameter, in the order of [`Mixture::parameters`], to `sums`.
    ///
    /// # Errors
    /// A tensor operation failed.
    fn gradients(&self, sums: &mut [Vec<f32>], between_layers: &mut dyn FnMut()) -> Result<PassLoss> {
        let mut found = PassLoss::default();
        let Forward { kept, last, mut heard, tally } = self.forward(&mut found.load, between_layers)?;
        if self.is_routed() {
            found.parts = tally.parts(heard.as_ref().map(|heard| heard.session.numbers.as_slice()));
            found.routers = found.parts.weighted(&self.plan.weights);
        }
        let mut d_stream;
        (found.language, found.kept, d_stream) = self.loss(last, between_layers)?;
        for (index, kept) in kept.into_iter().enumerate().rev() {
            let sums = &mut sums[self.mixture.layer_range(index)];
            d_stream = self.backward((index, kept), &d_stream, sums, heard.as_mut(), &tally)?;
            between_layers();
        }
        if let (Some(heard), Some(sum)) = (heard, sums.last_mut()) {
            add(sum, &heard.head_gradient(&tally)?)?;
        }
        Ok(found)
    }

    /// Whether routers are asked in this pass.
    fn is_routed(&self) -> bool {
        !self.mixture.spec().experts.is_empty() && self.plan.routing != PlannedRouting::Off
    }

    fn run(&self, index: usize, x: &Tensor, log_prior: Option<&Tensor>) -> Result<(Tensor, Option<Routed>)> {
        let routing = match &self.plan.routing {
            PlannedRouting::Off => Routing::Off,
            PlannedRouting::Own => Routing::Own,
            PlannedRouting::Forced(bits) => Routing::Forced(&bits[index]),
        };
        let guide = Guide { routing, log_prior };
        self.base.layer_forward(index, x, &self.batch.pass, Some(self.mixture), guide)
    }

    /// What the session says, where the stream before layer `index` is where it is read.
    fn hear(&self, index: usize, x: &Tensor) -> Result<Option<Heard>> {
        if !self.is_routed() {
            return Ok(None);
        }
        let Some(session) = self.base.session((index, x), &self.batch.pass, Some(self.mixture), &[])? else {
            return Ok(None);
        };
        let (log_prior, d_log_prior) = (Var::from_tensor(&session.log_prior)?, vec![0.0; session.numbers.len()]);
        Ok(Some(Heard { session, log_prior, d_log_prior }))
    }

    fn forward(&self, load: &mut ExpertLoad, between_layers: &mut dyn FnMut()) -> Result<Forward<'_>> {
        let layers = self.base.config().layers;
        let graphs = GRAPH_BYTES_MAX / graph_bytes(self.base.config(), self.batch.tokens()).max(1);
        let (mut x, mut heard) = (self.base.embed(&self.batch.ids)?, None);
        let (mut kept, mut tally) = (Vec::with_capacity(layers), Tally::new(self.plan, layers));
        for index in 0..layers {
            heard = self.hear(index, &x)?.or(heard);
            let input = Var::from_tensor(&x)?;
            let log_prior = heard.as_ref().map(|heard: &Heard| heard.log_prior.as_tensor());
            let (next, routed) = self.run(index, input.as_tensor(), log_prior)?;
            if let Some(routed) = &routed {
                load.count(&routed.choice, &routed.gates)?;
                tally.count(index, &host(&routed.logits)?, &routed.choice.taken);
            }
            x = next.detach();
            let output = (layers - index <= graphs).then_some((next, routed));
            kept.push(Kept { input, output });
            between_layers();
        }
        Ok(Forward { kept, last: x, heard, tally })
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

    /// The weighted divergence from the base on the rows that are held to it, as `[1]`.
    fn divergence(&self, last: &Tensor, between_layers: &mut dyn FnMut()) -> Result<Tensor> {
        let (rows, weights): (Vec<u32>, Vec<f32>) = self.goals.kept.iter().map(|kept| (kept.row, kept.weight)).unzip();
        let (base, _) = stream(self.base, None, self.batch, between_layers)?;
        linear_divergence(&self.base.normed(last)?, &self.base.normed(&base)?, self.base.head(), &rows, &weights)
    }

    /// Language loss, divergence, and the gradient of the stream after the last layer.
    fn loss(&self, last: Tensor, between_layers: &mut dyn FnMut()) -> Result<(f64, f64, Tensor)> {
        let last = Var::from_tensor(&last)?;
        let language = self.language(last.as_tensor())?;
        let divergence = match self.goals.kept {
            [] => language.zeros_like()?,
            _ => self.divergence(last.as_tensor(), between_layers)?,
        };
        let mut grads = (&language + &divergence)?.backward()?;
        let d_stream = grads.remove(last.as_tensor()).map_or_else(|| last.zeros_like(), Ok)?;
        Ok((sum(&language)?, sum(&divergence)?, d_stream))
    }

    /// Adds the gradients of a layer to `sums`, and what the session is told by it to `heard`; gives the gradient of the stream
    /// before it. The routers' own losses act on the logits.
    fn backward(
        &self,
        (index, kept): (usize, Kept),
        d_stream: &Tensor,
        sums: &mut [Vec<f32>],
        heard: Option<&mut Heard>,
        tally: &Tally<'_>,
    ) -> Result<Tensor> {
        let log_prior = heard.as_ref().map(|heard| heard.log_prior.as_tensor());
        let (output, routed) = match kept.output {
            Some(output) => output,
            None => self.run(index, kept.input.as_tensor(), log_prior)?,
        };
        let mut root = output.mul(d_stream)?.sum_all()?;
        if let Some(routed) = &routed {
            let logits = host(&routed.logits)?;
            let mut own = vec![0f32; logits.len()];
            tally.gradient(index, &logits, &mut own);
            drop(logits);
            let own = Tensor::from_vec(own, routed.logits.dims(), routed.logits.device())?;
            root = (root + (&routed.logits * own)?.sum_all()?)?;
        }
        let mut grads = root.backward()?;
        for (sum, parameter) in sums.iter_mut().zip(self.mixture.layer_parameters(index)) {
            if let Some(grad) = grads.remove(parameter.tensor) {
                add(sum, &grad)?;
            }
        }
        if let Some(heard) = heard
            && let Some(grad) = grads.remove(heard.log_prior.as_tensor())
        {
            add(&mut heard.d_log_prior, &grad)?;
        }
        grads.remove(kept.input.as_tensor()).map_or_else(|| d_stream.zeros_like(), Ok)
    }
}

impl Heard {
    /// The gradient of the session head once every layer has spoken: `dP = dz̄ᵀ·norm(h)`.
    fn head_gradient(mut self, tally: &Tally<'_>) -> Result<Tensor> {
        tally.session_gradient(&self.session.numbers, &mut self.d_log_prior);
        let d = Tensor::from_vec(self.d_log_prior, self.log_prior.dims(), self.log_prior.device())?;
        d.t()?.contiguous()?.matmul(&self.session.seen)
    }
}

/// Adds a gradient to its sum.
fn add(sum: &mut [f32], gradient: &Tensor) -> Result<()> {
    let gradient = gradient.contiguous()?;
    sum.iter_mut().zip(host(&gradient)?.iter()).for_each(|(sum, g)| *sum += g);
    Ok(())
}

/// The sum of a tensor's few numbers.
fn sum(tensor: &Tensor) -> Result<f64> {
    Ok(tensor.flatten_all()?.to_vec1::<f32>()?.iter().copied().map(f64::from).sum())
}

/// About what the graph of one layer holds for this many rows: the stream and its norms, queries, keys, values, and four
/// times the feed-forward width, with a tenth for the low-rank rows.
const fn graph_bytes(config: &BackboneConfig, rows: usize) -> usize {
    let width = 6 * config.hidden + 3 * config.query_width() + 3 * config.kv_width() + 4 * config.ffn;
    rows * width * size_of::<f32>() * 11 / 10
}

#[cfg(test)]
mod tests {
    use super::super::goals::{Keep, Labelled, RouterWeights, Wanted};
    use super::*;
    use crate::backbone::tests::{hearing_mixture, random_backbone, random_mixture};
    use crate::config::tests::tiny;
    use crate::train::{Encoded, Gradients};

    const KEPT: [Keep; 2] = [Keep { row: 1, weight: 0.3 }, Keep { row: 8, weight: 0.2 }];

    fn batch() -> Batch {
        let one = |ids: &[u32]| Encoded { ids: ids.to_vec(), target: ids.iter().map(|id| id % 3 != 0).collect() };
        Batch::pack(&[one(&[4, 8, 2, 13, 22, 7]), one(&[10, 25, 1, 28])])
    }

    fn weights(batch: &Batch) -> Vec<f32> {
        (0..batch.target_tokens()).map(|i| [0.2, 0.1, 0.0][i % 3]).collect()
    }

    fn plan(routing: PlannedRouting) -> RouterPlan {
        let wanted = Wanted { route: vec![0.6, 0.3, 0.1].into(), session: vec![0.1, 0.8, 0.1].into(), weight: 0.7 };
        RouterPlan {
            routing,
            documents: vec![Labelled { rows: 6, wanted: Some(wanted) }, Labelled { rows: 4, wanted: None }],
            prior: vec![0.5, 0.3, 0.2].into(),
            weights: RouterWeights { session: 0.8, label: 0.7, balance: 0.4, z: 0.1 },
            share: 0.5,
        }
    }

    fn variables(mixture: &Mixture) -> Mixture {
        mixture.map(|_, t| Var::from_tensor(t).map(Var::into_inner)).unwrap()
    }

    fn zeros(mixture: &Mixture) -> Vec<Vec<f32>> {
        mixture.parameters().iter().map(|p| vec![0.0; p.tensor.elem_count()]).collect()
    }

    /// What a pass forward finds: the whole loss, what the session said, who was taken. A session that is held is not read
    /// again.
    fn forward(
        base: &Backbone,
        mixture: &Mixture,
        plan: &RouterPlan,
        held: Option<&Session>,
    ) -> (f64, Option<Session>, Vec<Vec<u64>>) {
        let (batch, layers) = (batch(), base.config().layers);
        let weights = weights(&batch);
        let goals = Goals { weights: &weights, kept: &KEPT, routers: Some(plan) };
        let work = Work { base, mixture, batch: &batch, goals: &goals, plan };
        let (mut x, mut session, mut tally) = (base.embed(&batch.ids).unwrap(), None, Tally::new(plan, layers));
        let mut taken = Vec::new();
        for index in 0..layers {
            session = base.session((index, &x), &batch.pass, Some(mixture), &[]).unwrap().or(session);
            let heard = session.as_ref().map(|own| &held.unwrap_or(own).log_prior);
            let (next, routed) = work.run(index, &x, heard).unwrap();
            let routed = routed.unwrap();
            tally.count(index, &host(&routed.logits).unwrap(), &routed.choice.taken);
            taken.push(routed.choice.taken.to_vec());
            x = next;
        }
        let heard = session.as_ref().map(|own| held.unwrap_or(own).numbers.as_slice());
        let routers = tally.parts(heard).weighted(&plan.weights);
        let language = sum(&work.language(&x).unwrap()).unwrap();
        let divergence = sum(&work.divergence(&x, &mut || ()).unwrap()).unwrap();
        (routers + language + divergence, session, taken)
    }

    /// Gradients a layer at a time, whose loss must be that of one way through.
    fn found(base: &Backbone, mixture: &Mixture, plan: &RouterPlan) -> (PassLoss, Vec<Vec<f32>>) {
        let (mut sums, batch, mut yields) = (zeros(mixture), batch(), 0);
        let weights = weights(&batch);
        let mut trainer = Gradients::reference(base.clone());
        trainer.hold(mixture, batch.tokens()).unwrap();
        let goals = Goals { weights: &weights, kept: &KEPT, routers: Some(plan) };
        let lost = trainer.pass(&batch, &goals, &mut sums, &mut || yields += 1).unwrap();
        assert_eq!(yields, 6, "once a layer each way, and once through the base");
        (lost, sums)
    }

    /// Every loss is on, the session is heard, some rows are in a crisis. The session is no function of what lies before the
    /// layer where it is read: there it is held while a parameter is moved. So are choices: one that flips has no derivative.
    #[test]
    fn every_parameter_has_the_gradient_of_central_differences() {
        const STEP: f32 = 2e-3;
        let base = random_backbone(tiny(), 3);
        for mixture in [random_mixture(&tiny(), 4), hearing_mixture(&tiny(), 6)] {
            let mixture = variables(&mixture);
            let (loss, session, taken) = forward(&base, &mixture, &plan(PlannedRouting::Own), None);
            let plan = plan(PlannedRouting::Forced(taken));
            let (lost, sums) = found(&base, &mixture, &plan);
            assert!((lost.language + lost.kept + lost.routers - loss).abs() < 1e-5 * loss, "{lost:?} {loss}");
            let largest = sums.iter().flatten().fold(0f32, |top, x| top.max(x.abs()));
            for (which, (sum, parameter)) in sums.iter().zip(mixture.parameters()).enumerate() {
                let largest_at = |best: usize, i: usize| if sum[i].abs() > sum[best].abs() { i } else { best };
                let at = (0..sum.len()).reduce(largest_at).unwrap();
                assert!(sum[at] != 0.0, "{} has no gradient", parameter.name);
                let held = session.as_ref().filter(|_| parameter.name.starts_with("layers.0."));
                for at in [at, sum.len() / 2] {
                    let moved = |step: f32| forward(&base, &shifted(&mixture, which, at, step), &plan, held).0;
                    let expected = (moved(STEP) - moved(-STEP)) / f64::from(2.0 * STEP);
                    let apart = (expected - f64::from(sum[at])).abs();
                    let allowed = 0.01 * f64::from(sum[at].abs()) + 1e-3 * f64::from(largest);
                    assert!(apart <= allowed, "{}[{at}]: {} is not {expected}", parameter.name, sum[at]);
                }
            }
        }
    }

    /// A mixture with one number of one tensor moved.
    fn shifted(mixture: &Mixture, which: usize, at: usize, step: f32) -> Mixture {
        let shifted = mixture.map(|i, t| {
            let mut data = t.flatten_all()?.to_vec1::<f32>()?;
            if i == which {
                data[at] += step;
            }
            Tensor::from_vec(data, t.dims(), t.device())
        });
        shifted.unwrap()
    }

    #[test]
    fn in_a_crisis_some_gates_are_held() {
        let (base, mixture) = (random_backbone(tiny(), 3), hearing_mixture(&tiny(), 6));
        let session = forward(&base, &mixture, &plan(PlannedRouting::Own), None).1.unwrap();
        let rule = mixture.layer(1).policy().crisis.unwrap();
        let crisis: Vec<f32> = session.numbers.chunks(3).map(|row| row[rule.expert].exp()).collect();
        let over = crisis.iter().filter(|p| **p > rule.above).count();
        assert!(over > 0 && over < crisis.len(), "both kinds are among the rows of the test above: {crisis:?}");
    }

    #[test]
    fn alone_the_shared_part_learns_alone() {
        let (base, mixture) = (random_backbone(tiny(), 3), hearing_mixture(&tiny(), 4));
        let (lost, sums) = found(&base, &mixture, &plan(PlannedRouting::Off));
        assert!(lost.routers == 0.0 && lost.load.chosen.is_empty());
        for (sum, parameter) in sums.iter().zip(mixture.parameters()) {
            let rows = parameter.tensor.dims()[0];
            let moved = |i: &usize| sum[*i] != 0.0;
            let shared = |i: &usize| match parameter.kind {
                crate::adapter::ParameterKind::A => i / (sum.len() / rows) < 2,
                crate::adapter::ParameterKind::B => i % (sum.len() / rows) < 2,
                crate::adapter::ParameterKind::Router | crate::adapter::ParameterKind::Session => false,
            };
            assert!((0..sum.len()).filter(|i| moved(i)).all(|i| shared(&i)), "{}", parameter.name);
            assert!((0..sum.len()).any(|i| moved(&i)) == (0..sum.len()).any(|i| shared(&i)), "{}", parameter.name);
        }
    }

    #[test]
    fn scores_tell_what_the_session_was_about_before_the_last_answer() {
        let (base, mixture, batch) = (random_backbone(tiny(), 3), hearing_mixture(&tiny(), 4), batch());
        let mut trainer = Gradients::reference(base.clone());
        trainer.hold(&mixture, batch.tokens()).unwrap();
        let scores = trainer.scores(&batch, true, &mut || ()).unwrap();
        let session = forward(&base, &mixture, &plan(PlannedRouting::Own), None).1.unwrap();
        let expected: Vec<Vec<f32>> = asked_rows(&batch)
            .iter()
            .map(|row| session.numbers[row * 3..][..3].iter().map(|p| p.exp()).collect())
            .collect();
        assert_eq!(scores.priors, expected);
        assert!(trainer.scores(&batch, false, &mut || ()).unwrap().priors.is_empty());
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
