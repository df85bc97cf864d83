//! Rotary positions, in the half-split convention of Hugging Face (column `i` turns with column `i + width/2`).

use super::host::{ROWS_PER_TASK, output, packed, slice};
use crate::config::{BackboneConfig, RopeScaling};
use crate::device;
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, Device, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;
use std::sync::{Arc, OnceLock};

/// Cosines and sines of every position of a context.
#[derive(Clone)]
pub struct RopeTable {
    half: usize,
    /// Positions times `half` pairs of cosine and sine.
    turns: Arc<[(f32, f32)]>,
    /// The same on the card, once it was needed there: `[positions, half, 2]`.
    on_card: Arc<OnceLock<Tensor>>,
}

impl RopeTable {
    /// The table of a model.
    #[must_use]
    pub fn new(config: &BackboneConfig) -> Self {
        let half = config.head_dim / 2;
        let rates: Vec<f64> = (0..half).map(|i| rate(config, i)).collect();
        let sharpness = sharpness(config);
        let turns = (0..config.context).flat_map(|position| {
            rates.iter().map(move |rate| {
                let angle = position as f64 * rate;
                ((sharpness * angle.cos()) as f32, (sharpness * angle.sin()) as f32)
            })
        });
        Self { half, turns: turns.collect(), on_card: Arc::default() }
    }

    /// Cosine and sine of each pair at a position.
    #[must_use]
    pub fn turns(&self, position: usize) -> &[(f32, f32)] {
        &self.turns[position * self.half..][..self.half]
    }

    /// The table in the memory of a card. All of a program's tensors are on one.
    fn on(&self, card: &Device) -> Result<&Tensor> {
        if self.on_card.get().is_none() {
            let numbers: Vec<f32> = self.turns.iter().flat_map(|(cosine, sine)| [*cosine, *sine]).collect();
            let table = Tensor::from_vec(numbers, (self.positions(), self.half, 2), card)?;
            return Ok(self.on_card.get_or_init(|| table));
        }
        self.on_card.get().map_or_else(|| bail!("the table of turns is gone"), Ok)
    }

    /// Positions it knows.
    #[must_use]
    pub fn positions(&self) -> usize {
        self.turns.len() / self.half
    }
}

/// Radians per position of pair `i`: `theta^(-2i/head_dim)`, stretched as the model says.
fn rate(config: &BackboneConfig, i: usize) -> f64 {
    let rate = f64::from(config.rope_theta).powf(-2.0 * i as f64 / config.head_dim as f64);
    match &config.rope_scaling {
        RopeScaling::None => rate,
        RopeScaling::Linear { factor } => rate / f64::from(*factor),
        RopeScaling::Divided(by) => rate / f64::from(by[i]),
        RopeScaling::Yarn { factor, original_context } => {
            let at = |turns: f64| {
                let wave = *original_context as f64 / (turns * std::f64::consts::TAU);
                config.head_dim as f64 * wave.ln() / (2.0 * f64::from(config.rope_theta).ln())
            };
            let (low, high) = (at(YARN_FAST).floor().max(0.0), at(YARN_SLOW).ceil().min(config.head_dim as f64 - 1.0));
            let slow = ((i as f64 - low) / (high - low).max(1e-3)).clamp(0.0, 1.0);
            rate * ((1.0 - slow) + slow / f64::from(*factor))
        }
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
            let (low, high) = (f64::from(*low_freq_factor), f64::from(*high_freq_factor));
            let turns = *original_context as f64 * rate / std::f64::consts::TAU;
            let keep = ((turns - low) / (high - low)).clamp(0.0, 1.0);
            rate * (keep + (1.0 - keep) / f64::from(*factor))
        }
    }
}

/// Turns over the original context from which on YaRN keeps a pair.
const YARN_FAST: f64 = 32.0;
/// Turns up to which it divides one.
const YARN_SLOW: f64 = 1.0;

/// What queries and keys are multiplied by: YaRN's `0.1·ln(factor) + 1`, else 1.
fn sharpness(config: &BackboneConfig) -> f64 {
    match config.rope_scaling {
        RopeScaling::Yarn { factor, .. } => 0.1 * f64::from(factor).ln() + 1.0,
        _ => 1.0,
    }
}

/// Turns every head of every row by its position.
struct Rope {
    table: RopeTable,
    positions: Arc<[u32]>,
    /// 1, or −1 to turn back.
    sign: f32,
}

/// Turns each head of row `i` of `x[n, heads·width]` by `positions[i]`.
///
/// # Errors
/// A position is beyond the table, or shapes, type or device do not fit.
pub fn rope(x: &Tensor, table: &RopeTable, positions: &Arc<[u32]>) -> Result<Tensor> {
    x.apply_op1(Rope { table: table.clone(), positions: positions.clone(), sign: 1.0 })
}

impl Rope {
    /// Rows and columns of an input that fits table and positions.
    fn sides(&self, x: &Layout) -> Result<(usize, usize)> {
        let ((n, width), half) = (packed(x)?, self.table.half);
        if self.positions.len() != n || !width.is_multiple_of(2 * half) {
            bail!("{} positions of heads of {} meet {n} rows of {width}", self.positions.len(), 2 * half)
        }
        if self.positions.iter().any(|p| *p as usize >= self.table.positions()) {
            bail!("a position is beyond the context of {} tokens", self.table.positions())
        }
        Ok((n, width))
    }

    fn turn(&self, x: &[f32], n: usize, width: usize) -> Vec<f32> {
        let half = self.table.half;
        let mut y = vec![0f32; n * width];
        let block = ROWS_PER_TASK * width;
        let rows = self.positions.par_chunks(ROWS_PER_TASK);
        y.par_chunks_mut(block).zip(x.par_chunks(block)).zip(rows).for_each(|((y, x), positions)| {
            for ((y, x), position) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(positions) {
                let turns = &self.table.turns[*position as usize * half..][..half];
                for (y, x) in y.chunks_exact_mut(2 * half).zip(x.chunks_exact(2 * half)) {
                    turn_head(y, x, turns, self.sign);
                }
            }
        });
        y
    }
}

/// Turns one head.
fn turn_head(y: &mut [f32], x: &[f32], turns: &[(f32, f32)], sign: f32) {
    let half = turns.len();
    let ((y1, y2), (x1, x2)) = (y.split_at_mut(half), x.split_at(half));
    for ((((y1, y2), x1), x2), (cos, sin)) in y1.iter_mut().zip(y2).zip(x1).zip(x2).zip(turns) {
        let sin = sin * sign;
        *y1 = x1 * cos - x2 * sin;
        *y2 = x2 * cos + x1 * sin;
    }
}

impl CustomOp1 for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, width) = self.sides(layout)?;
        output(self.turn(slice(storage, layout)?, n, width), (n, width))
    }

    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let sides = self.sides(layout)?;
        let table = self.table.on(&Device::Cuda(storage.device().clone()))?;
        Ok((device::rope((storage, layout), table, &self.positions, self.sign)?, sides.into()))
    }

    /// A turn's transpose is the turn back.
    fn bwd(&self, _x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let back = Self { table: self.table.clone(), positions: self.positions.clone(), sign: -self.sign };
        dy.contiguous()?.apply_op1_no_bwd(&back).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{gradients_hold, random};
    use super::*;
    use crate::config::tests::tiny;

    #[test]
    fn gradient_holds() {
        let table = RopeTable::new(&tiny());
        let positions: Arc<[u32]> = vec![0, 1, 2, 0, 63].into();
        gradients_hold(&[random(&[5, 8], 2)], |v| rope(&v[0], &table, &positions));
    }

    #[test]
    fn products_depend_on_the_distance_alone() {
        let table = RopeTable::new(&tiny());
        let (q, k) = (random(&[1, 4], 1), random(&[1, 4], 2));
        let product = |at: u32, from: u32| {
            let q = rope(&q, &table, &vec![at].into()).unwrap();
            let k = rope(&k, &table, &vec![from].into()).unwrap();
            (q * k).unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap()
        };
        assert!((product(9, 4) - product(45, 40)).abs() < 1e-4);
        assert!((product(9, 4) - product(9, 5)).abs() > 1e-3);
    }

    #[test]
    fn a_position_beyond_the_context_is_refused() {
        assert!(rope(&random(&[1, 4], 1), &RopeTable::new(&tiny()), &vec![64].into()).is_err());
    }

    /// Rates of some pairs for a stretching, against numbers computed with other code.
    fn rates_are(config: &BackboneConfig, scaling: RopeScaling, expected: &[(usize, f64)]) {
        let config = BackboneConfig { rope_scaling: scaling, ..config.clone() };
        assert_eq!(config.check(), Ok(()));
        for (pair, expected) in expected {
            let found = rate(&config, *pair);
            assert!((found / expected - 1.0).abs() < 1e-6, "pair {pair}: {found} for {expected}");
        }
    }

    /// `_compute_yarn_parameters` and `_compute_llama3_parameters` of Hugging Face's `modeling_rope_utils.py`, transcribed to Python
    /// and run in double precision; linear is the definition. The shapes are SmolLM2's and Llama 3.1's.
    #[test]
    fn stretched_rates_are_those_of_the_published_formulas() {
        let smol = BackboneConfig { head_dim: 64, rope_theta: 1e5, ..tiny() };
        let plain = |pair: i32| 1e5f64.powf(-f64::from(pair) / 32.0);
        let halves = [0, 7, 31].map(|pair| (pair as usize, plain(pair) / 2.0));
        rates_are(&smol, RopeScaling::Linear { factor: 2.0 }, &halves);
        let yarn = RopeScaling::Yarn { factor: 4.0, original_context: 8192 };
        let expected = [
            (0, 1.0),
            (8, 0.056_234_132_519_034_91),
            (12, 0.011_334_932_173_388_254),
            (16, 0.001_739_252_713_092_608_6),
            (20, 0.000_187_473_552_333_113_96),
            (31, 3.582_531_425_592_406_8e-6),
        ];
        rates_are(&smol, yarn.clone(), &expected);
        let stretched = BackboneConfig { rope_scaling: yarn, ..smol.clone() };
        assert!((sharpness(&stretched) - 1.138_629_436_111_989).abs() < 1e-12);
        assert!((f64::from(RopeTable::new(&stretched).turns(0)[0].0) - sharpness(&stretched)).abs() < 1e-6);
        let llama = BackboneConfig { head_dim: 128, rope_theta: 5e5, ..tiny() };
        let scaling =
            RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 8192 };
        let expected = [
            (0, 1.0),
            (28, 0.003_211_445_994_752_591),
            (29, 0.002_166_570_763_503_359),
            (30, 0.001_371_893_567_761_138_1),
            (32, 0.000_524_846_160_992_954_7),
            (35, 9.556_212_353_964_683e-5),
            (63, 3.068_925_988_914_511e-7),
        ];
        rates_are(&llama, scaling, &expected);
    }
}
