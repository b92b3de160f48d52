//! Object storage in memory, shared by all actors.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_channel::oneshot;

use super::system::{Core, WORLD};
use crate::runtime::{ObjectError, ObjectMeta, ObjectStore, range_of};

/// An object.
#[derive(Clone)]
pub(super) struct Object {
    pub(super) bytes: Bytes,
    modified_ms: u64,
}

pub(super) type Objects = RefCell<BTreeMap<String, Object>>;

/// The store as an actor sees it. An operation goes on when the actor that asked for it dies, as a request on its way would.
pub(super) struct SimulatedObjects {
    pub(super) core: Rc<Core>,
}

impl SimulatedObjects {
    /// Does `work` some time from now, once, or fails before or after it.
    async fn perform<R: 'static>(
        &self,
        path: &str,
        work: impl FnOnce(&Core) -> Result<R, ObjectError> + 'static,
    ) -> Result<R, ObjectError> {
        let core = Rc::clone(&self.core);
        let failed = ObjectError::Failed { path: path.to_owned(), reason: "simulated failure".to_owned() };
        let lost = ObjectError::Failed { path: path.to_owned(), reason: "no answer".to_owned() };
        let (sender, outcome) = oneshot::channel();
        core.executor.trace.record("object", &[path.len() as u64]);
        self.core.executor.spawn(
            WORLD,
            Box::pin(async move {
                core.delay().await;
                let fails = core.fault(core.config.object_errors, |counts| counts.object_errors += 1);
                let outcome = if fails && core.random.chance(0.5) {
                    Err(failed)
                } else {
                    let done = work(&core);
                    core.delay().await;
                    if fails { Err(failed) } else { done }
                };
                // The asker may have died meanwhile.
                let _ = sender.send(outcome);
            }),
        );
        outcome.await.unwrap_or(Err(lost))
    }
}

#[async_trait(?Send)]
impl ObjectStore for SimulatedObjects {
    async fn get(&self, path: &str) -> Result<Option<Bytes>, ObjectError> {
        let name = path.to_owned();
        self.perform(path, move |core| Ok(core.objects.borrow().get(&name).map(|object| object.bytes.clone()))).await
    }

    async fn get_range(&self, path: &str, range: Range<u64>) -> Result<Option<Bytes>, ObjectError> {
        let name = path.to_owned();
        self.perform(path, move |core| {
            core.objects.borrow().get(&name).map(|object| range_of(&name, &object.bytes, range)).transpose()
        })
        .await
    }

    async fn put(&self, path: &str, bytes: Bytes) -> Result<(), ObjectError> {
        let name = path.to_owned();
        self.perform(path, move |core| {
            let object = Object { bytes, modified_ms: core.executor.now_ms() };
            core.objects.borrow_mut().insert(name, object);
            Ok(())
        })
        .await
    }

    async fn create(&self, path: &str, bytes: Bytes) -> Result<(), ObjectError> {
        let name = path.to_owned();
        self.perform(path, move |core| {
            let mut objects = core.objects.borrow_mut();
            if objects.contains_key(&name) {
                return Err(ObjectError::AlreadyExists { path: name });
            }
            objects.insert(name, Object { bytes, modified_ms: core.executor.now_ms() });
            Ok(())
        })
        .await
    }

    async fn delete(&self, path: &str) -> Result<(), ObjectError> {
        let name = path.to_owned();
        self.perform(path, move |core| {
            core.objects.borrow_mut().remove(&name);
            Ok(())
        })
        .await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, ObjectError> {
        let start = prefix.to_owned();
        self.perform(prefix, move |core| {
            let objects = core.objects.borrow();
            let found = objects.range(start.clone()..).take_while(|(path, _)| path.starts_with(&start));
            Ok(found
                .map(|(path, object)| ObjectMeta {
                    path: path.clone(),
                    size: object.bytes.len() as u64,
                    modified_ms: object.modified_ms,
                })
                .collect())
        })
        .await
    }

    fn url(&self, path: &str) -> String {
        format!("memory:///{path}")
    }
}
