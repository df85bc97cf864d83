//! The loss on examples that are not learnt from.

use super::batch::{Batch, runs};
use super::prepare::{Prepared, prepare};
use super::{Encode, TrainError};
use crate::adapter::Mixture;
use crate::backbone::Backbone;
use crate::ops::linear_nll;
use empathd_proto::engine::{Evaluation, Example, ExampleScore};
use std::collections::BTreeMap;

/// Tokens of one pass, as far as conversations are that short.
pub(super) const PASS_TOKENS: usize = 1024;

/// Measures each of `examples`, cut to `seq_len` tokens, by the router's own choices.
///
/// # Errors
/// A conversation has no token form, or a tensor operation failed.
pub fn score(
    base: &Backbone,
    encode: &dyn Encode,
    mixture: Option<&Mixture>,
    examples: &[Example],
    seq_len: usize,
    between_layers: &mut dyn FnMut(),
) -> Result<Vec<ExampleScore>, TrainError> {
    let seq_len = seq_len.min(base.config().context);
    let mixture = mixture.map(|mixture| mixture.to_device(base.device())).transpose()?;
    let nothing = ExampleScore { nll: 0.0, targets: 0, longest_run: 0, session: Vec::new() };
    let mut scores = vec![nothing; examples.len()];
    for (example, score) in examples.iter().zip(&mut scores) {
        let Some(one) = prepare(encode, std::iter::once(example), seq_len)?.pop() else { continue };
        let batch = Batch::pack([&one.encoded]);
        for loss in losses(base, mixture.as_ref(), &batch, between_layers)? {
            score.nll += f64::from(loss);
            score.targets += 1;
        }
    }
    Ok(scores)
}

/// Measures prepared examples.
pub(super) fn measure(
    base: &Backbone,
    mixture: Option<&Mixture>,
    examples: &[&Prepared],
    between_layers: &mut dyn FnMut(),
) -> Result<Evaluation, TrainError> {
    let mut sums: BTreeMap<String, (f64, u64)> = BTreeMap::new();
    for run in runs(examples, PASS_TOKENS, |one| one.tokens()) {
        let batch = Batch::pack(run.iter().map(|one| &one.encoded));
        for (loss, owner) in losses(base, mixture, &batch, between_layers)?.iter().zip(&batch.owners) {
            let sum = sums.entry(run[*owner].domain.as_str().to_owned()).or_default();
            *sum = (sum.0 + f64::from(*loss), sum.1 + 1);
        }
    }
    let (loss, target_tokens) = sums.values().fold((0.0, 0), |all, one| (all.0 + one.0, all.1 + one.1));
    if target_tokens == 0 {
        return Err(TrainError::BadJob("no example holds an answer to measure".into()));
    }
    let by_domain = sums.into_iter().map(|(domain, (loss, count))| (domain, loss / count as f64)).collect();
    Ok(Evaluation { loss: loss / target_tokens as f64, by_domain, target_tokens })
}

/// Loss of each target of a pass.
fn losses(
    base: &Backbone,
    mixture: Option<&Mixture>,
    batch: &Batch,
    between_layers: &mut dyn FnMut(),
) -> Result<Vec<f32>, TrainError> {
    let mut x = base.embed(&batch.ids)?;
    for index in 0..base.config().layers {
        x = base.layer_forward(index, &x, &batch.pass, mixture, None)?.0.detach();
        between_layers();
    }
    Ok(linear_nll(&base.normed(&x)?, base.head(), &batch.targets)?)
}
