//! Who is at the other end: the identity in a client certificate that TLS has already verified. Refuses to know what the
//! caller may do and whether the certificate was revoked.

use crate::certs::identity::{parse_uri, serial_number, serial_text};
use empathd_proto::admin::ApiRole;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// The caller of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Peer {
    /// Serial number of its certificate, hexadecimal.
    pub(super) serial: String,
    /// What audit entries call the certificate.
    pub(super) number: u64,
    /// Milliseconds since the Unix epoch.
    pub(super) not_after_ms: u64,
    /// Who it is, or why that cannot be said.
    pub(super) identity: Result<Identity, IdentityError>,
}

/// Who a certificate was issued to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    /// What it may do.
    pub(super) role: ApiRole,
    /// Name of the system.
    pub(super) name: String,
}

/// Why a verified certificate names nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum IdentityError {
    /// Not exactly one URI.
    #[error("the certificate does not carry exactly one URI")]
    UriCount,
    /// The URI names no role of this appliance.
    #[error("the certificate's URI names no role of this appliance")]
    Role,
    /// The certificate could sign others.
    #[error("the certificate belongs to an authority, not to a caller")]
    Authority,
}

impl Peer {
    /// The peer of a verified certificate; `None` when its bytes cannot be read.
    pub(super) fn from_der(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let serial = certificate.raw_serial();
        Some(Self {
            serial: serial_text(serial),
            number: serial_number(serial),
            not_after_ms: u64::try_from(certificate.validity().not_after.timestamp()).ok()?.checked_mul(1_000)?,
            identity: identity(&certificate),
        })
    }
}

/// SPIFFE X.509-SVID section 5.2: one URI name and no more; a leaf may not be an authority.
fn identity(certificate: &X509Certificate<'_>) -> Result<Identity, IdentityError> {
    if certificate.is_ca() {
        return Err(IdentityError::Authority);
    }
    let names = certificate.subject_alternative_name().ok().flatten();
    let mut uris = names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let (Some(uri), None) = (uris.next(), uris.next()) else { return Err(IdentityError::UriCount) };
    let (role, name) = parse_uri(uri).ok_or(IdentityError::Role)?;
    Ok(Identity { role, name: name.to_owned() })
}
