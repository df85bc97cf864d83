//! The claims of the store: what sealing, auditing and proving add to a plain database, in one run on one disk with the same
//! durability; how soon it opens after a kill; how fast its trail is verified. Bodies of 1,000 and 4,000 bytes stand for 1k
//! and 4k.

mod opening;
mod pace;
mod plain;
mod sealed;
#[cfg(feature = "sqlcipher")]
mod sqlcipher;

use crate::measure::{Figures, rounded};
use empathd_store::Entropy;
use std::path::Path;

/// Records to a transaction where the claim is not about one.
const BATCH: usize = 500;

/// Options of the claim.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Durable writes of each size
    #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(u64).range(20..=1_000_000))]
    writes: u64,
    /// Reads of each size and kind
    #[arg(long, default_value_t = 4000, value_parser = clap::value_parser!(u64).range(100..=1_000_000))]
    reads: u64,
    /// MiB of the stores that are larger than the memory of the database
    #[arg(long, default_value_t = 160, value_parser = clap::value_parser!(u64).range(48..=65_536))]
    large_mib: u64,
    /// MiB of the store that is opened after a kill; 0 leaves the figure out
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u64).range(0..=65_536))]
    killed_mib: u64,
    /// Entries of the audit trail that is verified
    #[arg(long, default_value_t = 200_000, value_parser = clap::value_parser!(u64).range(1000..=10_000_000))]
    entries: u64,
    /// Folder for the stores; on the disk that is measured
    #[arg(long, value_name = "FOLDER")]
    scratch: Option<std::path::PathBuf>,
}

/// Randomness of the operating system.
pub(super) struct System;

impl Entropy for System {
    fn fill(&self, bytes: &mut [u8]) {
        getrandom::fill(bytes).expect("the operating system gives randomness");
    }
}

/// A database under measurement: bodies by number, numbered from 0 in the order of their writing.
pub(super) trait Subject {
    /// Writes bodies in one durable transaction.
    fn write(&mut self, bodies: &[Vec<u8>]) -> anyhow::Result<()>;
    /// Reads the body of a number.
    fn read(&mut self, number: usize) -> anyhow::Result<Vec<u8>>;
    /// The file that holds them.
    fn file(&self) -> &Path;
}

/// A body of this length that no other equals.
pub(super) fn body(bytes: usize) -> Vec<u8> {
    let mut body = vec![0; bytes];
    System.fill(&mut body);
    body
}

pub(crate) fn measure(options: &Options) -> anyhow::Result<Figures> {
    let dir = match &options.scratch {
        Some(folder) => tempfile::tempdir_in(folder)?,
        None => tempfile::tempdir_in(std::env::current_dir()?)?,
    };
    let mut figures = Figures::new();
    for (name, bytes) in [("1k", 1000), ("4k", 4000)] {
        let path = dir.path().join(name);
        std::fs::create_dir(&path)?;
        measure_size(options, &path, name, bytes, &mut figures)?;
        std::fs::remove_dir_all(&path)?;
    }
    let folder = dir.path().join("trail");
    sealed::audit(&folder, options.writes, options.entries, &mut figures)?;
    std::fs::remove_dir_all(&folder)?;
    if options.killed_mib > 0 {
        opening::after_kill(&dir.path().join("killed"), options.killed_mib, &mut figures)?;
    }
    Ok(figures)
}

/// The figures of one size of bodies: cached reads, durable writes, reads from the disk.
fn measure_size(options: &Options, dir: &Path, name: &str, bytes: usize, figures: &mut Figures) -> anyhow::Result<()> {
    let mut put = |key: &str, value: f64| figures.insert(format!("{key}_{name}"), rounded(value));
    let (writes, reads) = (options.writes as usize, options.reads as usize);
    let mut sealed = sealed::Sealed::create(&dir.join("sealed"))?;
    let mut plain = plain::Plain::create(&dir.join("plain"))?;
    #[cfg(feature = "sqlcipher")]
    let mut peer = sqlcipher::SqlCipher::create(&dir.join("peer"))?;

    let mut subjects: Vec<&mut dyn Subject> = vec![&mut sealed, &mut plain];
    #[cfg(feature = "sqlcipher")]
    subjects.push(&mut peer);
    let written = pace::writes(&mut subjects, writes, bytes)?;
    let read = pace::reads(&mut subjects, writes, reads)?;
    put("write_us", written[0].p50_us);
    put("plain_write_us", written[1].p50_us);
    put("write_overhead_pct", pace::percent_over(written[0].typical_us, written[1].typical_us));
    put("read_us", read[0].p50_us);
    put("plain_read_us", read[1].p50_us);
    put("read_added_us", read[0].p50_us - read[1].p50_us);
    if let (Some(written), Some(read)) = (written.get(2), read.get(2)) {
        put("sqlcipher_write_us", written.p50_us);
        put("sqlcipher_read_us", read.p50_us);
    }
    drop(subjects);

    let mut large: Vec<&mut dyn Subject> = vec![&mut sealed, &mut plain];
    let records = (options.large_mib as usize * 1024 * 1024 / bytes).max(writes);
    pace::fill(&mut large, records, bytes)?;
    let read = pace::reads_from_disk(&mut large, records, reads)?;
    put("disk_read_us", read[0].typical_us);
    put("plain_disk_read_us", read[1].typical_us);
    put("read_overhead_pct", pace::percent_over(read[0].typical_us, read[1].typical_us));
    Ok(())
}
