//! HTTP requests of actors, by the platform's `fetch`.

use bytes::Bytes;
use dosql_actors::{HttpError, HttpMethod, HttpRequest, HttpResponse};
use futures_util::TryStreamExt as _;
use js_sys::Uint8Array;
use worker::{
    AbortSignal, Fetch, Headers, Method, Request, RequestInit, RequestRedirect, Response, ResponseBody, web_sys,
};

/// Makes a request. It is given up when the future is dropped; it may have been handled by then.
///
/// # Errors
/// Where there is no answer, or one that is too long.
pub(crate) async fn exchange(request: HttpRequest) -> Result<HttpResponse, HttpError> {
    let HttpRequest { method, url, headers, body, most_bytes } = request;
    let failed = |error: worker::Error| HttpError::NoAnswer { url: url.clone(), reason: error.to_string() };
    let request = request_of(method, &url, &headers, &body).map_err(failed)?;
    let patience = UntilDropped(web_sys::AbortController::new().map_err(|error| failed(error.into()))?);
    let signal = AbortSignal::from(patience.0.signal());
    let mut response = Fetch::Request(request).send_with_signal(&signal).await.map_err(failed)?;
    let status = response.status_code();
    let headers = response.headers().entries().collect();
    let body = body_of(&mut response, most_bytes).await.map_err(failed)?;
    let body = body.ok_or(HttpError::TooLong { url, most_bytes })?;
    Ok(HttpResponse { status, headers, body })
}

fn request_of(
    method: HttpMethod,
    url: &str,
    headers: &[(&'static str, String)],
    body: &Bytes,
) -> worker::Result<Request> {
    let named = Headers::new();
    for (name, value) in headers {
        named.set(name, value)?;
    }
    let mut init = RequestInit::new();
    init.with_headers(named).with_redirect(RequestRedirect::Manual).with_method(match method {
        HttpMethod::Get => Method::Get,
        HttpMethod::Post => Method::Post,
    });
    // The platform lets no GET have one.
    if !body.is_empty() {
        init.with_body(Some(Uint8Array::from(&body[..]).into()));
    }
    Request::new_with_init(url, &init)
}

/// The whole body; `None` where it is longer than that.
async fn body_of(response: &mut Response, most_bytes: usize) -> worker::Result<Option<Bytes>> {
    let mut body = Vec::new();
    if matches!(response.body(), ResponseBody::Empty) {
        return Ok(Some(body.into()));
    }
    let mut chunks = response.stream()?;
    while let Some(chunk) = chunks.try_next().await? {
        if body.len() + chunk.len() > most_bytes {
            return Ok(None);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Some(body.into()))
}

/// Ends a fetch when it is dropped; one that is over already does not mind.
struct UntilDropped(web_sys::AbortController);

impl Drop for UntilDropped {
    fn drop(&mut self) {
        self.0.abort();
    }
}
