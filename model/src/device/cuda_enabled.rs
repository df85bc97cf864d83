//! Builds for NVIDIA GPUs: the first card, and the launches of `kernels.cu` on it. Refuses to know why a kernel is
//! launched; what it computes is said beside the kernel.
//!
//! Everything goes through one stream, so what is issued later sees what was issued before.

use super::{MAX_HEAD, Operand};
use crate::ops::Segment;
use candle_core::cuda::cudarc::driver::sys::CUresult;
use candle_core::cuda::cudarc::driver::{CudaContext, CudaSlice, CudaView, LaunchConfig, PushKernelArg};
use candle_core::cuda::{CudaDevice, WrapErr};
use candle_core::{CudaStorage, Device, Error, Result, Storage, Tensor, bail};

/// The kernels, made by `model/build.rs`.
const KERNELS: &str = include_str!(concat!(env!("OUT_DIR"), "/kernels.ptx"));
/// Under which the device keeps them.
const MODULE: &str = "empathd";
const WARP: u32 = 32;
/// Warps of a block that works on one row together; as in `kernels.cu`.
const TEAM: u32 = 8;
/// Threads of a block of an elementwise kernel.
const BLOCK: u32 = 256;

pub(super) fn open() -> Result<Device> {
    match CudaContext::device_count() {
        Ok(0) => return Ok(Device::Cpu),
        Err(error) if error.0 == CUresult::CUDA_ERROR_NO_DEVICE => return Ok(Device::Cpu),
        count => count.w()?,
    };
    let device = CudaDevice::new_with_stream(0)?;
    // SAFETY: all tensors of this program live on this device, whose only stream orders their uses.
    unsafe { device.disable_event_tracking() };
    Ok(Device::Cuda(device))
}

pub(super) fn name(device: &CudaDevice) -> String {
    device.cuda_stream().context().name().unwrap_or_else(|_| "unknown card".to_owned())
}

/// The numbers of an operand.
fn view<'a>((storage, layout): Operand<'a>) -> Result<CudaView<'a, f32>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(storage.as_cuda_slice::<f32>()?.slice(start..end)),
        None => bail!("this operation needs a contiguous tensor"),
    }
}

/// A number as kernels take it.
fn int(number: usize) -> Result<i32> {
    i32::try_from(number).map_err(Error::wrap)
}

/// A number of blocks.
fn blocks(count: usize, by: usize) -> Result<u32> {
    u32::try_from(count.div_ceil(by)).map_err(Error::wrap)
}

/// A grid of blocks of whole teams.
const fn teams(x: u32, y: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (x, y, 1), block_dim: (TEAM * WARP, 1, 1), shared_mem_bytes: 0 }
}

/// A thread for each of `count` numbers.
fn each(count: usize) -> Result<LaunchConfig> {
    let grid_dim = (blocks(count, BLOCK as usize)?, 1, 1);
    Ok(LaunchConfig { grid_dim, block_dim: (BLOCK, 1, 1), shared_mem_bytes: 0 })
}

/// Room for `count` numbers that a kernel is about to write, every one.
fn room(device: &CudaDevice, count: usize) -> Result<CudaSlice<f32>> {
    // SAFETY: each caller hands it to a kernel that writes every number before anything reads one.
    unsafe { device.alloc::<f32>(count) }
}

fn stored(numbers: CudaSlice<f32>, device: &CudaDevice) -> CudaStorage {
    CudaStorage::wrap_cuda_slice(numbers, device.clone())
}

/// `x·wᵀ`, plus `h·bᵀ` when there is a correction.
pub(crate) fn product(
    x: Operand<'_>,
    w: Operand<'_>,
    correction: Option<(Operand<'_>, Operand<'_>)>,
) -> Result<CudaStorage> {
    let device = &x.0.device;
    let (rows, out) = (x.1.dims()[0], w.1.dims()[0]);
    let mut y = room(device, rows * out)?;
    add_product(device, x, w, &mut y, false)?;
    if let Some((h, b)) = correction {
        add_product(device, h, b, &mut y, true)?;
    }
    Ok(stored(y, device))
}

fn add_product(
    device: &CudaDevice,
    x: Operand<'_>,
    w: Operand<'_>,
    y: &mut CudaSlice<f32>,
    accumulate: bool,
) -> Result<()> {
    let (rows, inner) = x.1.shape().dims2()?;
    let out = w.1.dims()[0];
    if rows * out == 0 {
        return Ok(());
    }
    let (name, rows_each, outs_each) = if rows == 1 { ("product_1x1", 1, 1) } else { ("product_8x4", 8, 4) };
    let grid = teams(blocks(out, outs_each * TEAM as usize)?, blocks(rows, rows_each)?);
    let (x, w) = (view(x)?, view(w)?);
    let (rows, inner, out, add) = (int(rows)?, int(inner)?, int(out)?, i32::from(accumulate));
    let function = device.get_or_load_custom_func(name, MODULE, KERNELS)?;
    let mut launch = function.builder();
    launch.arg(&x).arg(&w).arg(y).arg(&rows).arg(&inner).arg(&out).arg(&add);
    // SAFETY: arguments are of the kernel's types; x, w and y have rows·inner, out·inner and rows·out numbers.
    unsafe { launch.launch(grid) }.w()?;
    Ok(())
}

/// `x / sqrt(mean(x²) + eps) · w` by row.
pub(crate) fn rms_norm(x: Operand<'_>, weight: Operand<'_>, eps: f32) -> Result<CudaStorage> {
    let device = &x.0.device;
    let (rows, width) = x.1.shape().dims2()?;
    let mut y = room(device, rows * width)?;
    if rows > 0 {
        let (x, weight, width) = (view(x)?, view(weight)?, int(width)?);
        let function = device.get_or_load_custom_func("rms_norm", MODULE, KERNELS)?;
        let mut launch = function.builder();
        launch.arg(&x).arg(&weight).arg(&mut y).arg(&width).arg(&eps);
        // SAFETY: arguments are of the kernel's types; a block for each row of `width` numbers, as many as weights.
        unsafe { launch.launch(teams(blocks(rows, 1)?, 1)) }.w()?;
    }
    Ok(stored(y, device))
}

/// Turns each head of row `i` by `positions[i]`; `turns[positions, half, 2]` lies on the same card.
pub(crate) fn rope(x: Operand<'_>, turns: &Tensor, positions: &[u32], sign: f32) -> Result<CudaStorage> {
    let device = &x.0.device;
    let (rows, width) = x.1.shape().dims2()?;
    let (storage, layout) = turns.storage_and_layout();
    let Storage::Cuda(table) = &*storage else { bail!("the table of turns is not on the card") };
    let (table, half) = (view((table, layout))?, int(turns.dim(1)?)?);
    let (x, mut y) = (view(x)?, room(device, rows * width)?);
    let function = device.get_or_load_custom_func("rope", MODULE, KERNELS)?;
    let mut start = 0;
    // Rows whose positions count up are turned together.
    for run in positions.chunk_by(|a, b| *b == *a + 1) {
        let (range, pairs) = (start * width..(start + run.len()) * width, run.len() * width / 2);
        let (x, mut y, position, width) =
            (x.slice(range.clone()), y.slice_mut(range), run[0].cast_signed(), int(width)?);
        let mut launch = function.builder();
        launch.arg(&x).arg(&table).arg(&mut y).arg(&pairs).arg(&width).arg(&half).arg(&position).arg(&sign);
        // SAFETY: arguments are of the kernel's types; each pair of columns of the run has a thread, and the caller has
        // checked that every position is in the table.
        unsafe { launch.launch(each(pairs)?) }.w()?;
        start += run.len();
    }
    Ok(stored(y, device))
}

/// `silu(gate)·up`.
pub(crate) fn swiglu(gate: Operand<'_>, up: Operand<'_>) -> Result<CudaStorage> {
    let device = &gate.0.device;
    let count = gate.1.shape().elem_count();
    let mut y = room(device, count)?;
    if count > 0 {
        let (gate, up) = (view(gate)?, view(up)?);
        let function = device.get_or_load_custom_func("swiglu", MODULE, KERNELS)?;
        let mut launch = function.builder();
        launch.arg(&gate).arg(&up).arg(&mut y).arg(&count);
        // SAFETY: arguments are of the kernel's types; gate, up and y have `count` numbers.
        unsafe { launch.launch(each(count)?) }.w()?;
    }
    Ok(stored(y, device))
}

/// `u` times `scale`, the part of each expert also times its gate.
pub(crate) fn spread(
    u: Operand<'_>,
    gates: Operand<'_>,
    shared: usize,
    rank: usize,
    scale: f32,
) -> Result<CudaStorage> {
    let device = &u.0.device;
    let (rows, width) = u.1.shape().dims2()?;
    let count = rows * width;
    let mut h = room(device, count)?;
    if count > 0 {
        let (u, gates, width, shared, rank) = (view(u)?, view(gates)?, int(width)?, int(shared)?, int(rank)?);
        let function = device.get_or_load_custom_func("spread", MODULE, KERNELS)?;
        let mut launch = function.builder();
        launch.arg(&u).arg(&gates).arg(&mut h).arg(&count).arg(&width).arg(&shared).arg(&rank).arg(&scale);
        // SAFETY: arguments are of the kernel's types; `rank` divides what is behind `shared` into as many experts as
        // a row of gates has.
        unsafe { launch.launch(each(count)?) }.w()?;
    }
    Ok(stored(h, device))
}

/// Gates over the experts whose bits are set.
pub(crate) fn gate(logits: Operand<'_>, taken: &[u64]) -> Result<CudaStorage> {
    let device = &logits.0.device;
    let (rows, experts) = logits.1.shape().dims2()?;
    let mut gates = room(device, rows * experts)?;
    if rows > 0 {
        let (logits, taken) = (view(logits)?, device.clone_htod(taken)?);
        let (row_count, experts) = (int(rows)?, int(experts)?);
        let function = device.get_or_load_custom_func("gate", MODULE, KERNELS)?;
        let mut launch = function.builder();
        launch.arg(&logits).arg(&taken).arg(&mut gates).arg(&row_count).arg(&experts);
        // SAFETY: arguments are of the kernel's types; there are bits for each row, and experts are at most 64.
        unsafe { launch.launch(each(rows)?) }.w()?;
    }
    Ok(stored(gates, device))
}

/// Causal attention within each segment; rows of no segment are zero.
pub(crate) fn attention(
    [q, k, v]: [Operand<'_>; 3],
    heads: usize,
    kv_heads: usize,
    segments: &[Segment],
) -> Result<CudaStorage> {
    let device = &q.0.device;
    let width = q.1.dims()[1];
    let head = width / heads;
    if head > MAX_HEAD {
        bail!("a head of {head} columns is wider than {MAX_HEAD}")
    }
    let mut y = device.alloc_zeros::<f32>(q.1.shape().elem_count())?;
    let (q, k, v) = (view(q)?, view(k)?, view(v)?);
    let scale = 1.0 / (head as f32).sqrt();
    let grid_heads = blocks(heads, 1)?;
    let (head, heads, kv_heads) = (int(head)?, int(heads)?, int(kv_heads)?);
    let function = device.get_or_load_custom_func("attention", MODULE, KERNELS)?;
    for segment in segments.iter().filter(|segment| segment.queries > 0) {
        let (query_start, key_start, past) = (int(segment.query_start)?, int(segment.key_start)?, int(segment.past)?);
        let mut launch = function.builder();
        launch.arg(&q).arg(&k).arg(&v).arg(&mut y).arg(&head).arg(&heads).arg(&kv_heads);
        launch.arg(&query_start).arg(&key_start).arg(&past).arg(&scale);
        // SAFETY: arguments are of the kernel's types; the caller has checked that heads divide the rows and that the
        // segment lies within them, and a head fits the kernel's buffers.
        unsafe { launch.launch(teams(blocks(segment.queries, 1)?, grid_heads)) }.w()?;
    }
    Ok(stored(y, device))
}

#[cfg(test)]
mod tests;
