//! What a conversation is about, as routers hear it: read from the stream a quarter of the way up, the mean over the tokens so
//! far. Refuses to know what routers make of it.

use super::layer::Pass;
use crate::adapter::Mixture;
use crate::adapter::route::{log_priors, running_sums};
use crate::ops::host::host;
use crate::ops::{down, rms_norm};
use candle_core::{DType, Result, Tensor, bail};

/// The session prior of the rows of a pass.
#[derive(Clone)]
pub(crate) struct Session {
    /// `norm(h)` of the rows without a weight, `[rows, hidden]`; a constant.
    pub(crate) seen: Tensor,
    /// Log-probabilities, `[rows, experts]`; a constant. Its gradient is `train::gradient`'s.
    pub(crate) log_prior: Tensor,
    /// The same as plain numbers.
    pub(crate) numbers: Vec<f32>,
    /// Sums of `P·norm(h)` up to each row, `[rows · experts]`.
    pub(crate) sums: Vec<f32>,
}

impl Session {
    /// Reads the prior from the stream `x` before layer `index`, when the mixture reads it there. `carry` is the sum behind the
    /// last token before the pass, for a conversation that goes on.
    pub(super) fn read(
        (index, x): (usize, &Tensor),
        pass: &Pass,
        mixture: &Mixture,
        eps: f64,
        carry: &[f32],
    ) -> Result<Option<Self>> {
        let Some(head) = mixture.session_head().filter(|_| mixture.prior_layer() == Some(index)) else {
            return Ok(None);
        };
        let (experts, hidden) = head.dims2()?;
        let seen = rms_norm(&x.detach(), &Tensor::ones(hidden, DType::F32, x.device())?, eps)?;
        let z = down(&seen, &head.detach())?;
        let z = host(&z)?;
        let (mut sums, mut numbers) = (Vec::with_capacity(z.len()), Vec::with_capacity(z.len()));
        for segment in pass.segments.iter() {
            let rows = segment.query_start * experts..(segment.query_start + segment.queries) * experts;
            let carry = if segment.past > 0 { carry } else { &[] };
            if segment.past > 0 && carry.len() != experts {
                bail!("a conversation cannot go on with a session prior that it did not begin with")
            }
            let own = running_sums(&z[rows], experts, carry);
            numbers.extend(log_priors(&own, experts, segment.past));
            sums.extend(own);
        }
        let log_prior = Tensor::from_slice(&numbers, (numbers.len() / experts, experts), x.device())?;
        Ok(Some(Self { seen: seen.detach(), log_prior, numbers, sums }))
    }
}
