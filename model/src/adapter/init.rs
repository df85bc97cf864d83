//! How a mixture begins: it changes nothing, its experts are almost alike, its routers almost indifferent.

use super::route::Policy;
use super::{LayerAdapter, Linear, LowRank, MAX_EXPERTS, MAX_RANK, Mixture, prior_layer};
use crate::config::BackboneConfig;
use crate::counter::{Counter, Site};
use candle_core::{DType, Device, Result, Tensor, bail};
use empathd_proto::engine::MixtureSpec;

/// Standard deviation of fresh routers.
const ROUTER_SPREAD: f64 = 0.02;
/// How far the experts' A sides stand apart, as a share of their bound.
const EXPERT_NOISE: f64 = 0.01;

impl Mixture {
    /// A fresh mixture: B is zero, so that it changes nothing until it is trained. A is Kaiming-uniform with a = √5 (bound
    /// `1/√in`), shared by the experts but for one per cent of noise (HydraLoRA, Tian et al. 2024, found that trained A
    /// sides converge); routers are normal with deviation 0.02. The session head is zero, so that the first prior is uniform
    /// and says nothing; routers heed it by the weight 1.
    ///
    /// # Errors
    /// The shape asks for nothing, for too much, or contradicts itself.
    pub fn init(config: &BackboneConfig, spec: &MixtureSpec, seed: u64) -> Result<Self> {
        check(config, spec)?;
        let counter = Counter::new(seed);
        let layers = (0..config.layers).map(|index| layer(config, spec, counter, index)).collect::<Result<_>>()?;
        let zeros = || Tensor::zeros((spec.experts.len(), config.hidden), DType::F32, &Device::Cpu);
        Ok(Self { spec: spec.clone(), layers, session: spec.session_prior.then(zeros).transpose()? })
    }
}

/// Refuses shapes that make no sense.
pub(super) fn check(config: &BackboneConfig, spec: &MixtureSpec) -> Result<()> {
    let (experts, shared, rank) = (spec.experts.len(), spec.shared_rank as usize, spec.expert_rank as usize);
    if (shared == 0 && !spec.shared_on.is_empty()) || shared > MAX_RANK || rank > MAX_RANK || experts > MAX_EXPERTS {
        bail!("ranks must be 1 to {MAX_RANK} and experts at most {MAX_EXPERTS}")
    }
    if experts == 0 && spec.shared_on.is_empty() {
        bail!("a mixture needs experts, or linear maps with a shared pair")
    }
    if experts > 0 && (rank == 0 || spec.top_k == 0 || spec.top_k as usize > experts) {
        bail!("experts need a rank, and a token takes 1 to {experts} of them")
    }
    if !spec.scale.is_finite() {
        bail!("the scale must be a number")
    }
    if spec.session_prior && (experts == 0 || config.layers < 2) {
        bail!("a session prior needs experts, and a model of at least two layers")
    }
    match spec.crisis_floor {
        Some(_) if !spec.session_prior => bail!("a crisis floor needs a session prior"),
        Some(rule) if !((0.0..1.0).contains(&rule.above) && rule.floor > 0.0 && rule.floor < 1.0) => {
            bail!("the crisis floor must lie between 0 and 1, and so must the probability above which it holds")
        }
        _ => Ok(()),
    }
}

/// Rank of the shared part on a linear map.
pub(super) fn shared(linear: Linear, spec: &MixtureSpec) -> usize {
    if spec.shared_on.contains(&linear.word()) { spec.shared_rank as usize } else { 0 }
}

/// Rank of the stack on a linear map; 0 where nothing is trained.
pub(super) fn stack(linear: Linear, spec: &MixtureSpec) -> usize {
    let routed = if linear.is_routed() { spec.experts.len() * spec.expert_rank as usize } else { 0 };
    shared(linear, spec) + routed
}

fn layer(config: &BackboneConfig, spec: &MixtureSpec, counter: Counter, index: usize) -> Result<LayerAdapter> {
    let each = |linear: &Linear| match stack(*linear, spec) {
        0 => Ok(None),
        _ => pair(*linear, config, spec, counter, index).map(Some),
    };
    let pairs = Linear::ALL.iter().map(each).collect::<Result<_>>()?;
    let site = Site::new("router", index as u64);
    let normal = |i| (ROUTER_SPREAD * counter.normal(site, i)) as f32;
    let experts = spec.experts.len();
    let router: Vec<f32> = (0..(experts * config.hidden) as u64).map(normal).collect();
    let router = (experts > 0).then(|| Tensor::from_vec(router, (experts, config.hidden), &Device::Cpu)).transpose()?;
    let hears = spec.session_prior && index >= prior_layer(config.layers);
    let prior_weight = hears.then(|| Tensor::ones(1, DType::F32, &Device::Cpu)).transpose()?;
    Ok(LayerAdapter { pairs, router, prior_weight, policy: Policy::new(spec), scale: spec.scale })
}

fn pair(
    linear: Linear,
    config: &BackboneConfig,
    spec: &MixtureSpec,
    counter: Counter,
    index: usize,
) -> Result<LowRank> {
    let (inner, out) = linear.sides(config);
    let (shared, rank, stack) = (shared(linear, spec), spec.expert_rank as usize, stack(linear, spec));
    let bound = 1.0 / (inner as f64).sqrt();
    let uniform = |word: &str, at: usize| {
        let site = Site::new(&format!("{}.{word}", linear.name()), index as u64);
        bound * (2.0 * counter.uniform(site, at as u64) - 1.0)
    };
    let number = |at: usize| match (at / inner).checked_sub(shared) {
        None => uniform("shared", at),
        Some(row) => {
            let common = uniform("experts", row % rank * inner + at % inner);
            common + EXPERT_NOISE * uniform("apart", at)
        }
    };
    let a: Vec<f32> = (0..stack * inner).map(|at| number(at) as f32).collect();
    let a = Tensor::from_vec(a, (stack, inner), &Device::Cpu)?;
    Ok(LowRank { a, b: Tensor::zeros((out, stack), DType::F32, &Device::Cpu)?, shared })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::tiny;
    use empathd_proto::engine::{CrisisFloor, LinearName};

    fn spec() -> MixtureSpec {
        MixtureSpec {
            shared_rank: 2,
            expert_rank: 3,
            experts: vec![None; 4],
            top_k: 2,
            scale: 2.0,
            ..MixtureSpec::default()
        }
    }

    #[test]
    fn a_fresh_mixture_is_as_documented() {
        let config = tiny();
        let mixture = Mixture::init(&config, &spec(), 1).unwrap();
        let gate = mixture.layer(0).pair(Linear::Gate).unwrap();
        assert_eq!(gate.a.dims(), [2 + 4 * 3, config.hidden]);
        assert_eq!(gate.b.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap(), 0.0);
        assert_eq!(mixture.layer(0).pair(Linear::Query).unwrap().a.dims(), [2, config.hidden]);
        let a = gate.a.to_vec2::<f32>().unwrap();
        let bound = 1.0 / (config.hidden as f32).sqrt();
        assert!(
            a.iter().flatten().all(|x| x.abs() <= bound * 1.01) && a.iter().flatten().any(|x| x.abs() > bound * 0.8)
        );
        let apart = a[2].iter().zip(&a[5]).map(|(x, y)| (x - y).abs()).fold(0f32, f32::max);
        assert!(apart > 0.0 && apart <= bound * 0.02, "experts are almost alike: {apart}");
        let again = Mixture::init(&config, &spec(), 1).unwrap();
        let other = Mixture::init(&config, &spec(), 2).unwrap();
        assert_eq!(
            again.layer(1).router().unwrap().to_vec2::<f32>().unwrap(),
            mixture.layer(1).router().unwrap().to_vec2::<f32>().unwrap()
        );
        assert_ne!(other.layer(0).pair(Linear::Gate).unwrap().a.to_vec2::<f32>().unwrap(), a);
    }

    #[test]
    fn a_session_prior_begins_without_a_word_and_is_heard_from_a_quarter_on() {
        let (config, spec) = (BackboneConfig { layers: 9, ..tiny() }, MixtureSpec { session_prior: true, ..spec() });
        let mixture = Mixture::init(&config, &spec, 1).unwrap();
        assert_eq!(mixture.prior_layer(), Some(2));
        let heard = |index: usize| mixture.layer(index).prior_weight().map(|w| w.to_vec1::<f32>().unwrap());
        assert_eq!([heard(0), heard(1), heard(2), heard(8)], [None, None, Some(vec![1.0]), Some(vec![1.0])]);
        let head = mixture.session_head().unwrap();
        assert_eq!(
            (head.dims(), head.abs().unwrap().sum_all().unwrap().to_scalar().unwrap()),
            (&[4, config.hidden][..], 0f32)
        );
        let names: Vec<String> = mixture.parameters().into_iter().map(|p| p.name).collect();
        assert_eq!(names.last().unwrap(), "session.head");
        assert_eq!(names[mixture.layer_range(1)].last().unwrap(), "layers.1.router");
        assert_eq!(names[mixture.layer_range(2)][14..], ["layers.2.router", "layers.2.prior_weight"]);
    }

    #[test]
    fn a_linear_without_a_shared_pair_has_none() {
        let spec = MixtureSpec { shared_on: vec![LinearName::Query, LinearName::Down], ..spec() };
        let mixture = Mixture::init(&tiny(), &spec, 1).unwrap();
        let rows = |linear| mixture.layer(1).pair(linear).map(|pair| (pair.shared, pair.a.dims()[0]));
        let expected = [Some((2, 2)), None, None, None, Some((0, 12)), Some((0, 12)), Some((2, 14))];
        assert_eq!(Linear::ALL.map(rows), expected);
        assert_eq!(mixture.parameters().len(), 2 * (4 * 2 + 1));
        assert_eq!(mixture.layer_range(1), 9..18);
    }

    #[test]
    fn senseless_shapes_are_refused() {
        let rule = |above, floor| Some(CrisisFloor { above, floor });
        let hearing = |crisis_floor| MixtureSpec { session_prior: true, crisis_floor, ..spec() };
        assert!(Mixture::init(&tiny(), &hearing(rule(0.5, 0.3)), 1).is_ok());
        for bad in [
            hearing(rule(1.0, 0.3)),
            hearing(rule(0.5, 1.0)),
            hearing(rule(0.5, 0.0)),
            hearing(rule(f32::NAN, 0.3)),
            MixtureSpec { session_prior: false, ..hearing(rule(0.5, 0.3)) },
            MixtureSpec { session_prior: true, experts: vec![], top_k: 0, ..spec() },
            MixtureSpec { shared_on: vec![], experts: vec![], top_k: 0, ..spec() },
            MixtureSpec { shared_rank: 0, ..spec() },
            MixtureSpec { expert_rank: 0, ..spec() },
            MixtureSpec { top_k: 5, ..spec() },
            MixtureSpec { experts: vec![None; 65], ..spec() },
            MixtureSpec { scale: f32::NAN, ..spec() },
        ] {
            assert!(Mixture::init(&tiny(), &bad, 1).is_err(), "{bad:?}");
        }
        assert!(Mixture::init(&BackboneConfig { layers: 1, ..tiny() }, &hearing(None), 1).is_err());
    }
}
