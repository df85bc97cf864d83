//! What domain labels tell the routers: which expert a conversation belongs to, which share of the choices each expert
//! should have, and, early on, the choices themselves. Free experts share what labels leave, so that none is forgotten.

use super::batch::Batch;
use super::prepare::Prepared;
use super::gradient::RouterPlan;
use crate::counter::{Counter, Site};
use empathd_proto::engine::MixtureSpec;
use empathd_proto::record::Domain;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A domain needs this many target tokens for an expert of its own.
pub(super) const MIN_TARGET_TOKENS: usize = 256;
/// Most that a label gives to its own experts; the rest goes to the free ones.
const OWN_SHARE_MAX: f32 = 0.7;
/// Weight of the routers' own loss, spread over layers.
const ROUTER_LOSS: f32 = 0.1;

/// What labels say about a mixture and its data.
pub(super) struct Labels {
    /// Wanted share of each expert by domain.
    wanted: BTreeMap<Domain, Vec<f32>>,
    /// Experts of each domain's own.
    own: BTreeMap<Domain, Vec<usize>>,
    /// Experts without a domain, or whose domain has too little data.
    free: Vec<usize>,
    prior: Arc<[f32]>,
    top_k: usize,
    /// Domains that have an expert and too little data for it.
    pub(super) folded: Vec<Domain>,
}

impl Labels {
    /// What the training examples say.
    pub(super) fn new(spec: &MixtureSpec, examples: &[Prepared]) -> Self {
        let mut data: BTreeMap<Domain, usize> = BTreeMap::new();
        for example in examples {
            *data.entry(example.domain).or_default() += example.target_tokens();
        }
        let enough = |domain: &Domain| data.get(domain).is_some_and(|tokens| *tokens >= MIN_TARGET_TOKENS);
        let mut folded: Vec<Domain> = spec.experts.iter().flatten().filter(|d| !enough(d)).copied().collect();
        folded.sort_unstable();
        folded.dedup();
        let mut own: BTreeMap<Domain, Vec<usize>> = data.keys().map(|d| (*d, Vec::new())).collect();
        let mut free = Vec::new();
        for (e, domain) in spec.experts.iter().enumerate() {
            match domain.filter(enough).and_then(|d| own.get_mut(&d)) {
                Some(experts) => experts.push(e),
                None => free.push(e),
            }
        }
        let top_k = spec.top_k as usize;
        let wanted: BTreeMap<Domain, Vec<f32>> =
            own.iter().map(|(d, own)| (*d, shares(own, &free, spec.experts.len(), top_k))).collect();
        let prior = prior(&wanted, &data, spec.experts.len());
        Self { wanted, own, free, prior, top_k, folded }
    }

    /// What routers are told about a pass of conversations with these domains. `forced` gives for each conversation
    /// whether its label routes it; `share` is the pass's share of the step's tokens.
    pub(super) fn plan(
        &self,
        batch: &Batch,
        domains: &[Domain],
        forced: &[bool],
        share: f32,
        (counter, layers): (Counter, usize),
    ) -> RouterPlan {
        let rows = |i: usize| std::iter::repeat_n(domains[i], batch.lengths[i]);
        let by_row: Vec<(Domain, bool)> =
            (0..domains.len()).flat_map(|i| rows(i).map(move |d| (d, forced[i]))).collect();
        let wanted = by_row.iter().flat_map(|(d, _)| self.wanted[d].iter().copied()).collect();
        let bits = |layer: usize| {
            let site = Site::new("forced", layer as u64);
            let choose = |(row, (domain, forced)): (usize, &(Domain, bool))| {
                if *forced { self.forced_bits(*domain, counter.bits(site, row as u64)) } else { 0 }
            };
            by_row.iter().enumerate().map(choose).collect()
        };
        let any = forced.iter().any(|f| *f);
        RouterPlan {
            wanted,
            prior: self.prior.clone(),
            weight: ROUTER_LOSS * share / layers as f32,
            forced: any.then(|| (0..layers).map(bits).collect()),
        }
    }

    /// The domain's own experts first, then free ones, then any, each kind from a random place on.
    fn forced_bits(&self, domain: Domain, random: u64) -> u64 {
        let all: Vec<usize> = (0..self.prior.len()).collect();
        let turned = |experts: &[usize], random: u64| -> Vec<usize> {
            let start = usize::try_from(random % experts.len().max(1) as u64).unwrap_or(0);
            experts.iter().cycle().skip(start).take(experts.len()).copied().collect()
        };
        let order = [turned(&self.own[&domain], random), turned(&self.free, random >> 20), turned(&all, random >> 40)];
        let mut bits = 0u64;
        for expert in order.iter().flatten() {
            if bits.count_ones() as usize == self.top_k {
                break;
            }
            bits |= 1 << expert;
        }
        bits
    }
}

/// The experts' names: their domain, or `free_<position>`.
pub(super) fn expert_names(spec: &MixtureSpec) -> Vec<String> {
    let name =
        |(e, domain): (usize, &Option<Domain>)| domain.map_or_else(|| format!("free_{e}"), |d| d.as_str().into());
    spec.experts.iter().enumerate().map(name).collect()
}

/// What a label wants of each expert: an equal choice among `top_k` for its own ones together, at most
/// [`OWN_SHARE_MAX`], the rest for the free ones; when either kind is missing, everything for the other.
fn shares(own: &[usize], free: &[usize], experts: usize, top_k: usize) -> Vec<f32> {
    let for_own = match (own.len(), free.len()) {
        (0, _) => 0.0,
        (_, 0) => OWN_SHARE_MAX,
        (count, _) => (count as f32 / top_k as f32).min(OWN_SHARE_MAX),
    };
    let rest: Vec<usize> = match free {
        [] => (0..experts).filter(|e| !own.contains(e)).collect(),
        _ => free.to_vec(),
    };
    let mut shares = vec![0f32; experts];
    own.iter().for_each(|e| shares[*e] = for_own / own.len() as f32);
    rest.iter().for_each(|e| shares[*e] = (1.0 - for_own) / rest.len() as f32);
    let total: f32 = shares.iter().sum();
    shares.iter_mut().for_each(|s| *s /= total);
    shares
}

/// The wanted shares over all data.
fn prior(wanted: &BTreeMap<Domain, Vec<f32>>, data: &BTreeMap<Domain, usize>, experts: usize) -> Arc<[f32]> {
    let total: usize = data.values().sum();
    let mut prior = vec![0f32; experts];
    for (domain, shares) in wanted {
        let share = data[domain] as f32 / total.max(1) as f32;
        prior.iter_mut().zip(shares).for_each(|(prior, s)| *prior += share * s);
    }
    prior.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::Encoded;

    fn example(domain: Domain, tokens: usize) -> Prepared {
        Prepared { domain, encoded: Encoded { ids: vec![0; tokens + 1], target: vec![true; tokens + 1] } }
    }

    fn labels(experts: Vec<Option<Domain>>, top_k: u32, examples: &[Prepared]) -> Labels {
        Labels::new(
            &MixtureSpec { shared_rank: 1, expert_rank: 1, experts, top_k, scale: 1.0, ..MixtureSpec::default() },
            examples,
        )
    }

    #[test]
    fn labels_and_free_experts_share_every_choice() {
        let data = [example(Domain::Crisis, 900), example(Domain::Bias, 300), example(Domain::Assessment, 10)];
        let experts = vec![Some(Domain::Crisis), Some(Domain::Bias), Some(Domain::Assessment), None];
        let labels = labels(experts, 2, &data);
        assert_eq!(labels.folded, [Domain::Assessment]);
        assert_eq!(labels.free, [2, 3], "an expert without data is free");
        assert_eq!(labels.wanted[&Domain::Crisis], [0.5, 0.0, 0.25, 0.25]);
        assert_eq!(labels.wanted[&Domain::Assessment], [0.0, 0.0, 0.5, 0.5]);
        assert!((labels.prior.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        assert!(labels.prior.iter().all(|p| *p > 0.0));
    }

    #[test]
    fn forced_choices_take_the_label_and_reach_everyone() {
        let data = [example(Domain::Crisis, 900)];
        let labels = labels(vec![Some(Domain::Crisis), None, None, Some(Domain::Bias)], 2, &data);
        let counter = Counter::new(1);
        let bits: Vec<u64> =
            (0..50).map(|i| labels.forced_bits(Domain::Crisis, counter.bits(Site::new("t", 0), i))).collect();
        assert!(bits.iter().all(|b| b & 1 == 1 && b.count_ones() == 2));
        assert_eq!(bits.iter().fold(0, |all, b| all | b), 0b1111);
    }

    #[test]
    fn a_plan_covers_every_row_and_layer() {
        let data = [example(Domain::Crisis, 900), example(Domain::Bias, 900)];
        let labels = labels(vec![Some(Domain::Crisis), Some(Domain::Bias)], 1, &data);
        let short =
            [Encoded { ids: vec![1; 3], target: vec![true; 3] }, Encoded { ids: vec![1; 2], target: vec![true; 2] }];
        let batch = Batch::pack(&short);
        let domains = [Domain::Bias, Domain::Crisis];
        let plan = labels.plan(&batch, &domains, &[true, false], 0.5, (Counter::new(1), 3));
        assert_eq!(plan.forced.unwrap(), vec![vec![0b10, 0b10, 0b10, 0, 0]; 3]);
        assert_eq!(plan.wanted.len(), 5 * 2);
        assert!((plan.wanted[1] - 0.7).abs() < 1e-6 && (plan.wanted[9] - 0.3).abs() < 1e-6);
        assert!(labels.plan(&batch, &domains, &[false, false], 0.5, (Counter::new(1), 3)).forced.is_none());
    }
}
