//! AdamW with decoupled decay (Loshchilov and Hutter 2019) whose state can be saved, with the bound on the gradient in the
//! same pass over memory. Refuses to know what the numbers are of.
//!
//! What has no gradient yet does not age: bias correction counts from a part's first gradient. Experts that wait for their
//! stage would otherwise take steps several times too long when they begin, because a late first moment is whole after ten
//! steps and a late second one after a thousand.

use rayon::prelude::*;

/// Decay of the first moment.
const BETA_1: f32 = 0.9;
/// Decay of the second moment.
const BETA_2: f32 = 0.999;
/// Keeps the division finite.
const EPSILON: f32 = 1e-8;
/// Sums that the squares of one tensor are spread over, so that they can be added side by side.
const LANES: usize = 8;

/// How fast a parameter moves in one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// Learning rate.
    pub rate: f32,
    /// Decoupled weight decay.
    pub decay: f32,
}

/// By which clock each number of a tensor ages; a clock is a position in [`AdamW::steps`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Clocks {
    /// All by one.
    One(usize),
    /// One for each row.
    Rows(Vec<usize>),
    /// One for each column.
    Columns(Vec<usize>),
}

/// Moments of every parameter.
#[derive(Debug, Clone, PartialEq)]
pub struct AdamW {
    pub(super) first: Vec<Vec<f32>>,
    pub(super) second: Vec<Vec<f32>>,
    /// Steps of each clock since its first gradient.
    pub(super) steps: Vec<u32>,
    pub(super) clocks: Vec<Clocks>,
}

/// What one step does to the numbers of one clock.
#[derive(Clone, Copy)]
struct Move {
    /// What decay leaves of a number.
    keep: f32,
    /// Rate over the first moment's correction; 0 before the first gradient.
    size: f32,
    /// One over the root of the second moment's correction.
    root: f32,
}

impl AdamW {
    /// No moments yet, for parameters of these lengths that age together.
    #[must_use]
    pub fn new(parameters: &[Vec<f32>]) -> Self {
        Self::aging(parameters, vec![Clocks::One(0); parameters.len()], 1)
    }

    /// No moments yet, with the clocks of each parameter, `count` of them in all.
    #[must_use]
    pub fn aging(parameters: &[Vec<f32>], clocks: Vec<Clocks>, count: usize) -> Self {
        let zeros = || parameters.iter().map(|p| vec![0f32; p.len()]).collect();
        Self { first: zeros(), second: zeros(), steps: vec![0; count], clocks }
    }

    /// Moves each parameter against its gradient, which is scaled so that the common norm is at most `limit`, and empties
    /// the gradients. A parameter without a rate stays and counts nowhere. The norm before scaling; when that is not a
    /// number or not finite, nothing has moved.
    pub fn step(
        &mut self,
        parameters: &mut [Vec<f32>],
        gradients: &mut [Vec<f32>],
        rates: &[Option<Rate>],
        limit: f32,
    ) -> f64 {
        let norm = norm(gradients, rates);
        if !norm.is_finite() {
            return norm;
        }
        let factor = ((f64::from(limit) / (norm + 1e-6)) as f32).min(1.0);
        self.tick(gradients, rates);
        let (steps, moments) = (&self.steps, self.first.par_iter_mut().zip(&mut self.second));
        let all = parameters.par_iter_mut().zip(gradients).zip(moments).zip(&self.clocks).zip(rates);
        all.for_each(|((((p, g), (m, v)), clocks), rate)| {
            if let Some(rate) = rate {
                advance(p, g, m, v, clocks, &|clock| Move::at(steps[clock], *rate), factor);
            }
            g.fill(0.0);
        });
        norm
    }

    /// Lets every clock that runs, or whose first gradient has come, go on by one.
    fn tick(&mut self, gradients: &[Vec<f32>], rates: &[Option<Rate>]) {
        let mut begun: Vec<bool> = self.steps.iter().map(|steps| *steps > 0).collect();
        for ((gradient, clocks), _) in gradients.iter().zip(&self.clocks).zip(rates).filter(|(_, rate)| rate.is_some())
        {
            let (of, width) = match clocks {
                Clocks::One(clock) => (std::slice::from_ref(clock), gradient.len()),
                Clocks::Rows(of) => (of.as_slice(), gradient.len() / of.len().max(1)),
                Clocks::Columns(of) => (of.as_slice(), 1),
            };
            if of.iter().all(|clock| begun[*clock]) {
                continue;
            }
            for (run, clock) in gradient.chunks(width.max(1)).zip(of.iter().cycle()) {
                begun[*clock] |= run.iter().any(|g| *g != 0.0);
            }
        }
        self.steps.iter_mut().zip(begun).for_each(|(steps, begun)| *steps += u32::from(begun));
    }
}

impl Move {
    fn at(steps: u32, rate: Rate) -> Self {
        if steps == 0 {
            return Self { keep: 1.0, size: 0.0, root: 1.0 };
        }
        let power = i32::try_from(steps).unwrap_or(i32::MAX);
        let correction_1 = 1.0 - f64::from(BETA_1).powi(power);
        let root_2 = (1.0 - f64::from(BETA_2).powi(power)).sqrt();
        let size = (f64::from(rate.rate) / correction_1) as f32;
        Self { keep: 1.0 - rate.rate * rate.decay, size, root: (1.0 / root_2) as f32 }
    }

    /// One number, its gradient and its moments.
    #[inline(always)]
    fn apply(self, p: &mut f32, g: f32, m: &mut f32, v: &mut f32) {
        *m += (g - *m) * (1.0 - BETA_1);
        *v = *v * BETA_2 + g * g * (1.0 - BETA_2);
        *p = *p * self.keep - self.size * *m / (v.sqrt() * self.root + EPSILON);
    }
}

/// Moves one tensor.
fn advance(
    p: &mut [f32],
    g: &[f32],
    m: &mut [f32],
    v: &mut [f32],
    clocks: &Clocks,
    at: &dyn Fn(usize) -> Move,
    factor: f32,
) {
    let (width, by_column) = match clocks {
        Clocks::One(_) => (p.len(), None),
        Clocks::Rows(of) => (p.len() / of.len().max(1), None),
        Clocks::Columns(of) => (of.len(), Some(of.iter().map(|clock| at(*clock)).collect::<Vec<Move>>())),
    };
    let width = width.max(1);
    let rows = p.chunks_mut(width).zip(g.chunks(width)).zip(m.chunks_mut(width)).zip(v.chunks_mut(width));
    for (index, (((p, g), m), v)) in rows.enumerate() {
        let numbers = p.iter_mut().zip(g).zip(m).zip(v);
        match (&by_column, clocks) {
            (Some(moves), _) => numbers.zip(moves).for_each(|((((p, g), m), v), to)| to.apply(p, g * factor, m, v)),
            (None, Clocks::Rows(of)) => {
                let to = at(of[index]);
                numbers.for_each(|(((p, g), m), v)| to.apply(p, g * factor, m, v));
            }
            (None, Clocks::One(clock)) => {
                let to = at(*clock);
                numbers.for_each(|(((p, g), m), v)| to.apply(p, g * factor, m, v));
            }
            (None, Clocks::Columns(_)) => {}
        }
    }
}

/// The common norm of all gradients that move something, summed in the same order whatever the number of threads.
fn norm(gradients: &[Vec<f32>], rates: &[Option<Rate>]) -> f64 {
    let squares: Vec<f64> = gradients.par_iter().zip(rates).map(|(g, rate)| rate.map_or(0.0, |_| square(g))).collect();
    squares.iter().sum::<f64>().sqrt()
}

fn square(numbers: &[f32]) -> f64 {
    let (whole, rest) = numbers.as_chunks::<LANES>();
    let mut sums = [0f64; LANES];
    for eight in whole {
        sums.iter_mut().zip(eight).for_each(|(sum, x)| *sum += f64::from(*x) * f64::from(*x));
    }
    sums.iter().sum::<f64>() + rest.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FREE: Rate = Rate { rate: 0.1, decay: 0.0 };
    /// A bound that nothing reaches.
    const LOOSE: f32 = 1e9;

    #[test]
    fn the_first_step_is_one_rate_long_and_decay_is_apart() {
        let mut p = vec![vec![1.0f32, -2.0], vec![3.0]];
        let mut adam = AdamW::new(&p);
        let rates = [Some(FREE), Some(Rate { rate: 0.1, decay: 0.5 })];
        adam.step(&mut p, &mut [vec![0.3, -5.0], vec![0.0]], &rates, LOOSE);
        assert!((p[0][0] - 0.9).abs() < 1e-6 && (p[0][1] + 1.9).abs() < 1e-6);
        assert!((p[1][0] - 2.85).abs() < 1e-6, "decay moves what has no gradient");
    }

    #[test]
    fn the_bound_is_on_the_norm_common_to_all_that_moves() {
        let moved = |limit: f32, gradients: [Vec<f32>; 3]| {
            let mut p = vec![vec![0f32], vec![0.0, 0.0], vec![0.0]];
            let (mut adam, mut gradients) = (AdamW::new(&p), gradients);
            let norm = adam.step(&mut p, &mut gradients, &[Some(FREE), Some(FREE), None], limit);
            assert!(gradients.iter().flatten().all(|g| *g == 0.0), "they are empty for the next step");
            (norm, adam.first.concat(), p.concat())
        };
        let (norm, first, p) = moved(1.0, [vec![3.0], vec![0.0, 4.0], vec![99.0]]);
        assert!((norm - 5.0).abs() < 1e-9);
        assert!((first[0] - 0.06).abs() < 1e-6 && (first[2] - 0.08).abs() < 1e-6, "{first:?}");
        assert_eq!((p[3], first[3]), (0.0, 0.0), "what has no rate stays");
        let (_, first, _) = moved(10.0, [vec![3.0], vec![0.0, 4.0], vec![0.0]]);
        assert!((first[0] - 0.3).abs() < 1e-6, "a small one is left alone");
    }

    #[test]
    fn a_gradient_that_is_no_number_moves_nothing() {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut p = vec![vec![1f32, 2.0]];
            let mut adam = AdamW::new(&p);
            let before = (p.clone(), adam.clone());
            assert!(!adam.step(&mut p, &mut [vec![0.5, bad]], &[Some(FREE)], 1.0).is_finite());
            assert_eq!((p, adam), before);
        }
    }

    /// Parts that begin late take the same steps as if they had begun first: rows of one tensor, columns of another.
    #[test]
    fn a_part_ages_from_its_first_gradient() {
        let gradient = |step: usize, late: bool| {
            let of = |part: usize| if late && part == 1 && step < 20 { 0.0 } else { 0.5 + (step % 7) as f32 * 0.1 };
            [vec![of(0), of(0), of(1), of(1)], vec![of(0), of(1), of(0), of(1)]]
        };
        let run = |late: bool, steps: std::ops::Range<usize>| {
            let mut p = vec![vec![0f32; 4]; 2];
            let clocks = vec![Clocks::Rows(vec![0, 1]), Clocks::Columns(vec![0, 1])];
            let mut adam = AdamW::aging(&p, clocks, 2);
            for step in steps {
                adam.step(&mut p, &mut gradient(step, late), &[Some(FREE); 2], LOOSE);
            }
            (p, adam.steps)
        };
        let (late, steps) = run(true, 0..25);
        assert_eq!(steps, [25, 5]);
        let (fresh, _) = run(false, 20..25);
        assert_eq!((late[0][2], late[1][1]), (fresh[0][2], fresh[1][1]));
        let (whole, _) = run(false, 0..25);
        assert_eq!((late[0][0], late[1][0]), (whole[0][0], whole[1][0]));
    }

    #[test]
    fn the_same_bits_whatever_the_number_of_threads() {
        let numbers =
            |shift: usize| (0..40_000).map(|i| ((i * 31 + shift) % 97) as f32 / 97.0 - 0.4).collect::<Vec<_>>();
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut p = vec![numbers(1), numbers(2), numbers(3)];
                let mut adam = AdamW::new(&p);
                let norm = adam.step(&mut p, &mut [numbers(4), numbers(5), numbers(6)], &[Some(FREE); 3], 1.0);
                (norm, p)
            })
        };
        assert_eq!(run(1), run(3));
    }
}
