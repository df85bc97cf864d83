//! Steps with a stopped appliance: is anything readable in its files, and is any change of them noticed? They know file
//! names and bytes, and no format.

use super::Places;
use super::show::Show;
use super::source_steps::Sources;
use crate::harness::appliance::{self, Launch};
use crate::harness::build::Programs;
use crate::harness::files;
use anyhow::ensure;

/// Where in a file a bit is inverted, as shares of its length.
const FLIP_AT: [f64; 2] = [0.35, 0.8];

/// How many of the secrets occur in any file of the state or in the log. The same search over the sources must find
/// them all, or it would prove nothing.
pub(super) fn search(launch: &Launch, sources: &Sources, show: &Show) -> anyhow::Result<u64> {
    let step = show.step("Search the state for plain text");
    let secrets = &sources.secrets;
    let distinct = |found: std::collections::BTreeSet<(usize, usize)>| {
        found.into_iter().map(|(_, secret)| secret).collect::<std::collections::BTreeSet<_>>().len()
    };
    let in_sources = distinct(files::occurrences(&sources.files, secrets)?);
    ensure!(in_sources == secrets.len(), "the search finds {in_sources} of {} texts in the sources", secrets.len());
    let mut places = files::regular_files(&launch.state)?;
    places.push(launch.log.clone());
    let found = distinct(files::occurrences(&places, secrets)?);
    step.done(&format!("{found} of {} texts in {} files ({in_sources} in the sources)", secrets.len(), places.len()));
    Ok(found as u64)
}

/// Whether the state as it was left verifies.
pub(super) fn verify(programs: &Programs, places: &Places, show: &Show) -> anyhow::Result<bool> {
    let step = show.step("Verify the stopped state");
    let verdict = appliance::verify(programs, &places.state, &places.passphrase)?;
    step.done(if verdict.ok { "every value authenticates" } else { "it does NOT verify" });
    if !verdict.ok {
        show.line(&format!("      {}", verdict.document));
    }
    Ok(verdict.ok)
}

/// Whether each copy with one inverted bit is refused.
pub(super) fn tamper(programs: &Programs, places: &Places, show: &Show) -> anyhow::Result<bool> {
    let step = show.step("Alter copies of it");
    let originals = files::regular_files(&places.state)?;
    let (mut tried, mut missed) = (0u64, Vec::new());
    files::copy(&places.state, &places.tampered)?;
    let intact = appliance::verify(programs, &places.tampered, &places.passphrase)?;
    ensure!(intact.ok, "an unaltered copy does not verify: {}", intact.document);
    for original in &originals {
        let name = original.strip_prefix(&places.state)?;
        for share in FLIP_AT {
            files::copy(&places.state, &places.tampered)?;
            files::flip_bit(&places.tampered.join(name), share)?;
            tried += 1;
            step.progress(tried, (originals.len() * FLIP_AT.len()) as u64, &name.to_string_lossy());
            if appliance::verify(programs, &places.tampered, &places.passphrase)?.ok {
                missed.push(format!("{} at {share}", name.display()));
            }
        }
    }
    std::fs::remove_dir_all(&places.tampered)?;
    step.done(&format!("{} of {tried} altered copies noticed", tried - missed.len() as u64));
    for name in &missed {
        show.line(&format!("      not noticed: {name}"));
    }
    Ok(tried > 0 && missed.is_empty())
}
