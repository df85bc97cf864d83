//! Typed identifiers: sixteen bytes each, all distinct types, so that a client can never be passed where a record is
//! meant. They carry no meaning and no time; nothing about a person can be read from one.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;
use uuid::Uuid;

/// Why a text is not the identifier it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected an identifier like {prefix}_ followed by 32 hexadecimal digits")]
pub struct ParseIdError {
    /// The prefix that the identifier should have had.
    pub prefix: &'static str,
}

macro_rules! typed_ids {
    ($($(#[$doc:meta])* $name:ident = $prefix:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 16]);

        impl $name {
            /// What its text form begins with, before the underscore.
            pub const PREFIX: &'static str = $prefix;

            /// The identifier with these bytes. Fresh ones come from sixteen random bytes.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }

            /// Its sixteen bytes.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}_{}", Self::PREFIX, Uuid::from_bytes(self.0).simple())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let error = ParseIdError { prefix: Self::PREFIX };
                let hex = text
                    .strip_prefix(Self::PREFIX)
                    .and_then(|rest| rest.strip_prefix('_'))
                    .filter(|hex| hex.len() == 32)
                    .ok_or_else(|| error.clone())?;
                Uuid::try_parse(hex).map(|uuid| Self(uuid.into_bytes())).map_err(|_| error)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    self.0.serialize(serializer)
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    let text = String::deserialize(deserializer)?;
                    text.parse().map_err(serde::de::Error::custom)
                } else {
                    <[u8; 16]>::deserialize(deserializer).map(Self)
                }
            }
        }
    )*};
}

typed_ids! {
    /// One store: the state folder of one appliance. Bound into every sealed value.
    StoreId = "store";
    /// A person whose records the clinic keeps.
    ClientId = "client";
    /// One sealed record.
    RecordId = "rec";
    /// One immutable cut of records for training.
    DatasetId = "cut";
    /// One generation of adapter weights.
    AdapterId = "adapter";
    /// One long-running job.
    JobId = "job";
    /// One sealed file beside the database.
    BlobId = "blob";
    /// One request from outside.
    RequestId = "req";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_returns_and_types_stay_apart() {
        let id = RecordId::from_bytes([7; 16]);
        assert_eq!(id.to_string().parse::<RecordId>(), Ok(id));
        assert!(id.to_string().parse::<ClientId>().is_err());
        assert!("rec_".parse::<RecordId>().is_err());
        assert!(format!("rec_{}", "é".repeat(16)).parse::<RecordId>().is_err());
        let json = serde_json::to_string(&id).expect("serialises");
        assert_eq!(serde_json::from_str::<RecordId>(&json).expect("parses"), id);
        let bytes = postcard::to_stdvec(&id).expect("serialises");
        assert_eq!(bytes.len(), 16);
    }
}
