//! The command line: curl's options by curl's names, as a typed value. `lex` reads the line the way curl does, clap types
//! and documents it.

mod connection;
mod lex;
mod output;
mod request;

pub(crate) use self::connection::{ConnectionArgs, TlsArgs, WorkerArgs};
pub(crate) use self::lex::BadLine;
pub(crate) use self::output::OutputArgs;
pub(crate) use self::request::RequestArgs;
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser};
use std::ffi::OsString;

/// Transfers URLs, as curl does, with libcurl in a process of its own.
///
/// shmcurl takes curl's common options by curl's names and ends with curl's exit codes, but links neither libcurl nor TLS:
/// it starts (or joins, with --worker) a worker, procCurlI, which does, with few privileges, and reads what comes where the
/// worker put it, in shared memory. Only http:// and https:// are spoken. Neither ~/.curlrc nor ~/.netrc is read.
#[derive(Debug, Parser)]
#[command(
    name = "shmcurl",
    override_usage = "shmcurl [options...] <url>...",
    disable_version_flag = true,
    disable_help_flag = true,
    args_override_self = true,
    term_width = 0,
    max_term_width = 110,
    after_help = SHORT_AFTER,
    after_long_help = LONG_AFTER
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) general: GeneralArgs,
    #[command(flatten)]
    pub(crate) request: RequestArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) connection: ConnectionArgs,
    #[command(flatten)]
    pub(crate) tls: TlsArgs,
    #[command(flatten)]
    pub(crate) worker: WorkerArgs,
}

const SHORT_AFTER: &str = "`shmcurl --help` says what each option does, with examples and exit codes.";

const LONG_AFTER: &str = "\
Examples:
  shmcurl https://example.org/                          print a page
  shmcurl -LO https://example.org/file.tar.gz           follow redirects, save under the URL's name
  shmcurl -C - -O https://example.org/large.iso         go on where the last attempt ended
  shmcurl -Z --remote-name-all https://example.org/[01-20].png
                                                        twenty files, many at a time
  shmcurl --json '{\"a\":1}' https://example.org/api      POST JSON
  shmcurl -F picture=@me.png -F name=me https://example.org/form
  shmcurl -T - https://example.org/in < file            upload standard input
  shmcurl -u user -x socks5h://127.0.0.1:1080 https://example.org/
  shmcurl --public-only -L \"$url\"                       a URL from somebody else: never to an address of ours

Exit codes are libcurl's numbers, as for curl. Common ones:
   0  all is well                             28  a timeout
   1  the protocol is not supported           33  the server does not do ranges
   2  a bad command line, or no worker        35  TLS could not be negotiated
   3  a malformed URL                         43  an address or an option's value was refused
   5  the proxy's name could not be resolved  47  too many redirects
   6  the host's name could not be resolved   52  the server answered nothing
   7  no connection, or one that is forbidden 55  sending failed
   8  the answer is not HTTP                  56  receiving failed, or the worker died
  16  HTTP/2 framing                          58  the client's certificate is no good
  18  the body ended early                    60  the server's certificate is no good
  22  --fail and a status of 400 or more      61  the body's encoding is broken
  23  writing failed                          63  the body is larger than --max-filesize
  26  reading failed                          77  the authorities' certificates cannot be read
  27  out of memory                           97  a SOCKS proxy refused
 130  interrupted

Environment:
  http_proxy, https_proxy, HTTPS_PROXY, all_proxy, ALL_PROXY, no_proxy, NO_PROXY   as for curl; -x and --noproxy win
  PROC_CURL_WORKER   the worker to start, if --worker does not say; else it is looked for beside shmcurl and in PATH";

/// How the program itself goes about it.
#[derive(Args, Debug)]
#[command(next_help_heading = "General")]
pub(crate) struct GeneralArgs {
    /// A URL to transfer, with or without --url before it
    ///
    /// One without a scheme is http. `{a,b}` stands for each of those, `[1-9]`, `[01-20:2]` and `[a-z]` for each of a
    /// range, unless -g. Several URLs share the options; each takes the next -o, -O and -T.
    #[arg(long, value_name = "url")]
    pub(crate) url: Vec<String>,
    /// Brackets and braces in URLs are meant as they are
    #[arg(short = 'g', long)]
    pub(crate) globoff: bool,
    /// Read options from a file ("-": standard input)
    ///
    /// One to a line, with or without dashes, the value after space, `=` or `:`, in quotes if it has spaces; lines that
    /// begin with # say nothing.
    #[arg(short = 'K', long, value_name = "file")]
    pub(crate) config: Vec<String>,
    /// Read no configuration file (there is none by default)
    #[arg(short = 'q', long)]
    pub(crate) disable: bool,
    /// Transfer many URLs at the same time
    #[arg(short = 'Z', long)]
    pub(crate) parallel: bool,
    /// How many at the same time, 1 to 300
    #[arg(long, value_name = "num", default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=300))]
    pub(crate) parallel_max: u16,
    /// Never wait whether a connection can be shared
    #[arg(long)]
    pub(crate) parallel_immediate: bool,
    /// End with the first transfer that fails
    #[arg(long)]
    pub(crate) fail_early: bool,
    /// Show versions and what the worker can do, and end
    #[arg(short = 'V', long)]
    pub(crate) version: bool,
    /// Show help: options in short with -h, in full with --help
    #[arg(short = 'h', long)]
    pub(crate) help: bool,
}

/// A command line, typed, and what its order says.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) cli: Cli,
    /// URLs, and what -o, -O and -T say about each.
    pub(crate) slots: Vec<Slot>,
    /// The options that make up a body, in order.
    pub(crate) data: Vec<Datum>,
    /// -F and --form-string, in order.
    pub(crate) form: Vec<FormArg>,
}

/// One URL, as yet unglobbed, and where its body comes from and goes to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) url: Option<String>,
    pub(crate) output: Option<Target>,
    pub(crate) upload: Option<String>,
}

/// Where -o or -O sends a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Named(String),
    Remote,
}

/// A piece of the body on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Datum {
    /// -d: newlines are cut out of files.
    Ascii(String),
    Binary(String),
    Raw(String),
    Urlencode(String),
    Json(String),
}

/// A part of a form on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FormArg {
    Form(String),
    Verbatim(String),
}

/// Reads a command line without its program's name.
///
/// # Errors
/// [`BadLine`], after which curl ends with 2.
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Line, BadLine> {
    let command = Cli::command();
    let args = lex::normalised(&command, args)?;
    let matches = command.try_get_matches_from(args).map_err(|error| BadLine::Value(first_line(&error)))?;
    let cli = Cli::from_arg_matches(&matches).map_err(|error| BadLine::Value(first_line(&error)))?;
    let (slots, data, form) = (slots(&matches), data(&matches), form(&matches));
    Ok(Line { cli, slots, data, form })
}

/// The help text: short or in full.
pub(crate) fn help(full: bool) -> String {
    let mut command = Cli::command();
    let text = if full { command.render_long_help() } else { command.render_help() };
    text.to_string()
}

fn first_line(error: &clap::Error) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

/// An option by its name, and what its value makes.
type Maker<'a, T> = (&'a str, fn(String) -> T);

/// Every value of these options with its place in the line.
fn placed<T>(matches: &ArgMatches, options: &[Maker<'_, T>]) -> Vec<T> {
    let mut all = Vec::new();
    for (id, make) in options {
        let values = matches.get_many::<String>(id).into_iter().flatten();
        all.extend(matches.indices_of(id).into_iter().flatten().zip(values.map(|value| make(value.clone()))));
    }
    all.sort_by_key(|(at, _)| *at);
    all.into_iter().map(|(_, value)| value).collect()
}

fn data(matches: &ArgMatches) -> Vec<Datum> {
    placed(
        matches,
        &[
            ("data", Datum::Ascii),
            ("data_binary", Datum::Binary),
            ("data_raw", Datum::Raw),
            ("data_urlencode", Datum::Urlencode),
            ("json", Datum::Json),
        ],
    )
}

fn form(matches: &ArgMatches) -> Vec<FormArg> {
    placed(matches, &[("form", FormArg::Form), ("form_string", FormArg::Verbatim)])
}

/// As curl pairs them: each option goes to the first URL that has none yet.
fn slots(matches: &ArgMatches) -> Vec<Slot> {
    enum Word {
        Url(String),
        Output(Target),
        Upload(String),
    }
    let words = placed(
        matches,
        &[
            ("url", Word::Url as fn(String) -> Word),
            ("output", |name| Word::Output(Target::Named(name))),
            ("remote_name", |_| Word::Output(Target::Remote)),
            ("upload_file", Word::Upload),
        ],
    );
    let mut slots: Vec<Slot> = Vec::new();
    for word in words {
        let lacks = |slot: &Slot| match &word {
            Word::Url(_) => slot.url.is_none(),
            Word::Output(_) => slot.output.is_none(),
            Word::Upload(_) => slot.upload.is_none(),
        };
        let at = slots.iter().position(lacks).unwrap_or_else(|| {
            slots.push(Slot::default());
            slots.len() - 1
        });
        match word {
            Word::Url(url) => slots[at].url = Some(url),
            Word::Output(target) => slots[at].output = Some(target),
            Word::Upload(file) => slots[at].upload = Some(file),
        }
    }
    slots
}

#[cfg(test)]
mod tests;
