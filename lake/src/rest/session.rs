//! Requests of the Iceberg REST protocol: where they go, whose they say they are, and what an answer means.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use dosql_actors::{CatalogAccess, CatalogSettings, Context, HttpMethod, HttpRequest};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value as Json;

use crate::LakeError;

/// How long a catalog may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// The most bytes of a table's metadata.
const MOST_ANSWER_BYTES: usize = 32 << 20;
/// A token is renewed this long before it expires, in milliseconds.
const RENEW_BEFORE_MS: u64 = 60_000;
/// How long a token is used that does not say when it expires, in milliseconds.
const TOKEN_LIFE_MS: u64 = 3_600_000;
/// What an error message repeats of an answer that is not the protocol's.
const QUOTED_BYTES: usize = 200;

const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A part of a path or query.
pub(super) fn escaped(text: &str) -> String {
    utf8_percent_encode(text, ESCAPED).to_string()
}

/// What is known of a catalog by having asked it.
pub(super) struct Session {
    context: Context,
    pub(super) settings: CatalogSettings,
    /// What the paths of requests follow, once the catalog was asked.
    base: RefCell<Option<Rc<str>>>,
    token: RefCell<Option<Token>>,
}

/// What credentials were exchanged for.
struct Token {
    text: String,
    renew_ms: u64,
}

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    defaults: HashMap<String, Json>,
    #[serde(default)]
    overrides: HashMap<String, Json>,
}

#[derive(Deserialize)]
struct TokenAnswer {
    access_token: String,
    /// In seconds.
    #[serde(default)]
    expires_in: Option<u64>,
}

#[derive(Deserialize)]
struct Problem {
    error: ProblemText,
}

#[derive(Deserialize)]
struct ProblemText {
    #[serde(default)]
    message: String,
    #[serde(default, rename = "type")]
    kind: String,
}

/// What was answered.
pub(super) struct Answer {
    url: String,
    pub(super) status: u16,
    body: Bytes,
}

impl Session {
    pub(super) fn new(context: &Context, settings: &CatalogSettings) -> Self {
        let (base, token) = (RefCell::default(), RefCell::default());
        Self { context: context.clone(), settings: settings.clone(), base, token }
    }

    /// Makes a request of the catalog.
    pub(super) async fn call(&self, method: HttpMethod, path: &str, body: Option<&Json>) -> Result<Answer, LakeError> {
        let base = self.base().await?;
        let body = body.map_or(Bytes::new(), |body| body.to_string().into());
        self.authorised(method, format!("{base}/{path}"), body).await
    }

    async fn base(&self) -> Result<Rc<str>, LakeError> {
        if let Some(base) = &*self.base.borrow() {
            return Ok(Rc::clone(base));
        }
        let mut url = format!("{}/v1/config", self.settings.uri);
        if let Some(warehouse) = &self.settings.warehouse {
            url = format!("{url}?warehouse={}", escaped(warehouse));
        }
        let config: Config = self.authorised(HttpMethod::Get, url, Bytes::new()).await?.read()?;
        let text = |value: &Json| value.as_str().map(|text| text.trim_matches('/').to_owned());
        let uri = config.overrides.get("uri").and_then(text).unwrap_or_else(|| self.settings.uri.clone());
        let prefix = config.overrides.get("prefix").or_else(|| config.defaults.get("prefix")).and_then(text);
        let base: Rc<str> = match prefix.filter(|prefix| !prefix.is_empty()) {
            Some(prefix) => format!("{uri}/v1/{prefix}").into(),
            None => format!("{uri}/v1").into(),
        };
        *self.base.borrow_mut() = Some(Rc::clone(&base));
        Ok(base)
    }

    async fn authorised(&self, method: HttpMethod, url: String, body: Bytes) -> Result<Answer, LakeError> {
        let token = self.bearer().await?;
        let answer = self.send(method, &url, token, "application/json", body.clone()).await?;
        if !matches!(answer.status, 401 | 419) || self.token.take().is_none() {
            return Ok(answer);
        }
        // The token may have been withdrawn.
        let token = self.bearer().await?;
        self.send(method, &url, token, "application/json", body).await
    }

    async fn bearer(&self) -> Result<Option<String>, LakeError> {
        let (client_id, client_secret, token_uri, scope) = match &self.settings.access {
            CatalogAccess::Anyone => return Ok(None),
            CatalogAccess::Token(token) => return Ok(Some(token.clone())),
            CatalogAccess::Credentials { client_id, client_secret, token_uri, scope } => {
                (client_id, client_secret, token_uri, scope)
            }
        };
        let now_ms = self.context.now_ms();
        if let Some(token) = self.token.borrow().as_ref().filter(|token| now_ms < token.renew_ms) {
            return Ok(Some(token.text.clone()));
        }
        let url = token_uri.clone().unwrap_or_else(|| format!("{}/v1/oauth/tokens", self.settings.uri));
        let form = format!(
            "grant_type=client_credentials&client_id={}&client_secret={}&scope={}",
            escaped(client_id),
            escaped(client_secret),
            escaped(scope)
        );
        let answer = self.send(HttpMethod::Post, &url, None, "application/x-www-form-urlencoded", form.into()).await?;
        let TokenAnswer { access_token, expires_in } = answer.read()?;
        let life_ms = expires_in.map_or(TOKEN_LIFE_MS, |seconds| seconds.saturating_mul(1000));
        // One that lives shorter than that serves this request.
        let renew_ms = now_ms.saturating_add(life_ms.saturating_sub(RENEW_BEFORE_MS));
        *self.token.borrow_mut() = Some(Token { text: access_token.clone(), renew_ms });
        Ok(Some(access_token))
    }

    async fn send(
        &self,
        method: HttpMethod,
        url: &str,
        token: Option<String>,
        content_type: &str,
        body: Bytes,
    ) -> Result<Answer, LakeError> {
        let mut headers = vec![("accept", "application/json".to_owned())];
        if !body.is_empty() {
            headers.push(("content-type", content_type.to_owned()));
        }
        if let Some(token) = token {
            headers.push(("authorization", format!("Bearer {token}")));
        }
        let request = HttpRequest { method, url: url.to_owned(), headers, body, most_bytes: MOST_ANSWER_BYTES };
        let answer = self.context.exchange(request, PATIENCE).await?;
        Ok(Answer { url: url.to_owned(), status: answer.status, body: answer.body })
    }
}

impl Answer {
    fn problem(&self) -> Option<ProblemText> {
        serde_json::from_slice(&self.body).map(|Problem { error }| error).ok()
    }

    /// Whether the catalog itself says that what was asked for does not exist: any server may not know a path.
    pub(super) fn says_missing(&self) -> bool {
        self.status == 404 && self.problem().is_some()
    }

    /// The answer, where it is that all went well.
    pub(super) fn accepted(self) -> Result<Self, LakeError> {
        if (200..300).contains(&self.status) {
            return Ok(self);
        }
        let reason = match self.problem() {
            Some(ProblemText { message, kind }) => format!("{kind}: {message}"),
            None => String::from_utf8_lossy(&self.body[..self.body.len().min(QUOTED_BYTES)]).into_owned(),
        };
        let Self { url, status, .. } = self;
        Err(match status {
            408 | 429 | 500.. => LakeError::CatalogFailed { url, status, reason },
            _ => LakeError::CatalogRefused { url, status, reason },
        })
    }

    /// What the answer says, where it is that all went well.
    pub(super) fn read<T: DeserializeOwned>(self) -> Result<T, LakeError> {
        let Self { url, body, .. } = self.accepted()?;
        serde_json::from_slice(&body).map_err(|error| LakeError::Malformed { path: url, reason: error.to_string() })
    }
}
