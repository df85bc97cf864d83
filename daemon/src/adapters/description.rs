//! What the store keeps beside a generation's weights: what training measured, and what the weights come from. How weights
//! are made or judged is not known here.

use crate::stored::Stored;
use empathd_proto::engine::MixtureSpec;
use empathd_proto::ids::AdapterId;
use empathd_proto::report::{GateReport, TrainReport};
use serde::{Deserialize, Serialize};

/// A generation, described.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Description {
    /// Size of the weights.
    pub(crate) bytes: u64,
    /// BLAKE3 of the weights.
    pub(crate) digest: [u8; 32],
    /// Milliseconds since the Unix epoch.
    pub(crate) made_at_ms: u64,
    /// What training measured.
    pub(crate) train: TrainReport,
    /// What it comes from; absent where an earlier release made it.
    pub(crate) lineage: Option<Lineage>,
}

/// What weights come from. The cut and the job are in the registry beside it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Lineage {
    /// Name of the base model.
    pub(crate) base_name: String,
    /// SHA-256 of its file.
    pub(crate) base_sha256: [u8; 32],
    /// Shape of the mixture.
    pub(crate) mixture: MixtureSpec,
    /// Seed of initialisation and order.
    pub(crate) seed: u64,
    /// Digest over the cut's records and the rule of its split, hexadecimal.
    pub(crate) cut_hash: String,
    /// Records it learnt from, and records it was measured with.
    pub(crate) records: (u64, u64),
    /// The generation whose weights it began with.
    pub(crate) began_with: Option<AdapterId>,
    /// SHA-256 of the weights file of a public LoRA that became one of its experts.
    pub(crate) imported_sha256: Option<[u8; 32]>,
}

impl Stored for Description {
    type First = v1::Description;
    type Second = Self;
}

impl Stored for GateReport {
    type First = v1::GateReport;
    type Second = Self;
}

/// The shapes of the first release. They never change.
pub(crate) mod v1 {
    use empathd_proto::record::Domain;
    use empathd_proto::report::{self, BoundRule};
    use serde::Deserialize;
    use std::collections::BTreeMap;

    #[derive(Deserialize)]
    #[cfg_attr(test, derive(serde::Serialize))]
    pub(crate) struct Description {
        pub(crate) bytes: u64,
        pub(crate) digest: [u8; 32],
        pub(crate) made_at_ms: u64,
        pub(crate) train: TrainReport,
    }

    #[derive(Default, Deserialize)]
    #[cfg_attr(test, derive(serde::Serialize))]
    pub(crate) struct TrainReport {
        pub(crate) steps: u32,
        pub(crate) tokens: u64,
        pub(crate) target_tokens: u64,
        pub(crate) tok_s: f64,
        pub(crate) trainable: u64,
        pub(crate) val_loss_before: f64,
        pub(crate) val_loss_after: f64,
        pub(crate) val_by_domain: BTreeMap<String, (f64, f64)>,
        pub(crate) experts: Vec<String>,
        pub(crate) expert_load: Vec<f64>,
        pub(crate) folded_domains: Vec<Domain>,
        pub(crate) loss_curve: Vec<f32>,
        pub(crate) stopped_early: bool,
        pub(crate) resumed_from: Option<u32>,
    }

    #[derive(Deserialize)]
    #[cfg_attr(test, derive(serde::Serialize))]
    pub(crate) struct GateReport {
        pub(crate) bounds: Vec<GateBound>,
    }

    #[derive(Deserialize)]
    #[cfg_attr(test, derive(serde::Serialize))]
    pub(crate) struct GateBound {
        pub(crate) name: String,
        pub(crate) measured: f64,
        pub(crate) limit: f64,
        pub(crate) held: bool,
    }

    impl From<Description> for super::Description {
        fn from(first: Description) -> Self {
            let Description { bytes, digest, made_at_ms, train } = first;
            Self { bytes, digest, made_at_ms, train: train.into(), lineage: None }
        }
    }

    impl From<TrainReport> for report::TrainReport {
        fn from(first: TrainReport) -> Self {
            Self {
                steps: first.steps,
                tokens: first.tokens,
                target_tokens: first.target_tokens,
                tok_s: first.tok_s,
                trainable: first.trainable,
                val_loss_before: first.val_loss_before,
                val_loss_after: first.val_loss_after,
                val_by_domain: first.val_by_domain,
                experts: first.experts,
                expert_load: first.expert_load,
                folded_domains: first.folded_domains,
                loss_curve: first.loss_curve,
                stopped_early: first.stopped_early,
                resumed_from: first.resumed_from,
                ..Self::default()
            }
        }
    }

    impl From<GateReport> for report::GateReport {
        fn from(first: GateReport) -> Self {
            let bound = |GateBound { name, measured, limit, held }| report::GateBound {
                name,
                measured,
                limit,
                rule: BoundRule::AtMost,
                items: 0,
                held,
            };
            Self { bounds: first.bounds.into_iter().map(bound).collect(), ..Self::default() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stored;

    fn first(value: &impl Serialize) -> Vec<u8> {
        [vec![1], postcard::to_stdvec(value).expect("encoded")].concat()
    }

    #[test]
    fn what_the_first_release_wrote_is_read() {
        let train = v1::TrainReport { steps: 24, experts: vec!["crisis".into()], ..v1::TrainReport::default() };
        let written = first(&v1::Description { bytes: 3, digest: [1; 32], made_at_ms: 5, train });
        let read: Description = stored::decode(&written).expect("read");
        assert_eq!((read.bytes, read.train.steps, read.train.pass_tokens, read.lineage), (3, 24, 0, None));
        let bound = v1::GateBound { name: "validation_loss".into(), measured: 0.9, limit: 0.99, held: true };
        let read: GateReport = stored::decode(&first(&v1::GateReport { bounds: vec![bound] })).expect("read");
        assert!(read.passed() && read.suite == 0 && read.figures.is_empty());
    }
}
