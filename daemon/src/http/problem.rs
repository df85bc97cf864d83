//! Problems as HTTP responses (RFC 9457). Knows no route.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use empathd_proto::{ErrorCode, Problem};
use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, HeaderValue};

/// A problem on its way out.
pub(super) struct Refusal(pub(super) Problem);

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Refusal(problem) = self;
        // A problem holds only text and numbers and cannot fail to serialise.
        let json = serde_json::to_vec(&problem).unwrap_or_default();
        let mut response = Response::new(Body::from(json));
        *response.status_mut() = status(&problem);
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        response
    }
}

fn status(problem: &Problem) -> StatusCode {
    StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// The body or a value in it is not what it should be.
pub(super) fn bad_request(detail: impl Into<String>) -> Problem {
    Problem::new(ErrorCode::BadRequest, detail, "Correct the request; docs/API.md lists every field and its range")
}

/// What the door itself refuses is a defect when it is not refused by the appliance first.
pub(super) fn unexpected_reply() -> Problem {
    Problem::new(ErrorCode::Internal, "The appliance gave another kind of answer.", "Report this with the log")
}
