//! What a pass is asked for and what it answers: weights of targets, rows held to the base, what routers are told, losses
//! and scores. Refuses to know how gradients are found.

use crate::adapter::ExpertLoad;
use std::sync::Arc;

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
    /// Weighted loss of the routers, all layers.
    pub routers: f64,
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
