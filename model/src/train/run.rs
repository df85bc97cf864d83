//! The loop: draw, pack, differentiate, step, validate, checkpoint, until the steps, the time or the patience end.

use super::adamw::{AdamW, Rate, clip};
use super::batch::{Batch, runs};
use super::gradient::{Goals, Gradients, RouterPlan};
use super::labels::{Labels, expert_names};
use super::measure::{PASS_TOKENS, measure};
use super::order::Order;
use super::prepare::Prepared;
use super::schedule::{Clock, forced_share, rate_factor, steps_left};
use super::state::{Counters, State};
use super::{Observer, TrainError};
use crate::adapter::{ExpertLoad, Mixture, ParameterKind};
use crate::backbone::Backbone;
use crate::counter::{Counter, Site};
use candle_core::Tensor;
use empathd_proto::engine::{Evaluation, TrainSpec};
use empathd_proto::record::Domain;
use empathd_proto::report::{TrainPhase, TrainProgress, TrainReport};
use std::iter::Peekable;
use std::ops::ControlFlow;
use std::time::Duration;

/// Fewest and most tokens of a validation; between them a quarter of what is trained between two validations.
const VALIDATION_TOKENS: (usize, usize) = (4_096, 262_144);

/// What does not change while a job runs.
pub(super) struct Job<'a> {
    pub(super) base: &'a Backbone,
    pub(super) spec: &'a TrainSpec,
    pub(super) train: Vec<Prepared>,
    pub(super) held: Vec<Prepared>,
    pub(super) labels: Labels,
    /// Names and shapes of what is trained.
    pub(super) shape: Mixture,
    /// What a checkpoint must have been made for.
    pub(super) digest: [u8; 32],
    pub(super) now: &'a dyn Fn() -> Duration,
}

/// A job under way.
pub(super) struct Run<'a> {
    job: &'a Job<'a>,
    state: State,
    order: Peekable<Order>,
    /// Time of `now` at which the job would have begun without interruptions, seconds.
    began_s: f64,
    /// Seconds in steps and tokens before this process went on.
    resumed: Option<(f64, u64)>,
}

impl<'a> Job<'a> {
    /// Numbers as a mixture.
    fn mixture(&self, weights: &[Vec<f32>]) -> candle_core::Result<Mixture> {
        self.shape.map(|i, like| Tensor::from_slice(&weights[i], like.dims(), self.base.device()))
    }

    /// Held-out examples of one validation: every domain, up to the budget.
    fn validation_set(&self) -> Vec<&Prepared> {
        let between = self.spec.validate_every as usize * self.spec.tokens_per_step as usize;
        let (fewest, most) = VALIDATION_TOKENS;
        let budget = (between / 4).clamp(fewest, most);
        let domains: Vec<Domain> = self.held.iter().map(|one| one.domain).collect();
        let (mut taken, mut tokens) = (vec![false; self.held.len()], 0);
        for index in Order::new(&domains, self.spec.seed).take(4 * self.held.len()) {
            if !taken[index] && tokens + self.held[index].tokens() <= budget {
                taken[index] = true;
                tokens += self.held[index].tokens();
            }
        }
        if !taken.contains(&true) {
            return self.held.iter().take(1).collect();
        }
        self.held.iter().zip(taken).filter_map(|(one, taken)| taken.then_some(one)).collect()
    }

    fn validate(&self, weights: &[Vec<f32>], observer: &mut dyn Observer) -> Result<Evaluation, TrainError> {
        let mixture = self.mixture(weights)?;
        measure(self.base, Some(&mixture), &self.validation_set(), &mut || observer.between_layers())
    }

    fn seconds(&self) -> f64 {
        (self.now)().as_secs_f64()
    }
}

impl<'a> Run<'a> {
    /// A job from its beginning: measures the held-out loss first.
    pub(super) fn begin(job: &'a Job<'a>, observer: &mut dyn Observer) -> Result<Self, TrainError> {
        let began_s = job.seconds();
        let weights: Vec<Vec<f32>> =
            job.shape.parameters().iter().map(|p| p.tensor.flatten_all()?.to_vec1()).collect::<Result<_, _>>()?;
        let before = job.validate(&weights, observer)?;
        let prelude_s = job.seconds() - began_s;
        let counters = Counters {
            step: 0,
            drawn: 0,
            progress: 0.0,
            elapsed_s: prelude_s,
            prelude_s,
            stepping_s: 0.0,
            validation_s: prelude_s,
            tokens: 0,
            target_tokens: 0,
            loss_curve: Vec::new(),
            chosen: vec![0; job.spec.mixture.experts.len()],
            last: before.loss,
            best: before.clone(),
            before,
            validated_at: 0,
            worse: 0,
        };
        let state = State { counters, moments: AdamW::new(&weights), best: weights.clone(), weights };
        Ok(Self { job, state, order: job.order(0), began_s, resumed: None })
    }

    /// A job from a checkpoint.
    pub(super) fn resume(job: &'a Job<'a>, checkpoint: &[u8]) -> Result<Self, TrainError> {
        let state = State::from_bytes(checkpoint, &job.shape, job.digest)?;
        let counters = &state.counters;
        let resumed = Some((counters.stepping_s, counters.tokens));
        let began_s = job.seconds() - counters.elapsed_s;
        Ok(Self { order: job.order(counters.drawn), job, state, began_s, resumed })
    }

    /// Takes steps until the end. Whether it came early, by command or by patience.
    pub(super) fn steps(&mut self, observer: &mut dyn Observer) -> Result<bool, TrainError> {
        let spec = self.job.spec;
        if self.tell(TrainPhase::Stepping, observer).is_break() {
            self.checkpoint(observer)?;
            return Ok(true);
        }
        let mut early = false;
        while let left @ 1.. = self.left() {
            self.step(left, observer)?;
            let step = self.state.counters.step;
            let due = |every: u32| every > 0 && step.is_multiple_of(every);
            if due(spec.validate_every) || left == 1 {
                self.validate(observer)?;
            }
            let stop = self.tell(TrainPhase::Stepping, observer).is_break();
            if stop || due(spec.checkpoint_every) {
                self.checkpoint(observer)?;
            }
            if stop || (spec.patience > 0 && self.state.counters.worse >= spec.patience) {
                early = self.left() > 0;
                break;
            }
        }
        if self.state.counters.validated_at < self.state.counters.step {
            self.validate(observer)?;
        }
        Ok(early)
    }

    fn left(&self) -> u32 {
        let c = &self.state.counters;
        let clock = Clock { elapsed_s: c.elapsed_s, validation_s: c.validation_s };
        match c.progress < 1.0 {
            true => steps_left(self.job.spec, c.step, c.prelude_s, clock),
            false => 0,
        }
    }

    /// One optimiser step.
    fn step(&mut self, left: u32, observer: &mut dyn Observer) -> Result<(), TrainError> {
        let began = self.job.seconds();
        let counters = &mut self.state.counters;
        counters.progress =
            if left == 1 { 1.0 } else { counters.progress + (1.0 - counters.progress) / f64::from(left) };
        let drawn = self.draw();
        let (mut gradients, loss) = self.differentiate(&drawn, observer)?;
        clip(&mut gradients, self.job.spec.clip);
        let rates = self.rates();
        self.state.moments.step(&mut self.state.weights, &gradients, &rates);
        let counters = &mut self.state.counters;
        counters.step += 1;
        counters.tokens += drawn.iter().map(|one| one.tokens() as u64).sum::<u64>();
        counters.target_tokens += drawn.iter().map(|one| one.target_tokens() as u64).sum::<u64>();
        counters.loss_curve.push(loss as f32);
        counters.stepping_s += self.job.seconds() - began;
        counters.elapsed_s = self.job.seconds() - self.began_s;
        Ok(())
    }

    /// Examples of the next step: as many as its tokens allow, at least one.
    fn draw(&mut self) -> Vec<&'a Prepared> {
        let (job, mut drawn, mut tokens) = (self.job, Vec::new(), 0);
        let budget = job.spec.tokens_per_step as usize;
        let fits = |index: &usize, tokens: usize| tokens == 0 || tokens + job.train[*index].tokens() <= budget;
        while let Some(index) = self.order.next_if(|index| fits(index, tokens)) {
            tokens += job.train[index].tokens();
            drawn.push(&job.train[index]);
        }
        self.state.counters.drawn += drawn.len() as u64;
        drawn
    }

    /// Gradients of all drawn examples and their mean loss per target.
    fn differentiate(
        &mut self,
        drawn: &[&Prepared],
        observer: &mut dyn Observer,
    ) -> Result<(Vec<Vec<f32>>, f64), TrainError> {
        let job = self.job;
        let mut gradients = Gradients::reference(job.base.clone());
        gradients.hold(&job.mixture(&self.state.weights)?, PASS_TOKENS)?;
        let mut sums: Vec<Vec<f32>> = self.state.weights.iter().map(|w| vec![0f32; w.len()]).collect();
        let mut load = ExpertLoad::default();
        let targets: usize = drawn.iter().map(|one| one.target_tokens()).sum();
        let tokens: usize = drawn.iter().map(|one| one.tokens()).sum();
        let (mut loss, mut first) = (0.0, 0);
        for run in runs(drawn, PASS_TOKENS, |one| one.tokens()) {
            let batch = Batch::pack(run.iter().map(|one| &one.encoded));
            let share = batch.tokens() as f32 / tokens as f32;
            let plan = (!job.spec.mixture.experts.is_empty()).then(|| self.plan(&batch, run, first, share));
            first += run.len();
            let weights = vec![1.0 / targets as f32; batch.target_tokens()];
            let goals = Goals { weights: &weights, kept: &[], routers: plan.as_ref() };
            let lost = gradients.pass(&batch, &goals, &mut sums, &mut || observer.between_layers())?;
            loss += lost.language;
            load.add(&lost.load);
        }
        self.state.counters.chosen.iter_mut().zip(&load.chosen).for_each(|(all, one)| *all += one);
        Ok((sums, loss))
    }

    /// What routers are told about a pass that begins with the step's example `first`.
    fn plan(&self, batch: &Batch, run: &[&Prepared], first: usize, share: f32) -> RouterPlan {
        let (job, counters) = (self.job, &self.state.counters);
        let (counter, likely) = (Counter::new(job.spec.seed), forced_share(counters.progress));
        let site = Site::new("by_label", u64::from(counters.step));
        let forced: Vec<bool> = (0..run.len()).map(|i| counter.uniform(site, (first + i) as u64) < likely).collect();
        let domains: Vec<Domain> = run.iter().map(|one| one.domain).collect();
        let pass = Counter::new(counter.bits(Site::new("pass", u64::from(counters.step)), first as u64));
        job.labels.plan(batch, &domains, &forced, share, (pass, job.base.config().layers))
    }

    fn rates(&self) -> Vec<Rate> {
        let spec = self.job.spec;
        let factor = rate_factor(self.state.counters.progress, f64::from(spec.warmup)) as f32;
        let of = |kind| match kind {
            ParameterKind::A | ParameterKind::B => Rate { rate: factor * spec.learning_rate, decay: spec.weight_decay },
            ParameterKind::Router => Rate { rate: factor * spec.router_learning_rate, decay: 0.0 },
        };
        self.job.shape.parameters().iter().map(|p| of(p.kind)).collect()
    }

    /// Measures the held-out loss and keeps the weights when it is the lowest.
    fn validate(&mut self, observer: &mut dyn Observer) -> Result<(), TrainError> {
        let began = self.job.seconds();
        let found = self.job.validate(&self.state.weights, observer)?;
        let counters = &mut self.state.counters;
        counters.validation_s = self.job.seconds() - began;
        counters.elapsed_s = self.job.seconds() - self.began_s;
        counters.validated_at = counters.step;
        counters.last = found.loss;
        counters.worse += 1;
        if found.loss < counters.best.loss {
            counters.worse = 0;
            counters.best = found;
            self.state.best.clone_from(&self.state.weights);
        }
        Ok(())
    }

    fn checkpoint(&self, observer: &mut dyn Observer) -> Result<(), TrainError> {
        let bytes = self.state.to_bytes(&self.job.shape, self.job.digest)?;
        observer.checkpoint(self.state.counters.step, bytes);
        Ok(())
    }

    fn tell(&self, phase: TrainPhase, observer: &mut dyn Observer) -> ControlFlow<()> {
        let (c, left) = (&self.state.counters, self.left());
        let (seconds_before, tokens_before) = self.resumed.unwrap_or_default();
        let (seconds, tokens) = (c.stepping_s - seconds_before, c.tokens - tokens_before);
        let per_step = if c.step > 0 { (c.elapsed_s - c.prelude_s) / f64::from(c.step) } else { 0.0 };
        observer.progress(&TrainProgress {
            phase,
            step: c.step,
            steps: c.step + left,
            loss: c.loss_curve.last().map_or(c.before.loss, |loss| f64::from(*loss)),
            val_loss: Some(c.last),
            tokens,
            tok_s: rate(tokens, seconds),
            left_s: per_step * f64::from(left),
        })
    }

    /// The best weights and what was measured.
    pub(super) fn finish(
        self,
        stopped_early: bool,
        resumed_from: Option<u32>,
    ) -> Result<(Mixture, TrainReport), TrainError> {
        let c = self.state.counters;
        let mixture = self.job.mixture(&self.state.best)?;
        let after = |domain: &String| c.best.by_domain.get(domain).copied().unwrap_or(c.best.loss);
        let load = ExpertLoad { chosen: c.chosen, weight: Vec::new() };
        let report = TrainReport {
            steps: c.step,
            tokens: c.tokens,
            target_tokens: c.target_tokens,
            tok_s: rate(c.tokens, c.stepping_s),
            trainable: mixture.trainable(),
            val_loss_before: c.before.loss,
            val_loss_after: c.best.loss,
            val_by_domain: c.before.by_domain.iter().map(|(d, loss)| (d.clone(), (*loss, after(d)))).collect(),
            experts: expert_names(mixture.spec()),
            expert_load: load.chosen_shares(),
            folded_domains: self.job.labels.folded.clone(),
            loss_curve: c.loss_curve,
            stopped_early,
            resumed_from,
        };
        Ok((mixture, report))
    }

    /// Steps taken.
    pub(super) const fn step_number(&self) -> u32 {
        self.state.counters.step
    }
}

impl Job<'_> {
    /// The order of examples after `drawn` of them.
    fn order(&self, drawn: u64) -> Peekable<Order> {
        let domains: Vec<Domain> = self.train.iter().map(|one| one.domain).collect();
        let mut order = Order::new(&domains, self.spec.seed);
        (0..drawn).for_each(|_| _ = order.next());
        order.peekable()
    }
}

/// Tokens per second, 0 before the first second began.
fn rate(tokens: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 }
}
