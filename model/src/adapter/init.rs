//! How a mixture begins: it changes nothing, its experts are almost alike, its routers almost indifferent.

use super::{LayerAdapter, Linear, LowRank, MAX_EXPERTS, MAX_RANK, Mixture};
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
    /// sides converge); routers are normal with deviation 0.02.
    ///
    /// # Errors
    /// The shape asks for nothing or for too much.
    pub fn init(config: &BackboneConfig, spec: &MixtureSpec, seed: u64) -> Result<Self> {
        check(spec)?;
        let counter = Counter::new(seed);
        let layers = (0..config.layers).map(|index| layer(config, spec, counter, index)).collect::<Result<_>>()?;
        Ok(Self { spec: spec.clone(), layers })
    }
}

/// Refuses shapes that make no sense.
pub(super) fn check(spec: &MixtureSpec) -> Result<()> {
    let (experts, shared, rank) = (spec.experts.len(), spec.shared_rank as usize, spec.expert_rank as usize);
    if shared == 0 || shared > MAX_RANK || rank > MAX_RANK || experts > MAX_EXPERTS {
        bail!("ranks must be 1 to {MAX_RANK} and experts at most {MAX_EXPERTS}")
    }
    if experts > 0 && (rank == 0 || spec.top_k == 0 || spec.top_k as usize > experts) {
        bail!("experts need a rank, and a token takes 1 to {experts} of them")
    }
    if !spec.scale.is_finite() {
        bail!("the scale must be a number")
    }
    Ok(())
}

/// Rank of the stack on a linear map.
pub(super) fn stack(linear: Linear, spec: &MixtureSpec) -> usize {
    let routed = if linear.is_routed() { spec.experts.len() * spec.expert_rank as usize } else { 0 };
    spec.shared_rank as usize + routed
}

fn layer(config: &BackboneConfig, spec: &MixtureSpec, counter: Counter, index: usize) -> Result<LayerAdapter> {
    let pairs = Linear::ALL.iter().map(|linear| pair(*linear, config, spec, counter, index)).collect::<Result<_>>()?;
    let site = Site::new("router", index as u64);
    let normal = |i| (ROUTER_SPREAD * counter.normal(site, i)) as f32;
    let experts = spec.experts.len();
    let router: Vec<f32> = (0..(experts * config.hidden) as u64).map(normal).collect();
    let router = (experts > 0).then(|| Tensor::from_vec(router, (experts, config.hidden), &Device::Cpu)).transpose()?;
    Ok(LayerAdapter { pairs, router, top_k: spec.top_k as usize, scale: spec.scale })
}

fn pair(
    linear: Linear,
    config: &BackboneConfig,
    spec: &MixtureSpec,
    counter: Counter,
    index: usize,
) -> Result<LowRank> {
    let (inner, out) = linear.sides(config);
    let (shared, rank, stack) = (spec.shared_rank as usize, spec.expert_rank as usize, stack(linear, spec));
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
        let gate = mixture.layer(0).pair(Linear::Gate);
        assert_eq!(gate.a.dims(), [2 + 4 * 3, config.hidden]);
        assert_eq!(gate.b.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap(), 0.0);
        assert_eq!(mixture.layer(0).pair(Linear::Query).a.dims(), [2, config.hidden]);
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
        assert_ne!(other.layer(0).pair(Linear::Gate).a.to_vec2::<f32>().unwrap(), a);
    }

    #[test]
    fn senseless_shapes_are_refused() {
        for bad in [
            MixtureSpec { shared_rank: 0, ..spec() },
            MixtureSpec { expert_rank: 0, ..spec() },
            MixtureSpec { top_k: 5, ..spec() },
            MixtureSpec { experts: vec![None; 65], ..spec() },
            MixtureSpec { scale: f32::NAN, ..spec() },
        ] {
            assert!(Mixture::init(&tiny(), &bad, 1).is_err());
        }
    }
}
