//! Everything that training needs to go on as if it had never stopped, and its form as bytes: one safetensors file with
//! weights, moments and best weights, and the counters in its metadata. Refuses to go on with another job's state.

use super::TrainError;
use super::adamw::AdamW;
use super::prepare::Prepared;
use crate::adapter::{Mixture, Parameter, block, read, write};
use empathd_proto::engine::{Evaluation, TrainSpec};
use empathd_proto::ids::JobId;
use serde::{Deserialize, Serialize};

/// Version of the format.
const FORMAT: u32 = 1;
/// Key of the counters in the metadata.
const HEADER: &str = "empathd_checkpoint";

/// Counters and measurements.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Counters {
    /// Optimiser steps taken.
    pub(super) step: u32,
    /// Examples drawn.
    pub(super) drawn: u64,
    /// Share of the schedule behind, 0 to 1.
    pub(super) progress: f64,
    /// Seconds since the job began, without interruptions.
    pub(super) elapsed_s: f64,
    /// Of them, before the first step.
    pub(super) prelude_s: f64,
    /// Of them, in steps.
    pub(super) stepping_s: f64,
    /// Of the last validation.
    pub(super) validation_s: f64,
    /// Tokens processed in steps.
    pub(super) tokens: u64,
    /// Of them, targets.
    pub(super) target_tokens: u64,
    /// Loss by step.
    pub(super) loss_curve: Vec<f32>,
    /// Choices of each expert in steps.
    pub(super) chosen: Vec<u64>,
    /// Held-out loss before the first step.
    pub(super) before: Evaluation,
    /// Held-out loss of the best weights.
    pub(super) best: Evaluation,
    /// Last held-out loss.
    pub(super) last: f64,
    /// Step of the last validation.
    pub(super) validated_at: u32,
    /// Validations since the best.
    pub(super) worse: u32,
}

/// The state of a job.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct State {
    pub(super) counters: Counters,
    /// Trained numbers, in the order of [`Mixture::parameters`].
    pub(super) weights: Vec<Vec<f32>>,
    pub(super) moments: AdamW,
    /// The numbers with the lowest held-out loss.
    pub(super) best: Vec<Vec<f32>>,
}

#[derive(Serialize, Deserialize)]
struct Header {
    format: u32,
    digest: [u8; 32],
    adam_steps: u32,
    counters: Counters,
}

/// Identifies what a state may go on with: the spec but for the job's name, the base weights, every token.
pub(super) fn digest(spec: &TrainSpec, base_sha256: [u8; 32], train: &[Prepared], held: &[Prepared]) -> [u8; 32] {
    let spec = TrainSpec { job: JobId::from_bytes([0; 16]), ..spec.clone() };
    let mut hash = blake3::Hasher::new();
    hash.update(format!("{spec:?}").as_bytes()).update(&base_sha256);
    for examples in [train, held] {
        hash.update(&(examples.len() as u64).to_le_bytes());
        for one in examples {
            hash.update(one.domain.as_str().as_bytes()).update(&(one.tokens() as u64).to_le_bytes());
            one.encoded.ids.iter().for_each(|id| _ = hash.update(&id.to_le_bytes()));
            one.encoded.target.iter().for_each(|t| _ = hash.update(&[u8::from(*t)]));
        }
    }
    *hash.finalize().as_bytes()
}

impl State {
    /// The four kinds of blocks, in the file's order.
    fn blocks(&self) -> [(&'static str, &[Vec<f32>]); 4] {
        [
            ("weight", &self.weights),
            ("first", &self.moments.first),
            ("second", &self.moments.second),
            ("best", &self.best),
        ]
    }

    /// The state as bytes. `shape` gives names and shapes.
    pub(super) fn to_bytes(&self, shape: &Mixture, digest: [u8; 32]) -> Result<Vec<u8>, TrainError> {
        let parameters = shape.parameters();
        let named = self.blocks().into_iter().flat_map(|(kind, blocks)| {
            let name = move |p: &Parameter<'_>| format!("{kind}/{}", p.name);
            parameters.iter().zip(blocks).map(move |(p, data)| (name(p), p.tensor.dims().to_vec(), data.as_slice()))
        });
        let adam_steps = self.moments.steps;
        let header = Header { format: FORMAT, digest, adam_steps, counters: self.counters.clone() };
        let header = serde_json::to_string(&header).map_err(|e| TrainError::BadCheckpoint(e.to_string()))?;
        write(named, HEADER, header).map_err(TrainError::BadCheckpoint)
    }

    /// Reads what [`State::to_bytes`] wrote for the same job.
    pub(super) fn from_bytes(bytes: &[u8], shape: &Mixture, digest: [u8; 32]) -> Result<Self, TrainError> {
        let bad = TrainError::BadCheckpoint;
        let (file, header) = read(bytes, HEADER).map_err(bad)?;
        let header: Header = serde_json::from_str(&header).map_err(|_| bad("its header is unknown".into()))?;
        if header.format != FORMAT {
            return Err(bad(format!("its format is {}, known is {FORMAT}", header.format)));
        }
        if header.digest != digest {
            return Err(bad("it belongs to another base model, other settings or other examples".into()));
        }
        let parameters = shape.parameters();
        let blocks = |kind: &str| {
            let one = |p: &Parameter<'_>| block(&file, &format!("{kind}/{}", p.name), p.tensor.dims());
            parameters.iter().map(one).collect::<Result<Vec<_>, _>>().map_err(bad)
        };
        let moments = AdamW { first: blocks("first")?, second: blocks("second")?, steps: header.adam_steps };
        Ok(Self { counters: header.counters, weights: blocks("weight")?, moments, best: blocks("best")? })
    }
}
