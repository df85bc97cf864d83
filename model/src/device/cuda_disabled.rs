//! Builds without a GPU: there is only the processor.

use candle_core::{Device, Result};

#[expect(clippy::unnecessary_wraps, reason = "same face as the GPU build")]
pub(super) fn open() -> Result<Device> {
    Ok(Device::Cpu)
}
