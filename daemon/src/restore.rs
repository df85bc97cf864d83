//! A store out of backups, the newest key file and two recovery shares, as a command on a machine without one. It reads
//! files and says what came back; how rows come back only the store knows.

use crate::clock::Clock;
use crate::problem::{Fault, from_restore};
use crate::vault::by_itself;
use crate::{keys, serve, verify};
use anyhow::{Context, bail};
use empathd_proto::audit::ActionKind;
use empathd_proto::keys::papers_in;
use empathd_proto::problem::Problem;
use empathd_proto::secret::Secret;
use empathd_store::{Entropy, KdfCost, RestoreFrom, Store};
use serde_json::json;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use zeroize::Zeroizing;

/// Largest key file that is read.
const KEY_FILE_BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;
/// Largest file with shares that is read.
const SHARES_BYTES_MAX: u64 = 16 * 1024;

/// Where everything lies.
pub struct From<'a> {
    /// State folder of the new store.
    pub state: &'a Path,
    /// A whole backup, then those that go on from it.
    pub backups: &'a [PathBuf],
    /// The newest key file.
    pub key_file: &'a Path,
    /// Files with recovery shares.
    pub shares_files: &'a [PathBuf],
    /// File with the new passphrase.
    pub passphrase_file: &'a Path,
}

/// Restores, checks all of what came back, and says what it was.
///
/// # Errors
/// What is missing or does not fit, with what to do. There is no store in the folder then.
pub fn run(
    from: &From<'_>,
    cost: KdfCost,
    as_json: bool,
    clock: &dyn Clock,
    entropy: Arc<dyn Entropy>,
) -> anyhow::Result<String> {
    let passphrase = verify::passphrase(from.passphrase_file)?;
    crate::acts::fit_passphrase(&passphrase).map_err(told)?;
    let mut texts = Vec::new();
    for file in from.shares_files {
        let text = Zeroizing::new(read(file, SHARES_BYTES_MAX, "the file with recovery shares")?);
        let text = std::str::from_utf8(&text).with_context(|| format!("{} is not text", file.display()))?;
        texts.extend(papers_in(&Secret::new(text.to_owned())));
    }
    let shares = keys::shares(&texts).map_err(told)?;
    let key_file = read(from.key_file, KEY_FILE_BYTES_MAX, "the key file")?;
    let _lock = serve::claim(from.state)?;
    let (began, draft) = (clock.uptime(), by_itself(ActionKind::Restore, clock.now_ms()));
    let mut files = Vec::new();
    for path in from.backups {
        let file = File::open(path).with_context(|| format!("the backup {} cannot be read", path.display()))?;
        files.push(BufReader::new(file));
    }
    let mut backups: Vec<&mut dyn Read> = files.iter_mut().map(|file| file as &mut dyn Read).collect();
    let source = RestoreFrom { backups: &mut backups, key_file: &key_file, shares: &shares };
    let restored = Store::restore(from.state, source, &passphrase, cost, entropy, draft);
    let (store, restored) = restored.map_err(|error| told(from_restore(error)))?;
    let found = store.verify_all(&mut |_, _| {})?;
    let (id, records) = (store.id(), store.read(|reader| Ok::<_, Fault>(reader.record_count()?)));
    store.close(by_itself(ActionKind::Stop, clock.now_ms()))?;
    if !found.is_clean() {
        bail!("what came back does not hold: {:?}; take another copy of the backup", found.findings);
    }
    let records = records.map_err(|fault| told(fault.0))?;
    let took_ms = clock.uptime().saturating_sub(began).as_millis();
    if as_json {
        let document = json!({
            "store": id, "records": records, "rows": restored.rows, "erased": restored.erased,
            "backup_at_ms": restored.at_ms, "took_ms": took_ms,
        });
        return Ok(document.to_string());
    }
    let (state, rows, erased) = (from.state.display(), restored.rows, restored.erased);
    Ok(format!(
        "Restored {id} into {state}: {records} records, {rows} rows, all checked, in {took_ms} ms.\n\
         {erased} records in the backup belong to clients who were erased since, and stay erased.\n\
         The recovery shares stay good. Start the appliance, unseal it with the new passphrase, and make a new\n\
         backup and a new key file: empathctl backup create DIR; empathctl keys escrow FILE"
    ))
}

fn read(path: &Path, bytes_max: u64, what: &str) -> anyhow::Result<Vec<u8>> {
    let file = File::open(path).with_context(|| format!("{what} {} cannot be read", path.display()))?;
    let mut bytes = Vec::new();
    file.take(bytes_max + 1).read_to_end(&mut bytes).with_context(|| format!("{what} cannot be read"))?;
    if bytes.len() as u64 > bytes_max {
        bail!("{what} {} is too large to be one", path.display());
    }
    Ok(bytes)
}

fn told(problem: Problem) -> anyhow::Error {
    anyhow::anyhow!("{} {}", problem.detail, problem.next)
}
