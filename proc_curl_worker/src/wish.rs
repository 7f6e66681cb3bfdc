//! A request as it came, from whichever side, and what of it the engine itself has to know.

use crate::guard::Guard;
use crate::handler::{Manner, Transferring};
use crate::head::Expecting;
use crate::outcome::Fault;
use crate::retry::Retries;
use crate::upload::Upload;
use capnp::message::{HeapAllocator, TypedBuilder};
use proc_curl::AddressPolicy;
use proc_curl::proc_curl_capnp::{curl, request, schemes};
use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};
use strait::{Received, ReceivedBlob};

/// A request as it came.
pub(crate) enum Wish {
    /// From a session.
    Received(Received<curl::Owned>),
    /// Made here, of what came as text.
    Made(Box<TypedBuilder<curl::Owned, HeapAllocator>>),
}

/// What the engine has to know before it begins.
#[derive(Debug, Default)]
pub(crate) struct Terms {
    pub(crate) total: Option<Duration>,
    pub(crate) first_byte: Option<Duration>,
    pub(crate) idle: Option<Duration>,
    pub(crate) retries: Retries,
    pub(crate) jar: u32,
}

impl Wish {
    /// The request.
    pub(crate) fn read<R>(&self, with: impl FnOnce(request::Reader<'_>) -> Result<R, Fault>) -> Result<R, Fault> {
        let garbled = |error: capnp::Error| Fault::bad(format!("the request cannot be read: {error}"));
        let of = |root: curl::Reader<'_>| match root.which() {
            Ok(curl::Request(request)) => with(request.map_err(garbled)?),
            _ => Err(Fault::bad("no request")),
        };
        match self {
            Self::Received(message) => of(message.get().map_err(garbled)?),
            Self::Made(message) => of(message.get_root_as_reader().map_err(garbled)?),
        }
    }

    pub(crate) fn blobs(&self) -> &[ReceivedBlob] {
        match self {
            Self::Received(message) => message.blobs(),
            Self::Made(_) => &[],
        }
    }

    pub(crate) fn received(&self) -> Option<&Received<curl::Owned>> {
        match self {
            Self::Received(message) => Some(message),
            Self::Made(_) => None,
        }
    }

    pub(crate) fn terms(&self) -> Result<Terms, Fault> {
        self.read(|request| {
            let timeouts = request.get_timeouts().map_err(Fault::from)?;
            let retry = request.get_retry().map_err(Fault::from)?;
            let limit = |millis: u64| (millis > 0).then(|| Duration::from_millis(millis));
            Ok(Terms {
                total: limit(timeouts.get_total()),
                first_byte: limit(timeouts.get_first_byte()),
                idle: limit(timeouts.get_idle()),
                retries: Retries {
                    times: retry.get_times(),
                    backoff: Duration::from_millis(retry.get_backoff().into()),
                    backoff_max: Duration::from_millis(retry.get_backoff_max().into()),
                    ignore_retry_after: retry.get_ignore_retry_after(),
                    within: limit(retry.get_within()),
                    done: 0,
                },
                jar: request.get_jar(),
            })
        })
    }

    /// Its body.
    pub(crate) fn upload(&self) -> Result<Upload, Fault> {
        self.read(|request| {
            Ok(match request.get_body().which().map_err(|_| Fault::bad("an unknown kind of body"))? {
                request::body::None(()) => Upload::inline(Vec::new()),
                request::body::Inline(bytes) => Upload::inline(bytes.map_err(Fault::from)?.to_vec()),
                request::body::Blobs(()) => Upload::blobs(self.blobs()),
                request::body::Stream(len) => Upload::stream(u64::try_from(len).ok()),
            })
        })
    }

    /// Its address policy.
    pub(crate) fn guard(&self, news: Rc<Cell<bool>>) -> Result<Guard, Fault> {
        self.read(|request| {
            let policy = request.get_policy().map_err(Fault::from)?;
            let networks = |list: capnp::text_list::Reader<'_>| {
                let parse = |text: capnp::Result<capnp::text::Reader<'_>>| {
                    text.map_err(Fault::from)?
                        .to_str()
                        .unwrap_or_default()
                        .parse()
                        .map_err(|bad| Fault::bad(format!("{bad}")))
                };
                list.iter().map(parse).collect::<Result<Vec<_>, Fault>>()
            };
            let policy = AddressPolicy {
                allow: networks(policy.get_allow().map_err(Fault::from)?)?,
                deny: networks(policy.get_deny().map_err(Fault::from)?)?,
            };
            let proxy = request.get_proxy().map_err(Fault::from)?;
            if !policy.is_empty() && (!proxy.get_url().map_err(Fault::from)?.is_empty() || request.has_unix_socket()) {
                return Err(Fault::bad("an address policy sees no addresses behind a proxy or a Unix socket"));
            }
            Ok(Guard::new(policy, news))
        })
    }

    pub(crate) fn manner(&self, terms: &Terms, began: Instant) -> Result<Manner, Fault> {
        self.read(|request| {
            let proxy = request.get_proxy().map_err(Fault::from)?;
            let auth = request.get_auth().map_err(Fault::from)?;
            let proxied = !proxy.get_url().map_err(Fault::from)?.is_empty();
            let asks =
                |schemes: schemes::Reader<'_>| schemes.get_digest() || schemes.get_negotiate() || schemes.get_ntlm();
            let asked = (auth.get_present() && asks(auth.get_schemes().map_err(Fault::from)?))
                || (proxied && asks(proxy.get_auth().map_err(Fault::from)?));
            let url = request.get_url().map_err(Fault::from)?;
            let https = url.as_bytes().get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"https:"));
            let by_connect = proxy.get_url().map_err(Fault::from)?.as_bytes().get(..4) != Some(b"sock");
            let every = request.get_progress();
            Ok(Manner {
                expecting: Expecting {
                    redirects: request.get_redirects().map_err(Fault::from)?.get_max() > 0,
                    auth: asked,
                    retries: terms.retries.done < terms.retries.times,
                    tunnel: proxied && by_connect && (https || proxy.get_tunnel()),
                },
                window: request.get_window().into(),
                receive_speed: request.get_receive_speed(),
                body_max: request.get_body_max(),
                progress_every: (every > 0).then(|| Duration::from_millis(every.into())),
                retries: terms.retries.clone(),
                began,
            })
        })
    }
}

impl From<capnp::Error> for Fault {
    fn from(error: capnp::Error) -> Self {
        Self::bad(format!("the request cannot be read: {error}"))
    }
}

impl From<capnp::NotInSchema> for Fault {
    fn from(unknown: capnp::NotInSchema) -> Self {
        Self::bad(format!("the request has what a later version knows: {unknown}"))
    }
}

/// What `setup` sets libcurl's handle up with.
pub(crate) type Handle = ::curl::easy::Easy2<Transferring>;
