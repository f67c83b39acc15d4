//! What is answered.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::{Response, StatusCode};

/// An answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// 200, 503, ...
    pub status: u16,
    /// Headers but for the length and the date.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// What is said.
    pub body: Bytes,
}

impl Answer {
    /// Text in a form of one's own.
    pub fn new(status: u16, content_type: &'static str, body: impl Into<Bytes>) -> Self {
        let headers =
            vec![(CONTENT_TYPE, HeaderValue::from_static(content_type)), (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"))];
        Self { status, headers, body: body.into() }
    }

    /// Text for people.
    pub fn plain(status: u16, body: impl Into<Bytes>) -> Self {
        Self::new(status, "text/plain; charset=utf-8", body)
    }

    /// JSON.
    pub fn json(status: u16, body: impl Into<Bytes>) -> Self {
        Self::new(status, "application/json", body)
    }

    /// There is nothing at this path.
    pub fn nothing_there() -> Self {
        Self::plain(404, "404 page not found\n")
    }

    /// The same with one more header.
    pub fn with(mut self, name: &'static str, value: impl Into<HeaderValue>) -> Self {
        self.headers.push((HeaderName::from_static(name), value.into()));
        self
    }
}

impl From<Answer> for Response<Full<Bytes>> {
    fn from(Answer { status, headers, body }: Answer) -> Self {
        let mut response = Response::new(Full::new(body));
        *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        response.headers_mut().extend(headers);
        response
    }
}
