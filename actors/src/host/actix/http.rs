//! HTTP requests of actors, by the client that object storage uses as well.

use std::error::Error as _;
use std::sync::OnceLock;
use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{Client, Method};

use crate::runtime::{HttpError, HttpMethod, HttpRequest, HttpResponse};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A node's connections to services outside. Made with the first request, since that reads the machine's certificates.
#[derive(Debug, Default)]
pub(super) struct Http {
    client: OnceLock<Client>,
}

impl Http {
    /// Makes a request; the future does not borrow the node.
    pub(super) fn exchange(
        &self,
        request: HttpRequest,
    ) -> impl Future<Output = Result<HttpResponse, HttpError>> + use<> {
        let client = self.client();
        async move {
            let url = request.url.clone();
            let failed = |error: reqwest::Error| HttpError::NoAnswer { url: url.clone(), reason: reason(&error) };
            let most_bytes = request.most_bytes;
            let method = match request.method {
                HttpMethod::Get => Method::GET,
                HttpMethod::Post => Method::POST,
            };
            let mut builder = client.map_err(failed)?.request(method, &request.url).body(request.body);
            for (name, value) in request.headers {
                builder = builder.header(name, value);
            }
            let mut response = builder.send().await.map_err(failed)?;
            let text = |value: &reqwest::header::HeaderValue| value.to_str().ok().map(str::to_owned);
            let headers = response.headers().iter();
            let headers = headers.filter_map(|(name, value)| Some((name.to_string(), text(value)?))).collect();
            let status = response.status().as_u16();
            let mut body = Vec::new();
            while let Some(chunk) = response.chunk().await.map_err(failed)? {
                if body.len() + chunk.len() > most_bytes {
                    return Err(HttpError::TooLong { url, most_bytes });
                }
                body.extend_from_slice(&chunk);
            }
            Ok(HttpResponse { status, headers, body: body.into() })
        }
    }

    fn client(&self) -> Result<Client, reqwest::Error> {
        if let Some(client) = self.client.get() {
            return Ok(client.clone());
        }
        let client = Client::builder().redirect(Policy::none()).connect_timeout(CONNECT_TIMEOUT).build()?;
        Ok(self.client.get_or_init(|| client).clone())
    }
}

/// What went wrong, and why: the crate's own message leaves out the cause.
fn reason(error: &reqwest::Error) -> String {
    let mut reason = String::new();
    let mut next: Option<&dyn std::error::Error> = error.source();
    while let Some(cause) = next {
        reason = format!("{reason}{}{cause}", if reason.is_empty() { "" } else { ": " });
        next = cause.source();
    }
    if reason.is_empty() { error.to_string() } else { reason }
}
