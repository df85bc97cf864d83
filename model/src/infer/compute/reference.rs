//! The plain way to compute: candle tensors in f32 on whatever device the backbone lives, one span after the other. What
//! the packed way is compared with. Refuses to know packed weights and who asks.

use super::{ComputeError, Loads, SLOTS, SlotId, Span, check};
use crate::backbone::{Backbone, KvCache};
use crate::config::BackboneConfig;

/// Slots over an f32 backbone.
pub struct ReferenceExecutor {
    backbone: Backbone,
    slots: Vec<KvCache>,
    kv_tokens_max: usize,
    logits: Vec<f32>,
}

impl ReferenceExecutor {
    /// Empty slots that may hold `kv_mib` MiB of keys and values together.
    #[must_use]
    pub fn new(backbone: Backbone, kv_mib: u32) -> Self {
        let config = backbone.config();
        let token_bytes = 2 * config.kv_width() * config.layers * size_of::<f32>();
        let kv_tokens_max = super::kv_tokens(kv_mib, token_bytes, config.context);
        let slots = (0..SLOTS).map(|_| KvCache::new(config, backbone.device())).collect();
        Self { backbone, slots, kv_tokens_max, logits: Vec::new() }
    }

    pub(super) fn config(&self) -> &BackboneConfig {
        self.backbone.config()
    }

    pub(super) const fn kv_tokens_max(&self) -> usize {
        self.kv_tokens_max
    }

    pub(super) fn len(&self, slot: SlotId) -> usize {
        self.slots[slot.0].len()
    }

    pub(super) fn pass(&mut self, spans: &[Span<'_>], loads: Loads<'_>) -> Result<&[f32], ComputeError> {
        check(spans, self.backbone.config(), |slot| self.slots.get(slot.0).map(KvCache::len))?;
        self.logits.clear();
        let mut loads = loads.iter_mut();
        for span in spans {
            let mixture = span.adapter.map(|adapter| &adapter.mixture);
            let tail = span.logits.count(span.ids.len());
            let cache = &mut self.slots[span.slot.0];
            let rows = self.backbone.extend(span.ids, cache, mixture, loads.next(), tail)?;
            if tail > 0 {
                self.logits.extend(rows.flatten_all()?.to_vec1::<f32>()?);
            }
        }
        Ok(&self.logits)
    }

    pub(super) fn truncate(&mut self, slot: SlotId, len: usize) -> u64 {
        let cache = &mut self.slots[slot.0];
        // What cannot be overwritten in part is overwritten whole.
        cache.truncate(len).unwrap_or_else(|_| cache.wipe())
    }

    pub(super) fn copy_prefix(&mut self, from: SlotId, to: SlotId, len: usize) -> Result<(), ComputeError> {
        let Ok([from, to]) = self.slots.get_disjoint_mut([from.0, to.0]) else {
            return Err(ComputeError::Malformed("a slot is copied onto itself"));
        };
        Ok(to.copy_prefix(from, len, self.backbone.config())?)
    }

    pub(super) fn wipe(&mut self, slot: SlotId) -> u64 {
        self.slots[slot.0].wipe()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{LogitRows, ServingAdapter};
    use super::*;
    use crate::adapter::ExpertLoad;
    use crate::backbone::tests::{random_backbone, random_mixture};
    use crate::config::tests::tiny;
    use std::sync::Arc;

    fn span(slot: usize, ids: &[u32], logits: LogitRows) -> Span<'_> {
        Span { slot: SlotId(slot), ids, adapter: None, logits }
    }

    #[test]
    fn spans_of_a_pass_are_conversations_of_their_own() {
        let base = random_backbone(tiny(), 1);
        let mixture = random_mixture(&tiny(), 2);
        let whole = |ids: &[u32], mixture| base.logits_all(ids, mixture).unwrap().to_vec2::<f32>().unwrap();
        let adapter = Arc::new(ServingAdapter::plain(mixture.clone()));
        let mut executor = ReferenceExecutor::new(base.clone(), 0);
        let adapted = Span { adapter: Some(&adapter), ..span(1, &[9, 8, 7], LogitRows::All) };
        let mut loads = vec![ExpertLoad::default(); 3];
        let spans = [span(0, &[1, 2, 3, 4], LogitRows::Last), adapted, span(2, &[5], LogitRows::None)];
        let found = executor.pass(&spans, &mut loads).unwrap().to_vec();
        let vocab = tiny().vocab;
        assert_eq!(found.len(), 4 * vocab);
        let near = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4);
        assert!(near(&found[..vocab], &whole(&[1, 2, 3, 4], None)[3]));
        assert!(near(&found[vocab..], &whole(&[9, 8, 7], Some(&mixture)).concat()));
        assert_eq!(loads[1].chosen.iter().sum::<u64>(), 3 * 2 * 2);
        assert!(executor.truncate(SlotId(0), 2) > 0 && executor.len(SlotId(0)) == 2);
        executor.copy_prefix(SlotId(0), SlotId(3), 2).unwrap();
        let found = executor.pass(&[span(3, &[6], LogitRows::Last)], &mut []).unwrap().to_vec();
        assert!(near(&found, &whole(&[1, 2, 6], None)[2]));
        assert!(executor.wipe(SlotId(0)) > 0 && executor.wipe(SlotId(0)) > 0 && executor.len(SlotId(0)) == 0);
    }

    #[test]
    fn malformed_passes_change_nothing() {
        let mut executor = ReferenceExecutor::new(random_backbone(tiny(), 1), 0);
        let last = LogitRows::Last;
        for spans in [
            vec![span(0, &[], last)],
            vec![span(0, &[29], last)],
            vec![span(0, &[1; 65], last)],
            vec![span(0, &[1], last), span(0, &[1], last)],
            vec![span(SLOTS, &[1], last)],
        ] {
            assert!(executor.pass(&spans, &mut []).is_err());
            assert_eq!(executor.len(SlotId(0)), 0);
        }
        assert!(executor.copy_prefix(SlotId(0), SlotId(0), 0).is_err());
        assert!(executor.copy_prefix(SlotId(0), SlotId(1), 1).is_err());
    }
}
