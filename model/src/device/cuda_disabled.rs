//! Builds without a GPU: there is only the processor, and nothing can lie in a card's memory.

use super::Operand;
use crate::ops::Segment;
use candle_core::{CudaDevice, CudaStorage, Device, Error, Result, Tensor};

#[expect(clippy::unnecessary_wraps, reason = "same face as the GPU build")]
pub(super) fn open() -> Result<Device> {
    Ok(Device::Cpu)
}

pub(super) const fn name(_: &CudaDevice) -> &'static str {
    "none"
}

const ABSENT: Result<CudaStorage> = Err(Error::NotCompiledWithCudaSupport);

pub(crate) const fn product(
    _: Operand<'_>,
    _: Operand<'_>,
    _: Option<(Operand<'_>, Operand<'_>)>,
) -> Result<CudaStorage> {
    ABSENT
}

pub(crate) const fn rms_norm(_: Operand<'_>, _: Operand<'_>, _: f32) -> Result<CudaStorage> {
    ABSENT
}

pub(crate) const fn rope(_: Operand<'_>, _: &Tensor, _: &[u32], _: f32) -> Result<CudaStorage> {
    ABSENT
}

pub(crate) const fn swiglu(_: Operand<'_>, _: Operand<'_>) -> Result<CudaStorage> {
    ABSENT
}

pub(crate) const fn spread(_: Operand<'_>, _: Operand<'_>, _: usize, _: usize, _: f32) -> Result<CudaStorage> {
    ABSENT
}

pub(crate) const fn gate(_: Operand<'_>, _: &[u64]) -> Result<CudaStorage> {
    ABSENT
}

pub(crate) const fn attention(_: [Operand<'_>; 3], _: usize, _: usize, _: &[Segment]) -> Result<CudaStorage> {
    ABSENT
}
