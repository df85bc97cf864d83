//! From bytes and their profile to drafts. A broken entry is refused under a rule and the others go on; an error is only for
//! a source that cannot be read at all.

mod attributes;
pub(crate) mod captions;
pub(crate) mod fields;
pub(crate) mod json;
mod shape;
mod speech;
pub(crate) mod table;
mod windows;

use crate::detect::{self, fits};
use crate::draft::Drafts;
use crate::limits::{FILE_BYTES_MAX, RECORDS_MAX};
use crate::profile::{Format, Profile, Shape};
use crate::rule::Rejection;
use fields::Fields;
use shape::Shaper;

/// Why a source could not be read at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Larger than the bound.
    #[error("the source has {bytes} bytes, more than {FILE_BYTES_MAX}; split it into smaller files")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// More entries than the bound.
    #[error("the source has more than {RECORDS_MAX} records; split it into smaller files")]
    TooManyRecords,
    /// Not laid out as the profile says.
    #[error("the source does not have the layout of profile {profile}; detect its profile again")]
    WrongLayout {
        /// Key of the profile.
        profile: &'static str,
    },
}

/// The drafts of a source.
///
/// # Errors
/// [`ReadError`] when nothing of it can be read; broken entries are in [`Drafts::refused`].
pub fn read(bytes: &[u8], profile: &'static Profile) -> Result<Drafts, ReadError> {
    if bytes.len() > FILE_BYTES_MAX {
        return Err(ReadError::TooLarge { bytes: bytes.len() });
    }
    let bytes = detect::without_mark(bytes);
    let layout = detect::layout(bytes);
    let mut sink = Sink { shaper: Shaper::new(profile), entries: 0 };
    match (layout, &profile.shape) {
        (Format::Vtt | Format::Srt, Shape::Captions {}) => sink.shaper.conversation(0, captions::turns(bytes, profile)),
        (Format::Jsonl, _) => sink.json(json::Entries::lines(bytes))?,
        (Format::Json, _) => sink.json(view(bytes, profile))?,
        (_, Shape::Windows {}) if detect::line_form_fits(profile, bytes) => {
            windows::conversations(bytes, profile, &mut |ordinal, turns| {
                sink.count()?;
                sink.shaper.conversation(ordinal, turns);
                Ok(())
            })?;
        }
        _ => sink.table(bytes, profile)?,
    }
    Ok(sink.shaper.finish())
}

/// The view of a document whose entries the profile fits; else the document as it is.
fn view<'a>(bytes: &'a [u8], profile: &Profile) -> json::Entries<'a> {
    let views = json::views(bytes);
    let fitting = |view: &&json::Entries<'a>| json::sample(**view).iter().any(|value| fits(profile, value));
    views.iter().find(fitting).or(views.last()).copied().unwrap_or(json::Entries::Whole(bytes))
}

/// Takes entries one by one and counts them.
struct Sink {
    shaper: Shaper,
    entries: usize,
}

impl Sink {
    fn count(&mut self) -> Result<u64, ReadError> {
        self.entries += 1;
        if self.entries > RECORDS_MAX { Err(ReadError::TooManyRecords) } else { Ok(self.entries as u64 - 1) }
    }

    fn json(&mut self, entries: json::Entries<'_>) -> Result<(), ReadError> {
        for entry in entries {
            let ordinal = self.count()?;
            let taken = json::parse(entry, ordinal).and_then(|value| {
                shape::bounded_json(&value, ordinal)?;
                self.shaper.entry(ordinal, &value)
            });
            self.refuse(taken);
        }
        Ok(())
    }

    fn table(&mut self, bytes: &[u8], profile: &'static Profile) -> Result<(), ReadError> {
        let headers = table::DELIMITERS.iter().filter_map(|delimiter| table::Header::of(bytes, *delimiter));
        let header = headers.into_iter().find(|header| fits(profile, header));
        let header = header.ok_or(ReadError::WrongLayout { profile: &profile.key })?;
        for (ordinal, row) in table::Rows::below(&header, bytes) {
            self.count()?;
            let taken = row.and_then(|row| {
                row.cells().iter().try_for_each(|cell| shape::bounded(cell, ordinal))?;
                self.shaper.entry(ordinal, &row as &dyn Fields)
            });
            self.refuse(taken);
        }
        Ok(())
    }

    fn refuse(&mut self, taken: Result<(), Rejection>) {
        if let Err(rejection) = taken {
            self.shaper.refuse(rejection);
        }
    }
}
