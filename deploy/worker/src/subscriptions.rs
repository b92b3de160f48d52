//! `/cdc` and `/cdc/subscriptions`: the change stream and its durable subscriptions.

use dosql_proto::json::{acknowledgement_from_json, subscription_document, subscriptions_document};
use dosql_proto::{
    AcknowledgeChanges, Address, CdcProtocol, DropSubscriptionRequest, Error, ErrorCode, ListSubscriptionsRequest,
    Protocol as _, cdc_reply, cdc_request,
};
use worker::{Request, Response};

use crate::entry::{DEFAULT, Entry, body, json, platform};

/// The name in `/cdc/subscriptions/NAME`, and the rest of the path behind it.
pub(crate) fn named(path: &str) -> Option<(String, &str)> {
    let path = path.strip_prefix("/cdc/subscriptions/")?;
    let (name, rest) = path.split_once('/').unwrap_or((path, ""));
    let name = js_sys::decode_uri_component(name).ok()?;
    Some((name.into(), rest))
}

impl Entry {
    /// `GET /cdc`: the WebSocket is between the client and the change stream's object.
    pub(crate) async fn subscribe(&self, request: Request) -> Result<Response, Error> {
        let stub = self.reach.stub(&Address::new(CdcProtocol::KIND, DEFAULT)).map_err(platform)?;
        stub.fetch_with_request(request).await.map_err(|error| {
            let message = format!("the change stream could not be reached: {error}");
            Error::retryable(ErrorCode::Unavailable, message, 50)
        })
    }

    /// `GET /cdc/subscriptions`.
    pub(crate) async fn subscriptions(&self) -> Result<Response, Error> {
        let call = self.call(self.settings.query_timeout_ms)?;
        match self.cdc(cdc_request::Request::List(ListSubscriptionsRequest {}), &call).await? {
            cdc_reply::Reply::Subscriptions(list) => {
                json(subscriptions_document(&list.subscriptions).to_string().into())
            }
            _ => Err(Error::internal("the change stream answered something else than its subscriptions")),
        }
    }

    async fn note_subscription(&self, request: cdc_request::Request) -> Result<Response, Error> {
        let call = self.call(self.settings.query_timeout_ms)?;
        match self.cdc(request, &call).await? {
            cdc_reply::Reply::Subscription(noted) => {
                json(subscription_document(&noted.subscription.unwrap_or_default()).to_string().into())
            }
            _ => Err(Error::internal("the change stream answered something else than a subscription")),
        }
    }

    /// `DELETE /cdc/subscriptions/NAME`.
    pub(crate) async fn drop_subscription(&self, name: String) -> Result<Response, Error> {
        self.note_subscription(cdc_request::Request::Drop(DropSubscriptionRequest { name })).await
    }

    /// `POST /cdc/subscriptions/NAME/ack`.
    pub(crate) async fn acknowledge(&self, name: String, request: Request) -> Result<Response, Error> {
        let position = acknowledgement_from_json(&body(request).await?)?;
        self.note_subscription(cdc_request::Request::Acknowledge(AcknowledgeChanges { name, position })).await
    }
}
