//! The store, and what is in memory only while it is unsealed: the certificate authority, how TLS is spoken, which
//! certificates are enrolled. Who may unseal, and what is recorded, is decided before anything here is called.

use crate::certs::{self, Authority, CertError};
use crate::problem::{self, Fault};
use empathd_proto::admin::{CertSummary, SealState};
use empathd_proto::audit::{ActionKind, AuditObject, Outcome, Principal, PrincipalKind};
use empathd_proto::problem::{ErrorCode, Problem};
use empathd_proto::secret::Secret;
use empathd_store::{AuditDraft, Entropy, KdfCost, Store, Unlock};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use tokio::sync::watch;

/// The store and what it gives while unsealed. Its functions block: call them where that may be.
pub(crate) struct Vault {
    folder: PathBuf,
    server_names: Vec<String>,
    pub(crate) cost: KdfCost,
    entropy: Arc<dyn Entropy>,
    store: RwLock<Option<Arc<Store>>>,
    opened: RwLock<Option<Opened>>,
    changed: watch::Sender<u64>,
}

#[derive(Clone)]
struct Opened {
    authority: Arc<Authority>,
    tls: Arc<rustls::ServerConfig>,
    certs: Arc<HashMap<String, CertSummary>>,
}

impl Vault {
    /// The vault of a state folder, sealed, or uninitialised when there is no store in it.
    ///
    /// # Errors
    /// The store there cannot be opened by this program.
    pub(crate) fn new(
        folder: PathBuf,
        server_names: Vec<String>,
        cost: KdfCost,
        entropy: Arc<dyn Entropy>,
    ) -> Result<Self, Problem> {
        let store = if Store::exists(&folder) {
            Some(Arc::new(Store::open(&folder, entropy.clone()).map_err(problem::from_open)?))
        } else {
            None
        };
        let (store, opened, changed) = (RwLock::new(store), RwLock::default(), watch::Sender::new(0));
        Ok(Self { folder, server_names, cost, entropy, store, opened, changed })
    }

    /// In which state the store is.
    pub(crate) fn state(&self) -> SealState {
        match &*self.store.read().unwrap_or_else(PoisonError::into_inner) {
            None => SealState::Uninitialised,
            Some(_) if self.opened().is_some() => SealState::Unsealed,
            Some(_) => SealState::Sealed,
        }
    }

    /// The store, sealed or not.
    ///
    /// # Errors
    /// [`ErrorCode::NotInitialised`].
    pub(crate) fn store(&self) -> Result<Arc<Store>, Problem> {
        let store = self.store.read().unwrap_or_else(PoisonError::into_inner).clone();
        let next = "Run: empathctl init";
        store.ok_or_else(|| Problem::new(ErrorCode::NotInitialised, "The appliance has no store yet.", next))
    }

    /// The store, unsealed.
    ///
    /// # Errors
    /// [`ErrorCode::NotInitialised`] or [`ErrorCode::Sealed`].
    pub(crate) fn unsealed(&self) -> Result<Arc<Store>, Problem> {
        let store = self.store()?;
        if self.opened().is_some() {
            return Ok(store);
        }
        Err(Problem::new(ErrorCode::Sealed, "The store is sealed.", "Run: empathctl unseal"))
    }

    /// Makes the store; it ends unsealed.
    pub(crate) fn create(&self, passphrase: &Secret, audit: AuditDraft) -> Result<Arc<Store>, Problem> {
        let at_ms = audit.at_ms;
        let store = Store::create(&self.folder, passphrase, self.cost, self.entropy.clone(), audit);
        let store = Arc::new(store.map_err(problem::from_create)?);
        *self.store.write().unwrap_or_else(PoisonError::into_inner) = Some(store.clone());
        self.open(&store, at_ms)?;
        Ok(store)
    }

    /// Brings the keys into memory.
    pub(crate) fn unseal(&self, with: Unlock<'_>, audit: AuditDraft) -> Result<Arc<Store>, Problem> {
        let store = self.store()?;
        let at_ms = audit.at_ms;
        store.unseal_with(with, audit).map_err(problem::from_unseal)?;
        if let Err(problem) = self.open(&store, at_ms) {
            // Half open is worse than sealed.
            let failed = Outcome::Failed(problem.code);
            self.seal(AuditDraft { outcome: failed, ..by_itself(ActionKind::Seal, at_ms) })?;
            return Err(problem);
        }
        Ok(store)
    }

    /// Takes the keys out of memory. Connections that hang on them are told first.
    pub(crate) fn seal(&self, audit: AuditDraft) -> Result<(), Problem> {
        let store = self.store()?;
        self.set_opened(None);
        store.seal(audit).map_err(problem::from_seal)
    }

    /// Prepares what is needed while unsealed; makes the authority when the store has none yet.
    fn open(&self, store: &Store, at_ms: u64) -> Result<(), Problem> {
        let loaded = store.read(certs::load_authority);
        let authority = match loaded {
            Err(CertError::NoAuthority) => store.change(by_itself(ActionKind::CertEnroll, at_ms), |writer, _| {
                certs::create_authority(writer, &*self.entropy, at_ms)
            })?,
            other => other?,
        };
        let mut serial = [0; 16];
        self.entropy.fill(&mut serial);
        let tls = certs::server_config(&authority, &self.server_names, serial, at_ms)?;
        let certs = store.read(certs::list)?;
        self.write_ca(authority.ca_pem())?;
        let certs = Arc::new(by_serial(certs));
        self.set_opened(Some(Opened { authority: Arc::new(authority), tls, certs }));
        Ok(())
    }

    fn write_ca(&self, pem: &str) -> Result<(), Problem> {
        let folder = self.folder.join("pki");
        let path = folder.join("ca.pem");
        if std::fs::read_to_string(&path).is_ok_and(|text| text == pem) {
            return Ok(());
        }
        let written = std::fs::create_dir_all(&folder).and_then(|()| std::fs::write(&path, pem));
        written.map_err(|error| {
            let detail = format!("The authority's certificate could not be written: {error}.");
            Problem::new(ErrorCode::Storage, detail, "Check the disk and the permissions of the state folder.")
        })
    }

    fn opened(&self) -> Option<Opened> {
        self.opened.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_opened(&self, opened: Option<Opened>) {
        *self.opened.write().unwrap_or_else(PoisonError::into_inner) = opened;
        self.changed.send_modify(|count| *count += 1);
    }

    /// The certificate authority.
    ///
    /// # Errors
    /// [`ErrorCode::Sealed`].
    pub(crate) fn authority(&self) -> Result<Arc<Authority>, Problem> {
        let opened = self.opened().map(|opened| opened.authority);
        opened.ok_or_else(|| Problem::new(ErrorCode::Sealed, "The store is sealed.", "Run: empathctl unseal"))
    }

    /// How TLS is spoken, while unsealed.
    pub(crate) fn tls(&self) -> Option<Arc<rustls::ServerConfig>> {
        self.opened().map(|opened| opened.tls)
    }

    /// The enrolled certificate with this serial number.
    pub(crate) fn certificate(&self, serial: &str) -> Option<CertSummary> {
        self.opened()?.certs.get(serial).cloned()
    }

    /// Takes over the certificates as they are in the store now.
    pub(crate) fn refresh_certificates(&self, store: &Store) -> Result<(), Fault> {
        let certs = Arc::new(by_serial(store.read(certs::list)?));
        if let Some(opened) = &mut *self.opened.write().unwrap_or_else(PoisonError::into_inner) {
            opened.certs = certs;
        }
        self.changed.send_modify(|count| *count += 1);
        Ok(())
    }

    /// A counter that changes whenever a certificate may stand otherwise than before.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

fn by_serial(certs: Vec<CertSummary>) -> HashMap<String, CertSummary> {
    certs.into_iter().map(|cert| (cert.serial.clone(), cert)).collect()
}

/// The entry of something the appliance does by itself.
pub(crate) fn by_itself(action: ActionKind, at_ms: u64) -> AuditDraft {
    let principal = Principal { kind: PrincipalKind::Appliance, number: 0 };
    AuditDraft { at_ms, principal, action, outcome: Outcome::Done, object: AuditObject::None, count: 0 }
}
