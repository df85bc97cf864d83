//! What domain labels tell the routers: which expert a conversation belongs to, which share of the choices each expert
//! should have, and, early on, the choices themselves. Free experts share what labels leave, so that none is forgotten.

use super::batch::Batch;
use super::gradient::{Labelled, PlannedRouting, RouterPlan, RouterWeights, Wanted};
use super::order::drawn;
use super::prepare::Prepared;
use super::schedule::Stage;
use crate::counter::{Counter, Site};
use empathd_proto::engine::{LossSpec, MixtureSpec};
use empathd_proto::record::Domain;
use std::collections::BTreeMap;
use std::f64::consts::PI;

/// A domain needs this many target tokens for an expert of its own.
pub(super) const MIN_TARGET_TOKENS: usize = 256;
/// Most that a label gives to its own experts; the rest goes to the free ones.
const OWN_SHARE_MAX: f32 = 0.7;
/// Most that one conversation counts for the session prior: of a domain with very few, each says little of the others.
const SESSION_WEIGHT_MAX: f32 = 4.0;
/// Share of a label that all experts have alike (label smoothing).
const SMOOTHING: f32 = 0.05;

/// What labels say about a mixture and its data.
pub(super) struct Labels {
    /// What each domain wants; none where it has no expert and there is no free one.
    wanted: BTreeMap<Domain, Option<Wanted>>,
    /// Experts of each domain's own.
    own: BTreeMap<Domain, Vec<usize>>,
    /// Experts without a domain, or whose domain has too little data.
    free: Vec<usize>,
    experts: usize,
    top_k: usize,
}

/// A document of a pass, as its router sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Document {
    /// Its label; none where it says nothing.
    pub(super) domain: Option<Domain>,
    /// Whether its label routes it.
    pub(super) forced: bool,
}

/// Where a run stands when a pass is planned.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment<'a> {
    /// Who routes now.
    pub(super) stage: Stage,
    /// Share of the run that is behind.
    pub(super) progress: f64,
    /// Share of the step's rows that the pass has.
    pub(super) share: f32,
    /// Weights of the losses.
    pub(super) losses: &'a LossSpec,
}

/// The shape without experts for domains that have too little data, and these domains: they fold into the shared part. Where no
/// expert is left, so is no router, no prior and no floor.
pub(super) fn fold(spec: &MixtureSpec, examples: &[Prepared]) -> (MixtureSpec, Vec<Domain>) {
    let data = tokens_of(examples);
    let too_little = |domain: &Domain| data.get(domain).is_none_or(|tokens| *tokens < MIN_TARGET_TOKENS);
    let mut folded: Vec<Domain> = spec.experts.iter().flatten().copied().filter(too_little).collect();
    folded.sort_unstable();
    folded.dedup();
    if folded.is_empty() {
        return (spec.clone(), folded);
    }
    let mut left = spec.clone();
    left.experts.retain(|domain| domain.is_none_or(|domain| !folded.contains(&domain)));
    left.top_k = left.top_k.min(u32::try_from(left.experts.len()).unwrap_or(u32::MAX));
    left.session_prior &= !left.experts.is_empty();
    left.crisis_floor = left.crisis_floor.filter(|_| left.experts.contains(&Some(Domain::Crisis)));
    (left, folded)
}

/// Target tokens of each domain.
fn tokens_of(examples: &[Prepared]) -> BTreeMap<Domain, usize> {
    let mut data: BTreeMap<Domain, usize> = BTreeMap::new();
    for example in examples {
        *data.entry(example.domain).or_default() += example.target_tokens();
    }
    data
}

impl Labels {
    /// What the training examples say. An expert whose domain has too little data is free: of a mixture that was trained
    /// before, none can be taken away.
    pub(super) fn new(spec: &MixtureSpec, examples: &[Prepared]) -> Self {
        let data = tokens_of(examples);
        let enough = |domain: &Domain| data.get(domain).is_some_and(|tokens| *tokens >= MIN_TARGET_TOKENS);
        let mut own: BTreeMap<Domain, Vec<usize>> = data.keys().map(|d| (*d, Vec::new())).collect();
        let mut free = Vec::new();
        for (e, domain) in spec.experts.iter().enumerate() {
            match domain.filter(enough).and_then(|d| own.get_mut(&d)) {
                Some(experts) => experts.push(e),
                None => free.push(e),
            }
        }
        let (experts, top_k) = (spec.experts.len(), spec.top_k as usize);
        let weights = session_weights(examples);
        let of = |(domain, own): (&Domain, &Vec<usize>)| {
            let weight = weights.get(domain).copied().unwrap_or(1.0);
            (*domain, wanted(own, &free, experts, top_k, weight))
        };
        let wanted = own.iter().map(of).collect();
        Self { wanted, own, free, experts, top_k }
    }

    /// What routers are told about a pass of these documents.
    pub(super) fn plan(
        &self,
        batch: &Batch,
        documents: &[Document],
        moment: Moment<'_>,
        (counter, layers): (Counter, usize),
    ) -> RouterPlan {
        let label = |(document, rows): (&Document, &usize)| Labelled {
            rows: *rows,
            wanted: document.domain.and_then(|domain| self.wanted.get(&domain).cloned().flatten()),
        };
        let labelled: Vec<Labelled> = documents.iter().zip(&batch.lengths).map(label).collect();
        let routing = match moment.stage {
            Stage::Shared => PlannedRouting::Off,
            Stage::Forced(_) if documents.iter().any(|one| one.forced) => {
                PlannedRouting::Forced(self.forced(batch, documents, counter, layers))
            }
            Stage::Forced(_) => PlannedRouting::Own,
        };
        let prior = self.prior(&labelled).into();
        let weights = weights(moment.losses, moment.progress);
        RouterPlan { routing, documents: labelled, prior, weights, share: moment.share }
    }

    /// For each layer and row the experts it must take.
    fn forced(&self, batch: &Batch, documents: &[Document], counter: Counter, layers: usize) -> Vec<Vec<u64>> {
        let rows = documents.iter().zip(&batch.lengths);
        let rows: Vec<Option<Domain>> =
            rows.flat_map(|(one, rows)| std::iter::repeat_n(one.domain.filter(|_| one.forced), *rows)).collect();
        let bits = |layer: usize| {
            let site = Site::new("forced", layer as u64);
            let choose = |(row, domain): (usize, &Option<Domain>)| {
                domain.map_or(0, |domain| self.forced_bits(domain, counter.bits(site, row as u64)))
            };
            rows.iter().enumerate().map(choose).collect()
        };
        (0..layers).map(bits).collect()
    }

    /// The label prior of a pass: the wanted shares of its labelled rows, smoothed; all alike where no row is labelled.
    fn prior(&self, documents: &[Labelled]) -> Vec<f32> {
        let mut prior = vec![0f32; self.experts];
        let mut rows = 0;
        for (document, wanted) in documents.iter().filter_map(|one| one.wanted.as_ref().map(|wanted| (one, wanted))) {
            prior.iter_mut().zip(wanted.route.iter()).for_each(|(prior, y)| *prior += document.rows as f32 * y);
            rows += document.rows;
        }
        match rows {
            0 => prior.fill(1.0 / self.experts.max(1) as f32),
            _ => prior.iter_mut().for_each(|prior| *prior /= rows as f32),
        }
        smooth(&prior)
    }

    /// The domain's own experts first, then free ones, then any, each kind from a random place on; 0, the router's choice, for
    /// a domain that wants nothing.
    fn forced_bits(&self, domain: Domain, random: u64) -> u64 {
        let (Some(own), Some(Some(_))) = (self.own.get(&domain), self.wanted.get(&domain)) else { return 0 };
        let all: Vec<usize> = (0..self.experts).collect();
        let turned = |experts: &[usize], random: u64| -> Vec<usize> {
            let start = usize::try_from(random % experts.len().max(1) as u64).unwrap_or(0);
            experts.iter().cycle().skip(start).take(experts.len()).copied().collect()
        };
        let order = [turned(own, random), turned(&self.free, random >> 20), turned(&all, random >> 40)];
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

/// Weights of the routers' losses at a progress: that of the label falls as a cosine.
fn weights(losses: &LossSpec, progress: f64) -> RouterWeights {
    let left = (0.5 * (1.0 + (PI * progress.clamp(0.0, 1.0)).cos())) as f32;
    let label = losses.route_end + (losses.route - losses.route_end) * left;
    RouterWeights { session: losses.session, label, balance: losses.balance, z: losses.z }
}

/// Shares of which everyone has a little.
fn smooth(shares: &[f32]) -> Vec<f32> {
    let everyone = SMOOTHING / shares.len().max(1) as f32;
    shares.iter().map(|share| (1.0 - SMOOTHING) * share + everyone).collect()
}

/// How much a conversation of each domain counts for the session prior, so that all domains count alike however often they
/// are drawn; one on the average, at most [`SESSION_WEIGHT_MAX`].
fn session_weights(examples: &[Prepared]) -> BTreeMap<Domain, f32> {
    let mut count: BTreeMap<Domain, usize> = BTreeMap::new();
    examples.iter().for_each(|one| *count.entry(one.domain).or_default() += 1);
    let all: f64 = count.values().map(|examples| drawn(*examples)).sum();
    let domains = count.len() as f64;
    let weight = |examples: usize| (all / (domains * drawn(examples))) as f32;
    count.into_iter().map(|(domain, examples)| (domain, weight(examples).min(SESSION_WEIGHT_MAX))).collect()
}

/// What a domain with these own experts wants; nothing where it has none and there is no free one.
fn wanted(own: &[usize], free: &[usize], experts: usize, top_k: usize, weight: f32) -> Option<Wanted> {
    let session = if own.is_empty() { free } else { own };
    let mut pure = vec![0f32; experts];
    session.iter().for_each(|e| pure[*e] = 1.0 / session.len() as f32);
    let route = shares(own, free, experts, top_k);
    (!session.is_empty()).then(|| Wanted { route: route.into(), session: smooth(&pure).into(), weight })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::Encoded;
    use empathd_proto::engine::{CrisisFloor, Part};

    fn example(domain: Domain, tokens: usize) -> Prepared {
        let encoded = Encoded { ids: vec![0; tokens + 1], target: vec![true; tokens + 1] };
        Prepared { domain, part: Part::Learn, example: 0, encoded }
    }

    fn spec(experts: Vec<Option<Domain>>, top_k: u32) -> MixtureSpec {
        MixtureSpec { shared_rank: 1, expert_rank: 1, experts, top_k, scale: 1.0, ..MixtureSpec::default() }
    }

    fn near(found: &[f32], expected: &[f32]) -> bool {
        found.len() == expected.len() && found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6)
    }

    #[test]
    fn a_domain_with_too_little_data_folds_into_the_shared_part() {
        let data = [example(Domain::Crisis, 255), example(Domain::Bias, 256)];
        let hearing = MixtureSpec {
            session_prior: true,
            crisis_floor: Some(CrisisFloor::default()),
            ..spec(vec![Some(Domain::Crisis), Some(Domain::Bias), Some(Domain::Assessment), None], 3)
        };
        let (left, folded) = fold(&hearing, &data);
        assert_eq!(folded, [Domain::Assessment, Domain::Crisis]);
        assert_eq!((left.experts, left.top_k), (vec![Some(Domain::Bias), None], 2));
        assert!(left.session_prior && left.crisis_floor.is_none(), "no floor without its expert");
        let (left, _) = fold(&MixtureSpec { experts: vec![Some(Domain::Crisis)], ..hearing }, &data);
        assert!(left.experts.is_empty() && !left.session_prior);
        let whole = spec(vec![Some(Domain::Bias), None], 1);
        assert_eq!(fold(&whole, &data), (whole, vec![]));
    }

    #[test]
    fn labels_and_free_experts_share_every_choice() {
        let data = [example(Domain::Crisis, 900), example(Domain::Bias, 300), example(Domain::Assessment, 10)];
        let experts = vec![Some(Domain::Crisis), Some(Domain::Bias), Some(Domain::Assessment), None];
        let labels = Labels::new(&spec(experts, 2), &data);
        assert_eq!(labels.free, [2, 3], "an expert without data is free");
        let wanted = |domain: Domain| labels.wanted[&domain].clone().unwrap();
        assert_eq!(wanted(Domain::Crisis).route[..], [0.5, 0.0, 0.25, 0.25]);
        assert!(
            near(&wanted(Domain::Crisis).session, &[0.9625, 0.0125, 0.0125, 0.0125]),
            "the session is of its domain"
        );
        assert_eq!(wanted(Domain::Assessment).route[..], [0.0, 0.0, 0.5, 0.5]);
        assert!(near(&[wanted(Domain::Crisis).weight], &[1.0]), "each domain has one conversation");
        let many: Vec<Prepared> =
            (0..81).map(|n| example(if n == 0 { Domain::Crisis } else { Domain::Bias }, 300)).collect();
        let weights = session_weights(&many);
        assert!(weights[&Domain::Crisis] == SESSION_WEIGHT_MAX && weights[&Domain::Bias] < 0.6, "{weights:?}");
        let alone = Labels::new(&spec(vec![Some(Domain::Crisis)], 1), &data);
        assert!(alone.wanted[&Domain::Bias].is_none(), "nobody to send it to");
        assert_eq!(alone.forced_bits(Domain::Bias, 7), 0);
    }

    #[test]
    fn forced_choices_take_the_label_and_reach_everyone() {
        let data = [example(Domain::Crisis, 900)];
        let labels = Labels::new(&spec(vec![Some(Domain::Crisis), None, None, Some(Domain::Bias)], 2), &data);
        let counter = Counter::new(1);
        let bits: Vec<u64> =
            (0..50).map(|i| labels.forced_bits(Domain::Crisis, counter.bits(Site::new("t", 0), i))).collect();
        assert!(bits.iter().all(|b| b & 1 == 1 && b.count_ones() == 2));
        assert_eq!(bits.iter().fold(0, |all, b| all | b), 0b1111);
    }

    #[test]
    fn a_plan_covers_every_row_and_layer() {
        let data = [example(Domain::Crisis, 900), example(Domain::Bias, 900)];
        let labels = Labels::new(&spec(vec![Some(Domain::Crisis), Some(Domain::Bias)], 1), &data);
        let short = |len: usize| Encoded { ids: vec![1; len], target: vec![true; len] };
        let batch = Batch::pack(&[short(3), short(2), short(4)]);
        let document = |domain, forced| Document { domain, forced };
        let documents =
            [document(Some(Domain::Bias), true), document(Some(Domain::Crisis), false), document(None, true)];
        let losses = LossSpec::default();
        let moment = |stage, progress| Moment { stage, progress, share: 0.5, losses: &losses };
        let plan = |stage, documents: &[Document], progress| {
            labels.plan(&batch, documents, moment(stage, progress), (Counter::new(1), 3))
        };
        let found = plan(Stage::Forced(0.5), &documents, 0.0);
        assert_eq!(found.routing, PlannedRouting::Forced(vec![vec![0b10, 0b10, 0b10, 0, 0, 0, 0, 0, 0]; 3]));
        assert_eq!(found.documents.iter().map(|one| one.rows).collect::<Vec<_>>(), [3, 2, 4]);
        assert!(found.documents[2].wanted.is_none(), "replayed text has no label");
        let bias = 0.95 * (3.0 * 0.7 + 2.0 * 0.3) / 5.0 + 0.025;
        assert!(near(&found.prior, &[1.0 - bias, bias]));
        let told = [found.share, found.weights.label, found.weights.session, found.weights.balance, found.weights.z];
        assert!(near(&told, &[0.5, losses.route, losses.session, losses.balance, losses.z]));
        let free = documents.map(|one| Document { forced: false, ..one });
        assert_eq!(plan(Stage::Forced(0.0), &free, 0.5).routing, PlannedRouting::Own);
        assert!((plan(Stage::Forced(0.0), &free, 0.5).weights.label - 0.03).abs() < 1e-6);
        assert!((plan(Stage::Forced(0.0), &free, 1.0).weights.label - losses.route_end).abs() < 1e-6);
        assert_eq!(plan(Stage::Shared, &free, 0.1).routing, PlannedRouting::Off);
    }
}
