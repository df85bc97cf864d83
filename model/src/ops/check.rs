//! Compares gradients with central differences; for tests.

use crate::counter::{Counter, Site};
use candle_core::{Device, Result, Tensor, Var};
use std::sync::OnceLock;

/// Where tests compute: the first GPU when the program was built for one and the machine has one.
pub(crate) fn device() -> &'static Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    DEVICE.get_or_init(|| crate::device::open().expect("a device that opens"))
}

/// Standard normal numbers.
pub(crate) fn random(shape: &[usize], seed: u64) -> Tensor {
    let count: usize = shape.iter().product();
    let site = Site::new("check", count as u64);
    let data: Vec<f32> = (0..count as u64).map(|i| Counter::new(seed).normal(site, i) as f32).collect();
    Tensor::from_vec(data, shape, device()).expect("a shape of its own size")
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    let flat = tensor.flatten_all().expect("flattens").to_vec1::<f32>().expect("f32");
    flat.into_iter().map(f64::from).collect()
}

/// `sum(y * c)` for fixed random `c`, summed in f64.
fn weighted(y: &Tensor, weights: &[f64]) -> f64 {
    numbers(y).iter().zip(weights).map(|(y, c)| y * c).sum()
}

/// Asserts that the gradient of `sum(f(inputs) * c)` with respect to every element of every input is the central
/// difference, within 0.2 % of the largest one.
pub(crate) fn gradients_hold(inputs: &[Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>) {
    const STEP: f64 = 5e-3;
    let vars: Vec<Var> = inputs.iter().map(|t| Var::from_tensor(t).expect("variable")).collect();
    let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let y = f(&tensors).expect("forward");
    let c = random(y.dims(), 77);
    let grads = y.mul(&c).expect("same shape").backward().expect("backward");
    let c = numbers(&c);
    for (which, input) in inputs.iter().enumerate() {
        let found = numbers(grads.get(&tensors[which]).unwrap_or_else(|| panic!("input {which} has no gradient")));
        let base: Vec<f32> = input.flatten_all().and_then(|t| t.to_vec1()).expect("f32");
        let expected: Vec<f64> = (0..base.len())
            .map(|i| {
                let at = |step: f64| {
                    let mut moved = base.clone();
                    moved[i] = (f64::from(base[i]) + step) as f32;
                    let mut all: Vec<Tensor> = inputs.to_vec();
                    let exact = f64::from(moved[i]);
                    all[which] = Tensor::from_vec(moved, input.dims(), device()).expect("same size");
                    (weighted(&f(&all).expect("forward"), &c), exact)
                };
                let ((high, up), (low, down)) = (at(STEP), at(-STEP));
                (high - low) / (up - down)
            })
            .collect();
        let scale = expected.iter().fold(0f64, |top, x| top.max(x.abs()));
        assert!(scale > 1e-3, "input {which} has no influence");
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert!((found - expected).abs() <= 2e-3 * scale, "input {which}[{i}]: {found} is not {expected}");
        }
    }
}
