//! The manifest of an export, of an adapter or of a client's record: which files there are, their SHA-256, and who signed it. It knows nothing of what
//! the files mean; whoever verifies needs no appliance.
//!
//! `manifest.sig` holds the 64 bytes of an Ed25519 signature (RFC 8032) over the bytes of `manifest.json` as they lie on the
//! disk, so that `openssl pkeyutl -verify -pubin -inkey signing-key.pem -rawin -in manifest.json -sigfile manifest.sig` checks
//! it too.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ed25519_dalek::{Signature, VerifyingKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// Version of the manifest; a member that changes its meaning raises it.
pub const SCHEMA: u32 = 1;
/// File name of the manifest.
pub const MANIFEST: &str = "manifest.json";
/// File name of its signature.
pub const SIGNATURE: &str = "manifest.sig";
/// File name of the key that signed it.
pub const KEY: &str = "signing-key.pem";
/// Largest manifest that is read.
pub const MAX_MANIFEST_BYTES: u64 = 16 * 1024 * 1024;
/// Most files of an export.
pub const MAX_FILES: usize = 1000;
/// Longest path inside an export.
const MAX_PATH_BYTES: usize = 200;
/// What stands before the 32 bytes of an Ed25519 key in its SubjectPublicKeyInfo (RFC 8410).
const SPKI_HEAD: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Size and digest of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileFacts {
    /// Its size.
    pub bytes: u64,
    /// Its SHA-256, hexadecimal.
    pub sha256: String,
}

impl FileFacts {
    /// Of what can be read to its end.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(from: &mut dyn std::io::Read) -> std::io::Result<Self> {
        let (mut hash, mut bytes, mut part) = (Sha256::new(), 0, vec![0; 64 * 1024]);
        loop {
            let taken = from.read(&mut part)?;
            if taken == 0 {
                return Ok(Self { bytes, sha256: hex(&hash.finalize()) });
            }
            hash.update(&part[..taken]);
            bytes += taken as u64;
        }
    }

    /// Of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self { bytes: bytes.len() as u64, sha256: hex(&Sha256::digest(bytes)) }
    }
}

/// Who signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signer {
    /// Always `ed25519`.
    pub algorithm: String,
    /// The key, 32 bytes, base64.
    pub public_key: String,
}

impl Signer {
    /// The signer with this key.
    #[must_use]
    pub fn new(public_key: &[u8; 32]) -> Self {
        Self { algorithm: "ed25519".into(), public_key: STANDARD.encode(public_key) }
    }
}

/// What a verifier needs of a manifest; the other members are for readers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Index {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The adapter generation, as its store calls it; absent in exports of something else.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub adapter: String,
    /// The client, as the store calls it, when it is a client's record.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub client: String,
    /// Who signed.
    pub signed_by: Signer,
    /// Every file but the manifest and its signature, by its path.
    pub files: BTreeMap<String, FileFacts>,
}

/// Why a manifest does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Not a manifest, or one of another version.
    #[error("the manifest is not of schema {SCHEMA}: {0}")]
    Form(String),
    /// The signature is not of these bytes and this key.
    #[error("the signature does not fit the manifest")]
    Signature,
    /// A path that would leave the folder, or that is none.
    #[error("the manifest names a path that is not allowed")]
    Path,
}

impl Index {
    /// The index of a manifest whose signature holds under the key that it names. Whether that key is the clinic's is for
    /// the caller to know.
    ///
    /// # Errors
    /// [`ManifestError`].
    pub fn open(manifest: &[u8], signature: &[u8]) -> Result<Self, ManifestError> {
        let form = |why: &str| ManifestError::Form(why.to_owned());
        let index: Self = serde_json::from_slice(manifest).map_err(|error| form(&error.to_string()))?;
        if index.schema != SCHEMA || index.signed_by.algorithm != "ed25519" || index.files.len() > MAX_FILES {
            return Err(form("another version, algorithm or too many files"));
        }
        let key = STANDARD.decode(&index.signed_by.public_key).map_err(|_| form("the key is not base64"))?;
        let key: [u8; 32] = key.try_into().map_err(|_| form("the key has not 32 bytes"))?;
        let key = VerifyingKey::from_bytes(&key).map_err(|_| form("the key is no point of the curve"))?;
        let signature = Signature::from_slice(signature).map_err(|_| ManifestError::Signature)?;
        key.verify_strict(manifest, &signature).map_err(|_| ManifestError::Signature)?;
        if index.files.keys().all(|path| is_inside(path)) { Ok(index) } else { Err(ManifestError::Path) }
    }
}

/// Whether a path stays inside its folder: relative, plain characters, no empty part and none that begins with a dot.
#[must_use]
pub fn is_inside(path: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let part = |part: &str| !part.is_empty() && !part.starts_with('.') && part.chars().all(plain);
    path.len() <= MAX_PATH_BYTES && path.split('/').all(part)
}

/// The key as a PEM file that other tools read.
#[must_use]
pub fn key_pem(public_key: &[u8; 32]) -> String {
    let spki = [&SPKI_HEAD[..], public_key].concat();
    format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(spki))
}

/// Bytes as hexadecimal digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ed25519_dalek::{Signer as _, SigningKey};

    fn signed() -> (Vec<u8>, Vec<u8>) {
        let key = SigningKey::from_bytes(&[5; 32]);
        let files = [("experts/crisis/adapter_config.json".to_owned(), FileFacts::of(b"{}"))].into();
        let signed_by = Signer::new(key.verifying_key().as_bytes());
        let index = Index { schema: SCHEMA, adapter: "adapter_00".into(), client: String::new(), signed_by, files };
        let manifest = serde_json::to_vec(&index).expect("written");
        let signature = key.sign(&manifest).to_bytes().to_vec();
        (manifest, signature)
    }

    #[test]
    fn a_manifest_holds_until_a_byte_changes() {
        let (manifest, signature) = signed();
        assert!(Index::open(&manifest, &signature).is_ok());
        for at in 0..manifest.len() {
            let mut changed = manifest.clone();
            changed[at] ^= 1;
            assert!(Index::open(&changed, &signature).is_err(), "byte {at}");
        }
        assert_eq!(Index::open(&manifest, &signature[1..]), Err(ManifestError::Signature));
    }

    #[test]
    fn paths_that_would_leave_the_folder_are_refused() {
        for good in ["README.md", "experts/free_3/adapter_model.safetensors", "gguf/shared.gguf"] {
            assert!(is_inside(good), "{good}");
        }
        for bad in ["", "/etc/passwd", "../x", "a/../b", "a//b", "a/.b", "a\\b", "ü", &"x".repeat(201)] {
            assert!(!is_inside(bad), "{bad}");
        }
    }

    #[test]
    fn the_key_is_a_pem_file_of_rfc_8410() {
        // The example key of RFC 8410, section 10.1.
        let key = [
            0x19, 0xbf, 0x44, 0x09, 0x69, 0x84, 0xcd, 0xfe, 0x85, 0x41, 0xba, 0xc1, 0x67, 0xdc, 0x3b, 0x96, 0xc8, 0x50,
            0x86, 0xaa, 0x30, 0xb6, 0xb6, 0xcb, 0x0c, 0x5c, 0x38, 0xad, 0x70, 0x31, 0x66, 0xe1,
        ];
        assert!(key_pem(&key).contains("MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE="));
    }
}
