//! A request body into memory, within a size and within time. Knows nothing of what it says.

use super::HttpLimits;
use axum::body::{Body, Bytes};
use empathd_proto::{ErrorCode, Problem};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// The whole body.
///
/// # Errors
/// `too_large`, `timeout`, or `bad_request` when the caller broke off.
pub(super) async fn read(body: Body, limits: &HttpLimits) -> Result<Bytes, Problem> {
    let end = Instant::now() + Duration::from_millis(limits.body_total_ms);
    let mut body = Limited::new(body, limits.body_bytes);
    let mut bytes = Vec::new();
    loop {
        let idle = Instant::now() + Duration::from_millis(limits.body_idle_ms);
        match timeout_at(idle.min(end), body.frame()).await {
            Err(_) => return Err(too_slow()),
            Ok(None) => return Ok(bytes.into()),
            Ok(Some(Ok(frame))) => bytes.extend_from_slice(frame.data_ref().map_or(&[], |data| data)),
            Ok(Some(Err(error))) if error.is::<LengthLimitError>() => return Err(too_large(limits.body_bytes)),
            Ok(Some(Err(_))) => return Err(broken_off()),
        }
    }
}

fn too_slow() -> Problem {
    Problem::new(ErrorCode::Timeout, "The body came too slowly.", "Send it again without pauses")
}

fn too_large(limit_bytes: usize) -> Problem {
    let detail = format!("The body is larger than {limit_bytes} bytes.");
    Problem::new(ErrorCode::TooLarge, detail, "Send fewer or shorter messages")
}

fn broken_off() -> Problem {
    Problem::new(ErrorCode::BadRequest, "The body broke off or its encoding is not in order.", "Send it again")
}
