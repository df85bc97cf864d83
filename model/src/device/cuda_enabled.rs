//! Builds for NVIDIA GPUs: the first one, or the processor when the machine has none.

use candle_core::{Device, Result};

pub(super) fn open() -> Result<Device> {
    Device::cuda_if_available(0)
}
