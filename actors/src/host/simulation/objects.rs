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
struct Object {
    bytes: Bytes,
    modified_ms: u64,
    /// When it came into being; what it is replaced by goes by the same name.
    created_ms: u64,
}

/// Everything in object storage, and what a listing may still show.
#[derive(Default)]
pub(super) struct Objects {
    present: RefCell<BTreeMap<String, Object>>,
    /// Objects that were deleted, and when.
    gone: RefCell<BTreeMap<String, (ObjectMeta, u64)>>,
}

impl Objects {
    /// Paths and bytes.
    pub(super) fn all(&self) -> Vec<(String, Bytes)> {
        self.present.borrow().iter().map(|(path, object)| (path.clone(), object.bytes.clone())).collect()
    }

    pub(super) fn put(&self, path: String, bytes: Bytes, now_ms: u64) {
        let mut present = self.present.borrow_mut();
        let created_ms = present.get(&path).map_or(now_ms, |object| object.created_ms);
        present.insert(path, Object { bytes, modified_ms: now_ms, created_ms });
    }

    fn delete(&self, path: &str, now_ms: u64) {
        if let Some(object) = self.present.borrow_mut().remove(path) {
            self.gone.borrow_mut().insert(path.to_owned(), (meta(path, &object), now_ms));
        }
    }

    /// The objects whose paths begin so; of what has changed of late each may be shown as it was before.
    fn list(&self, prefix: &str, core: &Core) -> Vec<ObjectMeta> {
        let lag_ms = u64::try_from(core.config.listing_lag.as_millis()).unwrap_or(u64::MAX);
        let since_ms = core.executor.now_ms().saturating_sub(lag_ms);
        let stale = |changed_ms: u64| lag_ms > 0 && changed_ms >= since_ms && core.fault(0.5, |_| {});
        let mut listed = BTreeMap::new();
        let mut is_stale = false;
        for (path, object) in self.present.borrow().range(prefix.to_owned()..) {
            if !path.starts_with(prefix) {
                break;
            }
            if stale(object.created_ms) {
                is_stale = true;
            } else {
                listed.insert(path.clone(), meta(path, object));
            }
        }
        let mut gone = self.gone.borrow_mut();
        gone.retain(|_, (_, deleted_ms)| *deleted_ms >= since_ms);
        for (path, (meta, deleted_ms)) in gone.range(prefix.to_owned()..) {
            if path.starts_with(prefix) && !listed.contains_key(path) && stale(*deleted_ms) {
                is_stale = true;
                listed.insert(path.clone(), meta.clone());
            }
        }
        if is_stale {
            core.count(|counts| counts.stale_listings += 1);
        }
        listed.into_values().collect()
    }
}

fn meta(path: &str, object: &Object) -> ObjectMeta {
    ObjectMeta { path: path.to_owned(), size: object.bytes.len() as u64, modified_ms: object.modified_ms }
}

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
                let slow = core.fault(core.config.object_slowness, |counts| counts.slow_objects += 1);
                delay(&core, slow).await;
                let fails = core.fault(core.config.object_errors, |counts| counts.object_errors += 1);
                let outcome = if fails && core.random.chance(0.5) {
                    Err(failed)
                } else {
                    let done = work(&core);
                    delay(&core, slow).await;
                    if fails { Err(failed) } else { done }
                };
                // The asker may have died meanwhile.
                let _ = sender.send(outcome);
            }),
        );
        outcome.await.unwrap_or(Err(lost))
    }
}

async fn delay(core: &Core, slow: bool) {
    core.delay().await;
    if slow {
        core.executor.sleep(core.random.duration(core.config.longest_slowness)).await;
    }
}

#[async_trait(?Send)]
impl ObjectStore for SimulatedObjects {
    async fn get(&self, path: &str) -> Result<Option<Bytes>, ObjectError> {
        let name = path.to_owned();
        self.perform(path, move |core| Ok(core.objects.present.borrow().get(&name).map(|object| object.bytes.clone())))
            .await
    }

    async fn get_range(&self, path: &str, range: Range<u64>) -> Result<Option<Bytes>, ObjectError> {
        let name = path.to_owned();
        self.perform(path, move |core| {
            core.objects.present.borrow().get(&name).map(|object| range_of(&name, &object.bytes, range)).transpose()
        })
        .await
    }

    async fn put(&self, path: &str, bytes: Bytes) -> Result<(), ObjectError> {
        let name = path.to_owned();
        self.perform(path, move |core| {
            core.objects.put(name, bytes, core.executor.now_ms());
            Ok(())
        })
        .await
    }

    async fn create(&self, path: &str, bytes: Bytes) -> Result<(), ObjectError> {
        let name = path.to_owned();
        self.perform(path, move |core| {
            if core.objects.present.borrow().contains_key(&name) && !core.config.careless_creation {
                return Err(ObjectError::AlreadyExists { path: name });
            }
            core.objects.put(name, bytes, core.executor.now_ms());
            Ok(())
        })
        .await
    }

    async fn delete(&self, path: &str) -> Result<(), ObjectError> {
        let name = path.to_owned();
        self.perform(path, move |core| {
            core.objects.delete(&name, core.executor.now_ms());
            Ok(())
        })
        .await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, ObjectError> {
        let start = prefix.to_owned();
        self.perform(prefix, move |core| Ok(core.objects.list(&start, core))).await
    }

    fn url(&self, path: &str) -> String {
        format!("memory:///{path}")
    }
}
