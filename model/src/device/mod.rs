//! Which processor the tensors live on. The only room that knows whether the program was built for a GPU.

use candle_core::{Device, Result};

#[cfg(not(feature = "cuda"))]
mod cuda_disabled;
#[cfg(feature = "cuda")]
mod cuda_enabled;

#[cfg(not(feature = "cuda"))]
use cuda_disabled as gpu;
#[cfg(feature = "cuda")]
use cuda_enabled as gpu;

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
        Device::Cuda(_) => "cuda".to_owned(),
        Device::Metal(_) => "metal".to_owned(),
    }
}
