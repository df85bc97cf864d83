//! Which processor the tensors live on, and the forward passes of our operations on a card. The only room that knows
//! whether the program was built for a GPU; it refuses to know models.

use candle_core::{CudaStorage, Device, Layout, Result};

#[cfg(not(feature = "cuda"))]
mod cuda_disabled;
#[cfg(feature = "cuda")]
mod cuda_enabled;

#[cfg(not(feature = "cuda"))]
use cuda_disabled as gpu;
#[cfg(feature = "cuda")]
use cuda_enabled as gpu;

/// Forward passes on a card, each as its operation in `ops` defines it. The caller has checked the shapes.
pub(crate) use gpu::{attention, gate, product, rms_norm, rope, spread, swiglu};

/// A contiguous f32 operand in a card's memory.
pub(crate) type Operand<'a> = (&'a CudaStorage, &'a Layout);

/// Widest head that attention on a card takes.
#[cfg(feature = "cuda")]
const MAX_HEAD: usize = 256;

/// The first GPU when the program was built for one and the machine has one, else the processor.
///
/// # Errors
/// A GPU is there and cannot be opened.
pub fn open() -> Result<Device> {
    gpu::open()
}

/// The device in words for the operator.
#[must_use]
pub fn describe(device: &Device) -> String {
    match device {
        Device::Cpu => format!("cpu, {} threads", candle_core::utils::get_num_threads()),
        Device::Cuda(cuda) => format!("cuda, {}", gpu::name(cuda)),
        Device::Metal(_) => "metal".to_owned(),
    }
}
