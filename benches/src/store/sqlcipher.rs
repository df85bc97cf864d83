//! The peer: SQLite with SQLCipher's sealed pages, a raw key, a write-ahead log that is synced at every commit, the same
//! cache.

use super::{Subject, System};
use empathd_store::Entropy;
use rusqlite::{Connection, params};
use std::path::{Path, PathBuf};

pub(super) struct SqlCipher {
    db: Connection,
    path: PathBuf,
    ids: Vec<[u8; 16]>,
}

impl SqlCipher {
    pub(super) fn create(dir: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let path = dir.join("peer.sqlite");
        let db = Connection::open(&path)?;
        let mut key = [0u8; 32];
        System.fill(&mut key);
        let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        db.execute_batch(&format!(
            "PRAGMA key = \"x'{hex}'\"; PRAGMA cache_size = -32768; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
             CREATE TABLE rows (id BLOB PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID;"
        ))?;
        let cipher: String = db.query_row("PRAGMA cipher_version", [], |row| row.get(0))?;
        anyhow::ensure!(!cipher.is_empty(), "this SQLite does not seal");
        Ok(Self { db, path, ids: Vec::new() })
    }
}

impl Subject for SqlCipher {
    fn write(&mut self, bodies: &[Vec<u8>]) -> anyhow::Result<()> {
        let txn = self.db.transaction()?;
        {
            let mut insert = txn.prepare_cached("INSERT INTO rows VALUES (?1, ?2)")?;
            for body in bodies {
                let mut id = [0; 16];
                System.fill(&mut id);
                insert.execute(params![id.as_slice(), body])?;
                self.ids.push(id);
            }
        }
        Ok(txn.commit()?)
    }

    fn read(&mut self, number: usize) -> anyhow::Result<Vec<u8>> {
        let mut select = self.db.prepare_cached("SELECT body FROM rows WHERE id = ?1")?;
        Ok(select.query_row(params![self.ids[number].as_slice()], |row| row.get(0))?)
    }

    fn file(&self) -> &Path {
        &self.path
    }
}
