//! What is to be told, as a message.

use crate::handler::{Out, Progress};
use crate::head::{Head, Kind, Version};
use crate::outcome::{Fault, Info, Outcome, Stage, Why};
use ::curl::easy::InfoType;
use proc_curl::proc_curl_capnp::{self as schema, curl};
use strait::{Builder, FreezeError, Message};

/// One thing.
pub(crate) fn message(mut message: Builder<curl::Owned>, out: &Out) -> Result<Message<curl::Owned>, FreezeError> {
    let root = message.init_root();
    match out {
        Out::Head(head) => write_head(head, root.init_head()),
        Out::Body(at, blob) => {
            root.init_body().set_offset(*at);
            message.attach_blob(blob.clone());
        }
        Out::Progress(progress) => write_progress(progress, root.init_progress()),
        Out::Room(bytes) => {
            let mut root = root;
            root.set_room(*bytes)
        }
        Out::Trace(kind, text) => {
            let mut trace = root.init_trace();
            trace.set_kind(match kind {
                InfoType::HeaderIn => schema::trace::Kind::HeadIn,
                InfoType::HeaderOut => schema::trace::Kind::HeadOut,
                _ => schema::trace::Kind::Text,
            });
            trace.set_text(text);
        }
        Out::End(end) => match &end.fault {
            None => write_done(end, root.init_done()),
            Some(fault) => write_failed(fault, &end.info, root.init_failed()),
        },
    }
    message.freeze()
}

/// An answer in one piece.
pub(crate) fn whole(mut message: Builder<curl::Owned>, all: &[Out]) -> Result<Message<curl::Owned>, FreezeError> {
    let mut whole = message.init_root().init_whole();
    let heads = || all.iter().filter_map(|out| if let Out::Head(head) = out { Some(head) } else { None });
    let mut list = whole.reborrow().init_heads(heads().count() as u32);
    for (index, head) in (0..).zip(heads()) {
        write_head(head, list.reborrow().get(index));
    }
    for out in all {
        if let Out::End(end) = out {
            write_done(end, whole.reborrow().init_done());
        }
    }
    for out in all {
        if let Out::Body(_, blob) = out {
            message.attach_blob(blob.clone());
        }
    }
    message.freeze()
}

fn version(version: Version) -> schema::HttpVersion {
    match version {
        Version::Unknown => schema::HttpVersion::Any,
        Version::Http09 => schema::HttpVersion::Http09,
        Version::Http10 => schema::HttpVersion::Http10,
        Version::Http11 => schema::HttpVersion::Http11,
        Version::Http2 => schema::HttpVersion::Http2,
        Version::Http3 => schema::HttpVersion::Http3,
    }
}

fn write_head(head: &Head, mut to: schema::head::Builder<'_>) {
    to.set_status(head.status);
    to.set_version(version(head.version));
    to.set_reason(head.reason());
    to.set_kind(match head.kind {
        Kind::Final => schema::head::Kind::Final,
        Kind::Informational => schema::head::Kind::Informational,
        Kind::Passing => schema::head::Kind::Passing,
        Kind::Connect => schema::head::Kind::Connect,
    });
    let length = head.get("content-length").and_then(|text| text.trim().parse().ok());
    to.set_content_length(length.unwrap_or(-1));
    let fields = head.fields();
    let mut list = to.init_fields(fields.len() as u32);
    for (index, (name, value)) in (0..).zip(fields) {
        let mut field = list.reborrow().get(index);
        field.set_name(name);
        field.set_value(value);
    }
}

fn write_progress(progress: &Progress, mut to: schema::progress::Builder<'_>) {
    let known = |bytes: Option<u64>| bytes.and_then(|bytes| i64::try_from(bytes).ok()).unwrap_or(-1);
    to.set_received(progress.received);
    to.set_to_receive(known(progress.to_receive));
    to.set_sent(progress.sent);
    to.set_to_send(known(progress.to_send));
}

fn write_done(end: &Outcome, mut to: schema::done::Builder<'_>) {
    write_info(&end.info, to.reborrow().init_info());
    if end.trailers.is_empty() {
        return;
    }
    let mut list = to.init_trailers(end.trailers.len() as u32);
    for (index, (name, value)) in (0..).zip(&end.trailers) {
        let mut field = list.reborrow().get(index);
        field.set_name(name);
        field.set_value(value);
    }
}

fn write_info(info: &Info, mut to: schema::info::Builder<'_>) {
    to.set_version(version(info.version));
    to.set_url(&info.url);
    to.set_status(info.status);
    to.set_remote_address(&info.remote.0);
    to.set_remote_port(info.remote.1);
    to.set_local_address(&info.local.0);
    to.set_local_port(info.local.1);
    to.set_redirects(info.redirects);
    to.set_redirect_url(&info.redirect_url);
    to.set_connections(info.connections);
    to.set_retries(info.retries);
    to.set_name_lookup(info.name_lookup);
    to.set_connect(info.connect);
    to.set_tls_done(info.tls_done);
    to.set_pre_transfer(info.pre_transfer);
    to.set_start_transfer(info.start_transfer);
    to.set_redirecting(info.redirecting);
    to.set_total(info.total);
    to.set_head_size(info.head_size);
    to.set_request_size(info.request_size);
    to.set_received(info.received);
    to.set_sent(info.sent);
    to.set_delivered(info.delivered);
    to.set_content_type(&info.content_type);
    to.set_condition_unmet(info.condition_unmet);
    to.set_connect_status(info.connect_status);
}

fn write_failed(fault: &Fault, info: &Info, mut to: schema::failed::Builder<'_>) {
    use schema::failed::Why as Says;
    to.set_code(fault.code);
    to.set_name(fault.name);
    to.set_stage(match fault.stage {
        Stage::Prepare => schema::Stage::Prepare,
        Stage::Queue => schema::Stage::Queue,
        Stage::Resolve => schema::Stage::Resolve,
        Stage::Connect => schema::Stage::Connect,
        Stage::Tls => schema::Stage::Tls,
        Stage::Send => schema::Stage::Send,
        Stage::Answer => schema::Stage::Answer,
        Stage::Head => schema::Stage::Head,
        Stage::Body => schema::Stage::Body,
    });
    to.set_os_error(fault.os_error);
    to.set_text(&fault.text);
    to.set_why(match fault.why {
        Why::Code => Says::Code,
        Why::PolicyDenied => Says::PolicyDenied,
        Why::ProtocolDenied => Says::ProtocolDenied,
        Why::BadRequest => Says::BadRequest,
        Why::Unsupported => Says::Unsupported,
        Why::Overloaded => Says::Overloaded,
        Why::FirstByteTimeout => Says::FirstByteTimeout,
        Why::IdleTimeout => Says::IdleTimeout,
        Why::BodyTooLarge => Says::BodyTooLarge,
        Why::BodyBroken => Says::BodyBroken,
        Why::WorkerFault => Says::WorkerFault,
    });
    write_info(info, to.init_info());
}
