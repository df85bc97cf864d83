//! What a pass is asked for and what it answers: weights of targets, rows held to the base, what routers are told, losses
//! and scores. Refuses to know how gradients are found.

use crate::adapter::ExpertLoad;
use std::sync::Arc;

/// What routers are told about the rows of a pass.
#[derive(Debug, Clone)]
pub struct RouterPlan {
    /// Who routes.
    pub routing: PlannedRouting,
    /// The documents of the pass in their order.
    pub documents: Vec<Labelled>,
    /// For each expert the share of choices it should have, by the labels of the pass.
    pub prior: Arc<[f32]>,
    /// Weights of the routers' losses, for a whole step.
    pub weights: RouterWeights,
    /// Share of the step's rows that this pass has: what the weights are multiplied by.
    pub share: f32,
}

impl RouterPlan {
    /// The plan of documents of these lengths about whose routing nobody says anything.
    #[must_use]
    pub fn silent(lengths: &[usize], experts: usize) -> Self {
        Self {
            routing: PlannedRouting::Own,
            documents: lengths.iter().map(|rows| Labelled { rows: *rows, wanted: None }).collect(),
            prior: vec![1.0 / experts.max(1) as f32; experts].into(),
            weights: RouterWeights::default(),
            share: 1.0,
        }
    }
}

/// Who routes a pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlannedRouting {
    /// Nobody: only the shared part learns, routers are not asked.
    Off,
    /// The routers.
    Own,
    /// For each layer and row the experts it must take; 0 lets the router choose.
    Forced(Vec<Vec<u64>>),
}

/// A document and what its label says.
#[derive(Debug, Clone)]
pub struct Labelled {
    /// Its rows.
    pub rows: usize,
    /// What its label wants; none for a document without one.
    pub wanted: Option<Wanted>,
}

/// What a label wants of the experts, each kind of shares summing to one.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Of the routers: room for the experts without a domain is left.
    pub route: Arc<[f32]>,
    /// Of the session prior: the domain's experts, smoothed.
    pub session: Arc<[f32]>,
    /// How much it counts in the session prior's loss: more where its domain is seldom drawn.
    pub weight: f32,
}

/// Weights of the routers' losses beside the language loss.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct RouterWeights {
    /// Session prior against the label.
    pub session: f32,
    /// Mean of the routers against the label.
    pub label: f32,
    /// Balance against the label prior.
    pub balance: f32,
    /// Square of the logsumexp.
    pub z: f32,
}

/// The routers' losses of a pass, each before its weight and times the pass's share of the step.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct RouterParts {
    /// Session prior against the label, nats.
    pub session: f64,
    /// Mean of the routers against the label, nats.
    pub label: f64,
    /// `Σ f·P/π`, one at best.
    pub balance: f64,
    /// Mean square of the logsumexp.
    pub z: f64,
    /// Mean entropy of the routers' softmax, nats; measured, no loss.
    pub entropy: f64,
}

impl RouterParts {
    /// Adds those of another pass of the same step.
    pub fn add(&mut self, other: &Self) {
        self.session += other.session;
        self.label += other.label;
        self.balance += other.balance;
        self.z += other.z;
        self.entropy += other.entropy;
    }

    /// The weighted sum.
    #[must_use]
    pub fn weighted(&self, weights: &RouterWeights) -> f64 {
        let [session, label, balance, z] = [weights.session, weights.label, weights.balance, weights.z].map(f64::from);
        session * self.session + label * self.label + balance * self.balance + z * self.z
    }
}

/// A row whose distribution is held to that of the base.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Keep {
    /// The row.
    pub row: u32,
    /// Weight of KL(base‖model) there.
    pub weight: f32,
}

/// What the gradients of a pass are of.
pub struct Goals<'a> {
    /// Weight of the loss of each of the batch's targets, in their order. 0 where a target is only measured.
    pub weights: &'a [f32],
    /// Rows that are held to the base.
    pub kept: &'a [Keep],
    /// What routers are told, unless there are none.
    pub routers: Option<&'a RouterPlan>,
}

/// What a pass lost.
#[derive(Debug, Clone, Default)]
pub struct PassLoss {
    /// Weighted language loss.
    pub language: f64,
    /// Weighted KL(base‖model).
    pub kept: f64,
    /// Weighted loss of the routers and of the session prior, all layers.
    pub routers: f64,
    /// What it consists of.
    pub parts: RouterParts,
    /// Whom the routers chose.
    pub load: ExpertLoad,
}

/// What was measured of a pass.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PassScores {
    /// `−log p` of each of the batch's targets.
    pub nll: Vec<f32>,
    /// Whether the target was the likeliest token.
    pub hit: Vec<bool>,
    /// For each conversation the session prior over experts at the last row before its last answer; empty without one.
    pub priors: Vec<Vec<f32>>,
}
