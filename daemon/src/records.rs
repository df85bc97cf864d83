//! Records on their way into the store and back. The only caller of the store's put, and it takes validated records
//! only. Where a record comes from and what it is used for is not known here.

use crate::problem::{Fault, defect};
use empathd_ingest::ValidRecord;
use empathd_proto::ids::{ClientId, RecordId};
use empathd_proto::problem::{ErrorCode, Problem};
use empathd_proto::record::Record;
use empathd_store::{DataClass, NewRecord, PutOutcome, Reader, Writer};
use std::ops::ControlFlow;
use zeroize::Zeroizing;

/// First byte of a sealed record; a new shape gets a new one.
const SHAPE: u8 = 1;

/// Seals a record, exactly once by its content.
///
/// # Errors
/// The store refuses.
pub(crate) fn put(writer: &mut Writer<'_>, valid: &ValidRecord) -> Result<PutOutcome, Fault> {
    let mut body = Zeroizing::new(vec![SHAPE]);
    let bytes = postcard::to_stdvec(valid.record()).map_err(|_| defect("A record could not be encoded."))?;
    body.extend_from_slice(&Zeroizing::new(bytes));
    let client = writer.client_for(valid.client_key())?;
    let content_key = valid.content_key();
    Ok(writer.put_record(NewRecord { client, class: DataClass::Record, content_key, body: &body })?)
}

/// The record with this identifier.
///
/// # Errors
/// It is not there, or does not authenticate.
pub(crate) fn get(reader: &Reader<'_>, id: RecordId) -> Result<Record, Fault> {
    let missing =
        || Problem::new(ErrorCode::Integrity, "A record that a cut names is not there.", "Run: empathd verify");
    let stored = reader.record(id)?.ok_or_else(missing)?;
    decode(&stored.body)
}

/// Shows every clinical record to `each` until it breaks.
///
/// # Errors
/// A record does not authenticate or has an unknown shape, or `each` refuses.
pub(crate) fn for_each(
    reader: &Reader<'_>,
    mut each: impl FnMut(RecordId, ClientId, &Record) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let mut failed = None;
    reader.records(DataClass::Record, &mut |id, client, body| match decode(body)
        .and_then(|record| each(id, client, &record))
    {
        Ok(()) => ControlFlow::Continue(()),
        Err(fault) => {
            failed = Some(fault);
            ControlFlow::Break(())
        }
    })?;
    failed.map_or(Ok(()), Err)
}

fn decode(body: &[u8]) -> Result<Record, Fault> {
    let record = match body.split_first() {
        Some((&SHAPE, rest)) => postcard::from_bytes(rest).ok(),
        _ => None,
    };
    let next = "Install the release that wrote it.";
    Ok(record.ok_or_else(|| Problem::new(ErrorCode::StoreVersion, "A record has an unknown shape.", next))?)
}
