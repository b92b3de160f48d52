//! Services outside the system, at the other end of lines that are slow and lose requests and answers.

use std::cell::RefCell;
use std::rc::Rc;

use bytes::Bytes;
use futures_channel::oneshot;
use futures_util::future::LocalBoxFuture;

use super::system::{Core, WORLD};
use crate::runtime::{HttpError, HttpRequest, HttpResponse};

/// What answers requests. It is done with each at once, as a service is that does one thing after the other.
pub(super) type Service = dyn Fn(&HttpRequest, &Outside<'_>) -> HttpResponse;

/// What a service may touch of the simulated world.
pub struct Outside<'w> {
    core: &'w Core,
}

impl Outside<'_> {
    /// Milliseconds since the Unix epoch.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.core.executor.now_ms()
    }

    /// Puts an object into object storage. No fault strikes.
    pub fn put(&self, path: &str, bytes: Bytes) {
        self.core.objects.put(path.to_owned(), bytes, self.now_ms());
    }
}

/// The services, by what their URLs begin with.
#[derive(Default)]
pub(super) struct Services {
    services: RefCell<Vec<(String, Rc<Service>)>>,
}

impl Services {
    pub(super) fn add(&self, url: &str, service: Rc<Service>) {
        self.services.borrow_mut().push((url.to_owned(), service));
    }

    fn find(&self, url: &str) -> Option<Rc<Service>> {
        let services = self.services.borrow();
        services.iter().find(|(start, _)| url.starts_with(start)).map(|(_, service)| Rc::clone(service))
    }
}

/// Sends a request off; the future waits for the answer. It goes on when the actor that asked dies, or waits no longer.
pub(super) fn exchange(
    core: &Rc<Core>,
    request: HttpRequest,
) -> LocalBoxFuture<'static, Result<HttpResponse, HttpError>> {
    let url = request.url.clone();
    let Some(service) = core.services.find(&url) else {
        return Box::pin(async move { Err(HttpError::NoAnswer { url, reason: "there is no such host".to_owned() }) });
    };
    core.executor.trace.record("exchange", &[url.len() as u64, request.body.len() as u64]);
    let (sender, outcome) = oneshot::channel();
    let carrier = Rc::clone(core);
    core.executor.spawn(
        WORLD,
        Box::pin(async move {
            // The asker may have died meanwhile.
            let _ = sender.send(carry(&carrier, &request, &*service).await);
        }),
    );
    Box::pin(async move { outcome.await.unwrap_or_else(|_| Err(lost(url))) })
}

async fn carry(core: &Core, request: &HttpRequest, service: &Service) -> Result<HttpResponse, HttpError> {
    let slow = core.fault(core.config.service_slowness, |counts| counts.slow_services += 1);
    delay(core, slow).await;
    let fails = core.fault(core.config.service_errors, |counts| counts.service_errors += 1);
    if fails && core.random.chance(0.5) {
        return Err(lost(request.url.clone()));
    }
    let response = service(request, &Outside { core });
    delay(core, slow).await;
    if fails {
        return Err(lost(request.url.clone()));
    }
    match response.body.len() > request.most_bytes {
        true => Err(HttpError::TooLong { url: request.url.clone(), most_bytes: request.most_bytes }),
        false => Ok(response),
    }
}

async fn delay(core: &Core, slow: bool) {
    core.delay().await;
    if slow {
        core.executor.sleep(core.random.duration(core.config.longest_service_slowness)).await;
    }
}

fn lost(url: String) -> HttpError {
    HttpError::NoAnswer { url, reason: "the connection was lost".to_owned() }
}
