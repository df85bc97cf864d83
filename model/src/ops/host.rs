//! Tensors as slices and back.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, Device, Layout, Result, Shape, Storage, StorageRef, Tensor, bail};
use std::ops::Deref;

/// Rows that one task of a parallel loop takes: enough work to be worth a hand-over.
pub(super) const ROWS_PER_TASK: usize = 32;

/// The numbers of a contiguous tensor, readable while this lives: in place when it is in the processor's memory, else a
/// copy.
pub(crate) enum Host<'a> {
    /// In place.
    Here(StorageRef<'a>, &'a Layout),
    /// Brought over.
    Copied(Vec<f32>),
}

impl Deref for Host<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match self {
            Self::Here(storage, layout) => match &**storage {
                Storage::Cpu(storage) => slice(storage, layout).unwrap_or_default(),
                _ => &[],
            },
            Self::Copied(numbers) => numbers,
        }
    }
}

/// Opens a tensor for reading.
///
/// # Errors
/// It is not f32 or not contiguous, or a copy from its device fails.
pub(crate) fn host(tensor: &Tensor) -> Result<Host<'_>> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(cpu) => slice(cpu, layout).map(|_| ())?,
        Storage::Cuda(cuda) => return Ok(Host::Copied(slice(&cuda.to_cpu_storage()?, layout)?.to_vec())),
        Storage::Metal(_) => bail!("this operation works in the memory of the processor or of a CUDA card"),
    }
    Ok(Host::Here(storage, layout))
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

/// A gradient as a tensor, on the device where it is wanted.
pub(super) fn tensor(data: Vec<f32>, shape: impl Into<Shape>, device: &Device) -> Result<Tensor> {
    Tensor::from_vec(data, shape, device)
}
