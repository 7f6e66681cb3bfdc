//! Bodies of requests as the command line gives them: joined data, forms, files and standard input.

use crate::cli::{Datum, FormArg};
use crate::fault::{FAILED_INIT, Fault, READ_ERROR};
use proc_curl::{Form, Part, Source};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// Files up to this size are read into memory, so that they can be sent again after a redirect or a question for
/// credentials.
const SMALL: u64 = 4 << 20;

/// What -d and its like add up to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Data {
    pub(crate) bytes: Vec<u8>,
    pub(crate) is_json: bool,
}

/// Joins the pieces; `None` if there are none.
pub(crate) fn data(pieces: &[Datum]) -> Result<Option<Data>, Fault> {
    let mut data = Data::default();
    for (at, piece) in pieces.iter().enumerate() {
        let is_json = matches!(piece, Datum::Json(_));
        data.is_json |= is_json;
        // JSON texts follow each other as they are.
        if at > 0 && !is_json {
            data.bytes.push(b'&');
        }
        match piece {
            Datum::Ascii(text) => match text.strip_prefix('@') {
                Some(file) => data.bytes.extend(contents(file)?.into_iter().filter(|byte| !b"\r\n\0".contains(byte))),
                None => data.bytes.extend_from_slice(text.as_bytes()),
            },
            Datum::Binary(text) | Datum::Json(text) => match text.strip_prefix('@') {
                Some(file) => data.bytes.extend(contents(file)?),
                None => data.bytes.extend_from_slice(text.as_bytes()),
            },
            Datum::Raw(text) => data.bytes.extend_from_slice(text.as_bytes()),
            Datum::Urlencode(text) => data.bytes.extend_from_slice(urlencoded(text)?.as_bytes()),
        }
    }
    Ok((!pieces.is_empty()).then_some(data))
}

/// `content`, `=content`, `name=content`, `@file` or `name@file`, the content percent-encoded.
pub(crate) fn urlencoded(text: &str) -> Result<String, Fault> {
    let (name, content) = match text.find(['=', '@']) {
        None => ("", text.as_bytes().to_vec()),
        Some(at) if text[at..].starts_with('@') => (&text[..at], contents(&text[at + 1..])?),
        Some(at) => (&text[..at], text.as_bytes()[at + 1..].to_vec()),
    };
    // As forms have it.
    let encoded = percent_encoded(&content).replace("%20", "+");
    Ok(if name.is_empty() { encoded } else { format!("{name}={encoded}") })
}

pub(crate) fn percent_encoded(bytes: &[u8]) -> String {
    let mut out = String::new();
    for byte in bytes {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(*byte)),
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}

/// A whole file, or standard input for `-`.
pub(crate) fn contents(file: &str) -> Result<Vec<u8>, Fault> {
    let mut bytes = Vec::new();
    let read = match file {
        "-" => std::io::stdin().read_to_end(&mut bytes),
        _ => File::open(file).and_then(|mut file| file.read_to_end(&mut bytes)),
    };
    read.map_err(|why| Fault::file(READ_ERROR, file, why))?;
    Ok(bytes)
}

/// A file to send, from `offset` on; standard input for `-` and `.`.
pub(crate) fn file(name: &str, offset: u64) -> Result<Source, Fault> {
    let fault = |why| Fault::file(READ_ERROR, name, why);
    if matches!(name, "-" | ".") {
        return Ok(Source::reader(std::io::stdin(), None));
    }
    let mut file = File::open(name).map_err(fault)?;
    let metadata = file.metadata().map_err(fault)?;
    if !metadata.is_file() {
        // A pipe, or a device; a directory fails when it is read.
        return Ok(Source::reader(file, None));
    }
    let length = metadata.len().saturating_sub(offset);
    file.seek(SeekFrom::Start(offset)).map_err(fault)?;
    if length > SMALL {
        return Ok(Source::reader(file.take(length), Some(length)));
    }
    let mut bytes = Vec::new();
    file.take(length).read_to_end(&mut bytes).map_err(fault)?;
    Ok(Source::Bytes(bytes))
}

/// How large the file of an upload is, if it has a size.
pub(crate) fn file_size(name: &str) -> Option<u64> {
    std::fs::metadata(name).ok().filter(std::fs::Metadata::is_file).map(|metadata| metadata.len())
}

/// A form, made anew for each request: its files are opened each time.
pub(crate) fn form(parts: &[FormArg]) -> Result<Form, Fault> {
    let bad = |text: &str| Fault::new(FAILED_INIT, format!("illegally formatted form field: {text}"));
    let mut form = Form::new();
    for part in parts {
        let (text, verbatim) = match part {
            FormArg::Form(text) => (text, false),
            FormArg::Verbatim(text) => (text, true),
        };
        let (name, value) = text.split_once('=').ok_or_else(|| bad(text))?;
        form = form.part(match verbatim {
            true => Part::new(name, value),
            false => Field::parse(value).ok_or_else(|| bad(text))?.part(name)?,
        });
    }
    Ok(form)
}

/// The value of a -F, taken apart.
#[derive(Debug, Default, PartialEq, Eq)]
struct Field {
    content: String,
    kind: Option<String>,
    file_name: Option<String>,
    headers: Vec<String>,
}

impl Field {
    fn parse(text: &str) -> Option<Self> {
        let mut pieces = split(text)?.into_iter();
        let mut field = Self { content: pieces.next()?, ..Self::default() };
        for piece in pieces {
            match piece.trim_start().split_once('=') {
                Some(("type", value)) => field.kind = Some(value.to_owned()),
                Some(("filename", value)) => field.file_name = Some(value.to_owned()),
                Some(("headers", value)) => field.headers.push(value.to_owned()),
                // How curl treats types with parameters: `type=text/html;charset=utf-8`.
                _ => match field.kind.as_mut() {
                    Some(kind) => *kind = format!("{kind};{piece}"),
                    None => field.content = format!("{};{piece}", field.content),
                },
            }
        }
        Some(field)
    }

    fn part(self, name: &str) -> Result<Part, Fault> {
        let mut part = if let Some(path) = self.content.strip_prefix('@') {
            let own = Path::new(path).file_name().unwrap_or_default().to_string_lossy().into_owned();
            let kind = self.kind.unwrap_or_else(|| guessed_type(path).to_owned());
            Part::new(name, file(path, 0)?).file_name(self.file_name.unwrap_or(own)).content_type(kind)
        } else {
            let content = match self.content.strip_prefix('<') {
                Some(path) => file(path, 0)?,
                None => Source::from(self.content),
            };
            let mut part = Part::new(name, content);
            if let Some(own) = self.file_name {
                part = part.file_name(own);
            }
            if let Some(kind) = self.kind {
                part = part.content_type(kind);
            }
            part
        };
        for header in self.headers {
            part = part.header(header);
        }
        Ok(part)
    }
}

/// At semicolons outside quotes, which begin a piece's value; `\"` and `\\` are for the characters themselves. `None` if a
/// quote does not end.
fn split(text: &str) -> Option<Vec<String>> {
    let mut pieces = vec![String::new()];
    let mut chars = text.chars();
    let mut quoted = false;
    let mut begins = true;
    while let Some(char) = chars.next() {
        let piece = pieces.last_mut()?;
        match char {
            '"' if quoted => quoted = false,
            '"' if begins => quoted = true,
            '\\' if quoted => piece.push(chars.next()?),
            ';' if !quoted => pieces.push(String::new()),
            other => piece.push(other),
        }
        // A value begins after the name, or after what says that it is a file's.
        begins = matches!(char, '=' | '@' | '<' | ';') && !quoted;
    }
    (!quoted).then_some(pieces)
}

/// What curl takes a file for by its name.
fn guessed_type(path: &str) -> &'static str {
    let extension = Path::new(path).extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase());
    match extension.as_deref() {
        Some("gif") => "image/gif",
        Some("jpg" | "jpeg") => "image/jpeg",
        Some("png") => "image/png",
        Some("svg") => "image/svg+xml",
        Some("txt") => "text/plain",
        Some("htm" | "html") => "text/html",
        Some("pdf") => "application/pdf",
        Some("xml") => "application/xml",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_joined_as_curl_joins_it() {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        std::io::Write::write_all(&mut file, b"x\r\ny\n").expect("written");
        let path = file.path().to_str().expect("text");
        let joined = |pieces: &[Datum]| data(pieces).expect("data").expect("some").bytes;
        let pieces = [
            Datum::Ascii("a=1".into()),
            Datum::Ascii(format!("@{path}")),
            Datum::Binary(format!("@{path}")),
            Datum::Raw("@b".into()),
            Datum::Urlencode("n=\u{fc} &".into()),
            Datum::Urlencode("=c d".into()),
            Datum::Urlencode(format!("m@{path}")),
        ];
        assert_eq!(joined(&pieces), b"a=1&xy&x\r\ny\n&@b&n=%C3%BC+%26&c+d&m=x%0D%0Ay%0A");
        let json = data(&[Datum::Json("{".into()), Datum::Json("}".into())]).expect("data").expect("some");
        assert!(json.is_json && json.bytes == b"{}");
        assert_eq!(data(&[]), Ok(None));
        assert_eq!(data(&[Datum::Ascii("@/does/not/exist".into())]).map_err(|fault| fault.code), Err(READ_ERROR));
    }

    #[test]
    fn form_fields_are_curls() {
        let field = |text: &str| Field::parse(text).expect("a field");
        assert_eq!(field("plain").content, "plain");
        let file = field("@\"a;b.png\";type=image/x;filename=\"c\\\"d\";headers=\"X-A: b; c\"");
        assert_eq!((file.content.as_str(), file.kind.as_deref()), ("@a;b.png", Some("image/x")));
        assert_eq!((file.file_name.as_deref(), file.headers.as_slice()), (Some("c\"d"), &["X-A: b; c".to_owned()][..]));
        assert_eq!(field("x;type=text/html;charset=utf-8").kind.as_deref(), Some("text/html;charset=utf-8"));
        assert_eq!(Field::parse("\"open"), None);
        assert!(form(&[FormArg::Form("nameless".into())]).is_err());
        assert!(form(&[FormArg::Verbatim("a=@b;c".into())]).is_ok());
    }
}
