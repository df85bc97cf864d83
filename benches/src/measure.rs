//! What every claim needs: a flat set of figures, the best of a few runs, the memory of this process. It knows no claim.

use std::time::Instant;

/// Figures by name, in the order in which they were measured.
pub(crate) type Figures = serde_json::Map<String, serde_json::Value>;

/// The shortest of `times` runs, in seconds.
pub(crate) fn best_of_s<E>(times: u32, mut run: impl FnMut() -> Result<(), E>) -> Result<f64, E> {
    let mut best = f64::INFINITY;
    for _ in 0..times {
        let began = Instant::now();
        run()?;
        best = best.min(began.elapsed().as_secs_f64());
    }
    Ok(best)
}

/// A figure with three digits after the point.
pub(crate) fn rounded(value: f64) -> serde_json::Value {
    ((value * 1000.0).round() / 1000.0).into()
}

/// Most memory that this process ever had resident, in MiB; 0 where the system does not tell.
pub(crate) fn peak_rss_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) / 1024
}
