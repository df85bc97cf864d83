//! Problems as HTTP responses (RFC 9457). Knows no route.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use empathd_proto::{ErrorCode, Problem};
use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use serde::Serialize;

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
        let body = Problematic { problem: &problem, error: error_member(&problem) };
        // A problem holds only text and numbers and cannot fail to serialise.
        let json = serde_json::to_vec(&body).unwrap_or_default();
        let mut response = Response::new(Body::from(json));
        *response.status_mut() = status(&problem);
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        response.headers_mut().extend(problem.retry_after_s.map(|seconds| (RETRY_AFTER, seconds.into())));
        response
    }
}

/// A problem, with OpenAI's member beside those of RFC 9457: their clients look for it.
#[derive(Serialize)]
struct Problematic<'a> {
    #[serde(flatten)]
    problem: &'a Problem,
    error: ErrorMember<'a>,
}

/// A problem as OpenAI's clients know it.
#[derive(Serialize)]
pub(super) struct ErrorMember<'a> {
    message: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    code: ErrorCode,
    /// The field that is named first, when one is at fault.
    param: Option<&'a str>,
    next: &'a str,
}

/// The problem in OpenAI's form.
pub(super) fn error_member(problem: &Problem) -> ErrorMember<'_> {
    let kind = match problem.status {
        401 => "authentication_error",
        403 => "permission_error",
        429 => "rate_limit_error",
        400..=499 => "invalid_request_error",
        _ => "server_error",
    };
    let param = problem.detail.split('`').nth(1).filter(|_| problem.code == ErrorCode::BadRequest);
    ErrorMember { message: &problem.detail, kind, code: problem.code, param, next: &problem.next }
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
