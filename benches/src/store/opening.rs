//! How soon a large store opens after a kill. The image of a kill is the folder as it lies while the store is open. The way
//! in is a credential, so that no derivation from a passphrase is counted.

use super::sealed::{create, draft, put};
use super::{BATCH, System, body};
use crate::measure::{Figures, rounded};
use empathd_proto::audit::ActionKind;
use empathd_store::{Store, Unlock};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// Bodies are of these lengths in turn.
const BODY_BYTES: [usize; 2] = [1000, 4000];
/// Openings, of which the middle one counts.
const OPENINGS: usize = 3;

pub(super) fn after_kill(dir: &Path, mib: u64, figures: &mut Figures) -> anyhow::Result<()> {
    let (alive, killed) = (dir.join("alive"), dir.join("killed"));
    let store = create(&alive)?;
    let credential = body(32);
    store.set_credential(Some(&credential), draft(ActionKind::Init))?;
    let mut records = 0;
    while std::fs::metadata(alive.join("store.redb"))?.len() < mib * 1024 * 1024 {
        let bodies: Vec<_> = (0..BATCH).map(|n| body(BODY_BYTES[n % BODY_BYTES.len()])).collect();
        records += put(&store, records, &bodies)?.len();
    }
    let mut times_ms = Vec::new();
    for _ in 0..OPENINGS {
        std::fs::create_dir_all(killed.join("blobs"))?;
        for name in ["keyring", "store.redb"] {
            std::fs::copy(alive.join(name), killed.join(name))?;
        }
        let opened = Store::open(&killed, Arc::new(System))?;
        let began = Instant::now();
        opened.unseal_with(Unlock::Credential(&credential), draft(ActionKind::Unseal))?;
        times_ms.push(began.elapsed().as_secs_f64() * 1e3);
        let found = opened.read(|reader| reader.record_count())?;
        anyhow::ensure!(found == records as u64, "{found} records of {records}");
        drop(opened);
        std::fs::remove_dir_all(&killed)?;
    }
    times_ms.sort_by(f64::total_cmp);
    figures.insert("killed_records".into(), records.into());
    figures.insert("open_after_kill_ms".into(), rounded(times_ms[OPENINGS / 2]));
    Ok(())
}
