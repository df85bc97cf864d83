//! The clinic's certificate authority and what it signs. Refuses to know where its key is kept and which certificates
//! were revoked.

use super::identity::{fixed_serial, is_name, uri};
use super::{CertError, MAX_CLIENT_DAYS};
use empathd_proto::admin::ApiRole;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::time::Duration;
use zeroize::{Zeroize, Zeroizing};

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// Days the authority is valid: ten years.
const AUTHORITY_DAYS: u64 = 3_650;

/// Days a server certificate is valid; each unsealing makes a fresh one.
const SERVER_DAYS: u64 = 398;

/// Certificates begin this long before they are made, for callers whose clocks are behind.
const CLOCK_SKEW_MS: u64 = 5 * 60 * 1000;

/// Names the server always answers to.
const LOCAL_NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

const DOC_VERSION: u8 = 1;

/// The authority in memory, its key included. Overwritten when dropped.
pub struct Authority {
    certificate: CertificateDer<'static>,
    pem: String,
    key_pkcs8: Zeroizing<Vec<u8>>,
    not_after_ms: u64,
}

/// The sealed form of an authority.
#[derive(Serialize, Deserialize)]
struct AuthorityDoc {
    version: u8,
    pem: String,
    key_pkcs8: Vec<u8>,
    not_after_ms: u64,
}

/// A client certificate fresh from the authority.
pub struct IssuedClient {
    /// Certificate, PEM.
    pub cert_pem: String,
    /// Private key, PEM. Shown once.
    pub key_pem: String,
    /// Milliseconds since the Unix epoch.
    pub not_after_ms: u64,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authority(…)")
    }
}

impl Drop for AuthorityDoc {
    fn drop(&mut self) {
        self.key_pkcs8.zeroize();
    }
}

impl Authority {
    /// A new authority. `serial` is sixteen random bytes.
    ///
    /// # Errors
    /// The cryptographic library refuses.
    pub fn generate(serial: [u8; 16], now_ms: u64) -> Result<Self, CertError> {
        let serial = fixed_serial(serial);
        let not_after_ms = now_ms + AUTHORITY_DAYS * DAY_MS;
        let mut params = params(serial, now_ms, not_after_ms);
        // A part of the serial number keeps the authorities of two appliances apart in one trust store.
        let mark = u32::from_be_bytes([serial[12], serial[13], serial[14], serial[15]]);
        params.distinguished_name = common_name(&format!("Empathd authority {mark:08x}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let mut key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = params.self_signed(&key);
        let key_pkcs8 = Zeroizing::new(key.serialize_der());
        key.zeroize();
        let certificate = certificate?;
        Ok(Self { pem: certificate.pem(), certificate: certificate.into(), key_pkcs8, not_after_ms })
    }

    /// The authority's certificate, PEM: what callers trust.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.pem
    }

    /// The authority's certificate, DER.
    #[must_use]
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The bytes the store seals.
    pub(super) fn to_doc(&self) -> Result<Zeroizing<Vec<u8>>, CertError> {
        let doc = AuthorityDoc {
            version: DOC_VERSION,
            pem: self.pem.clone(),
            key_pkcs8: self.key_pkcs8.to_vec(),
            not_after_ms: self.not_after_ms,
        };
        postcard::to_stdvec(&doc).map(Zeroizing::new).map_err(|_| CertError::Corrupt)
    }

    /// The authority of bytes that [`Self::to_doc`] made.
    pub(super) fn from_doc(bytes: &[u8]) -> Result<Self, CertError> {
        let mut doc: AuthorityDoc = postcard::from_bytes(bytes).map_err(|_| CertError::Corrupt)?;
        if doc.version != DOC_VERSION {
            return Err(CertError::Corrupt);
        }
        let certificate = CertificateDer::from_pem_slice(doc.pem.as_bytes()).map_err(|_| CertError::Corrupt)?;
        Ok(Self {
            certificate,
            pem: std::mem::take(&mut doc.pem),
            key_pkcs8: Zeroizing::new(std::mem::take(&mut doc.key_pkcs8)),
            not_after_ms: doc.not_after_ms,
        })
    }

    /// A client certificate for `valid_days` days, or as long as the authority lasts if that is shorter. `serial` is
    /// what [`fixed_serial`] made.
    ///
    /// # Errors
    /// The name or the number of days is out of its range, or the cryptographic library refuses.
    pub fn issue_client(
        &self,
        name: &str,
        role: ApiRole,
        valid_days: u16,
        serial: [u8; 16],
        now_ms: u64,
    ) -> Result<IssuedClient, CertError> {
        if !is_name(name) {
            return Err(CertError::Name);
        }
        if !(1..=MAX_CLIENT_DAYS).contains(&valid_days) {
            return Err(CertError::Days);
        }
        let not_after_ms = self.not_after_ms.min(now_ms + u64::from(valid_days) * DAY_MS);
        let mut params = params(serial, now_ms, not_after_ms);
        params.distinguished_name = common_name(name);
        params.subject_alt_names = vec![SanType::URI(uri(role, name).try_into()?)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let (certificate, mut key) = self.sign(params)?;
        let key_pem = key.serialize_pem();
        key.zeroize();
        Ok(IssuedClient { cert_pem: certificate.pem(), key_pem, not_after_ms })
    }

    /// A server certificate for the local names and those configured. `serial` is sixteen random bytes.
    ///
    /// # Errors
    /// A configured name is neither a host name nor an address, or the cryptographic library refuses.
    pub fn issue_server(
        &self,
        server_names: &[String],
        serial: [u8; 16],
        now_ms: u64,
    ) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>), CertError> {
        let not_after_ms = self.not_after_ms.min(now_ms + SERVER_DAYS * DAY_MS);
        let mut params = params(fixed_serial(serial), now_ms, not_after_ms);
        params.distinguished_name = common_name("Empathd");
        for name in LOCAL_NAMES {
            params.subject_alt_names.push(alternative_name(name).ok_or(CertError::ServerName { ordinal: 0 })?);
        }
        for (name, ordinal) in server_names.iter().zip(1..) {
            params.subject_alt_names.push(alternative_name(name).ok_or(CertError::ServerName { ordinal })?);
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let (certificate, mut key) = self.sign(params)?;
        let key_der = PrivatePkcs8KeyDer::from(key.serialize_der());
        key.zeroize();
        Ok((certificate.into(), key_der.into()))
    }

    /// Makes a leaf key and signs its certificate.
    fn sign(&self, mut params: CertificateParams) -> Result<(Certificate, KeyPair), CertError> {
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        self.sign_as_is(&params)
    }

    /// Makes a key and signs its certificate, whatever it says.
    pub(crate) fn sign_as_is(&self, params: &CertificateParams) -> Result<(Certificate, KeyPair), CertError> {
        let own = PrivatePkcs8KeyDer::from(self.key_pkcs8.as_slice());
        let mut own = KeyPair::from_pkcs8_der_and_sign_algo(&own, &PKCS_ECDSA_P256_SHA256)?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let signed =
            Issuer::from_ca_cert_der(&self.certificate, &own).and_then(|issuer| params.signed_by(&key, &issuer));
        own.zeroize();
        Ok((signed?, key))
    }
}

/// What all certificates have in common.
fn params(serial: [u8; 16], now_ms: u64, not_after_ms: u64) -> CertificateParams {
    let at = |ms: u64| rcgen::date_time_ymd(1970, 1, 1) + Duration::from_millis(ms);
    let mut params = CertificateParams::default();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.not_before = at(now_ms.saturating_sub(CLOCK_SKEW_MS));
    params.not_after = at(not_after_ms);
    params
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// A host name or an address as certificates carry them.
fn alternative_name(name: &str) -> Option<SanType> {
    if let Ok(address) = name.parse::<IpAddr>() {
        return Some(SanType::IpAddress(address));
    }
    rustls::pki_types::DnsName::try_from(name).ok()?;
    Some(SanType::DnsName(name.try_into().ok()?))
}
