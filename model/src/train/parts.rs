//! Which trained tensor belongs to which part of a mixture: by which clock it ages and how fast it moves. Refuses to know
//! the numbers themselves.

use super::adamw::{Clocks, Rate};
use crate::adapter::{Linear, Mixture, Parameter, ParameterKind};
use empathd_proto::engine::{TrainOnly, TrainSpec};

/// The clocks of every parameter and how many there are: one for the shared part of a layer, one for each of its experts,
/// one for its router, one for what belongs to no layer. Both sides of a pair go by the same, so that a plain LoRA ages as
/// it does elsewhere.
pub(super) fn clocks(shape: &Mixture, layers: usize) -> (Vec<Clocks>, usize) {
    let experts = shape.spec().experts.len();
    let per_layer = experts + 2;
    let mut all = Vec::new();
    for layer in 0..layers {
        let first = layer * per_layer;
        all.extend(shape.layer_parameters(layer).iter().map(|p| of_parameter(shape, p, first)));
    }
    let rest = shape.parameters().len() - all.len();
    all.extend(std::iter::repeat_n(Clocks::One(layers * per_layer), rest));
    (all, layers * per_layer + 1)
}

/// The clocks of one tensor of a layer whose clocks begin at `first`: shared, experts in turn, router.
fn of_parameter(shape: &Mixture, parameter: &Parameter<'_>, first: usize) -> Clocks {
    let (experts, rank) = (shape.spec().experts.len(), shape.spec().expert_rank as usize);
    let stack = match parameter.kind {
        ParameterKind::Router | ParameterKind::Session => return Clocks::One(first + experts + 1),
        ParameterKind::A => parameter.tensor.dims()[0],
        ParameterKind::B => parameter.tensor.dims()[1],
    };
    let is_routed = Linear::ALL.iter().any(|linear| linear.is_routed() && parameter.name.contains(linear.name()));
    let shared = if is_routed { stack - experts * rank } else { stack };
    let clock = |at: usize| at.checked_sub(shared).map_or(first, |at| first + 1 + at / rank);
    let of: Vec<usize> = (0..stack).map(clock).collect();
    if parameter.kind == ParameterKind::A { Clocks::Rows(of) } else { Clocks::Columns(of) }
}

/// Times faster than routers that the session head learns. It reads a stream whose widest numbers say nothing about the text
/// and stand for a hundred others, and begins at zero: at a rate of 0.001 it had learnt only which domain is the most frequent
/// when sixty steps were over, at 0.03 it knew nine conversations of ten (docs/decisions/0017).
const SESSION_RATE_RATIO: f32 = 10.0;

/// How fast each parameter moves when the schedule is at `factor` of its peak; none where it stays.
pub(super) fn rates(shape: &Mixture, spec: &TrainSpec, factor: f64) -> Vec<Option<Rate>> {
    let factor = factor as f32;
    let of = |kind| match (kind, spec.only) {
        (ParameterKind::Router, _) => Some(Rate { rate: factor * spec.router_learning_rate, decay: 0.0 }),
        (ParameterKind::Session, _) => {
            Some(Rate { rate: factor * SESSION_RATE_RATIO * spec.router_learning_rate, decay: 0.0 })
        }
        (_, TrainOnly::Routers) => None,
        (ParameterKind::A, TrainOnly::All) => {
            Some(Rate { rate: factor * spec.learning_rate, decay: spec.weight_decay })
        }
        (ParameterKind::B, TrainOnly::All) => {
            Some(Rate { rate: factor * spec.learning_rate * spec.b_rate_ratio, decay: spec.weight_decay })
        }
    };
    shape.parameters().iter().map(|p| of(p.kind)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::tiny;
    use crate::train::schedule::tests::spec;

    #[test]
    fn every_part_has_its_clock_and_its_rate() {
        let spec = TrainSpec { b_rate_ratio: 4.0, ..spec() };
        let shape = Mixture::init(&tiny(), &spec.mixture, 1).unwrap();
        let (clocks, count) = clocks(&shape, tiny().layers);
        assert_eq!((clocks.len(), count), (shape.parameters().len(), tiny().layers * 4 + 1));
        for (parameter, clocks) in shape.parameters().iter().zip(&clocks) {
            let first = if parameter.name.contains("layers.0.") { 0 } else { 4 };
            let expected = match parameter.name.rsplit_once('.').map(|(path, side)| (path.contains("mlp"), side)) {
                Some((true, "a")) => Clocks::Rows([0, 0, 1, 1, 2, 2].map(|c| first + c).to_vec()),
                Some((true, "b")) => Clocks::Columns([0, 0, 1, 1, 2, 2].map(|c| first + c).to_vec()),
                Some((false, "a")) => Clocks::Rows(vec![first; 2]),
                Some((false, "b")) => Clocks::Columns(vec![first; 2]),
                _ => Clocks::One(first + 3),
            };
            assert_eq!(*clocks, expected, "{}", parameter.name);
        }
        let moved = |spec: &TrainSpec| {
            let rates = rates(&shape, spec, 0.5);
            let of = |name: &str| shape.parameters().iter().position(|p| p.name.ends_with(name)).and_then(|i| rates[i]);
            [of("up_proj.a"), of("up_proj.b"), of("router")]
        };
        let rate = |rate, decay| Some(Rate { rate, decay });
        assert_eq!(moved(&spec), [rate(2.5e-3, 0.01), rate(1e-2, 0.01), rate(5e-3, 0.0)]);
        assert_eq!(moved(&TrainSpec { only: TrainOnly::Routers, ..spec }), [None, None, rate(5e-3, 0.0)]);
    }

    #[test]
    fn what_a_session_is_about_is_learnt_faster_than_routing() {
        let mut spec = spec();
        spec.mixture.session_prior = true;
        let shape = Mixture::init(&tiny(), &spec.mixture, 1).unwrap();
        let rates = rates(&shape, &spec, 1.0);
        let of = |name: &str| shape.parameters().iter().position(|p| p.name.ends_with(name)).and_then(|i| rates[i]);
        let [head, router, prior_weight] =
            ["session.head", "router", "prior_weight"].map(|name| of(name).unwrap().rate);
        assert!((head - SESSION_RATE_RATIO * router).abs() < 1e-6 && prior_weight == router);
    }
}
