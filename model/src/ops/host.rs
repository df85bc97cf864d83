//! Tensors as slices and back.

use candle_core::{CpuStorage, Device, Layout, Result, Shape, Storage, StorageRef, Tensor, bail};
use std::ops::Deref;

/// Rows that one task of a parallel loop takes: enough work to be worth a hand-over.
pub(super) const ROWS_PER_TASK: usize = 32;

/// The numbers of a contiguous tensor in the processor's memory, readable while this lives.
pub(crate) struct Host<'a> {
    storage: StorageRef<'a>,
    layout: &'a Layout,
}

impl Deref for Host<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(storage) => slice(storage, self.layout).unwrap_or_default(),
            _ => &[],
        }
    }
}

/// Opens a tensor for reading.
///
/// # Errors
/// It is not f32, not contiguous or on another device.
pub(crate) fn host(tensor: &Tensor) -> Result<Host<'_>> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(cpu) => slice(cpu, layout).map(|_| ())?,
        _ => bail!("this operation works in the processor's memory only"),
    }
    Ok(Host { storage, layout })
}

/// The numbers of an operand of a custom operation.
pub(super) fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(data), Some((start, end))) => Ok(&data[start..end]),
        (CpuStorage::F32(_), None) => bail!("this operation needs a contiguous tensor"),
        _ => bail!("this operation works on f32"),
    }
}

/// Rows and columns of a packed operand.
pub(super) fn packed(layout: &Layout) -> Result<(usize, usize)> {
    layout.shape().dims2()
}

/// What a custom operation returns.
pub(super) fn output(data: Vec<f32>, shape: impl Into<Shape>) -> Result<(CpuStorage, Shape)> {
    Ok((CpuStorage::F32(data), shape.into()))
}

/// A gradient as a tensor.
pub(super) fn tensor(data: Vec<f32>, shape: impl Into<Shape>) -> Result<Tensor> {
    Tensor::from_vec(data, shape, &Device::Cpu)
}
