//! Who asks. An actor is made when a connection is accepted, from what the kernel or the TLS handshake proves, and does
//! not change afterwards. What each may do is not known here: see `action.rs`.

use empathd_proto::admin::ApiRole;
use empathd_proto::audit::{Principal, PrincipalKind};

/// A caller, with the permissions of its connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Actor {
    /// The appliance itself: what a job does after its caller has gone.
    Appliance,
    /// A local user on the admin socket, as the kernel names it.
    LocalUser {
        /// User number.
        uid: u32,
        /// What this user may do.
        role: AdminRole,
    },
    /// The holder of an enrolled client certificate.
    Certificate {
        /// Serial number, hexadecimal, as `CertList` shows it.
        serial: String,
        /// The last eight bytes of the serial number, as the audit trail names it.
        number: u64,
        /// Name of the system.
        name: String,
        /// What it may do.
        role: ApiRole,
    },
    /// The holder of a certificate of our authority whose identity names no role here. It may do nothing, and the trail
    /// says so.
    Stranger {
        /// The last eight bytes of the serial number.
        number: u64,
    },
}

/// What a local user may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdminRole {
    /// Everything on the admin socket.
    Administrator,
    /// Only ask how the appliance is.
    Observer,
}

impl Actor {
    /// How the audit trail names this actor.
    #[must_use]
    pub fn principal(&self) -> Principal {
        match self {
            Actor::Appliance => Principal { kind: PrincipalKind::Appliance, number: 0 },
            Actor::LocalUser { uid, .. } => Principal { kind: PrincipalKind::LocalUser, number: u64::from(*uid) },
            Actor::Certificate { number, .. } | Actor::Stranger { number } => {
                Principal { kind: PrincipalKind::Certificate, number: *number }
            }
        }
    }
}
