//! What the store remembers of certificates: the sealed authority, and for each client certificate whom it was issued
//! to and whether it is still good. Refuses to know how certificates are made.

use super::authority::Authority;
use super::identity::{SERIAL_BYTES, fixed_serial, parse_serial, serial_text, uri};
use super::{CertError, MAX_CERTS};
use empathd_proto::admin::{ApiRole, CertSummary, EnrolledCert};
use empathd_store::{DocKind, Entropy, Reader, Writer};
use serde::{Deserialize, Serialize};

/// The one authority's place in the store.
const AUTHORITY_ID: [u8; 16] = [0; 16];

const DOC_VERSION: u8 = 1;

/// The sealed form of one client certificate. Its place is its serial number; its private key is nowhere.
#[derive(Serialize, Deserialize)]
struct CertDoc {
    version: u8,
    name: String,
    role: ApiRole,
    not_after_ms: u64,
    revoked_at_ms: Option<u64>,
}

/// Makes the clinic's authority and keeps it.
///
/// # Errors
/// The cryptographic library or the store refuses.
pub fn create_authority(w: &mut Writer<'_>, entropy: &dyn Entropy, now_ms: u64) -> Result<Authority, CertError> {
    let authority = Authority::generate(random(entropy), now_ms)?;
    w.put_doc(DocKind::Authority, AUTHORITY_ID, &authority.to_doc()?)?;
    Ok(authority)
}

/// The clinic's authority.
///
/// # Errors
/// There is none, or it cannot be read.
pub fn load_authority(r: &Reader<'_>) -> Result<Authority, CertError> {
    let doc = r.doc(DocKind::Authority, AUTHORITY_ID)?.ok_or(CertError::NoAuthority)?;
    Authority::from_doc(&doc)
}

/// Issues a client certificate and remembers it.
///
/// # Errors
/// The name or the number of days is out of its range, the registry is full, or the store refuses.
pub fn enroll(
    w: &mut Writer<'_>,
    authority: &Authority,
    name: &str,
    role: ApiRole,
    valid_days: u16,
    now_ms: u64,
    entropy: &dyn Entropy,
) -> Result<EnrolledCert, CertError> {
    if w.docs(DocKind::Cert)?.len() >= MAX_CERTS {
        return Err(CertError::Full);
    }
    let serial = fixed_serial(random(entropy));
    let issued = authority.issue_client(name, role, valid_days, serial, now_ms)?;
    let doc = CertDoc {
        version: DOC_VERSION,
        name: name.to_owned(),
        role,
        not_after_ms: issued.not_after_ms,
        revoked_at_ms: None,
    };
    keep(w, serial, &doc)?;
    Ok(EnrolledCert {
        summary: summary(serial, doc),
        cert_pem: issued.cert_pem,
        key_pem: issued.key_pem,
        ca_pem: authority.ca_pem().to_owned(),
    })
}

/// Every certificate, those that end last first.
///
/// # Errors
/// The store cannot be read.
pub fn list(r: &Reader<'_>) -> Result<Vec<CertSummary>, CertError> {
    let mut all = Vec::new();
    for (serial, bytes) in r.docs(DocKind::Cert)? {
        all.push(summary(serial, parse(&bytes)?));
    }
    all.sort_by(|a, b| b.not_after_ms.cmp(&a.not_after_ms).then_with(|| a.serial.cmp(&b.serial)));
    Ok(all)
}

/// Refuses a certificate from now on. One that is revoked already stays as it is.
///
/// # Errors
/// No certificate has this serial number, or the store refuses.
pub fn revoke(w: &mut Writer<'_>, serial: &str, now_ms: u64) -> Result<CertSummary, CertError> {
    let serial = parse_serial(serial).ok_or(CertError::UnknownSerial)?;
    let bytes = w.doc(DocKind::Cert, serial)?.ok_or(CertError::UnknownSerial)?;
    let mut doc = parse(&bytes)?;
    if doc.revoked_at_ms.is_none() {
        doc.revoked_at_ms = Some(now_ms);
        keep(w, serial, &doc)?;
    }
    Ok(summary(serial, doc))
}

fn keep(w: &mut Writer<'_>, serial: [u8; SERIAL_BYTES], doc: &CertDoc) -> Result<(), CertError> {
    let bytes = postcard::to_stdvec(doc).map_err(|_| CertError::Corrupt)?;
    Ok(w.put_doc(DocKind::Cert, serial, &bytes)?)
}

fn parse(bytes: &[u8]) -> Result<CertDoc, CertError> {
    postcard::from_bytes(bytes).ok().filter(|doc: &CertDoc| doc.version == DOC_VERSION).ok_or(CertError::Corrupt)
}

fn summary(serial: [u8; SERIAL_BYTES], doc: CertDoc) -> CertSummary {
    let CertDoc { name, role, not_after_ms, revoked_at_ms, .. } = doc;
    CertSummary { serial: serial_text(&serial), uri: uri(role, &name), name, role, not_after_ms, revoked_at_ms }
}

fn random(entropy: &dyn Entropy) -> [u8; SERIAL_BYTES] {
    let mut bytes = [0; SERIAL_BYTES];
    entropy.fill(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::OsEntropy;
    use empathd_proto::Secret;
    use empathd_proto::audit::{ActionKind, AuditObject, Outcome, Principal, PrincipalKind};
    use empathd_store::{AuditDraft, KdfCost, Store};
    use std::sync::Arc;

    fn draft(action: ActionKind) -> AuditDraft {
        let principal = Principal { kind: PrincipalKind::Appliance, number: 0 };
        AuditDraft { at_ms: 1, principal, action, outcome: Outcome::Done, object: AuditObject::None, count: 0 }
    }

    fn change<T>(store: &Store, f: impl FnOnce(&mut Writer<'_>) -> Result<T, CertError>) -> Result<T, CertError> {
        store.change(draft(ActionKind::CertEnroll), |writer, _| f(writer))
    }

    #[test]
    fn certificates_are_remembered_without_their_keys_and_revoked_once() {
        let dir = tempfile::tempdir().expect("a folder");
        let passphrase = Secret::new("correct horse".into());
        let entropy = Arc::new(OsEntropy);
        let init = draft(ActionKind::Init);
        let store = Store::create(dir.path(), &passphrase, KdfCost::Light, entropy.clone(), init).expect("creates");
        assert!(matches!(store.read(load_authority), Err(CertError::NoAuthority)));

        let made = change(&store, |w| create_authority(w, &*entropy, 1_000)).expect("creates");
        let authority = store.read(load_authority).expect("loads");
        assert_eq!(authority.ca_pem(), made.ca_pem());
        assert_eq!(authority.certificate(), made.certificate());

        let enrolled = change(&store, |w| enroll(w, &authority, "epic", ApiRole::Ehr, 7, 1_000, &*entropy));
        let EnrolledCert { summary, key_pem, .. } = enrolled.expect("enrolls");
        assert!(key_pem.contains("PRIVATE KEY"));
        assert_eq!(summary.uri, "spiffe://empathd/ehr/epic");
        assert_eq!(summary.not_after_ms, 1_000 + 7 * 86_400_000);
        assert_eq!(store.read(list).expect("lists"), std::slice::from_ref(&summary));

        let revoked = change(&store, |w| revoke(w, &summary.serial.to_uppercase(), 5_000)).expect("revokes");
        assert_eq!(revoked.revoked_at_ms, Some(5_000));
        let again = change(&store, |w| revoke(w, &summary.serial, 6_000)).expect("changes nothing");
        assert_eq!(again, revoked);
        assert_eq!(store.read(list).expect("lists"), [revoked]);
        for unknown in ["", "zz", &"0".repeat(32)] {
            let refused = change(&store, |w| revoke(w, unknown, 5_000));
            assert!(matches!(refused, Err(CertError::UnknownSerial)), "{unknown}");
        }
    }
}
