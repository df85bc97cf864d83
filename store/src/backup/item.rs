//! What a backup is made of, one thing after the other: head, rows, rows that are gone, files, end. Every length is bounded
//! before it is believed. Where the things go is not known here.

use super::stream::{StreamReader, StreamWriter};
use super::{BackupCounts, BackupHead, read_fault};
use crate::blobs::MAX_BLOB_BYTES;
use crate::error::{Fault, ReadError, WriteError};
use crate::format;
use crate::tables::Table;
use crate::writer::MAX_VALUE_BYTES;
use empathd_proto::BlobId;
use std::io::{Read, Write};

/// Longest head.
const MAX_HEAD_BYTES: usize = 1024;
/// Longest key of a row.
const MAX_KEY_BYTES: usize = 1024;
/// Longest sealed value: padded, with envelope.
const MAX_SEALED_BYTES: usize = MAX_VALUE_BYTES + MAX_VALUE_BYTES / 8 + 4096;
/// Longest sealed file.
const MAX_FILE_BYTES: u64 = MAX_BLOB_BYTES + MAX_BLOB_BYTES / 1024;

/// One thing.
pub(crate) enum Item {
    Head(BackupHead),
    Row { table: Table, key: Vec<u8>, value: Vec<u8> },
    Removed { table: Table, key: Vec<u8> },
    Blob { id: BlobId, bytes: u64 },
    End(BackupCounts),
}

/// One thing as it is read; a file comes as what can be read of it, and is read to its end in any case.
pub(crate) enum Given<'a> {
    Row { table: Table, key: Vec<u8>, value: Vec<u8> },
    Removed { table: Table, key: Vec<u8> },
    Blob { id: BlobId, file: &'a mut dyn Read },
}

/// Writes one thing; the bytes of a file follow it.
pub(crate) fn put(stream: &mut StreamWriter<'_>, item: &Item) -> Result<(), WriteError> {
    let mut bytes = Vec::new();
    let mut sized = |tag: u8, parts: &[&[u8]]| {
        bytes.push(tag);
        for part in parts {
            bytes.extend_from_slice(&(part.len() as u32).to_le_bytes());
            bytes.extend_from_slice(part);
        }
    };
    match item {
        Item::Head(head) => sized(0, &[&format::encode(head)]),
        Item::Row { table, key, value } => sized(1, &[&[*table as u8], key, value]),
        Item::Removed { table, key } => sized(2, &[&[*table as u8], key]),
        Item::Blob { id, bytes } => sized(3, &[id.as_bytes(), &bytes.to_le_bytes()]),
        Item::End(counts) => {
            let counts = [counts.rows, counts.removed, counts.blobs].map(u64::to_le_bytes).concat();
            sized(4, &[&counts]);
        }
    }
    Ok(stream.write_all(&bytes).map_err(Fault::from)?)
}

/// The head of a backup.
pub(crate) fn head(from: &mut dyn Read) -> Result<BackupHead, ReadError> {
    match byte(from)? {
        0 => format::decode(&part(from, MAX_HEAD_BYTES)?),
        _ => Err(misshapen()),
    }
}

/// Gives everything after the head of a stream to `f`, to the end of the stream.
pub(crate) fn walk(
    stream: &mut StreamReader<'_>,
    f: &mut dyn FnMut(Given<'_>) -> Result<(), ReadError>,
) -> Result<BackupCounts, ReadError> {
    let counts = walk_items(stream, f)?;
    if stream.is_at_end().map_err(read_fault)? { Ok(counts) } else { Err(misshapen()) }
}

/// Gives everything after the head to `f`, to the end that says what there was.
pub(crate) fn walk_items(
    from: &mut dyn Read,
    f: &mut dyn FnMut(Given<'_>) -> Result<(), ReadError>,
) -> Result<BackupCounts, ReadError> {
    let mut counts = BackupCounts::default();
    loop {
        match byte(from)? {
            1 => {
                counts.rows += 1;
                let (table, key) = (table(from)?, part(from, MAX_KEY_BYTES)?);
                f(Given::Row { table, key, value: part(from, MAX_SEALED_BYTES)? })?;
            }
            2 => {
                counts.removed += 1;
                f(Given::Removed { table: table(from)?, key: part(from, MAX_KEY_BYTES)? })?;
            }
            3 => {
                counts.blobs += 1;
                let id = BlobId::from_bytes(part(from, 16)?.try_into().map_err(|_| misshapen())?);
                let bytes = number(&part(from, 8)?)?;
                if bytes > MAX_FILE_BYTES {
                    return Err(misshapen());
                }
                let mut file = from.take(bytes);
                f(Given::Blob { id, file: &mut file })?;
                std::io::copy(&mut file, &mut std::io::sink()).map_err(read_fault)?;
                if file.limit() > 0 {
                    return Err(misshapen());
                }
            }
            4 => {
                let said = part(from, 24)?;
                let said: Vec<u64> = said.chunks(8).map(number).collect::<Result<_, _>>()?;
                return if said == [counts.rows, counts.removed, counts.blobs] { Ok(counts) } else { Err(misshapen()) };
            }
            _ => return Err(misshapen()),
        }
    }
}

fn table(from: &mut dyn Read) -> Result<Table, ReadError> {
    let number = part(from, 1)?;
    let table = Table::ALL.iter().copied().find(|table| number == [*table as u8]);
    table.filter(|table| !super::KEY_TABLES.contains(table)).ok_or_else(misshapen)
}

fn byte(from: &mut dyn Read) -> Result<u8, ReadError> {
    let mut byte = [0];
    from.read_exact(&mut byte).map_err(read_fault)?;
    Ok(byte[0])
}

/// A part with its length before it. Memory grows with what really comes.
fn part(from: &mut dyn Read, max_bytes: usize) -> Result<Vec<u8>, ReadError> {
    let mut length = [0; 4];
    from.read_exact(&mut length).map_err(read_fault)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > max_bytes {
        return Err(misshapen());
    }
    let mut bytes = Vec::new();
    from.take(length as u64).read_to_end(&mut bytes).map_err(read_fault)?;
    if bytes.len() == length { Ok(bytes) } else { Err(misshapen()) }
}

fn number(bytes: &[u8]) -> Result<u64, ReadError> {
    bytes.try_into().map(u64::from_le_bytes).map_err(|_| misshapen())
}

fn misshapen() -> ReadError {
    ReadError::Integrity("the backup is not what the store wrote, or not all of it")
}
