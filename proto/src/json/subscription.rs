//! What a subscriber to the change stream says: parameters of the request, messages while it is open.

use serde::Deserialize;

use crate::v1::subscriber_message::Message;
use crate::v1::{Credit, DurableSubscription, Error, FrameFormat, Operation, SubscribeRequest};

/// What the parameters of a stream come to.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct StreamParameters {
    /// What to receive.
    pub subscription: SubscribeRequest,
    /// In which form.
    pub format: FrameFormat,
    /// What may be sent to begin with; `None` where the subscriber sets no limit.
    pub credit: Option<Credit>,
}

/// Reads the parameters of a stream's URL, decoded.
///
/// # Errors
/// `INVALID_REQUEST`, naming the parameter.
pub fn stream_parameters<N: AsRef<str>, V: AsRef<str>>(
    pairs: impl IntoIterator<Item = (N, V)>,
) -> Result<StreamParameters, Error> {
    let mut parameters = StreamParameters::default();
    let StreamParameters { subscription, format, credit } = &mut parameters;
    for (name, value) in pairs {
        let (name, value) = (name.as_ref(), value.as_ref());
        let bad = |expected: &str| Error::invalid(format!("{name}={value} is not {expected}"));
        let number = || value.parse::<u64>().map_err(|_| bad("a number"));
        match name {
            "tables" => subscription.tables = names(value),
            "shards" => subscription.shards = names(value),
            "columns" => subscription.columns = names(value),
            "operations" => {
                for operation in names(value) {
                    let operation = match operation.as_str() {
                        "insert" => Operation::Insert,
                        "update" => Operation::Update,
                        "delete" => Operation::Delete,
                        _ => return Err(bad("some of insert, update and delete")),
                    };
                    subscription.operations.push(operation.into());
                }
            }
            "filter" => value.clone_into(&mut subscription.filter),
            "from" => value.clone_into(&mut subscription.from),
            "name" => value.clone_into(&mut subscription.name),
            "snapshot" => subscription.snapshot = value.parse().map_err(|_| bad("true or false"))?,
            "heartbeat_ms" => subscription.heartbeat_ms = number()?,
            "credit_messages" => credit.get_or_insert_default().messages = number()?,
            "credit_bytes" => credit.get_or_insert_default().bytes = number()?,
            "format" => {
                *format = match value {
                    "json" => FrameFormat::Json,
                    "debezium" => FrameFormat::Debezium,
                    "protobuf" => FrameFormat::Protobuf,
                    _ => return Err(bad("json, debezium or protobuf")),
                };
            }
            _ => return Err(Error::invalid(format!("the change stream has no parameter {name}"))),
        }
    }
    Ok(parameters)
}

fn names(list: &str) -> Vec<String> {
    list.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Said {
    credit: Option<SaidCredit>,
    ack: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SaidCredit {
    #[serde(default)]
    messages: u64,
    #[serde(default)]
    bytes: u64,
}

/// What a subscriber's message says: `{"credit": {"messages": 10, "bytes": 100000}}`, `{"ack": "shard-0:17"}`, or both.
///
/// # Errors
/// `INVALID_REQUEST` for something that is no such message.
pub fn messages_from_json(text: &str) -> Result<Vec<Message>, Error> {
    let said: Said = serde_json::from_str(text).map_err(|error| {
        Error::invalid(format!("a subscriber says {{\"credit\": ...}} or {{\"ack\": ...}}: {error}"))
    })?;
    let credit = said.credit.map(|SaidCredit { messages, bytes }| Message::Credit(Credit { messages, bytes }));
    Ok(credit.into_iter().chain(said.ack.map(Message::Acknowledge)).collect())
}

/// The position in the body of an acknowledgement by itself: `{"ack": "shard-0:17"}`.
///
/// # Errors
/// `INVALID_REQUEST` for something else.
pub fn acknowledgement_from_json(body: &[u8]) -> Result<String, Error> {
    let text = std::str::from_utf8(body).map_err(|_| Error::invalid("the acknowledgement is not UTF-8"))?;
    match messages_from_json(text)?.pop() {
        Some(Message::Acknowledge(position)) => Ok(position),
        _ => Err(Error::invalid("an acknowledgement is {\"ack\": POSITION}")),
    }
}

/// The list of durable subscriptions as a JSON document.
#[must_use]
pub fn subscriptions_document(subscriptions: &[DurableSubscription]) -> serde_json::Value {
    serde_json::json!({"subscriptions": subscriptions.iter().map(subscription_document).collect::<Vec<_>>()})
}

/// A durable subscription as a JSON document.
#[must_use]
pub fn subscription_document(subscription: &DurableSubscription) -> serde_json::Value {
    let choices = subscription.choices.clone().unwrap_or_default();
    let operations: Vec<String> =
        choices.operations().map(|operation| operation.as_str_name().to_ascii_lowercase()).collect();
    serde_json::json!({
        "name": subscription.name,
        "position": subscription.position,
        "tables": choices.tables,
        "shards": choices.shards,
        "columns": choices.columns,
        "filter": choices.filter,
        "operations": operations,
        "created_ms": subscription.created_ms,
        "expires_ms": subscription.expires_ms,
        "behind": subscription.behind,
        "overrun": subscription.overrun,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_make_a_subscription() {
        let pairs = [
            ("tables", "a, b"),
            ("operations", "insert,delete"),
            ("filter", "x > 1"),
            ("snapshot", "true"),
            ("format", "debezium"),
            ("credit_messages", "5"),
        ];
        let parameters = stream_parameters(pairs).unwrap();
        assert_eq!(parameters.subscription.tables, ["a", "b"]);
        assert_eq!(parameters.subscription.operations, [1, 3]);
        assert!(parameters.subscription.snapshot);
        assert_eq!(
            (parameters.format, parameters.credit),
            (FrameFormat::Debezium, Some(Credit { messages: 5, bytes: 0 }))
        );
        for bad in
            [("operations", "read"), ("snapshot", "yes"), ("credit_bytes", "-1"), ("format", "xml"), ("table", "t")]
        {
            assert!(stream_parameters([bad]).unwrap_err().message.contains(bad.0), "{bad:?}");
        }
    }

    #[test]
    fn messages_are_read() {
        assert_eq!(
            messages_from_json(r#"{"credit":{"bytes":3},"ack":"a:1"}"#),
            Ok(vec![Message::Credit(Credit { messages: 0, bytes: 3 }), Message::Acknowledge("a:1".to_owned())])
        );
        assert!(messages_from_json("{\"credits\":1}").is_err());
    }
}
