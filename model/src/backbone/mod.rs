//! Frozen Llama-family weights and the one way through them, for training and for answers alike. Refuses to know where
//! weights come from and what an adapter's numbers mean.

mod cache;
mod layer;
mod session;

pub use cache::KvCache;
pub(crate) use layer::{Guide, Pass, Routed, Routing};
pub(crate) use session::Session;

use crate::adapter::{ExpertLoad, Linear, Mixture};
use crate::config::BackboneConfig;
use crate::ops::{RopeTable, frozen_linear, rms_norm};
use candle_core::{DType, Device, Result, Tensor, bail};
use layer::{Layer, Shared};
use std::sync::{Arc, Weak};

/// Where a weight comes from: asked by Hugging Face name and shape.
pub type Weights<'a> = dyn FnMut(&str, &[usize]) -> Result<Tensor> + 'a;

/// Frozen f32 weights; cloning shares them.
#[derive(Clone)]
pub struct Backbone {
    inner: Arc<Inner>,
}

/// A way back to a backbone that does not keep it in memory.
#[derive(Default)]
pub struct WeakBackbone(Weak<Inner>);

impl WeakBackbone {
    /// The backbone, when somebody still has it.
    #[must_use]
    pub fn upgrade(&self) -> Option<Backbone> {
        self.0.upgrade().map(|inner| Backbone { inner })
    }
}

struct Inner {
    config: BackboneConfig,
    rope: RopeTable,
    embedding: Tensor,
    layers: Vec<Layer>,
    norm: Tensor,
    head: Tensor,
}

impl Backbone {
    /// Reads every weight once from `weights`, which is asked by Hugging Face name and shape.
    ///
    /// # Errors
    /// The shape contradicts itself, or a weight is missing or has another shape.
    pub fn new(config: BackboneConfig, weights: &mut Weights<'_>, device: &Device) -> Result<Self> {
        config.check().map_err(candle_core::Error::wrap)?;
        let mut take = |name: &str, shape: &[usize]| -> Result<Tensor> {
            let tensor = weights(name, shape)?;
            if tensor.dims() != shape {
                bail!("weight {name} has shape {:?}, expected {shape:?}", tensor.dims())
            }
            tensor.to_device(device)?.to_dtype(DType::F32)?.contiguous()
        };
        let (vocab, hidden) = (config.vocab, config.hidden);
        let embedding = take("model.embed_tokens.weight", &[vocab, hidden])?;
        let head = if config.tied_head { embedding.clone() } else { take("lm_head.weight", &[vocab, hidden])? };
        let norm = take("model.norm.weight", &[hidden])?;
        let layers = (0..config.layers).map(|index| layer(index, &config, &mut take)).collect::<Result<_>>()?;
        let rope = RopeTable::new(&config);
        Ok(Self { inner: Arc::new(Inner { config, rope, embedding, layers, norm, head }) })
    }

    /// The shape.
    #[must_use]
    pub fn config(&self) -> &BackboneConfig {
        &self.inner.config
    }

    /// A way back to it that does not keep it in memory.
    #[must_use]
    pub fn downgrade(&self) -> WeakBackbone {
        WeakBackbone(Arc::downgrade(&self.inner))
    }

    /// Where it computes.
    #[must_use]
    pub fn device(&self) -> &Device {
        self.inner.embedding.device()
    }

    /// Number of frozen weights.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        let inner = &self.inner;
        let layers = inner.layers.iter().flat_map(|l| l.weights.iter().chain([&l.attention_norm, &l.ffn_norm]));
        let head = (!inner.config.tied_head).then_some(&inner.head);
        layers.chain([&inner.embedding, &inner.norm]).chain(head).map(|t| t.elem_count() as u64).sum()
    }

    /// Appends `ids` to the cache and gives the logits `[vocab]` after the last of them. Counts routing into `load`.
    ///
    /// # Errors
    /// The context is exceeded, an id is outside the vocabulary, or a tensor operation failed.
    pub fn forward(
        &self,
        ids: &[u32],
        cache: &mut KvCache,
        mixture: Option<&Mixture>,
        load: Option<&mut ExpertLoad>,
    ) -> Result<Vec<f32>> {
        self.extend(ids, cache, mixture, load, 1)?.flatten_all()?.to_vec1()
    }

    /// Appends `ids` to the cache and gives the logits `[tail, vocab]` of the last `tail` of them. Counts routing into
    /// `load`.
    ///
    /// # Errors
    /// The context is exceeded, an id is outside the vocabulary, or a tensor operation failed.
    pub fn extend(
        &self,
        ids: &[u32],
        cache: &mut KvCache,
        mixture: Option<&Mixture>,
        mut load: Option<&mut ExpertLoad>,
        tail: usize,
    ) -> Result<Tensor> {
        let mut x = self.embed(ids)?;
        cache.reserve(ids.len(), self.config())?;
        let pass = Pass::continued(cache.len(), ids.len());
        let shared = Shared { config: self.config(), rope: &self.inner.rope, pass: &pass };
        let mut session = None;
        for (index, layer) in self.inner.layers.iter().enumerate() {
            if let Some(found) = self.session((index, &x), &pass, mixture, cache.session_carry())? {
                cache.keep_session(&found.sums, ids.len())?;
                session = Some(found);
            }
            let guide = Guide { log_prior: session.as_ref().map(|s| &s.log_prior), ..Guide::default() };
            let adapter = mixture.map(|m| m.layer(index));
            let (next, routed) = layer.forward(&x, &shared, adapter, guide, Some(cache.layer(index)))?;
            if let (Some(load), Some(routed)) = (load.as_deref_mut(), routed) {
                load.count(&routed.choice, &routed.gates)?;
            }
            x = next;
        }
        cache.advance(ids.len());
        if tail == 0 {
            return Tensor::zeros((0, self.config().vocab), DType::F32, &Device::Cpu);
        }
        let last = x.narrow(0, ids.len() - tail, tail)?;
        frozen_linear(&self.normed(&last)?, &self.inner.head)
    }

    /// Logits `[T, vocab]` of every position, without a cache.
    ///
    /// # Errors
    /// As [`Backbone::forward`].
    pub fn logits_all(&self, ids: &[u32], mixture: Option<&Mixture>) -> Result<Tensor> {
        let mut x = self.embed(ids)?;
        let pass = Pass::packed(&[ids.len()]);
        let mut session = None;
        for index in 0..self.config().layers {
            session = self.session((index, &x), &pass, mixture, &[])?.or(session);
            let guide = Guide { log_prior: session.as_ref().map(|s| &s.log_prior), ..Guide::default() };
            x = self.layer_forward(index, &x, &pass, mixture, guide)?.0;
        }
        frozen_linear(&self.normed(&x)?, &self.inner.head)
    }

    /// The stream before the first layer, `[ids, hidden]`.
    pub(crate) fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        if ids.is_empty() || ids.iter().any(|id| *id as usize >= self.config().vocab) {
            bail!("there is no token, or one outside the vocabulary of {}", self.config().vocab)
        }
        self.inner.embedding.index_select(&Tensor::new(ids, self.inner.embedding.device())?, 0)
    }

    /// What the conversations of a pass are about, where the stream `x` before layer `index` is where the mixture reads it.
    /// `carry` is the sum behind the last token before the pass, for a conversation that goes on.
    pub(crate) fn session(
        &self,
        at: (usize, &Tensor),
        pass: &Pass,
        mixture: Option<&Mixture>,
        carry: &[f32],
    ) -> Result<Option<Session>> {
        let Some(mixture) = mixture else { return Ok(None) };
        Session::read(at, pass, mixture, self.config().rms_eps, carry)
    }

    /// The stream after layer `index`, and what its router decided.
    pub(crate) fn layer_forward(
        &self,
        index: usize,
        x: &Tensor,
        pass: &Pass,
        mixture: Option<&Mixture>,
        guide: Guide<'_>,
    ) -> Result<(Tensor, Option<Routed>)> {
        let shared = Shared { config: self.config(), rope: &self.inner.rope, pass };
        self.inner.layers[index].forward(x, &shared, mixture.map(|m| m.layer(index)), guide, None)
    }

    /// The stream as the head reads it.
    pub(crate) fn normed(&self, x: &Tensor) -> Result<Tensor> {
        rms_norm(x, &self.inner.norm, self.config().rms_eps)
    }

    /// The output head `[vocab, hidden]`.
    pub(crate) fn head(&self) -> &Tensor {
        &self.inner.head
    }
}

/// Weights of one layer.
fn layer(index: usize, config: &BackboneConfig, take: &mut Weights<'_>) -> Result<Layer> {
    let mut norm = |name: &str| take(&format!("model.layers.{index}.{name}.weight"), &[config.hidden]);
    let attention_norm = norm("input_layernorm")?;
    let ffn_norm = norm("post_attention_layernorm")?;
    let weights = Linear::ALL.iter().map(|linear| {
        let (inner, out) = linear.sides(config);
        take(&format!("model.layers.{index}.{}.weight", linear.name()), &[out, inner])
    });
    let weights = weights.collect::<Result<_>>()?;
    Ok(Layer { attention_norm, ffn_norm, weights })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::config::tests::tiny;
    use crate::ops::check::{device, random};
    use empathd_proto::engine::{CrisisFloor, MixtureSpec};
    use empathd_proto::record::Domain;

    /// Random weights of a shape.
    pub(crate) fn random_backbone(config: BackboneConfig, seed: u64) -> Backbone {
        let mut at = seed * 1000;
        let mut weights = |_: &str, shape: &[usize]| {
            at += 1;
            if shape.len() == 1 { random(shape, at).affine(0.2, 1.0) } else { random(shape, at).affine(0.3, 0.0) }
        };
        Backbone::new(config, &mut weights, device()).unwrap()
    }

    /// A mixture that changes something.
    pub(crate) fn random_mixture(config: &BackboneConfig, seed: u64) -> Mixture {
        let spec = MixtureSpec {
            shared_rank: 2,
            expert_rank: 2,
            experts: vec![None; 3],
            top_k: 2,
            scale: 2.0,
            ..MixtureSpec::default()
        };
        let fresh = Mixture::init(config, &spec, seed).unwrap();
        fresh.map(|i, t| random(t.dims(), seed * 1000 + 500 + i as u64).affine(0.2, 0.0)).unwrap()
    }

    /// The same with a session prior that speaks up and a crisis expert that is heard at once.
    pub(crate) fn hearing_mixture(config: &BackboneConfig, seed: u64) -> Mixture {
        let spec = MixtureSpec {
            experts: vec![None, Some(Domain::Crisis), None],
            session_prior: true,
            crisis_floor: Some(CrisisFloor { above: 0.34, floor: 0.4 }),
            ..random_mixture(config, seed).spec().clone()
        };
        let fresh = Mixture::init(config, &spec, seed).unwrap();
        fresh
            .map(|i, t| random(t.dims(), seed * 1000 + 500 + i as u64).affine(0.2, 0.3 * f64::from(t.rank() == 1)))
            .unwrap()
    }

    fn close(a: &[f32], b: &[f32]) -> bool {
        a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4)
    }

    #[test]
    fn the_cached_way_gives_what_the_whole_gives() {
        let base = random_backbone(tiny(), 1);
        let (mixture, hearing) = (random_mixture(&tiny(), 2), hearing_mixture(&tiny(), 2));
        let ids = [3u32, 17, 9, 28, 0, 5, 11];
        for mixture in [None, Some(&mixture), Some(&hearing)] {
            let whole = base.logits_all(&ids, mixture).unwrap().to_vec2::<f32>().unwrap();
            let mut cache = KvCache::new(base.config(), device());
            let mut load = ExpertLoad::default();
            assert!(close(&base.forward(&ids[..4], &mut cache, mixture, Some(&mut load)).unwrap(), &whole[3]));
            for (i, id) in ids.iter().enumerate().skip(4) {
                assert!(close(&base.forward(&[*id], &mut cache, mixture, Some(&mut load)).unwrap(), &whole[i]));
            }
            assert_eq!(load.chosen.iter().sum::<u64>(), if mixture.is_some() { 7 * 2 * 2 } else { 0 });
            cache.wipe();
            assert!(close(&base.forward(&ids[..1], &mut cache, mixture, None).unwrap(), &whole[0]), "nothing is left");
        }
    }

    #[test]
    fn what_is_forgotten_is_no_longer_heard() {
        let (base, mixture) = (random_backbone(tiny(), 1), hearing_mixture(&tiny(), 2));
        let whole = base.logits_all(&[3, 17, 9, 28], Some(&mixture)).unwrap().to_vec2::<f32>().unwrap();
        let mut cache = KvCache::new(base.config(), device());
        base.forward(&[3, 17, 9, 5, 6, 7], &mut cache, Some(&mixture), None).unwrap();
        let row = 2 * base.config().kv_width() * base.config().layers * size_of::<f32>();
        assert_eq!(cache.truncate(3).unwrap(), (3 * (row + 3 * size_of::<f32>())) as u64);
        let mut copy = KvCache::new(base.config(), device());
        copy.copy_prefix(&cache, 3, base.config()).unwrap();
        for mut cache in [cache, copy] {
            assert!(close(&base.forward(&[28], &mut cache, Some(&mixture), None).unwrap(), &whole[3]));
        }
        let mut silent = KvCache::new(base.config(), device());
        base.forward(&[3, 17], &mut silent, None, None).unwrap();
        assert!(base.forward(&[9], &mut silent, Some(&mixture), None).is_err(), "it was not heard from the beginning");
    }

    #[test]
    fn a_fresh_mixture_changes_nothing_and_another_does() {
        let base = random_backbone(tiny(), 1);
        let other = random_mixture(&tiny(), 2);
        let fresh = Mixture::init(&tiny(), other.spec(), 1).unwrap().to_device(device()).unwrap();
        let logits =
            |mixture: Option<&Mixture>| base.logits_all(&[1, 2, 3], mixture).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(logits(None), logits(Some(&fresh)));
        assert_ne!(logits(None), logits(Some(&other)));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let base = random_backbone(tiny(), 1);
        let mut cache = KvCache::new(base.config(), device());
        assert!(base.forward(&[], &mut cache, None, None).is_err());
        assert!(base.forward(&[29], &mut cache, None, None).is_err());
        assert!(base.forward(&[1; 65], &mut cache, None, None).is_err());
        assert!(base.forward(&[1; 64], &mut cache, None, None).is_ok());
        assert!(base.forward(&[1], &mut cache, None, None).is_err(), "the context is full");
        let mut short = |_: &str, shape: &[usize]| Ok(random(&vec![1; shape.len()], 1));
        assert!(Backbone::new(tiny(), &mut short, device()).is_err());
    }
}
