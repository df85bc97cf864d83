//! What went wrong, in a form for programs (a stable code) and for people (what happened, what to do next). The JSON
//! form is RFC 9457 problem details. A problem never quotes clinical text or a secret.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! error_codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $text:literal, $status:literal, $exit:literal, $title:literal;)*) => {
        /// The closed list of error codes. Numbers and texts are stable across releases.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u16)]
        pub enum ErrorCode {
            $($(#[$doc])* $name = $number,)*
        }

        impl ErrorCode {
            /// Every code, in the order of their numbers.
            pub const ALL: &'static [ErrorCode] = &[$(ErrorCode::$name,)*];

            /// The stable text, as in `"code"` of the JSON body.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(ErrorCode::$name => $text,)* }
            }

            /// The HTTP status it is sent with.
            #[must_use]
            pub const fn http_status(self) -> u16 {
                match self { $(ErrorCode::$name => $status,)* }
            }

            /// The exit code of `empathctl` when it ends with this problem.
            #[must_use]
            pub const fn exit_code(self) -> u8 {
                match self { $(ErrorCode::$name => $exit,)* }
            }

            /// The short human title.
            #[must_use]
            pub const fn title(self) -> &'static str {
                match self { $(ErrorCode::$name => $title,)* }
            }

            /// The code with this number, as audit entries store it.
            #[must_use]
            pub const fn from_number(number: u16) -> Option<Self> {
                match number { $($number => Some(ErrorCode::$name),)* _ => None }
            }
        }
    };
}

// Exit codes of empathctl: 2 usage or bad input, 3 sealed or not ready, 4 not allowed, 5 not found, 6 conflict,
// 7 integrity, 8 try again later, 1 anything else.
error_codes! {
    /// The request is not well formed: broken JSON, a missing or unknown field, a value out of range.
    BadRequest = 1, "bad_request", 400, 2, "The request is not well formed";
    /// A body, a line, a field or a file is larger than its limit.
    TooLarge = 2, "too_large", 413, 2, "Larger than the limit";
    /// The caller has no role, or its certificate is not enrolled, revoked or expired.
    Unauthenticated = 3, "unauthenticated", 401, 4, "The caller is not known here";
    /// The caller is known but may not do this.
    Forbidden = 4, "forbidden", 403, 4, "The caller may not do this";
    /// No such route, record, certificate, job or adapter.
    NotFound = 5, "not_found", 404, 5, "There is no such thing";
    /// The method is not one this route answers.
    MethodNotAllowed = 6, "method_not_allowed", 405, 2, "This route does not answer that method";
    /// The present state does not allow it (already initialised, job already running, adapter not approved).
    Conflict = 7, "conflict", 409, 6, "The present state does not allow it";
    /// The appliance has no store yet.
    NotInitialised = 8, "not_initialised", 503, 3, "The appliance has not been initialised";
    /// The store is sealed: keys are not in memory.
    Sealed = 9, "sealed", 503, 3, "The store is sealed";
    /// The passphrase opens nothing.
    WrongPassphrase = 10, "wrong_passphrase", 403, 4, "The passphrase does not open this store";
    /// The store was written by another version of the format.
    StoreVersion = 11, "store_version", 500, 7, "The store has another format version";
    /// A stored value or the audit trail does not authenticate.
    Integrity = 12, "integrity", 500, 7, "Stored data does not authenticate";
    /// The disk is full or refuses writes.
    Storage = 13, "storage", 507, 8, "The disk cannot take the change";
    /// The source file has a form that no profile knows.
    UnknownSource = 14, "unknown_source", 422, 2, "No source profile fits this file";
    /// The prompt has more tokens than the model's context.
    PromptTooLong = 15, "prompt_too_long", 400, 2, "The prompt is longer than the model's context";
    /// The engine is not connected or has no base model yet.
    EngineUnavailable = 16, "engine_unavailable", 503, 8, "The engine is not ready";
    /// The engine answered with an error.
    EngineFailed = 17, "engine_failed", 502, 8, "The engine could not do it";
    /// A bound on queued work is reached; the reply says when to come back.
    Busy = 18, "busy", 429, 8, "Too much work is waiting";
    /// The model file or an adapter is not what it claims to be.
    BadModel = 19, "bad_model", 422, 2, "The model file cannot be used";
    /// The gate refused a candidate adapter.
    GateRefused = 20, "gate_refused", 409, 6, "The adapter did not pass its gate";
    /// The appliance is draining before it stops.
    ShuttingDown = 21, "shutting_down", 503, 8, "The appliance is stopping";
    /// A deadline passed.
    Timeout = 22, "timeout", 504, 8, "It took too long";
    /// A defect of the appliance.
    Internal = 23, "internal", 500, 1, "The appliance failed";
    /// The answer would come after the time within which it is of use.
    Late = 24, "late", 503, 8, "The answer would come too late";
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for ErrorCode {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.serialize_str(self.as_str())
        } else {
            serializer.serialize_u16(*self as u16)
        }
    }
}

impl<'de> Deserialize<'de> for ErrorCode {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        if deserializer.is_human_readable() {
            let text = String::deserialize(deserializer)?;
            let found = ErrorCode::ALL.iter().copied().find(|code| code.as_str() == text);
            found.ok_or_else(|| D::Error::custom("unknown error code"))
        } else {
            let number = u16::deserialize(deserializer)?;
            ErrorCode::from_number(number).ok_or_else(|| D::Error::custom("unknown error code"))
        }
    }
}

/// RFC 9457 problem details, with a stable `code` and the next step beside the standard members.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{detail}")]
pub struct Problem {
    /// `urn:empathd:problem:CODE`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The title of the code.
    pub title: String,
    /// HTTP status.
    pub status: u16,
    /// The stable code.
    pub code: ErrorCode,
    /// What happened this time, without clinical text.
    pub detail: String,
    /// What to do next; empty when nothing helps.
    pub next: String,
    /// Seconds after which it is worth to try again, where they were computed. Sent as a header, not in the body.
    #[serde(skip)]
    pub retry_after_s: Option<u32>,
}

impl Problem {
    /// A problem with what happened and what to do next.
    #[must_use]
    pub fn new(code: ErrorCode, detail: impl Into<String>, next: impl Into<String>) -> Self {
        Self {
            kind: format!("urn:empathd:problem:{}", code.as_str()),
            title: code.title().to_owned(),
            status: code.http_status(),
            code,
            detail: detail.into(),
            next: next.into(),
            retry_after_s: None,
        }
    }

    /// The same, worth to try again after so many seconds.
    #[must_use]
    pub fn after_s(self, seconds: u32) -> Self {
        Self { retry_after_s: Some(seconds), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_own_number_and_text() {
        for (i, a) in ErrorCode::ALL.iter().enumerate() {
            assert_eq!(ErrorCode::from_number(*a as u16), Some(*a));
            for b in &ErrorCode::ALL[i + 1..] {
                assert_ne!(a.as_str(), b.as_str());
            }
        }
    }

    #[test]
    fn the_body_survives_both_encodings() {
        let problem = Problem::new(ErrorCode::Sealed, "The store is sealed.", "Run: empathctl unseal");
        let json = serde_json::to_string(&problem).expect("serialises");
        assert!(json.contains(r#""type":"urn:empathd:problem:sealed""#));
        assert_eq!(serde_json::from_str::<Problem>(&json).expect("parses"), problem);
        let bytes = postcard::to_stdvec(&problem).expect("serialises");
        assert_eq!(postcard::from_bytes::<Problem>(&bytes).expect("parses"), problem);
    }
}
