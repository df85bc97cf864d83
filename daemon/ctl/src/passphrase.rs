//! Where the passphrase comes from: the terminal without echo, or the first line of a file. Never an argument and never
//! the environment. It refuses to know what the passphrase opens.

use crate::error::CtlError;
use empathd_proto::Secret;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use zeroize::{Zeroize, Zeroizing};

/// Shortest passphrase for a new store, in characters.
pub const MIN_CHARS: usize = 12;
/// Longest passphrase, in bytes.
pub const MAX_BYTES: usize = 1024;

/// Asks for the passphrase of a store that exists.
///
/// # Errors
/// [`CtlError::Input`] without a terminal or with an unusable file, [`CtlError::File`] when it cannot be read.
pub fn existing(file: Option<&Path>) -> Result<Secret, CtlError> {
    match file {
        Some(path) => from_file(path),
        None => prompt("Passphrase: "),
    }
}

/// Asks for the passphrase of a store to be made: twice on a terminal, and not a short one.
///
/// # Errors
/// As [`existing`]; [`CtlError::Input`] when it is short or the two differ.
pub fn new(file: Option<&Path>) -> Result<Secret, CtlError> {
    let secret = existing(file)?;
    if secret.expose().chars().count() < MIN_CHARS {
        return Err(CtlError::input(
            format!("the passphrase is shorter than {MIN_CHARS} characters"),
            "choose a longer one: five or six random words are good",
        ));
    }
    if file.is_none() && prompt("Once more:  ")?.expose() != secret.expose() {
        return Err(CtlError::input("the two passphrases differ", "empathctl init"));
    }
    Ok(secret)
}

pub(crate) fn prompt(question: &str) -> Result<Secret, CtlError> {
    match rpassword::prompt_password(question) {
        Ok(text) => checked(text),
        Err(_) => Err(CtlError::input(
            "there is no terminal to ask for the passphrase on",
            "give it in a file that only you can read: --passphrase-file FILE",
        )),
    }
}

fn from_file(path: &Path) -> Result<Secret, CtlError> {
    let failed = |source: io::Error| CtlError::File { doing: "read", path: path.to_owned(), source };
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_BYTES + 3));
    // Room for the longest passphrase, a line end, and one more byte by which a longer file shows.
    File::open(path).map_err(failed)?.take(MAX_BYTES as u64 + 3).read_to_end(&mut bytes).map_err(failed)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| unusable("is not UTF-8 text"))?;
    let line = text.strip_suffix('\n').unwrap_or(text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    if line.contains(['\n', '\r']) {
        return Err(unusable("has more than one line"));
    }
    checked(line.to_owned())
}

fn checked(mut text: String) -> Result<Secret, CtlError> {
    let problem = match text.len() {
        0 => Some("is empty"),
        1..=MAX_BYTES => None,
        _ => Some("is longer than 1024 bytes"),
    };
    match problem {
        None => Ok(Secret::new(text)),
        Some(problem) => {
            text.zeroize();
            Err(unusable(problem))
        }
    }
}

fn unusable(problem: &str) -> CtlError {
    CtlError::input(format!("the passphrase {problem}"), "give one line of text, at most 1024 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("file");
        std::fs::write(file.path(), bytes).expect("written");
        file
    }

    #[test]
    fn the_line_end_is_no_part_of_it_and_inner_blanks_are() {
        for bytes in [&b" a bc \xc3\xa9 secret"[..], b" a bc \xc3\xa9 secret\n", b" a bc \xc3\xa9 secret\r\n"] {
            assert_eq!(new(Some(file(bytes).path())).expect("usable").expose(), " a bc é secret");
        }
    }

    #[test]
    fn unusable_files_are_refused_without_showing_them() {
        let long = vec![b'x'; MAX_BYTES + 1];
        for bytes in [&b""[..], b"\n", b"two\nlines of it", b"\xff\xfe0123456789", &long] {
            let error = existing(Some(file(bytes).path())).expect_err("unusable");
            assert_eq!(error.exit_code(), 2);
            assert!(!error.to_string().contains("lines of it"));
        }
        assert!(existing(Some(file(&long[1..]).path())).is_ok());
    }

    #[test]
    fn a_new_store_wants_twelve_characters() {
        assert_eq!(new(Some(file("éééééééééé1".as_bytes()).path())).expect_err("eleven").exit_code(), 2);
        assert!(new(Some(file("éééééééééé12".as_bytes()).path())).is_ok());
    }
}
