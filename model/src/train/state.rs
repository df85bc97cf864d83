//! Everything that training needs to go on as if it had never stopped, and its form as bytes: one safetensors file with
//! weights, moments and best weights, and the counters in its metadata, over all of which goes a digest. Refuses to go on
//! with another job's state, and with one of which a bit is another.

use super::TrainError;
use super::adamw::{AdamW, Clocks};
use super::judge::Judge;
use super::prepare::Prepared;
use super::schedule::Pace;
use crate::adapter::{Mixture, Parameter, block, read, write};
use empathd_proto::engine::TrainSpec;
use empathd_proto::ids::JobId;
use empathd_proto::report::PlanChange;
use serde::{Deserialize, Serialize};

/// Version of the format.
const FORMAT: u32 = 2;
/// Key of the counters in the metadata.
const HEADER: &str = "empathd_checkpoint";

/// Counters and measurements. What is measured in seconds decides nothing but the next [`PlanChange`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Counters {
    /// Optimiser steps taken.
    pub(super) step: u32,
    /// Tokens of a pass, frozen before the first step.
    pub(super) pass_tokens: usize,
    /// What was decided from clocks.
    pub(super) plans: Vec<PlanChange>,
    /// Seconds since the job began, without interruptions.
    pub(super) elapsed_s: f64,
    /// Of them, in steps.
    pub(super) stepping_s: f64,
    /// How long things take.
    pub(super) pace: Pace,
    /// Tokens processed in steps.
    pub(super) tokens: u64,
    /// Of them, targets that were learnt.
    pub(super) target_tokens: u64,
    /// Loss by step.
    pub(super) loss_curve: Vec<f32>,
    /// Choices of each expert in steps.
    pub(super) chosen: Vec<u64>,
    /// What validations said.
    pub(super) judge: Judge,
    /// Step of the last validation.
    pub(super) validated_at: u32,
}

/// The state of a job.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct State {
    pub(super) counters: Counters,
    /// Trained numbers, in the order of [`Mixture::parameters`].
    pub(super) weights: Vec<Vec<f32>>,
    pub(super) moments: AdamW,
    /// The best numbers so far.
    pub(super) best: Vec<Vec<f32>>,
}

#[derive(Serialize, Deserialize)]
struct Header {
    format: u32,
    /// What the state belongs to.
    digest: [u8; 32],
    /// Over every number of the file, in its order.
    numbers: [u8; 32],
    clocks: Vec<u32>,
    counters: Counters,
}

/// Identifies what a state may go on with: the spec but for the job's name, the base weights, every token.
pub(super) fn digest<'a>(
    spec: &TrainSpec,
    base_sha256: [u8; 32],
    pieces: impl Iterator<Item = &'a Prepared>,
) -> [u8; 32] {
    let spec = TrainSpec { job: JobId::from_bytes([0; 16]), ..spec.clone() };
    let mut hash = blake3::Hasher::new();
    hash.update(format!("{spec:?}").as_bytes()).update(&base_sha256);
    for one in pieces {
        for word in [one.domain.as_str(), one.part.as_str()] {
            hash.update(word.as_bytes()).update(&[0]);
        }
        hash.update(&(one.tokens() as u64).to_le_bytes());
        one.encoded.ids.iter().for_each(|id| _ = hash.update(&id.to_le_bytes()));
        one.encoded.target.iter().for_each(|t| _ = hash.update(&[u8::from(*t)]));
    }
    *hash.finalize().as_bytes()
}

/// The digest over all numbers.
fn digest_of_numbers(blocks: &[(&'static str, &[Vec<f32>]); 4]) -> [u8; 32] {
    let mut hash = blake3::Hasher::new();
    let mut bytes = Vec::new();
    for numbers in blocks.iter().flat_map(|(_, blocks)| blocks.iter()) {
        bytes.clear();
        numbers.iter().for_each(|x| bytes.extend_from_slice(&x.to_le_bytes()));
        hash.update(&bytes);
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
        let (parameters, blocks) = (shape.parameters(), self.blocks());
        let numbers = digest_of_numbers(&blocks);
        let named = blocks.into_iter().flat_map(|(kind, blocks)| {
            let name = move |p: &Parameter<'_>| format!("{kind}/{}", p.name);
            parameters.iter().zip(blocks).map(move |(p, data)| (name(p), p.tensor.dims().to_vec(), data.as_slice()))
        });
        let clocks = self.moments.steps.clone();
        let header = Header { format: FORMAT, digest, numbers, clocks, counters: self.counters.clone() };
        let header = serde_json::to_string(&header).map_err(|e| TrainError::BadCheckpoint(e.to_string()))?;
        write(named, HEADER, header).map_err(TrainError::BadCheckpoint)
    }

    /// Whether these bytes hold tensors of these shapes, as far as their names and sides tell.
    pub(super) fn is_of(bytes: &[u8], shape: &Mixture) -> bool {
        let Ok((file, _)) = read(bytes, HEADER) else { return false };
        let fits = |p: Parameter<'_>| {
            file.tensor(&format!("weight/{}", p.name)).is_ok_and(|view| view.shape() == p.tensor.dims())
        };
        shape.parameters().into_iter().all(fits)
    }

    /// Reads what [`State::to_bytes`] wrote for the same job. `clocks` are those of the shape's parameters, and their count.
    pub(super) fn from_bytes(
        bytes: &[u8],
        shape: &Mixture,
        digest: [u8; 32],
        (clocks, count): (Vec<Clocks>, usize),
    ) -> Result<Self, TrainError> {
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
        let weights = blocks("weight")?;
        let fresh = AdamW::aging(&weights, clocks, count);
        let moments = AdamW { first: blocks("first")?, second: blocks("second")?, steps: header.clocks, ..fresh };
        let state = Self { counters: header.counters, weights, moments, best: blocks("best")? };
        if digest_of_numbers(&state.blocks()) != header.numbers || state.moments.steps.len() != count {
            return Err(bad("its numbers are not those that were written".into()));
        }
        Ok(state)
    }
}
