//! Linear maps: frozen ones, trainable ones, and a frozen one with a low-rank correction in the same output.

use super::host::{host, output, packed, slice, tensor};
use super::tensors::far;
use crate::device;
use crate::kernels::{Matrix, Threads, multiply};
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Storage, Tensor, bail,
};

/// `a[n,k] · b[k,m]` as a fresh row-major matrix.
fn product(a: Matrix<'_>, b: Matrix<'_>, rows: usize, cols: usize) -> Vec<f32> {
    let mut dst = vec![0f32; rows * cols];
    multiply(&mut dst, cols, a, b, false, Threads::All);
    dst
}

/// Rows and columns of a weight, which must fit an input of `width` columns.
fn weight_sides(weight: &Tensor, width: usize) -> Result<(usize, usize)> {
    let (out, inner) = weight.dims2()?;
    if inner != width {
        bail!("a weight of {inner} columns meets an input of {width}")
    }
    Ok((out, inner))
}

/// Hands a frozen weight to a forward pass on the card where it lies.
pub(super) fn on_card(
    weight: &Tensor,
    forward: impl FnOnce(device::Operand<'_>) -> Result<CudaStorage>,
) -> Result<CudaStorage> {
    let (storage, layout) = weight.storage_and_layout();
    match &*storage {
        Storage::Cuda(cuda) => forward((cuda, layout)),
        _ => bail!("a frozen weight is not on the card"),
    }
}

/// `x·Wᵀ` where W never learns: backward computes only `dx = dy·W`.
struct FrozenLinear {
    weight: Tensor,
}

/// `x[n,in]·W[out,in]ᵀ` with a frozen W.
///
/// # Errors
/// Shapes, type or device do not fit.
pub fn frozen_linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    x.apply_op1(FrozenLinear { weight: weight.clone() })
}

impl CustomOp1 for FrozenLinear {
    fn name(&self) -> &'static str {
        "frozen_linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, width) = packed(layout)?;
        let (out, inner) = weight_sides(&self.weight, width)?;
        let weight = host(&self.weight)?;
        let x = Matrix::new(slice(storage, layout)?, n, inner);
        output(product(x, Matrix::new(&weight, out, inner).transposed(), n, out), (n, out))
    }

    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (n, width) = packed(layout)?;
        let (out, _) = weight_sides(&self.weight, width)?;
        Ok((on_card(&self.weight, |weight| device::product((storage, layout), weight, None))?, (n, out).into()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        input_gradient(dy, &self.weight, x).map(Some)
    }
}

/// `dx = dy·W`.
fn input_gradient(dy: &Tensor, weight: &Tensor, x: &Tensor) -> Result<Tensor> {
    let ((n, width), (out, _)) = (x.dims2()?, weight.dims2()?);
    let dy = dy.contiguous()?;
    if far(x) {
        return dy.matmul(&weight.detach());
    }
    let (dy, weight) = (host(&dy)?, host(weight)?);
    tensor(product(Matrix::new(&dy, n, out), Matrix::new(&weight, out, width), n, width), (n, width), x.device())
}

/// `dW = dyᵀ·x`.
fn weight_gradient(dy: &Tensor, weight: &Tensor, x: &Tensor) -> Result<Tensor> {
    let ((n, width), (out, _)) = (x.dims2()?, weight.dims2()?);
    let dy = dy.contiguous()?;
    if far(x) {
        return dy.t()?.matmul(&x.detach());
    }
    let (dy, rows) = (host(&dy)?, host(x)?);
    let product = product(Matrix::new(&dy, n, out).transposed(), Matrix::new(&rows, n, width), out, width);
    tensor(product, (out, width), x.device())
}

/// `x·Aᵀ` with a trainable A.
struct Down;

/// `x[n,in]·A[r,in]ᵀ`, both sides learning.
///
/// # Errors
/// Shapes, type or device do not fit.
pub fn down(x: &Tensor, a: &Tensor) -> Result<Tensor> {
    x.apply_op2(a, Down)
}

/// Rows and rank of what `x` and `A` of these layouts give.
fn down_sides(x: &Layout, a: &Layout) -> Result<(usize, usize)> {
    let ((n, width), (rank, inner)) = (packed(x)?, packed(a)?);
    if inner != width {
        bail!("a weight of {inner} columns meets an input of {width}")
    }
    Ok((n, rank))
}

impl CustomOp2 for Down {
    fn name(&self) -> &'static str {
        "down"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let ((n, rank), width) = (down_sides(l1, l2)?, l1.dims()[1]);
        let (x, a) = (Matrix::new(slice(s1, l1)?, n, width), Matrix::new(slice(s2, l2)?, rank, width));
        output(product(x, a.transposed(), n, rank), (n, rank))
    }

    fn cuda_fwd(&self, s1: &CudaStorage, l1: &Layout, s2: &CudaStorage, l2: &Layout) -> Result<(CudaStorage, Shape)> {
        let (n, rank) = down_sides(l1, l2)?;
        Ok((device::product((s1, l1), (s2, l2), None)?, (n, rank).into()))
    }

    fn bwd(&self, x: &Tensor, a: &Tensor, _u: &Tensor, du: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(input_gradient(du, a, x)?), Some(weight_gradient(du, a, x)?)))
    }
}

/// `x·Wᵀ + h·Bᵀ` with a frozen W.
struct AdaptedLinear {
    weight: Tensor,
}

/// `x[n,in]·W[out,in]ᵀ + h[n,r]·B[out,r]ᵀ`: W is frozen; x, h and B learn.
///
/// # Errors
/// Shapes, type or device do not fit.
pub fn adapted_linear(x: &Tensor, weight: &Tensor, h: &Tensor, b: &Tensor) -> Result<Tensor> {
    x.apply_op3(h, b, AdaptedLinear { weight: weight.clone() })
}

impl AdaptedLinear {
    /// Rows and columns of x, and of B.
    fn sides(&self, x: &Layout, h: &Layout, b: &Layout) -> Result<((usize, usize), (usize, usize))> {
        let ((n, width), (rows, rank)) = (packed(x)?, packed(h)?);
        let (out, _) = weight_sides(&self.weight, width)?;
        if rows != n || packed(b)? != (out, rank) {
            bail!("the low-rank pair does not fit its linear")
        }
        Ok(((n, width), (out, rank)))
    }
}

impl CustomOp3 for AdaptedLinear {
    fn name(&self) -> &'static str {
        "adapted_linear"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let ((n, inner), (out, rank)) = self.sides(l1, l2, l3)?;
        let weight = host(&self.weight)?;
        let x = Matrix::new(slice(s1, l1)?, n, inner);
        let mut y = product(x, Matrix::new(&weight, out, inner).transposed(), n, out);
        let (h, b) = (Matrix::new(slice(s2, l2)?, n, rank), Matrix::new(slice(s3, l3)?, out, rank));
        multiply(&mut y, out, h, b.transposed(), true, Threads::All);
        output(y, (n, out))
    }

    fn cuda_fwd(
        &self,
        s1: &CudaStorage,
        l1: &Layout,
        s2: &CudaStorage,
        l2: &Layout,
        s3: &CudaStorage,
        l3: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let ((n, _), (out, _)) = self.sides(l1, l2, l3)?;
        let correction = Some(((s2, l2), (s3, l3)));
        let y = on_card(&self.weight, |weight| device::product((s1, l1), weight, correction))?;
        Ok((y, (n, out).into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        h: &Tensor,
        b: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let dy = dy.contiguous()?;
        Ok((
            Some(input_gradient(&dy, &self.weight, x)?),
            Some(input_gradient(&dy, b, h)?),
            Some(weight_gradient(&dy, b, h)?),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{gradients_hold, random};
    use super::*;

    #[test]
    fn gradients_of_linear_maps_hold() {
        let weight = random(&[5, 3], 1);
        gradients_hold(&[random(&[4, 3], 2)], |v| frozen_linear(&v[0], &weight));
        gradients_hold(&[random(&[4, 3], 2), random(&[2, 3], 3)], |v| down(&v[0], &v[1]));
        gradients_hold(&[random(&[4, 3], 2), random(&[4, 2], 3), random(&[5, 2], 4)], |v| {
            adapted_linear(&v[0], &weight, &v[1], &v[2])
        });
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        assert!(frozen_linear(&random(&[4, 3], 1), &random(&[5, 4], 2)).is_err());
        assert!(down(&random(&[4, 3], 1), &random(&[5, 4], 2)).is_err());
        assert!(
            adapted_linear(&random(&[4, 3], 1), &random(&[5, 3], 2), &random(&[4, 2], 3), &random(&[5, 3], 4)).is_err()
        );
    }
}
