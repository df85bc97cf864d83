//! The loss on examples that are not learnt from. Refuses to know what follows from it.

use super::batch::Batch;
use super::gradient::Gradients;
use super::pack::runs;
use super::prepare::{Pieces, Prepared};
use super::{Encode, TrainError};
use crate::adapter::Mixture;
use empathd_proto::engine::{Evaluation, Example, ExampleScore};

/// Tokens of one pass where nothing was frozen, as far as conversations are that short.
const PASS_TOKENS: usize = 1024;

/// Measures each of `examples`, split to `seq_len` tokens, by the router's own choices.
///
/// # Errors
/// A conversation has no token form, or an operation failed.
pub fn score(
    gradients: &mut Gradients,
    encode: &dyn Encode,
    mixture: Option<&Mixture>,
    examples: &[Example],
    seq_len: usize,
    between_layers: &mut dyn FnMut(),
) -> Result<Vec<ExampleScore>, TrainError> {
    let seq_len = seq_len.min(gradients.config().context);
    let pieces = Pieces::of(encode, examples, seq_len)?.all;
    let longest = pieces.iter().map(Prepared::tokens).max().unwrap_or(0);
    if let Some(mixture) = mixture {
        gradients.hold(mixture, longest.max(PASS_TOKENS))?;
    }
    let of_pieces = pieces_scores(gradients, mixture.is_some(), &refs(&pieces), PASS_TOKENS, between_layers)?;
    let mut scores = vec![nothing(); examples.len()];
    for (piece, score) in pieces.iter().zip(of_pieces) {
        let whole = &mut scores[piece.example];
        whole.nll += score.nll;
        whole.targets += score.targets;
        whole.longest_run = whole.longest_run.max(score.longest_run);
        whole.session = score.session;
    }
    Ok(scores)
}

/// References to pieces.
pub(super) fn refs(pieces: &[Prepared]) -> Vec<&Prepared> {
    pieces.iter().collect()
}

/// What pieces lose together, by domain.
pub(super) fn evaluation(
    gradients: &mut Gradients,
    adapted: bool,
    pieces: &[&Prepared],
    pass_tokens: usize,
    between_layers: &mut dyn FnMut(),
) -> Result<Evaluation, TrainError> {
    let scores = pieces_scores(gradients, adapted, pieces, pass_tokens, between_layers)?;
    Ok(Evaluation::of(pieces.iter().map(|one| one.domain).zip(&scores)))
}

const fn nothing() -> ExampleScore {
    ExampleScore { nll: 0.0, targets: 0, longest_run: 0, session: Vec::new() }
}

/// Measures each piece, with the held mixture or of the base alone.
fn pieces_scores(
    gradients: &mut Gradients,
    adapted: bool,
    pieces: &[&Prepared],
    pass_tokens: usize,
    between_layers: &mut dyn FnMut(),
) -> Result<Vec<ExampleScore>, TrainError> {
    let sizes: Vec<usize> = pieces.iter().map(|one| one.tokens()).collect();
    let mut all = Vec::with_capacity(pieces.len());
    for run in runs(&sizes, pass_tokens) {
        let batch = Batch::pack(pieces[run.clone()].iter().map(|one| &one.encoded));
        let found = gradients.scores(&batch, adapted, between_layers)?;
        let mut scores = vec![nothing(); run.len()];
        let mut hits = vec![0u32; run.len()];
        for ((nll, hit), owner) in found.nll.iter().zip(&found.hit).zip(&batch.owners) {
            let (score, hits) = (&mut scores[*owner], &mut hits[*owner]);
            score.nll += f64::from(*nll);
            score.targets += 1;
            *hits = if *hit { *hits + 1 } else { 0 };
            score.longest_run = score.longest_run.max(*hits);
        }
        scores.iter_mut().zip(found.priors).for_each(|(score, prior)| score.session = prior);
        all.extend(scores);
    }
    Ok(all)
}
