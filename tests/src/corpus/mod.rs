//! The project's own corpus: synthetic records of every kind the appliance takes, written from seeded templates, with
//! planted identifiers and planted bad records so that every stage has something to find. The same seed gives the same
//! bytes. It does not know how the appliance reads any of it.

mod damaged;
mod dialogues;
mod identity;
mod knowledge;
mod rng;
mod sessions;
mod talk;
mod text;

pub use damaged::Flaw;

use anyhow::Context;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use talk::Desk;

/// What was planted, for those who check. It is written beside the corpus as `truth.json` and is no source file.
#[derive(Debug, Clone, Serialize)]
pub struct CorpusTruth {
    /// The source files, in the order in which they should be taken in.
    pub files: Vec<PathBuf>,
    /// The clinic's roster of names, one a line.
    pub roster: PathBuf,
    /// Records in all files, the bad ones included.
    pub records: u64,
    /// Bad records by kind.
    pub bad: BTreeMap<String, u64>,
    /// Planted identifiers; each occurs in the files and may occur in no file of the appliance.
    pub canaries: Vec<String>,
    /// Sentences of the records; the same holds for them.
    pub sentences: Vec<String>,
}

/// One file of the corpus.
struct SourceFile {
    name: String,
    bytes: Vec<u8>,
    records: u64,
}

impl SourceFile {
    fn new(name: &str, bytes: Vec<u8>, records: u64) -> Self {
        Self { name: name.to_owned(), bytes, records }
    }

    /// One JSON value a line.
    fn lines(name: &str, rows: &[serde_json::Value]) -> Self {
        let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
        Self::new(name, text.into_bytes(), rows.len() as u64)
    }

    /// Comma-separated values (RFC 4180); the first row is the header.
    fn table<const N: usize>(name: &str, rows: &[[String; N]]) -> Self {
        let quoted = |cell: &String| format!("\"{}\"", cell.replace('"', "\"\""));
        let line = |row: &[String; N]| row.iter().map(quoted).collect::<Vec<_>>().join(",") + "\r\n";
        let text: String = rows.iter().map(line).collect();
        Self::new(name, text.into_bytes(), rows.len() as u64 - 1)
    }
}

/// Writes the corpus of `seed` into `dir`, which is made when it is missing.
///
/// # Errors
/// When a file cannot be written.
pub fn write(dir: &Path, seed: u64) -> anyhow::Result<CorpusTruth> {
    let mut desk = Desk::new(seed);
    let mut files = dialogues::files(&mut desk);
    files.extend(knowledge::files(&mut desk));
    let (recorded, low_quality) = sessions::files(&mut desk);
    files.extend(recorded);
    let (damaged, mut flaws) = damaged::files(&mut desk);
    files.extend(damaged);
    flaws.insert(Flaw::LowQualityLabel, low_quality);

    std::fs::create_dir_all(dir).with_context(|| format!("cannot make the folder {}", dir.display()))?;
    let put = |name: &str, bytes: &[u8]| -> anyhow::Result<PathBuf> {
        let path = dir.join(name);
        std::fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    };
    let truth = CorpusTruth {
        records: files.iter().map(|file| file.records).sum(),
        files: files.iter().map(|file| put(&file.name, &file.bytes)).collect::<anyhow::Result<_>>()?,
        roster: put("roster.txt", (desk.people.names().join("\n") + "\n").as_bytes())?,
        bad: flaws.into_iter().map(|(flaw, count)| (flaw.as_str().to_owned(), count)).collect(),
        canaries: desk.people.canaries().cloned().collect(),
        sentences: spoken(&files),
    };
    put("truth.json", &serde_json::to_vec_pretty(&truth)?)?;
    Ok(truth)
}

/// The sentences of the themes that the dice did choose.
fn spoken(files: &[SourceFile]) -> Vec<String> {
    let whole: String = files.iter().map(|file| String::from_utf8_lossy(&file.bytes)).collect();
    let themes = text::edge_themes().map(|edge| &edge.theme).chain(text::everyday::THEMES);
    themes.flat_map(sentences).filter(|sentence| whole.contains(sentence.as_str())).collect()
}

fn sentences(theme: &text::Theme) -> impl Iterator<Item = String> + '_ {
    [theme.opens, theme.more, theme.hears, theme.asks, theme.acts].into_iter().flatten().map(|text| (*text).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_same_seed_gives_the_same_bytes_and_another_gives_others() {
        let dir = tempfile::tempdir().expect("scratch");
        let all = |seed: u64, name: &str| {
            let truth = write(&dir.path().join(name), seed).expect("written");
            let bytes = truth.files.iter().map(|file| std::fs::read(file).expect("read")).collect::<Vec<_>>();
            (truth, bytes)
        };
        let (truth, bytes) = all(7, "a");
        assert_eq!(bytes, all(7, "b").1);
        assert_ne!(bytes, all(8, "c").1);
        assert!(truth.records >= 900, "{}", truth.records);
    }

    #[test]
    fn every_canary_and_every_flaw_is_really_there() {
        let dir = tempfile::tempdir().expect("scratch");
        let truth = write(dir.path(), 1).expect("written");
        let mut whole = String::new();
        for file in &truth.files {
            whole += &String::from_utf8_lossy(&std::fs::read(file).expect("read"));
        }
        assert!(truth.canaries.len() >= 200, "{}", truth.canaries.len());
        let missing: Vec<_> = truth.canaries.iter().filter(|canary| !whole.contains(canary.as_str())).collect();
        assert!(missing.is_empty(), "{missing:?}");
        assert_eq!(truth.bad.len(), 12);
        for category in empathd_proto::record::EdgeCategory::ALL {
            assert!(whole.contains(&format!("\"category\":\"{category}\"")), "{category}");
        }
        let distinct: BTreeSet<_> = truth.sentences.iter().collect();
        assert!(distinct.len() >= 500, "{}", distinct.len());
    }
}
