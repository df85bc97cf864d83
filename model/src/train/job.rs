//! What does not change while a job runs: what it learns and is measured with, names and shapes, and what each pass is
//! asked for. Refuses to know how far the job is.

use super::batch::Batch;
use super::gradient::{Gradients, Keep, RouterPlan};
use super::judge::Measured;
use super::labels::{Document, Labels, Moment, fold};
use super::measure::{evaluation, refs};
use super::order::{Order, Queue};
use super::pack::Packer;
use super::prepare::{Pieces, Prepared};
use super::schedule::{Stage, progress, stage};
use super::search::{Wanted, passes_per_step};
use super::state::{Counters, digest};
use super::{Encode, TrainError};
use crate::adapter::Mixture;
use crate::counter::{Counter, Site};
use empathd_proto::engine::{Example, MixtureSpec, Part, TrainSpec};
use empathd_proto::record::Domain;

/// Fewest and most tokens of a validation; between them a quarter of what is trained between two validations.
const VALIDATION_TOKENS: (usize, usize) = (4_096, 262_144);
/// Most tokens of each guard.
const GUARD_TOKENS: usize = 8_192;

/// A job.
pub(super) struct Job<'a> {
    pub(super) spec: &'a TrainSpec,
    /// What is learnt, then what is replayed.
    pieces: Vec<Prepared>,
    /// How many of them are learnt.
    learnt: usize,
    /// Tokens of each.
    sizes: Vec<usize>,
    held: Vec<Prepared>,
    general: Vec<Prepared>,
    crisis_items: Vec<Prepared>,
    pub(super) left_out: u64,
    pub(super) labels: Labels,
    /// Domains whose expert has too little data: folded into the shared part, or, of a mixture that was trained before, free.
    pub(super) folded: Vec<Domain>,
    /// Names and shapes of what is trained.
    pub(super) shape: Mixture,
    pub(super) layers: usize,
    /// What a checkpoint must have been made for.
    pub(super) digest: [u8; 32],
}

/// One pass of a step and what it is asked for.
pub(super) struct Asked {
    pub(super) batch: Batch,
    /// Weight of each target.
    pub(super) weights: Vec<f32>,
    /// Rows that are held to the base.
    pub(super) kept: Vec<Keep>,
    pub(super) routers: Option<RouterPlan>,
}

/// What a step has of tokens.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    pub(super) tokens: usize,
    /// Targets that are learnt.
    pub(super) targets: usize,
    /// Rows that are held to the base.
    pub(super) kept: usize,
}

impl<'a> Job<'a> {
    /// Puts the examples into tokens. Without a trained mixture to begin with, the shape is the asked one less the experts of
    /// domains with too little data; `kept` says whether a state that is gone on from has this many experts.
    pub(super) fn new(
        gradients: &Gradients,
        base_sha256: [u8; 32],
        encode: &dyn Encode,
        spec: &'a TrainSpec,
        examples: &[Example],
        begun: Option<Mixture>,
        kept: &dyn Fn(&Mixture) -> bool,
    ) -> Result<Self, TrainError> {
        let seq_len = (spec.seq_len as usize).min(gradients.config().context);
        let mut all = Pieces::of(encode, examples, seq_len)?;
        let digest = digest(spec, base_sha256, all.all.iter());
        let [mut pieces, held, replay, general, crisis_items] =
            [Part::Learn, Part::HeldOut, Part::Replay, Part::General, Part::CrisisItem].map(|part| all.take(part));
        refuse_nothing(&pieces, &held, all.left_out, seq_len)?;
        let (left, folded) = fold(&spec.mixture, &pieces);
        let fresh = |mixture: &MixtureSpec| Mixture::init(gradients.config(), mixture, spec.seed);
        let shape = match begun {
            Some(mixture) => mixture,
            None => Some(fresh(&left)?).filter(kept).map_or_else(|| fresh(&spec.mixture), Ok)?,
        };
        let (learnt, labels) = (pieces.len(), Labels::new(shape.spec(), &pieces));
        pieces.extend(replay);
        let sizes = pieces.iter().map(Prepared::tokens).collect();
        let (left_out, layers) = (all.left_out, gradients.config().layers);
        Ok(Self {
            spec,
            pieces,
            learnt,
            sizes,
            held,
            general,
            crisis_items,
            left_out,
            labels,
            folded,
            shape,
            layers,
            digest,
        })
    }

    /// What the search for the tokens of a pass must know.
    pub(super) fn wanted(&self) -> Wanted<'_> {
        let measured = [&self.held, &self.general, &self.crisis_items].into_iter().flatten().map(Prepared::tokens);
        Wanted {
            shape: &self.shape,
            longest: self.sizes.iter().copied().chain(measured).max().unwrap_or(0),
            tokens_per_step: self.spec.tokens_per_step as usize,
            steps: self.spec.steps,
            asked: self.spec.pass_tokens.map(|tokens| tokens as usize),
            replays: self.pieces.len() > self.learnt,
        }
    }

    /// Passes of each step.
    pub(super) fn passes_per_step(&self, pass_tokens: usize) -> usize {
        passes_per_step(self.spec.tokens_per_step as usize, pass_tokens)
    }

    /// Deals out the passes of all steps behind `steps` of them.
    pub(super) fn packer(&self, pass_tokens: usize, steps: u32) -> Packer<'_> {
        let learn = self.pieces[..self.learnt].iter().map(|one| Queue::Learn(one.domain));
        let replay = self.pieces[self.learnt..].iter().map(|_| Queue::Replay);
        let queues: Vec<Queue> = learn.chain(replay).collect();
        let share = f64::from(self.spec.losses.replay_share).clamp(0.0, 0.9);
        let order = Order::new(&queues, &self.sizes, share, self.spec.seed);
        let mut packer = Packer::new(order, &self.sizes, pass_tokens, self.passes_per_step(pass_tokens));
        packer.skip(steps);
        packer
    }

    fn is_learnt(&self, piece: usize) -> bool {
        piece < self.learnt
    }

    /// How much these passes hold together.
    pub(super) fn size(&self, passes: &[Vec<usize>]) -> Size {
        let mut size = Size { tokens: 0, targets: 0, kept: 0 };
        for piece in passes.iter().flatten() {
            size.tokens += self.sizes[*piece];
            let targets = self.pieces[*piece].target_tokens();
            if self.is_learnt(*piece) { size.targets += targets } else { size.kept += targets }
        }
        size
    }

    /// What a pass is asked for, in a step of this size that begins the pass with its piece number `first`.
    pub(super) fn ask(&self, pass: &[usize], size: Size, counters: &Counters, first: usize) -> Asked {
        let batch = Batch::pack(pass.iter().map(|piece| &self.pieces[*piece].encoded));
        let learnt = |owner: usize| self.is_learnt(pass[owner]);
        let weight = 1.0 / size.targets.max(1) as f32;
        let weights = batch.owners.iter().map(|owner| if learnt(*owner) { weight } else { 0.0 }).collect();
        let keep = self.spec.losses.base_kl / size.kept.max(1) as f32;
        let rows = batch.targets.iter().zip(&batch.owners).filter(|(_, owner)| !learnt(**owner));
        let kept = rows.map(|(target, _)| Keep { row: target.row, weight: keep }).collect();
        let routers = (!self.shape.spec().experts.is_empty()).then(|| self.plan(&batch, pass, size, counters, first));
        Asked { batch, weights, kept, routers }
    }

    /// What routers are told about a pass.
    fn plan(&self, batch: &Batch, pass: &[usize], size: Size, counters: &Counters, first: usize) -> RouterPlan {
        let (step, seed) = (u64::from(counters.step), Counter::new(self.spec.seed));
        let progress = progress(&counters.plans, counters.step + 1);
        let stage = stage(progress, &self.spec.stages);
        let likely = match stage {
            Stage::Shared => 0.0,
            Stage::Forced(likely) => likely,
        };
        let site = Site::new("by_label", step);
        let document = |(i, piece): (usize, &usize)| Document {
            domain: self.is_learnt(*piece).then(|| self.pieces[*piece].domain),
            forced: seed.uniform(site, (first + i) as u64) < likely,
        };
        let documents: Vec<Document> = pass.iter().enumerate().map(document).collect();
        let share = batch.tokens() as f32 / size.tokens as f32;
        let moment = Moment { stage, progress, share, losses: &self.spec.losses };
        let counter = Counter::new(seed.bits(Site::new("pass", step), first as u64));
        self.labels.plan(batch, &documents, moment, (counter, self.layers))
    }

    /// Held-out pieces of one validation: every domain, up to the budget.
    fn validation_set(&self) -> Vec<&Prepared> {
        let between = self.spec.validate_every as usize * self.spec.tokens_per_step as usize;
        let (fewest, most) = VALIDATION_TOKENS;
        let budget = (between / 4).clamp(fewest, most);
        let queues: Vec<Queue> = self.held.iter().map(|one| Queue::Learn(one.domain)).collect();
        let sizes: Vec<usize> = self.held.iter().map(Prepared::tokens).collect();
        let (mut taken, mut tokens) = (vec![false; self.held.len()], 0);
        for index in Order::new(&queues, &sizes, 0.0, self.spec.seed).take(4 * self.held.len()) {
            if !taken[index] && tokens + sizes[index] <= budget {
                taken[index] = true;
                tokens += sizes[index];
            }
        }
        if !taken.contains(&true) {
            return self.held.iter().take(1).collect();
        }
        self.held.iter().zip(taken).filter_map(|(one, taken)| taken.then_some(one)).collect()
    }

    /// Measures the held weights, or the base alone.
    pub(super) fn measure(
        &self,
        gradients: &mut Gradients,
        adapted: bool,
        pass_tokens: usize,
        between_layers: &mut dyn FnMut(),
    ) -> Result<Measured, TrainError> {
        let mut of = |set: &[&Prepared]| evaluation(gradients, adapted, set, pass_tokens, &mut *between_layers);
        let held = of(&self.validation_set())?;
        let mut guard = |set: &[Prepared]| match within(set, GUARD_TOKENS) {
            [] => Ok(None),
            set => of(&refs(set)).map(|found| Some(found.loss)),
        };
        Ok(Measured { held, general: guard(&self.general)?, crisis_items: guard(&self.crisis_items)? })
    }
}

/// The first pieces of at most so many tokens, at least one where there are any.
fn within(set: &[Prepared], tokens_max: usize) -> &[Prepared] {
    let mut tokens = 0;
    let fit = set.iter().take_while(|one| {
        tokens += one.tokens();
        tokens <= tokens_max
    });
    let count = fit.count().max(1).min(set.len());
    &set[..count]
}

fn refuse_nothing(learn: &[Prepared], held: &[Prepared], left_out: u64, seq_len: usize) -> Result<(), TrainError> {
    if !learn.is_empty() && !held.is_empty() {
        return Ok(());
    }
    let which = if learn.is_empty() { "to learn from" } else { "held out for validation" };
    let long = match left_out {
        0 => String::new(),
        many => format!(" ({many} exchanges are longer than {seq_len} tokens; a longer sequence would take them)"),
    };
    Err(TrainError::BadJob(format!("no example {which} holds an answer{long}; ingest more and cut again")))
}
