//! The plain database: redb with the same cache and the same durability. A transaction has the rows of the store's, as they
//! are: the record, the row that finds its content, its entry in a log and where the log ends. Heads of tables are left out:
//! they are part of what is measured.

use super::{Subject, System};
use empathd_store::Entropy;
use redb::{Database, ReadableDatabase, TableDefinition};
use std::path::{Path, PathBuf};

type Table = TableDefinition<'static, &'static [u8], &'static [u8]>;

const ROWS: Table = TableDefinition::new("rows");
const CONTENTS: Table = TableDefinition::new("contents");
const LOG: Table = TableDefinition::new("log");
const ENDS: Table = TableDefinition::new("ends");
/// Bytes of an audit entry, about.
const ENTRY_BYTES: usize = 48;
/// Bytes of the end of a trail with its signed checkpoint, about.
const END_BYTES: usize = 800;
/// As the store has it.
const CACHE_BYTES: usize = 32 * 1024 * 1024;

pub(super) struct Plain {
    db: Database,
    path: PathBuf,
    ids: Vec<[u8; 16]>,
    entries: u64,
}

impl Plain {
    pub(super) fn create(dir: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let path = dir.join("plain.redb");
        let db = Database::builder().set_cache_size(CACHE_BYTES).create(&path)?;
        Ok(Self { db, path, ids: Vec::new(), entries: 0 })
    }
}

impl Subject for Plain {
    fn write(&mut self, bodies: &[Vec<u8>]) -> anyhow::Result<()> {
        let mut txn = self.db.begin_write()?;
        txn.set_two_phase_commit(true);
        {
            let (mut rows, mut contents) = (txn.open_table(ROWS)?, txn.open_table(CONTENTS)?);
            for body in bodies {
                let (mut id, mut content) = ([0; 16], [0; 16]);
                System.fill(&mut id);
                System.fill(&mut content);
                rows.insert(id.as_slice(), body.as_slice())?;
                contents.insert(content.as_slice(), id.as_slice())?;
                self.ids.push(id);
            }
            txn.open_table(LOG)?.insert(self.entries.to_be_bytes().as_slice(), [1; ENTRY_BYTES].as_slice())?;
            txn.open_table(ENDS)?.insert(b"log".as_slice(), [1; END_BYTES].as_slice())?;
            self.entries += 1;
        }
        Ok(txn.commit()?)
    }

    fn read(&mut self, number: usize) -> anyhow::Result<Vec<u8>> {
        let txn = self.db.begin_read()?;
        let rows = txn.open_table(ROWS)?;
        let found = rows.get(self.ids[number].as_slice())?.map(|body| body.value().to_vec());
        found.ok_or_else(|| anyhow::anyhow!("a row is missing"))
    }

    fn file(&self) -> &Path {
        &self.path
    }
}
