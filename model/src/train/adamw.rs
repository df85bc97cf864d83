//! AdamW with decoupled decay (Loshchilov and Hutter 2019) whose state can be saved, and the bound on the gradient.

use rayon::prelude::*;

/// Decay of the first moment.
const BETA_1: f32 = 0.9;
/// Decay of the second moment.
const BETA_2: f32 = 0.999;
/// Keeps the division finite.
const EPSILON: f32 = 1e-8;

/// How fast a parameter moves in one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// Learning rate.
    pub rate: f32,
    /// Decoupled weight decay.
    pub decay: f32,
}

/// Moments of every parameter.
#[derive(Debug, Clone, PartialEq)]
pub struct AdamW {
    pub(super) first: Vec<Vec<f32>>,
    pub(super) second: Vec<Vec<f32>>,
    pub(super) steps: u32,
}

impl AdamW {
    /// No moments yet, for parameters of these lengths.
    #[must_use]
    pub fn new(parameters: &[Vec<f32>]) -> Self {
        let zeros = || parameters.iter().map(|p| vec![0f32; p.len()]).collect();
        Self { first: zeros(), second: zeros(), steps: 0 }
    }

    /// Moves each parameter against its gradient, with a rate for each.
    pub fn step(&mut self, parameters: &mut [Vec<f32>], gradients: &[Vec<f32>], rates: &[Rate]) {
        self.steps += 1;
        let power = i32::try_from(self.steps).unwrap_or(i32::MAX);
        let correction_1 = 1.0 - f64::from(BETA_1).powi(power);
        let root_2 = (1.0 - f64::from(BETA_2).powi(power)).sqrt() as f32;
        let moments = self.first.par_iter_mut().zip(&mut self.second);
        parameters.par_iter_mut().zip(gradients).zip(moments).zip(rates).for_each(|(((p, g), (m, v)), rate)| {
            let keep = 1.0 - rate.rate * rate.decay;
            let size = (f64::from(rate.rate) / correction_1) as f32;
            for (((p, g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
                *m += (g - *m) * (1.0 - BETA_1);
                *v = *v * BETA_2 + g * g * (1.0 - BETA_2);
                *p = *p * keep - size * *m / (v.sqrt() / root_2 + EPSILON);
            }
        });
    }
}

/// Scales all gradients so that their common norm is at most `limit`; returns the norm they had.
pub fn clip(gradients: &mut [Vec<f32>], limit: f32) -> f64 {
    let square = |g: &Vec<f32>| g.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>();
    let norm = gradients.iter().map(square).sum::<f64>().sqrt();
    let factor = (f64::from(limit) / (norm + 1e-6)) as f32;
    if factor < 1.0 {
        gradients.par_iter_mut().for_each(|g| g.iter_mut().for_each(|x| *x *= factor));
    }
    norm
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_step_is_one_rate_long_and_decay_is_apart() {
        let mut p = vec![vec![1.0f32, -2.0], vec![3.0]];
        let mut adam = AdamW::new(&p);
        let rates = [Rate { rate: 0.1, decay: 0.0 }, Rate { rate: 0.1, decay: 0.5 }];
        adam.step(&mut p, &[vec![0.3, -5.0], vec![0.0]], &rates);
        assert!((p[0][0] - 0.9).abs() < 1e-6 && (p[0][1] + 1.9).abs() < 1e-6);
        assert!((p[1][0] - 2.85).abs() < 1e-6, "decay moves what has no gradient");
    }

    #[test]
    fn the_norm_is_common_to_all() {
        let mut g = vec![vec![3.0f32], vec![0.0, 4.0]];
        assert!((clip(&mut g, 1.0) - 5.0).abs() < 1e-9);
        assert!((g[0][0] - 0.6).abs() < 1e-5 && (g[1][1] - 0.8).abs() < 1e-5);
        assert!((clip(&mut g, 2.0) - 1.0).abs() < 1e-5);
        assert!((g[0][0] - 0.6).abs() < 1e-5, "a small one is left alone");
    }
}
