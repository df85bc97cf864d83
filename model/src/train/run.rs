//! The loop: validate, plan, hand out the state, step, until the steps, the time or the patience end. Each turn begins with
//! what the state says is due, so that a job that goes on from a checkpoint does what the uninterrupted one did next.

use super::adamw::AdamW;
use super::gradient::{Goals, Gradients, PassLoss};
use super::job::{Job, Size};
use super::judge::{Judge, Measured};
use super::labels::expert_names;
use super::orthogonal::orthogonal;
use super::pack::Packer;
use super::parts::{clocks, rates};
use super::schedule::{
    Decision, Pace, Situation, Stage, decide, plateau_factor, progress, rate_factor, stage, step_with_validation_s,
};
use super::search::{Found, search};
use super::state::{Counters, State};
use super::watch::{GivenUp, Watch};
use super::{Host, Observer, TrainError};
use crate::adapter::{ExpertLoad, Mixture};
use candle_core::{Device, Tensor};
use empathd_proto::engine::{CurvePoint, Evaluation, StepPoint, ValidationPoint};
use empathd_proto::report::{EndReason, PlanChange, TrainPhase, TrainProgress, TrainReport};
use std::ops::ControlFlow;

/// A job under way.
pub(super) struct Run<'a> {
    job: &'a Job<'a>,
    gradients: &'a mut Gradients,
    watch: Watch<'a>,
    state: State,
    packer: Packer<'a>,
    /// Gradient sums of a step; empty between steps.
    sums: Vec<Vec<f32>>,
    /// Step of the last state handed out by this process, or begun with.
    safe_at: Option<u32>,
    /// Seconds in steps and tokens before this process went on.
    resumed: (f64, u64),
}

/// What one step lost.
#[derive(Default)]
struct Lost {
    passes: PassLoss,
    /// Likeness of the experts, before its weight.
    alike: f64,
    grad_norm: f64,
    rate: f32,
    seconds: f64,
}

/// The numbers of a mixture.
pub(super) fn numbers(mixture: &Mixture) -> Result<Vec<Vec<f32>>, TrainError> {
    let one = |tensor: &Tensor| tensor.to_device(&Device::Cpu)?.flatten_all()?.to_vec1();
    Ok(mixture.parameters().iter().map(|p| one(p.tensor)).collect::<candle_core::Result<_>>()?)
}

impl<'a> Run<'a> {
    /// A job from its beginning: finds the tokens of a pass, measures the base model, and plans.
    pub(super) fn begin(
        job: &'a Job<'a>,
        gradients: &'a mut Gradients,
        host: &'a Host<'a>,
        observer: &'a mut dyn Observer,
    ) -> Result<Self, TrainError> {
        let mut watch = Watch::new(observer, host, 0.0);
        let weights = numbers(&job.shape)?;
        let until_s = f64::from(job.spec.seconds_max);
        let found = watch.over(until_s, |between| search(gradients, &job.wanted(), host, between))?;
        let found = found.map_err(|why| too_short(job, why))?;
        let measured_from_s = watch.elapsed_s();
        let base = watch.over(until_s, |between| job.measure(gradients, false, found.pass_tokens, between))?;
        let base = base.map_err(|why| too_short(job, why))?;
        let counters = fresh(job, found, base, (measured_from_s, &watch))?;
        let (clocks, count) = clocks(&job.shape, job.layers);
        let moments = AdamW::aging(&weights, clocks, count);
        let state = State { counters, moments, best: weights.clone(), weights };
        Self::on(job, gradients, watch, state, None)
    }

    /// A job from a checkpoint.
    pub(super) fn resume(
        job: &'a Job<'a>,
        gradients: &'a mut Gradients,
        host: &'a Host<'a>,
        observer: &'a mut dyn Observer,
        checkpoint: &[u8],
    ) -> Result<Self, TrainError> {
        let state = State::from_bytes(checkpoint, &job.shape, job.digest, clocks(&job.shape, job.layers))?;
        gradients.hold(&job.shape, state.counters.pass_tokens)?;
        let watch = Watch::new(observer, host, state.counters.elapsed_s);
        let step = state.counters.step;
        Self::on(job, gradients, watch, state, Some(step))
    }

    fn on(
        job: &'a Job<'a>,
        gradients: &'a mut Gradients,
        watch: Watch<'a>,
        state: State,
        safe_at: Option<u32>,
    ) -> Result<Self, TrainError> {
        let c = &state.counters;
        let (packer, resumed) = (job.packer(c.pass_tokens, c.step), (c.stepping_s, c.tokens));
        let sums = state.weights.iter().map(|w| vec![0f32; w.len()]).collect();
        gradients.set_weights(&state.weights)?;
        Ok(Self { job, gradients, watch, state, packer, sums, safe_at, resumed })
    }

    /// Measures the weights that training begins with, where they are not those of a fresh mixture.
    pub(super) fn measure_beginning(&mut self) -> Result<(), TrainError> {
        let (job, until_s, pass_tokens) = (self.job, self.last_call_s(), self.state.counters.pass_tokens);
        let gradients = &mut *self.gradients;
        let found = self.watch.over(until_s, |between| job.measure(gradients, true, pass_tokens, between))?;
        self.state.counters.judge.begin(found.map_err(|why| too_short(job, why))?);
        Ok(())
    }

    /// Takes steps until the end; why it came.
    pub(super) fn steps(&mut self) -> Result<EndReason, TrainError> {
        loop {
            if let Some(end) = self.turn()? {
                return Ok(end);
            }
        }
    }

    /// One turn of the loop.
    fn turn(&mut self) -> Result<Option<EndReason>, TrainError> {
        if let Some(end) = self.validate_if_due()? {
            return Ok(Some(end));
        }
        if self.left() == 0 {
            return Ok(Some(EndReason::Steps));
        }
        if let Some(end) = self.plan()? {
            return Ok(Some(end));
        }
        if self.tell().is_break() {
            return self.pause().map(Some);
        }
        match self.step()? {
            Err(GivenUp::Paused) => self.pause().map(Some),
            Err(GivenUp::Late) => self.last_call().map(Some),
            Ok(lost) if lost.is_finite() => {
                self.draw_step(&lost);
                Ok(None)
            }
            Ok(_) => Ok(Some(EndReason::Diverged)),
        }
    }

    fn left(&self) -> u32 {
        let c = &self.state.counters;
        c.plans.last().map_or(0, |plan| plan.steps).saturating_sub(c.step)
    }

    fn is_due(&self, every: u32) -> bool {
        every > 0 && self.state.counters.step.is_multiple_of(every)
    }

    /// Second of the job at which everything but handing out the best weights is over.
    fn last_call_s(&self) -> f64 {
        let seconds_max = f64::from(self.job.spec.seconds_max);
        seconds_max - self.state.counters.pace.last_call_s(seconds_max)
    }

    fn validate_if_due(&mut self) -> Result<Option<EndReason>, TrainError> {
        let c = &self.state.counters;
        let due = c.validated_at < c.step && (self.is_due(self.job.spec.validate_every) || self.left() == 0);
        if !due {
            return Ok(None);
        }
        match self.validate()? {
            Err(GivenUp::Paused) => return self.pause().map(Some),
            Err(GivenUp::Late) => return Ok(Some(EndReason::Deadline)),
            Ok(()) => {}
        }
        let c = &self.state.counters;
        if !c.judge.last.is_finite() {
            return Ok(Some(EndReason::Diverged));
        }
        let in_vain = c.judge.is_in_vain(self.job.spec, progress(&c.plans, c.step));
        Ok((in_vain && self.left() > 0).then_some(EndReason::Patience))
    }

    /// Measures the weights and keeps them when they are the best.
    fn validate(&mut self) -> Result<Result<(), GivenUp>, TrainError> {
        let (job, began_s, until_s) = (self.job, self.watch.elapsed_s(), self.last_call_s());
        let (gradients, pass_tokens) = (&mut *self.gradients, self.state.counters.pass_tokens);
        gradients.set_weights(&self.state.weights)?;
        let found = match self.watch.over(until_s, |between| job.measure(gradients, true, pass_tokens, between))? {
            Ok(found) => found,
            Err(why) => return Ok(Err(why)),
        };
        let counters = &mut self.state.counters;
        counters.elapsed_s = self.watch.elapsed_s();
        counters.pace.validation_s = counters.elapsed_s - began_s;
        counters.validated_at = counters.step;
        let is_best = counters.judge.hear(found, counters.step, job.spec);
        let point = validation_point(counters.step, &counters.judge.last, is_best);
        if is_best {
            self.state.best.clone_from(&self.state.weights);
        }
        self.watch.draw(&CurvePoint::Validation(point));
        Ok(Ok(()))
    }

    /// Sees whether the plan holds and hands out the state when it is due or another plan was made.
    fn plan(&mut self) -> Result<Option<EndReason>, TrainError> {
        let may_grow = self.is_due(self.job.spec.checkpoint_every);
        let planned = self.state.counters.step + self.left();
        let c = &mut self.state.counters;
        c.elapsed_s = self.watch.elapsed_s();
        c.pace.gap_s = self.watch.gap_s();
        let now = Situation { done: c.step, planned, elapsed_s: c.elapsed_s, pace: c.pace };
        let replanned = match decide(self.job.spec, &now, may_grow) {
            Decision::Stop => return self.last_call().map(Some),
            Decision::Keep => false,
            Decision::Replan(steps) => {
                c.plans.push(PlanChange { at_step: c.step, steps });
                true
            }
        };
        if replanned || ((may_grow || self.safe_at.is_none()) && self.safe_at != Some(self.state.counters.step)) {
            self.hand_out()?;
        }
        Ok(None)
    }

    /// There is no time for another step: what was not measured yet is, if that fits.
    fn last_call(&mut self) -> Result<EndReason, TrainError> {
        let c = &self.state.counters;
        if c.validated_at < c.step && self.watch.elapsed_s() + c.pace.validation_s < self.last_call_s() {
            // Given up or not: the best so far is handed out.
            let _ = self.validate()?;
        }
        Ok(EndReason::Deadline)
    }

    /// Ends on command, with the state of the last whole step safe.
    fn pause(&mut self) -> Result<EndReason, TrainError> {
        if self.safe_at != Some(self.state.counters.step) {
            self.hand_out()?;
        }
        Ok(EndReason::Command)
    }

    fn hand_out(&mut self) -> Result<(), TrainError> {
        let began_s = self.watch.elapsed_s();
        let bytes = self.state.to_bytes(&self.job.shape, self.job.digest)?;
        let step = self.state.counters.step;
        self.watch.hand_out(step, bytes);
        self.safe_at = Some(step);
        self.state.counters.pace.export_s = self.watch.elapsed_s() - began_s;
        Ok(())
    }

    /// One optimiser step. Given up, nothing has changed.
    fn step(&mut self) -> Result<Result<Lost, GivenUp>, TrainError> {
        let began_s = self.watch.elapsed_s();
        let passes = self.packer.next_step();
        let size = self.job.size(&passes);
        let mut lost = match self.differentiate(&passes, size)? {
            Ok(passes) => Lost { passes, ..Lost::default() },
            Err(why) => return Ok(Err(why)),
        };
        let (spec, counters) = (self.job.spec, &self.state.counters);
        let factor = rate_factor(progress(&counters.plans, counters.step + 1), f64::from(spec.warmup))
            * plateau_factor(spec.plateau, counters.judge.cuts);
        lost.rate = (factor * f64::from(spec.learning_rate)) as f32;
        let rates = rates(&self.job.shape, spec, factor);
        // Experts that do not learn yet are not pushed apart either: nothing else would hold them.
        let together = stage(progress(&counters.plans, counters.step + 1), &spec.stages) == Stage::Shared;
        let push = if together { 0.0 } else { spec.losses.orthogonal };
        lost.alike = orthogonal(&self.job.shape, self.job.layers, &self.state.weights, push, &mut self.sums);
        let State { weights, moments, counters, .. } = &mut self.state;
        lost.grad_norm = moments.step(weights, &mut self.sums, &rates, spec.clip);
        if !lost.is_finite() {
            return Ok(Ok(lost));
        }
        let seen = if size.targets > 0 { lost.passes.language } else { counters.last_loss() };
        counters.step += 1;
        counters.tokens += size.tokens as u64;
        counters.target_tokens += size.targets as u64;
        counters.loss_curve.push(seen as f32);
        counters.chosen.iter_mut().zip(&lost.passes.load.chosen).for_each(|(all, one)| *all += one);
        counters.elapsed_s = self.watch.elapsed_s();
        lost.seconds = counters.elapsed_s - began_s;
        counters.stepping_s += lost.seconds;
        counters.pace.stepped(lost.seconds);
        Ok(Ok(lost))
    }

    /// Adds up the gradients of all passes of a step.
    fn differentiate(&mut self, passes: &[Vec<usize>], size: Size) -> Result<Result<PassLoss, GivenUp>, TrainError> {
        let (job, counters) = (self.job, &self.state.counters);
        let until_s = self.last_call_s() - counters.pace.validation_s;
        let (gradients, sums) = (&mut *self.gradients, &mut self.sums);
        self.watch.over(until_s, |between| {
            gradients.set_weights(&self.state.weights)?;
            let (mut all, mut first) = (PassLoss::default(), 0);
            for pass in passes {
                let asked = job.ask(pass, size, counters, first);
                first += pass.len();
                let (weights, kept) = (&asked.weights, &asked.kept);
                let goals = Goals { weights, kept, routers: asked.routers.as_ref() };
                let lost = gradients.pass(&asked.batch, &goals, sums, &mut *between)?;
                all.language += lost.language;
                all.kept += lost.kept;
                all.routers += lost.routers;
                all.parts.add(&lost.parts);
                all.load.add(&lost.load);
            }
            Ok(all)
        })
    }

    fn draw_step(&mut self, lost: &Lost) {
        let (c, losses) = (&self.state.counters, &self.job.spec.losses);
        let mut parts = std::collections::BTreeMap::new();
        if losses.base_kl > 0.0 && lost.passes.kept != 0.0 {
            parts.insert("base_kl".to_owned(), (lost.passes.kept / f64::from(losses.base_kl)) as f32);
        }
        if !self.job.shape.spec().experts.is_empty() {
            let of = &lost.passes.parts;
            let named = [("session", of.session), ("label", of.label), ("balance", of.balance), ("z", of.z)];
            let all = named.into_iter().chain([("orthogonal", lost.alike)]);
            parts.extend(all.map(|(name, loss)| (name.to_owned(), loss as f32)));
        }
        let tokens = self.job.spec.tokens_per_step as f64;
        let point = StepPoint {
            step: c.step,
            loss: c.last_loss() as f32,
            parts,
            grad_norm: lost.grad_norm as f32,
            rate: lost.rate,
            tok_s: rate(tokens as u64, lost.seconds) as f32,
            expert_load: lost.passes.load.chosen_shares().iter().map(|share| *share as f32).collect(),
            routing_entropy: lost.passes.parts.entropy as f32,
        };
        self.watch.draw(&CurvePoint::Step(point));
    }

    fn tell(&mut self) -> ControlFlow<()> {
        let (c, left) = (&self.state.counters, self.left());
        let (seconds, tokens) = (c.stepping_s - self.resumed.0, c.tokens - self.resumed.1);
        let ending_s = c.pace.validation_s + c.pace.export_s;
        let progress = TrainProgress {
            phase: TrainPhase::Stepping,
            step: c.step,
            steps: c.step + left,
            loss: c.last_loss(),
            val_loss: Some(c.judge.last.held.loss),
            tokens,
            tok_s: rate(tokens, seconds),
            left_s: step_with_validation_s(self.job.spec, &c.pace) * f64::from(left) + ending_s,
        };
        self.watch.tell(&progress)
    }

    /// The best weights and what was measured.
    ///
    /// # Errors
    /// Training diverged before anything was better than the base model.
    pub(super) fn finish(
        mut self,
        ended: EndReason,
        resumed_from: Option<u32>,
    ) -> Result<(Mixture, TrainReport), TrainError> {
        let _ = self.tell();
        let (job, c) = (self.job, self.state.counters);
        let (before, after) = (&c.judge.base.held, &c.judge.best.held);
        if ended == EndReason::Diverged && c.judge.best_at == 0 {
            return Err(TrainError::Diverged(c.step + 1));
        }
        let mixture = job.shape.map(|i, like| Tensor::from_slice(&self.state.best[i], like.dims(), &Device::Cpu))?;
        let of = |found: &Evaluation, domain: &String| found.by_domain.get(domain).copied().unwrap_or(found.loss);
        let load = ExpertLoad { chosen: c.chosen, weight: Vec::new() };
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let report = TrainReport {
            steps: c.step,
            tokens: c.tokens,
            target_tokens: c.target_tokens,
            tok_s: rate(c.tokens, c.stepping_s),
            trainable: mixture.trainable(),
            val_loss_before: before.loss,
            val_loss_after: after.loss,
            val_by_domain: before.by_domain.iter().map(|(d, loss)| (d.clone(), (*loss, of(after, d)))).collect(),
            experts: expert_names(mixture.spec()),
            expert_load: load.chosen_shares(),
            folded_domains: job.folded.clone(),
            loss_curve: c.loss_curve,
            stopped_early: !matches!(ended, EndReason::Steps | EndReason::Deadline),
            resumed_from,
            ended,
            pass_tokens: count(c.pass_tokens),
            passes_per_step: count(job.passes_per_step(c.pass_tokens)),
            plans: c.plans,
            left_out: job.left_out,
        };
        Ok((mixture, report))
    }

    /// Steps taken.
    pub(super) const fn step_number(&self) -> u32 {
        self.state.counters.step
    }
}

impl Lost {
    fn is_finite(&self) -> bool {
        self.grad_norm.is_finite() && self.passes.language.is_finite()
    }
}

impl Counters {
    /// Loss of the last step; of the base model before the first.
    fn last_loss(&self) -> f64 {
        self.loss_curve.last().map_or(self.judge.base.held.loss, |loss| f64::from(*loss))
    }
}

/// The counters of a job whose base model was just measured, from `measured_from_s` on, and its first plan.
fn fresh(
    job: &Job<'_>,
    found: Found,
    base: Measured,
    (measured_from_s, watch): (f64, &Watch<'_>),
) -> Result<Counters, TrainError> {
    if !base.is_finite() {
        return Err(TrainError::Diverged(0));
    }
    let (spec, elapsed_s) = (job.spec, watch.elapsed_s());
    let step_s = found.pass_s * job.passes_per_step(found.pass_tokens) as f64;
    let validation_s = elapsed_s - measured_from_s;
    let pace = Pace { step_s, validation_s, export_s: 0.0, gap_s: watch.gap_s() };
    let now = Situation { done: 0, planned: spec.steps, elapsed_s, pace };
    let steps = match decide(spec, &now, false) {
        Decision::Keep => spec.steps,
        Decision::Replan(steps) => steps,
        Decision::Stop => return Err(shorter_than_a_step(spec.seconds_max, elapsed_s + step_s + 2.5 * validation_s)),
    };
    Ok(Counters {
        step: 0,
        pass_tokens: found.pass_tokens,
        plans: vec![PlanChange { at_step: 0, steps }],
        elapsed_s,
        stepping_s: 0.0,
        pace,
        tokens: 0,
        target_tokens: 0,
        loss_curve: Vec::new(),
        chosen: vec![0; job.shape.spec().experts.len()],
        judge: Judge::new(base),
        validated_at: 0,
    })
}

fn too_short(job: &Job<'_>, why: GivenUp) -> TrainError {
    match why {
        GivenUp::Paused => TrainError::Paused,
        GivenUp::Late => shorter_than_a_step(job.spec.seconds_max, 2.0 * f64::from(job.spec.seconds_max)),
    }
}

fn shorter_than_a_step(seconds_max: u32, needed_s: f64) -> TrainError {
    TrainError::BadJob(format!(
        "the time of {seconds_max} s is shorter than one step with its validations, about {:.0} s on this machine; give it \
         more time, fewer tokens for a step or fewer held-out records",
        needed_s.ceil()
    ))
}

fn validation_point(step: u32, found: &Measured, is_best: bool) -> ValidationPoint {
    let (by_domain, macro_loss) = (found.held.by_domain.clone(), found.macro_loss());
    ValidationPoint { step, by_domain, macro_loss, general: found.general, crisis_items: found.crisis_items, is_best }
}

/// Tokens per second, 0 before the first second began.
fn rate(tokens: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 }
}
