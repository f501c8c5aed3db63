//! What callers are told when a call did not work: Lambda's error types, statuses and spelling.
//!
//! The type goes into `x-amzn-ErrorType`, which clients read; the body has Lambda's members, whose case differs
//! from one exception to the next.

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Response, StatusCode, header};
use serde_json::json;

use crate::invocation::{Refusal, Throttle};
use crate::registry::RegistryError;

/// An error as it leaves by this door.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    pub kind: Kind,
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    AccessDenied,
    CodeStorageExceeded,
    InvalidParameterValue,
    InvalidRequestContent,
    MethodNotAllowed,
    PreconditionFailed,
    /// A management request; the service's own name for it.
    RequestEntityTooLarge,
    /// A payload; as the model calls it.
    RequestTooLarge,
    RequestTimeout,
    ResourceConflict,
    ResourceNotFound,
    Serialization,
    Service,
    /// With Lambda's `Reason`.
    TooManyRequests(&'static str),
    UnknownOperation,
    Validation,
}

/// Which spelling of the member an exception has in Lambda's model.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Spelling {
    Upper,
    Lower,
    /// The generic validation error: lower case, and no `Type`.
    Bare,
}

impl Kind {
    fn row(self) -> (StatusCode, &'static str, Spelling) {
        use Spelling::{Bare, Lower, Upper};
        match self {
            Self::AccessDenied => (StatusCode::FORBIDDEN, "AccessDeniedException", Upper),
            Self::CodeStorageExceeded => (StatusCode::BAD_REQUEST, "CodeStorageExceededException", Lower),
            Self::InvalidParameterValue => (StatusCode::BAD_REQUEST, "InvalidParameterValueException", Lower),
            Self::InvalidRequestContent => (StatusCode::BAD_REQUEST, "InvalidRequestContentException", Lower),
            Self::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowedException", Lower),
            Self::PreconditionFailed => (StatusCode::PRECONDITION_FAILED, "PreconditionFailedException", Lower),
            Self::RequestEntityTooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLargeException", Lower),
            // SDKs make their exception's class from this name.
            Self::RequestTooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "RequestTooLargeException", Lower),
            Self::RequestTimeout => (StatusCode::REQUEST_TIMEOUT, "RequestTimeoutException", Lower),
            Self::ResourceConflict => (StatusCode::CONFLICT, "ResourceConflictException", Lower),
            Self::ResourceNotFound => (StatusCode::NOT_FOUND, "ResourceNotFoundException", Upper),
            Self::Serialization => (StatusCode::BAD_REQUEST, "SerializationException", Upper),
            Self::Service => (StatusCode::INTERNAL_SERVER_ERROR, "ServiceException", Upper),
            Self::TooManyRequests(_) => (StatusCode::TOO_MANY_REQUESTS, "TooManyRequestsException", Lower),
            Self::UnknownOperation => (StatusCode::NOT_FOUND, "UnknownOperationException", Lower),
            Self::Validation => (StatusCode::BAD_REQUEST, "ValidationException", Bare),
        }
    }

    pub fn with(self, message: impl Into<String>) -> ApiError {
        ApiError { kind: self, message: message.into() }
    }
}

impl ApiError {
    pub fn into_response(self) -> Response<Full<Bytes>> {
        let (status, name, spelling) = self.kind.row();
        let mut body = match spelling {
            Spelling::Upper => json!({ "Message": self.message }),
            Spelling::Lower | Spelling::Bare => json!({ "message": self.message }),
        };
        if spelling != Spelling::Bare {
            body["Type"] = if status.is_server_error() { "Service".into() } else { "User".into() };
        }
        if let Kind::TooManyRequests(reason) = self.kind {
            body["Reason"] = reason.into();
        }
        let mut response = Response::new(Full::from(body.to_string()));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, super::JSON);
        headers.insert("x-amzn-errortype", header::HeaderValue::from_static(name));
        if let Kind::TooManyRequests(_) = self.kind {
            headers.insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
        }
        response
    }

    /// An invocation that did not run. `arn` is the function's, qualified as a missing function is reported.
    pub fn refused(refusal: Refusal, arn: &str) -> Self {
        match refusal {
            Refusal::UnknownFunction(_) => Self::no_function(arn),
            Refusal::Throttled(Throttle::Reserved) => {
                Kind::TooManyRequests("ReservedFunctionConcurrentInvocationLimitExceeded").with("Rate Exceeded.")
            }
            // To Lambda's callers there is one pool only; the log says what it was that ran short.
            Refusal::Throttled(_) => Kind::TooManyRequests("ConcurrentInvocationLimitExceeded").with("Rate Exceeded."),
            Refusal::Internal(why) => Kind::Service.with(why),
            Refusal::Stopping => Kind::Service.with("kilnd is stopping, try again"),
        }
    }

    pub fn no_function(arn: &str) -> Self {
        Kind::ResourceNotFound.with(format!("Function not found: {arn}"))
    }

    /// What the registry refused about the function `arn`.
    pub fn registry(error: RegistryError, arn: &str) -> Self {
        match error {
            RegistryError::Exists(name) => Self::exists(name.as_str()),
            RegistryError::Unknown(_) => Self::no_function(arn),
            RegistryError::Stale(_) => Kind::PreconditionFailed.with(
                "The Revision Id provided does not match the latest Revision Id. Call the GetFunction/GetAlias API to \
                 retrieve the latest Revision Id",
            ),
            RegistryError::NoLayer { name, version } => {
                Kind::InvalidParameterValue.with(format!("Layer version {name}:{version} does not exist."))
            }
            RegistryError::TooMuchReserved { .. } => Kind::InvalidParameterValue.with(error.to_string()),
            RegistryError::Database(error) if error.is_full() => {
                Kind::Service.with("the disk of the state directory is full: nothing was stored")
            }
            RegistryError::Database(_) | RegistryError::Damaged { .. } => {
                Kind::Service.with("the registry could not be written: kilnd's log says why")
            }
        }
    }

    pub fn exists(name: &str) -> Self {
        Kind::ResourceConflict.with(format!("Function already exist: {name}"))
    }
}
