//! The clinic's own certificates: one authority, a server certificate for each unsealing, and client certificates with
//! one URI that says who the caller is and what it may do. Refuses to know connections, HTTP and who asked: callers have
//! been authorised before they come here.
//!
//! Names are [`identity`], keys and signatures are [`authority`], what the store remembers is [`registry`]. Keys are
//! ECDSA P-256, which every TLS library in use by record systems accepts; they are drawn from the operating system by
//! the cryptographic library itself. The private key of a client is handed out once and kept nowhere.

pub mod authority;
pub mod identity;
mod registry;

pub use authority::Authority;
pub use registry::{create_authority, enroll, list, load_authority, revoke};

use empathd_proto::{ErrorCode, Problem};
use empathd_store::{ReadError, WriteError};
use std::sync::Arc;

/// Most days a client certificate is valid, as long as public authorities have issued them.
pub const MAX_CLIENT_DAYS: u16 = 398;

/// Most certificates an appliance remembers, revoked ones included.
pub const MAX_CERTS: usize = 10_000;

/// Why a certificate could not be issued, read or revoked.
#[derive(Debug, thiserror::Error)]
pub enum CertError {
    /// The name of a client is not one.
    #[error("a certificate's name has 1 to 64 letters, digits, '-', '_' or '.', and begins with a letter or digit")]
    Name,
    /// The number of days is out of range.
    #[error("a certificate is valid for 1 to {MAX_CLIENT_DAYS} days")]
    Days,
    /// A configured name of the server is neither a host name nor an address.
    #[error("server name {ordinal} of the configuration is neither a host name nor an address")]
    ServerName {
        /// Which one, counted from 1.
        ordinal: usize,
    },
    /// No certificate has this serial number.
    #[error("no certificate has this serial number")]
    UnknownSerial,
    /// The registry is full.
    #[error("the appliance remembers {MAX_CERTS} certificates and takes no more")]
    Full,
    /// The store holds no authority.
    #[error("the store holds no certificate authority")]
    NoAuthority,
    /// A stored certificate or the authority is not in a known form.
    #[error("a stored certificate is not in a known form")]
    Corrupt,
    /// The cryptographic library refused.
    #[error("a certificate could not be made")]
    Signing(#[from] rcgen::Error),
    /// The TLS library refused the server's certificate or the authority.
    #[error("the TLS configuration could not be made")]
    Tls(#[from] crate::http::tls::TlsError),
    /// The store could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The store could not be changed.
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl From<CertError> for Problem {
    fn from(error: CertError) -> Self {
        let (code, next) = match error {
            CertError::Name | CertError::Days => (ErrorCode::BadRequest, "Correct it: empathctl cert enroll --help"),
            CertError::ServerName { .. } => (ErrorCode::BadRequest, "Correct server_names in the configuration"),
            CertError::UnknownSerial => (ErrorCode::NotFound, "See the serial numbers with: empathctl cert list"),
            CertError::Full => (ErrorCode::Conflict, "Issue fewer, longer-lived certificates"),
            CertError::NoAuthority | CertError::Corrupt => {
                (ErrorCode::Integrity, "Stop the daemon and run: empathd verify")
            }
            CertError::Signing(_) | CertError::Tls(_) => {
                (ErrorCode::Internal, "Report this with the lines of the log around it")
            }
            CertError::Read(error) => return crate::problem::from_read(error),
            CertError::Write(error) => return crate::problem::from_write(error),
        };
        Problem::new(code, capitalised(&error.to_string()), next)
    }
}

/// The text as a sentence.
fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).chain(['.']).collect()).unwrap_or_default()
}

/// The TLS side of the API: a fresh server certificate and client certificates of this authority demanded.
///
/// # Errors
/// A configured name is not a host name or address, or a library refused.
pub fn server_config(
    authority: &Authority,
    server_names: &[String],
    serial: [u8; 16],
    now_ms: u64,
) -> Result<Arc<rustls::ServerConfig>, CertError> {
    let (certificate, key) = authority.issue_server(server_names, serial, now_ms)?;
    Ok(crate::http::tls::server_config(authority.certificate(), certificate, key)?)
}
