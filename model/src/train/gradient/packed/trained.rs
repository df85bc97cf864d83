//! What is trained, as products read it: A and B sides packed anew after every step, routers as they are. Knows which
//! parameter is which; refuses to know how they move.

use crate::adapter::route::Policy;
use crate::adapter::{Linear, Mixture, Parameter};
use crate::config::BackboneConfig;
use crate::kernels::Pool;
use crate::kernels::half::{Precision, Weight};
use crate::train::TrainError;

/// A mixture over a backbone.
pub(super) struct Trained {
    /// `alpha / rank`.
    pub(super) scale: f32,
    pub(super) experts: usize,
    /// Rank of one expert.
    pub(super) rank: usize,
    pub(super) policy: Policy,
    pub(super) layers: Vec<TrainedLayer>,
    pub(super) session: Option<Session>,
    /// Numbers of each parameter.
    lens: Vec<usize>,
}

/// Where the session prior is read.
pub(super) struct Session {
    /// In whose input stream.
    pub(super) layer: usize,
    /// The head `[experts, hidden]`.
    pub(super) head: Small,
}

/// What is trained of one layer.
#[derive(Default)]
pub(super) struct TrainedLayer {
    /// In the order of [`Linear::ALL`].
    pairs: [Option<Pair>; 7],
    /// `[experts, hidden]`.
    pub(super) router: Option<Small>,
    /// `[1]`.
    pub(super) prior_weight: Option<Small>,
}

/// A parameter that is used as it is.
pub(super) struct Small {
    /// Which parameter.
    pub(super) at: usize,
    pub(super) numbers: Vec<f32>,
}

/// The stacked pair of one linear map.
pub(super) struct Pair {
    /// Which parameters A and B are.
    pub(super) at: (usize, usize),
    /// `[stack, in]`.
    pub(super) a: Weight,
    /// `[out, stack]`.
    pub(super) b: Weight,
    /// Input, stack and output widths.
    pub(super) sides: (usize, usize, usize),
    /// Columns of the stack that everyone shares.
    pub(super) shared: usize,
}

impl TrainedLayer {
    pub(super) fn pair(&self, linear: Linear) -> Option<&Pair> {
        self.pairs[linear as usize].as_ref()
    }
}

impl Trained {
    /// The shape of a mixture with its numbers.
    pub(super) fn new(
        config: &BackboneConfig,
        mixture: &Mixture,
        precision: Precision,
        pool: &mut Pool,
    ) -> Result<Self, TrainError> {
        let spec = mixture.spec();
        let mut trained = Self {
            scale: spec.scale,
            experts: spec.experts.len(),
            rank: spec.expert_rank as usize,
            policy: Policy::new(spec),
            layers: (0..config.layers).map(|_| TrainedLayer::default()).collect(),
            session: None,
            lens: Vec::new(),
        };
        let parameters = mixture.parameters();
        for (at, parameter) in parameters.iter().enumerate() {
            trained.lens.push(parameter.tensor.elem_count());
            trained.place(at, parameter, mixture, precision).ok_or_else(|| unknown(&parameter.name))?;
        }
        let numbers: Vec<Vec<f32>> =
            parameters.iter().map(|p| p.tensor.flatten_all()?.to_vec1()).collect::<candle_core::Result<_>>()?;
        trained.fill(&numbers, pool)?;
        Ok(trained)
    }

    /// Makes room for parameter `at`; nothing when its name says nothing. B sides come with their A.
    fn place(&mut self, at: usize, parameter: &Parameter<'_>, mixture: &Mixture, precision: Precision) -> Option<()> {
        let small = || Small { at, numbers: vec![0.0; parameter.tensor.elem_count()] };
        if parameter.name == "session.head" {
            self.session = Some(Session { layer: mixture.prior_layer()?, head: small() });
            return Some(());
        }
        let (layer, name) = parameter.name.strip_prefix("layers.")?.split_once('.')?;
        let index: usize = layer.parse().ok()?;
        let layer = self.layers.get_mut(index)?;
        match name {
            "router" => layer.router = Some(small()),
            "prior_weight" => layer.prior_weight = Some(small()),
            _ => {
                let (name, side) = name.rsplit_once('.')?;
                let linear = *Linear::ALL.iter().find(|linear| linear.name() == name)?;
                if side == "a" {
                    let pair = mixture.layer(index).pair(linear)?;
                    let (stack, inner) = pair.a.dims2().ok()?;
                    let (out, _) = pair.b.dims2().ok()?;
                    layer.pairs[linear as usize] = Some(Pair {
                        at: (at, at + 1),
                        a: Weight::new(precision, stack, inner),
                        b: Weight::new(precision, out, stack),
                        sides: (inner, stack, out),
                        shared: pair.shared,
                    });
                }
            }
        }
        Some(())
    }

    /// Packs new numbers, in the order of [`Mixture::parameters`].
    pub(super) fn fill(&mut self, numbers: &[Vec<f32>], pool: &mut Pool) -> Result<(), TrainError> {
        let fits = numbers.len() == self.lens.len() && numbers.iter().zip(&self.lens).all(|(n, len)| n.len() == *len);
        if !fits {
            return Err(TrainError::BadJob("the weights are not of the held mixture".into()));
        }
        for layer in &mut self.layers {
            for pair in layer.pairs.iter_mut().flatten() {
                let (inner, stack, _) = pair.sides;
                let (a, b) = (&numbers[pair.at.0], &numbers[pair.at.1]);
                pair.a.fill(pool, &|row, to| to.copy_from_slice(&a[row * inner..][..inner]));
                pair.b.fill(pool, &|row, to| to.copy_from_slice(&b[row * stack..][..stack]));
            }
            let small = [&mut layer.router, &mut layer.prior_weight];
            small.into_iter().flatten().for_each(|small| small.numbers.copy_from_slice(&numbers[small.at]));
        }
        if let Some(session) = &mut self.session {
            session.head.numbers.copy_from_slice(&numbers[session.head.at]);
        }
        Ok(())
    }

    /// The widest stack.
    pub(super) fn stack_max(&self) -> usize {
        self.layers.iter().flat_map(|layer| layer.pairs.iter().flatten()).map(|pair| pair.sides.1).max().unwrap_or(0)
    }

    /// Whether `sums` are gradients of these parameters.
    pub(super) fn fits(&self, sums: &[Vec<f32>]) -> bool {
        sums.len() == self.lens.len() && sums.iter().zip(&self.lens).all(|(sum, len)| sum.len() == *len)
    }
}

fn unknown(name: &str) -> TrainError {
    TrainError::BadJob(format!("a mixture has the parameter {name}, which this trainer does not know"))
}
