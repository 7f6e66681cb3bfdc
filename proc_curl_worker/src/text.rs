//! Requests and answers as JSON-RPC 2.0: for shells and whatever else does not speak Cap'n Proto. Bodies are whole, as text
//! or in base64. Pure.

use crate::handler::Out;
use crate::head::{Head, Kind};
use crate::outcome::{Fault, Info, Stage, Why};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use capnp::message::{HeapAllocator, TypedBuilder};
use proc_curl::proc_curl_capnp::{self as schema, curl, request};
use serde_json::{Map, Value, json};

/// JSON-RPC's numbers.
pub(crate) const NO_JSON: i32 = -32_700;
pub(crate) const NO_REQUEST: i32 = -32_600;
pub(crate) const NO_METHOD: i32 = -32_601;
pub(crate) const BAD_PARAMETERS: i32 = -32_602;
/// One of this worker's own: a request that failed.
const FAILED: i32 = -32_000;

/// The largest body of an answer, which is held as a whole.
const BODY_MAX: u64 = 64 << 20;

/// A line.
#[derive(Debug, PartialEq)]
pub(crate) struct Call {
    /// `None` wants no answer.
    pub(crate) id: Option<Value>,
    pub(crate) method: String,
    pub(crate) params: Value,
}

/// Why a line is not one: to whom to say so, the number, the words.
#[derive(Debug, PartialEq)]
pub(crate) struct Bad {
    pub(crate) id: Value,
    pub(crate) code: i32,
    pub(crate) text: String,
}

pub(crate) fn parse(line: &str) -> Result<Call, Bad> {
    let bad = |id: Value, code, text: String| Bad { id, code, text };
    let all: Value = serde_json::from_str(line).map_err(|error| bad(Value::Null, NO_JSON, error.to_string()))?;
    let id = all.get("id").filter(|id| id.is_string() || id.is_number()).cloned();
    let no_request = |text: &str| bad(id.clone().unwrap_or_default(), NO_REQUEST, text.to_owned());
    if !all.is_object() {
        return Err(no_request("one object a line; batches are not taken"));
    }
    if all.get("jsonrpc").and_then(Value::as_str) != Some("2.0") {
        return Err(no_request("`jsonrpc` is not \"2.0\""));
    }
    let method = all.get("method").and_then(Value::as_str).ok_or_else(|| no_request("no `method`"))?.to_owned();
    let params = all.get("params").cloned().unwrap_or_else(|| json!({}));
    Ok(Call { id, method, params })
}

/// One line.
pub(crate) fn result(id: &Value, result: &Value) -> String {
    format!("{}\n", json!({ "jsonrpc": "2.0", "id": id, "result": result }))
}

/// One line.
pub(crate) fn error(id: &Value, code: i32, text: &str) -> String {
    format!("{}\n", json!({ "jsonrpc": "2.0", "id": id, "error": { "code": code, "message": text } }))
}

/// The parameters of a request as the message that a session would bring.
pub(crate) fn wish(params: &Value) -> Result<TypedBuilder<curl::Owned, HeapAllocator>, String> {
    let params = params.as_object().ok_or("`params` is no object")?;
    let mut message = TypedBuilder::<curl::Owned, _>::new_default();
    let mut to = message.init_root().init_request();
    to.set_method("GET");
    to.set_body_max(BODY_MAX);
    for (name, value) in params {
        set(&mut to, name, value).map_err(|why| format!("`{name}`: {why}"))?;
    }
    if !params.contains_key("url") {
        return Err("no `url`".into());
    }
    if params.contains_key("body") && !params.contains_key("method") {
        to.set_method("POST");
    }
    Ok(message)
}

fn text(value: &Value) -> Result<&str, String> {
    value.as_str().ok_or_else(|| "is to be text".into())
}

fn number<N: TryFrom<u64>>(value: &Value) -> Result<N, String> {
    value
        .as_u64()
        .and_then(|number| N::try_from(number).ok())
        .ok_or_else(|| "is to be a number, and not too large".into())
}

fn truth(value: &Value) -> Result<bool, String> {
    value.as_bool().ok_or_else(|| "is to be true or false".into())
}

fn texts(value: &Value) -> Result<Vec<&str>, String> {
    let list = value.as_array().ok_or("is to be a list of texts")?;
    list.iter().map(text).collect()
}

fn set(to: &mut request::Builder<'_>, name: &str, value: &Value) -> Result<(), String> {
    let list = |texts: &[&str], mut list: capnp::text_list::Builder<'_>| {
        (0..).zip(texts).for_each(|(index, text)| list.set(index, text));
    };
    match name {
        "method" => to.set_method(text(value)?),
        "url" => to.set_url(text(value)?),
        "headers" => set_headers(to, value)?,
        "body" => to.reborrow().get_body().set_inline(text(value)?.as_bytes()),
        "bodyBase64" => {
            let bytes = BASE64.decode(text(value)?).map_err(|error| error.to_string())?;
            to.reborrow().get_body().set_inline(&bytes);
        }
        "timeoutMs" => to.reborrow().get_timeouts().map_err(said)?.set_total(number(value)?),
        "connectTimeoutMs" => to.reborrow().get_timeouts().map_err(said)?.set_connect(number(value)?),
        "redirects" => to.reborrow().get_redirects().map_err(said)?.set_max(number(value)?),
        "insecure" => {
            let mut tls = to.reborrow().get_tls().map_err(said)?;
            tls.set_insecure_peer(truth(value)?);
            tls.set_insecure_host(truth(value)?);
        }
        "authorities" => to.reborrow().get_tls().map_err(said)?.set_authorities(text(value)?.as_bytes()),
        "proxy" => to.reborrow().get_proxy().map_err(said)?.set_url(text(value)?),
        "version" => to.set_version(match text(value)? {
            "1.0" => schema::HttpVersion::Http10,
            "1.1" => schema::HttpVersion::Http11,
            "2" => schema::HttpVersion::Http2,
            "2-prior-knowledge" => schema::HttpVersion::Http2PriorKnowledge,
            _ => return Err("is one of 1.0, 1.1, 2, 2-prior-knowledge".into()),
        }),
        "user" | "password" => {
            let mut auth = to.reborrow().get_auth().map_err(said)?;
            auth.set_present(true);
            if name == "user" { auth.set_user(text(value)?) } else { auth.set_password(text(value)?) }
        }
        "bearer" => {
            let mut auth = to.reborrow().get_auth().map_err(said)?;
            auth.set_present(true);
            auth.set_bearer(text(value)?);
        }
        "cookie" => to.set_cookie(text(value)?),
        "jar" => to.set_jar(number(value)?),
        "decompress" => to.set_decompress(truth(value)?),
        "range" => to.set_range(text(value)?),
        "unixSocket" => to.set_unix_socket(text(value)?),
        "resolve" => {
            let texts = texts(value)?;
            list(&texts, to.reborrow().init_resolve(texts.len() as u32));
        }
        "allow" | "deny" => {
            let (texts, policy) = (texts(value)?, to.reborrow().get_policy().map_err(said)?);
            let count = texts.len() as u32;
            list(&texts, if name == "allow" { policy.init_allow(count) } else { policy.init_deny(count) });
        }
        "bodyMax" => to.set_body_max(number::<u64>(value)?.clamp(1, BODY_MAX)),
        "retries" => to.reborrow().get_retry().map_err(said)?.set_times(number(value)?),
        _ => return Err("unknown".into()),
    }
    Ok(())
}

fn said(error: capnp::Error) -> String {
    error.to_string()
}

/// `{"Name": "value"}`, or `[["Name", "value"], ...]` where order or repetition counts; `null` sends nothing of that name.
fn set_headers<'v>(to: &mut request::Builder<'_>, value: &'v Value) -> Result<(), String> {
    let pairs: Vec<(&'v str, &'v Value)> = match value {
        Value::Object(named) => named.iter().map(|(name, value)| (name.as_str(), value)).collect(),
        Value::Array(list) => {
            let pair = |pair: &'v Value| match pair.as_array().map(Vec::as_slice) {
                Some([Value::String(name), value]) => Ok((name.as_str(), value)),
                _ => Err("is to be a list of pairs"),
            };
            list.iter().map(pair).collect::<Result<_, _>>()?
        }
        _ => return Err("is to be an object, or a list of pairs".into()),
    };
    let mut list = to.reborrow().init_headers(pairs.len() as u32);
    for (index, (name, value)) in (0..).zip(pairs) {
        let mut line = list.reborrow().get(index);
        line.set_name(name);
        match value {
            Value::Null => line.set_remove(true),
            value => line.set_value(text(value)?.as_bytes()),
        }
    }
    Ok(())
}

/// What came of a request so far.
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    heads: Vec<Value>,
    status: u16,
    headers: Value,
    body: Vec<u8>,
}

impl Gathered {
    /// Takes one thing in. `Some` is the last: the line to say.
    pub(crate) fn take(&mut self, id: &Value, out: &Out) -> Option<String> {
        match out {
            Out::Head(head) => {
                let headers = headers(head);
                if head.kind == Kind::Final {
                    (self.status, self.headers) = (head.status, headers);
                } else {
                    self.heads.push(json!({ "status": head.status, "headers": headers }));
                }
                None
            }
            Out::Body(_, blob) => {
                self.body.extend_from_slice(blob);
                None
            }
            Out::End(end) => Some(match &end.fault {
                None => result(id, &self.answer(&end.info)),
                Some(fault) => failed(id, fault, &end.info),
            }),
            Out::Progress(_) | Out::Room(_) | Out::Trace(..) => None,
        }
    }

    fn answer(&mut self, info: &Info) -> Value {
        let mut answer = Map::new();
        answer.insert("status".into(), self.status.into());
        answer.insert("headers".into(), self.headers.take());
        match String::from_utf8(std::mem::take(&mut self.body)) {
            Ok(text) => answer.insert("body".into(), text.into()),
            Err(bytes) => answer.insert("bodyBase64".into(), BASE64.encode(bytes.as_bytes()).into()),
        };
        if !self.heads.is_empty() {
            answer.insert("before".into(), std::mem::take(&mut self.heads).into());
        }
        answer.insert("info".into(), written(info));
        answer.into()
    }
}

fn headers(head: &Head) -> Value {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    head.fields().map(|(name, value)| json!([text(name), text(value)])).collect()
}

fn written(info: &Info) -> Value {
    json!({
        "url": info.url,
        "remote": info.remote.0,
        "redirects": info.redirects,
        "connections": info.connections,
        "retries": info.retries,
        "totalUs": info.total,
        "startTransferUs": info.start_transfer,
        "delivered": info.delivered,
    })
}

fn failed(id: &Value, fault: &Fault, info: &Info) -> String {
    let stage = match fault.stage {
        Stage::Prepare => "prepare",
        Stage::Queue => "queue",
        Stage::Resolve => "resolve",
        Stage::Connect => "connect",
        Stage::Tls => "tls",
        Stage::Send => "send",
        Stage::Answer => "answer",
        Stage::Head => "head",
        Stage::Body => "body",
    };
    let why = match fault.why {
        Why::Code => "code",
        Why::PolicyDenied => "policyDenied",
        Why::ProtocolDenied => "protocolDenied",
        Why::BadRequest => "badRequest",
        Why::Unsupported => "unsupported",
        Why::Overloaded => "overloaded",
        Why::FirstByteTimeout => "firstByteTimeout",
        Why::IdleTimeout => "idleTimeout",
        Why::BodyTooLarge => "bodyTooLarge",
        Why::BodyBroken => "bodyBroken",
        Why::WorkerFault => "workerFault",
    };
    let data = json!({
        "curl": fault.code,
        "name": fault.name,
        "stage": stage,
        "why": why,
        "osError": fault.os_error,
        "info": written(info),
    });
    let error = json!({ "code": FAILED, "message": fault.text, "data": data });
    format!("{}\n", json!({ "jsonrpc": "2.0", "id": id, "error": error }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_calls_or_say_why_not() {
        let call = parse(r#"{"jsonrpc":"2.0","id":7,"method":"request","params":{"url":"u"}}"#).expect("a call");
        assert_eq!((call.id, call.method.as_str()), (Some(json!(7)), "request"));
        assert_eq!(parse("{").map_err(|bad| bad.code), Err(NO_JSON));
        for bad in ["[]", "1", "{}", r#"{"jsonrpc":"2.0"}"#, r#"{"jsonrpc":"1.0","method":"x","id":3}"#] {
            assert_eq!(parse(bad).map_err(|bad| bad.code), Err(NO_REQUEST), "{bad}");
        }
    }

    #[test]
    fn parameters_become_a_request() {
        let params = json!({
            "url": "http://h/", "headers": [["A", "b"], ["A", null]], "bodyBase64": "AAE=", "redirects": 3,
            "deny": ["10.0.0.0/8"], "user": "u", "version": "2", "bodyMax": 10,
        });
        let message = wish(&params).expect("a request");
        let Ok(curl::Request(Ok(request))) = message.get_root_as_reader().expect("a root").which() else { panic!() };
        assert_eq!(request.get_body_max(), 10);
        assert_eq!(request.get_redirects().expect("redirects").get_max(), 3);
        assert!(request.get_headers().expect("headers").get(1).get_remove());
        for (bad, name) in [(json!({}), "url"), (json!({"url": 1}), "url"), (json!({"url": "u", "x": 1}), "x")] {
            assert!(wish(&bad).err().is_some_and(|why| why.contains(name)), "{bad}");
        }
    }
}
