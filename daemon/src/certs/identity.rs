//! The one name a client certificate carries, `spiffe://empathd/<role>/<name>`, and serial numbers as text. Refuses to
//! know keys and certificates' encoding.

use empathd_proto::admin::ApiRole;
use std::fmt::Write as _;

const SCHEME_AND_DOMAIN: &str = "spiffe://empathd/";

/// Longest name of a client, in bytes.
pub const MAX_NAME_BYTES: usize = 64;

/// Bytes of a serial number.
pub const SERIAL_BYTES: usize = 16;

/// Whether a client may be called this: a path segment of a SPIFFE ID that is also safe in file names and logs.
#[must_use]
pub fn is_name(name: &str) -> bool {
    name.len() <= MAX_NAME_BYTES
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// The URI of a client.
#[must_use]
pub fn uri(role: ApiRole, name: &str) -> String {
    format!("{SCHEME_AND_DOMAIN}{role}/{name}")
}

/// Role and name of a URI that [`uri`] could have made.
#[must_use]
pub fn parse_uri(text: &str) -> Option<(ApiRole, &str)> {
    let (role, name) = text.strip_prefix(SCHEME_AND_DOMAIN)?.split_once('/')?;
    Some((ApiRole::parse(role)?, name)).filter(|(_, name)| is_name(name))
}

/// A random serial number made a positive one whose text has always the same length.
#[must_use]
pub fn fixed_serial(mut random: [u8; SERIAL_BYTES]) -> [u8; SERIAL_BYTES] {
    random[0] = random[0] & 0x7f | 0x40;
    random
}

/// A serial number as lower-case hexadecimal.
#[must_use]
pub fn serial_text(serial: &[u8]) -> String {
    serial.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The serial number of a text; `None` when it is not 32 hexadecimal digits.
#[must_use]
pub fn parse_serial(text: &str) -> Option<[u8; SERIAL_BYTES]> {
    if text.len() != 2 * SERIAL_BYTES || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    u128::from_str_radix(text, 16).ok().map(u128::to_be_bytes)
}

/// What audit entries call a certificate: the last eight bytes of its serial number.
#[must_use]
pub fn serial_number(serial: &[u8]) -> u64 {
    serial.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_pass() {
        for good in ["epic-prod", "a", "Ward_7.b", &"x".repeat(64)] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", ".", "..", "-x", "a/b", "a b", "é", "a\n", &"x".repeat(65)] {
            assert!(!is_name(bad), "{bad:?}");
        }
    }

    #[test]
    fn a_uri_returns_and_others_are_refused() {
        assert_eq!(parse_uri(&uri(ApiRole::Ehr, "epic")), Some((ApiRole::Ehr, "epic")));
        for bad in
            ["spiffe://empathd/ehr", "spiffe://empathd/root/x", "spiffe://other/ehr/x", "spiffe://empathd/ehr/a/b", ""]
        {
            assert_eq!(parse_uri(bad), None, "{bad}");
        }
    }

    #[test]
    fn serial_numbers_are_positive_and_their_text_returns() {
        for random in [[0; 16], [0xff; 16], *b"0123456789abcdef"] {
            let serial = fixed_serial(random);
            assert!(serial[0] & 0x80 == 0 && serial[0] != 0);
            assert_eq!(parse_serial(&serial_text(&serial)), Some(serial));
        }
        assert_eq!(parse_serial("+0112233445566778899aabbccddeeff"), None);
        assert_eq!(serial_number(&[9, 9, 0, 0, 0, 0, 0, 0, 1, 2]), 0x0102);
    }
}
