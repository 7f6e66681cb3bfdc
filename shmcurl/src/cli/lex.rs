//! A command line as curl reads it, made into one where every option is long and its value joined to it, so that values
//! may begin with anything: `-sSLofile -XPOST -d -x url` becomes `--silent --show-error --location --output=file
//! --request=POST --data=-x --url=url`. Configuration files are read on the way.

use clap::{Arg, ArgAction, Command};
use std::ffi::OsString;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use thiserror::Error;

/// What is wrong with a command line.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum BadLine {
    #[error("option {0}: is ambiguous")]
    Ambiguous(String),
    #[error("option {option}: cannot read {file}: {why}")]
    Config { option: &'static str, file: String, why: String },
    #[error("option {0}: is unknown")]
    Unknown(String),
    #[error("option {0}: requires parameter")]
    NoValue(String),
    #[error("{0}")]
    Value(String),
    #[error("configuration files read each other without end")]
    Depth,
}

/// How deep configuration files may name each other.
const DEPTH: u32 = 8;

/// The line for clap, with the program's name before it.
pub(crate) fn normalised(
    command: &Command,
    args: impl IntoIterator<Item = OsString>,
) -> Result<Vec<OsString>, BadLine> {
    let mut lexer = Lexer { command, out: vec!["shmcurl".into()], depth: 0 };
    lexer.line(args.into_iter())?;
    Ok(lexer.out)
}

struct Lexer<'a> {
    command: &'a Command,
    out: Vec<OsString>,
    depth: u32,
}

impl<'a> Lexer<'a> {
    fn line(&mut self, mut args: impl Iterator<Item = OsString>) -> Result<(), BadLine> {
        while let Some(arg) = args.next() {
            match arg.as_bytes() {
                b"--" => {
                    args.by_ref().for_each(|url| self.url(url));
                }
                [b'-', b'-', name @ ..] => {
                    let name = String::from_utf8_lossy(name).into_owned();
                    let (option, on) = self.long(&name)?;
                    let shown = format!("--{name}");
                    match (takes_value(option), on) {
                        (true, _) => {
                            let value = args.next().ok_or(BadLine::NoValue(shown))?;
                            self.valued(option, &value)?;
                        }
                        (false, true) => self.flag(option),
                        (false, false) => self.unset(option),
                    }
                }
                [b'-', cluster @ ..] if !cluster.is_empty() => self.cluster(cluster, &mut args)?,
                _ => self.url(arg),
            }
        }
        Ok(())
    }

    /// `-sSofile`.
    fn cluster(&mut self, cluster: &[u8], args: &mut impl Iterator<Item = OsString>) -> Result<(), BadLine> {
        for (at, letter) in cluster.iter().enumerate() {
            let letter = char::from(*letter);
            let shown = format!("-{letter}");
            let command = self.command;
            let find = command.get_arguments().find(|arg| arg.get_short() == Some(letter));
            let option = find.ok_or_else(|| BadLine::Unknown(shown.clone()))?;
            if takes_value(option) {
                let joined = &cluster[at + 1..];
                let value = match joined.is_empty() {
                    false => OsString::from_vec(joined.to_vec()),
                    true => args.next().ok_or(BadLine::NoValue(shown))?,
                };
                return self.valued(option, &value);
            }
            self.flag(option);
        }
        Ok(())
    }

    /// The option of this name or the only one that begins like it, and whether it is meant on (`--no-NAME` is off).
    fn long(&self, name: &str) -> Result<(&'a Arg, bool), BadLine> {
        let command = self.command;
        let named = |wanted: &str| {
            let names = |arg: &&Arg| arg.get_long_and_visible_aliases().unwrap_or_default().contains(&wanted);
            command.get_arguments().find(names)
        };
        if let Some(option) = named(name) {
            return Ok((option, true));
        }
        if let Some(option) = name.strip_prefix("no-").and_then(named).filter(|option| !takes_value(option)) {
            return Ok((option, false));
        }
        let begins = |arg: &&Arg| arg.get_long().is_some_and(|long| long.starts_with(name));
        let mut like = command.get_arguments().filter(begins);
        match (like.next(), like.next()) {
            (Some(option), None) => Ok((option, true)),
            (Some(_), Some(_)) => Err(BadLine::Ambiguous(format!("--{name}"))),
            (None, _) => Err(BadLine::Unknown(format!("--{name}"))),
        }
    }

    fn flag(&mut self, option: &Arg) {
        // -O has a place in the line, so it is an option with a value to clap.
        let value = if matches!(option.get_action(), ArgAction::Append) { "=" } else { "" };
        self.out.push(format!("--{}{value}", long_of(option)).into());
    }

    /// Forgets a flag given before.
    fn unset(&mut self, option: &Arg) {
        let shown = format!("--{}", long_of(option));
        self.out.retain(|arg| arg.to_str() != Some(shown.as_str()));
    }

    fn valued(&mut self, option: &Arg, value: &OsString) -> Result<(), BadLine> {
        if option.get_id() == "config" {
            return self.config(value);
        }
        let mut joined = OsString::from(format!("--{}=", long_of(option)));
        joined.push(value);
        self.out.push(joined);
        Ok(())
    }

    fn url(&mut self, url: OsString) {
        let mut joined = OsString::from("--url=");
        joined.push(url);
        self.out.push(joined);
    }

    fn config(&mut self, file: &OsString) -> Result<(), BadLine> {
        self.depth += 1;
        if self.depth > DEPTH {
            return Err(BadLine::Depth);
        }
        let mut text = String::new();
        let read = match file.as_bytes() {
            b"-" => std::io::stdin().read_to_string(&mut text),
            _ => std::fs::File::open(file).and_then(|mut file| file.read_to_string(&mut text)),
        };
        let shown = || file.to_string_lossy().into_owned();
        read.map_err(|why| BadLine::Config { option: "-K", file: shown(), why: why.to_string() })?;
        for line in text.lines() {
            self.line(config_line(line).into_iter().map(OsString::from))?;
        }
        self.depth -= 1;
        Ok(())
    }
}

/// Whether an option is followed by a value: `-O` is not, though clap gives it one.
fn takes_value(option: &Arg) -> bool {
    option.get_action().takes_values() && option.get_id() != "remote_name"
}

fn long_of(option: &Arg) -> &str {
    option.get_long().unwrap_or_default()
}

/// A line of a configuration file as arguments: none, an option, or an option and its value.
fn config_line(line: &str) -> Vec<String> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Vec::new();
    }
    let end = line.find([' ', '\t', '=', ':']).unwrap_or(line.len());
    let (name, rest) = line.split_at(end);
    // What joins them is space and at most one sign.
    let rest = rest.trim_start();
    let rest = rest.strip_prefix(['=', ':']).unwrap_or(rest).trim_start();
    let name = if name.starts_with('-') { name.to_owned() } else { format!("--{name}") };
    let value = match rest.strip_prefix('"') {
        Some(quoted) => unquoted(quoted),
        None => rest.to_owned(),
    };
    if value.is_empty() && !rest.starts_with('"') { vec![name] } else { vec![name, value] }
}

/// Up to the closing quote, with `\n`, `\t`, `\r`, `\v`, `\\` and `\"` read as C does.
fn unquoted(text: &str) -> String {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        match char {
            '"' => break,
            '\\' => match chars.next() {
                Some('n') => out.push('\n'),
                Some('t') => out.push('\t'),
                Some('r') => out.push('\r'),
                Some('v') => out.push('\u{b}'),
                Some(other) => out.push(other),
                None => {}
            },
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn config_lines_are_curls() {
        let line = |text| config_line(text);
        assert_eq!(line("url = \"http://a/\\\"b\\\"\""), ["--url", "http://a/\"b\""]);
        assert_eq!(line("  # nothing"), Vec::<String>::new());
        assert_eq!(line("-L"), ["-L"]);
        assert_eq!(line("location"), ["--location"]);
        assert_eq!(line("header: X-A: b"), ["--header", "X-A: b"]);
        assert_eq!(line("user-agent \"\""), ["--user-agent", ""]);
        assert_eq!(line("-o file"), ["-o", "file"]);
    }
}
