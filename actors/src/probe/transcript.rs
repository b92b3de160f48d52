//! What object storage answers to one of everything, as text.

use std::fmt::Write;

use bytes::Bytes;
use dosql_proto::Error;

use crate::runtime::{ObjectError, ObjectStore};

/// Works through the store's operations on objects below `prefix` and returns what each answered, one a line. Leaves nothing.
pub(super) async fn write(store: &dyn ObjectStore, prefix: &str) -> Result<String, Error> {
    let one = format!("{prefix}/deep/er/one");
    let two = format!("{prefix}/two");
    for left_over in store.list(&format!("{prefix}/")).await? {
        store.delete(&left_over.path).await?;
    }
    let mut transcript = Transcript { prefix, text: String::new() };
    transcript.line("get one", &shown(store.get(&one).await?));
    store.put(&one, Bytes::from_static(b"1")).await?;
    transcript.line("put one, get one", &shown(store.get(&one).await?));
    store.put(&one, Bytes::from_static(b"first")).await?;
    transcript.line("put one again, get one", &shown(store.get(&one).await?));
    transcript.line("get 1 to 3 of one", &shown(store.get_range(&one, 1..3).await?));
    transcript.line("get 3 to 99 of one", &shown(store.get_range(&one, 3..99).await?));
    transcript.line("get 5 to 9 of one", &part(store.get_range(&one, 5..9).await));
    transcript.line("get nothing of one", &part(store.get_range(&one, 2..2).await));
    transcript.line("get 0 to 9 of two", &part(store.get_range(&two, 0..9).await));
    transcript.line("create two", &created(store.create(&two, Bytes::from_static(b"second")).await)?);
    transcript.line("create two again", &created(store.create(&two, Bytes::from_static(b"third")).await)?);
    transcript.line("get two", &shown(store.get(&two).await?));
    transcript.list("list", store, "/").await?;
    transcript.list("list half a name", store, "/tw").await?;
    transcript.list("list nothing", store, "/none/").await?;
    store.delete(&one).await?;
    store.delete(&one).await?;
    transcript.line("delete one twice, get one", &shown(store.get(&one).await?));
    transcript.list("list", store, "/").await?;
    store.delete(&two).await?;
    transcript.line("delete two, create two", &created(store.create(&two, Bytes::new()).await)?);
    transcript.list("list", store, "/").await?;
    let several = [(&one, "one of several"), (&two, "another of them")];
    let several = several.map(|(path, text)| (path.clone(), Bytes::from_static(text.as_bytes())));
    store.put_all(several.into()).await?;
    transcript.line("put one and two at once, get one", &shown(store.get(&one).await?));
    transcript.line("get two", &shown(store.get(&two).await?));
    store.put_all(Vec::new()).await?;
    transcript.list("put nothing at once, list", store, "/").await?;
    store.delete(&one).await?;
    store.delete(&two).await?;
    Ok(transcript.text)
}

struct Transcript<'a> {
    prefix: &'a str,
    text: String,
}

impl Transcript<'_> {
    fn line(&mut self, what: &str, answer: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "{what}: {answer}");
    }

    async fn list(&mut self, what: &str, store: &dyn ObjectStore, rest: &str) -> Result<(), Error> {
        let found = store.list(&format!("{}{rest}", self.prefix)).await?;
        let found: Vec<String> = found
            .iter()
            .map(|object| {
                let below = object.path.strip_prefix(self.prefix).unwrap_or(&object.path);
                let dated = if object.modified_ms > 0 { "" } else { " undated" };
                format!("{below} {}{dated}", object.size)
            })
            .collect();
        self.line(what, &found.join(", "));
        Ok(())
    }
}

fn shown(object: Option<Bytes>) -> String {
    object.map_or_else(|| "none".to_owned(), |bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// A read that fails where the range is not one of the object's.
fn part(outcome: Result<Option<Bytes>, ObjectError>) -> String {
    outcome.map_or_else(|_| "refused".to_owned(), shown)
}

fn created(outcome: Result<(), ObjectError>) -> Result<String, ObjectError> {
    match outcome {
        Ok(()) => Ok("created".to_owned()),
        Err(ObjectError::AlreadyExists { .. }) => Ok("exists already".to_owned()),
        Err(error) => Err(error),
    }
}
