//! Options that say what to ask for.

use super::super::units;
use clap::Args;
use proc_curl::Network;

/// What is asked for.
#[derive(Args, Debug)]
#[command(next_help_heading = "Request")]
pub(crate) struct RequestArgs {
    /// The method to use instead of what the other options mean
    #[arg(short = 'X', long, value_name = "method")]
    pub(crate) request: Option<String>,
    /// Ask for the head alone and show it
    #[arg(short = 'I', long)]
    pub(crate) head: bool,
    /// Put what -d has into the URL's query, and GET
    #[arg(short = 'G', long)]
    pub(crate) get: bool,
    /// A line for the request's header
    ///
    /// `Name: value`; `Name:` sends none of that name, not even what would be sent by itself; `Name;` sends one without a
    /// value; `@file` reads lines from a file ("@-": standard input).
    #[arg(short = 'H', long, value_name = "line | @file")]
    pub(crate) header: Vec<String>,
    /// Who asks ("" to not say)
    #[arg(short = 'A', long, value_name = "name")]
    pub(crate) user_agent: Option<String>,
    /// Which page led here ("; auto" also says so of redirects)
    #[arg(short = 'e', long, value_name = "URL")]
    pub(crate) referer: Option<String>,
    /// POST this, or a file's contents without its line breaks
    ///
    /// Several are joined with `&`. The type is application/x-www-form-urlencoded unless -H says otherwise.
    #[arg(short = 'd', long, visible_alias = "data-ascii", value_name = "data | @file")]
    pub(crate) data: Vec<String>,
    /// POST this, or a file's contents, exactly
    #[arg(long, value_name = "data | @file")]
    pub(crate) data_binary: Vec<String>,
    /// POST this exactly, whether it begins with @ or not
    #[arg(long, value_name = "data")]
    pub(crate) data_raw: Vec<String>,
    /// POST this URL-encoded
    ///
    /// `content`, `=content`, `name=content`, `@file` or `name@file`: the name is sent as it is.
    #[arg(long, value_name = "data")]
    pub(crate) data_urlencode: Vec<String>,
    /// POST this JSON, or a file's contents, and ask for JSON
    #[arg(long, value_name = "data | @file")]
    pub(crate) json: Vec<String>,
    /// A part of a form (multipart/form-data) to POST
    ///
    /// `name=content`, `name=@file` for an attached file ("-": standard input), `name=<file` for content out of one. After
    /// it may stand `;type=image/png`, `;filename=other` and `;headers="X-A: b"`.
    #[arg(short = 'F', long, value_name = "name=content")]
    pub(crate) form: Vec<String>,
    /// A part of a form, exactly as it stands
    #[arg(long, value_name = "name=string")]
    pub(crate) form_string: Vec<String>,
    /// More of the URL's query, encoded as --data-urlencode does
    #[arg(long, value_name = "data")]
    pub(crate) url_query: Vec<String>,
    /// PUT this file ("-" or ".": standard input)
    ///
    /// A URL that ends in a slash gets the file's name.
    #[arg(short = 'T', long, value_name = "file")]
    pub(crate) upload_file: Vec<String>,
    /// Only these bytes: `0-99`, `500-`, `-100`
    #[arg(short = 'r', long, value_name = "range")]
    pub(crate) range: Option<String>,
    /// Begin at this byte ("-": where the output file ends)
    #[arg(short = 'C', long, value_name = "offset")]
    pub(crate) continue_at: Option<String>,
    /// Only if modified after this time, or (with "-" before it) not since
    ///
    /// An HTTP date, or the name of a file whose time is meant.
    #[arg(short = 'z', long, value_name = "time")]
    pub(crate) time_cond: Option<String>,
    /// What to ask for instead of the URL's path
    #[arg(long, value_name = "path")]
    pub(crate) request_target: Option<String>,
    /// Leave /../ and /./ in the path as they are
    #[arg(long)]
    pub(crate) path_as_is: bool,
    /// How long to wait for leave to send a large body
    #[arg(long, value_name = "seconds", value_parser = units::seconds)]
    pub(crate) expect100_timeout: Option<std::time::Duration>,
    /// Follow redirects
    #[arg(short = 'L', long)]
    pub(crate) location: bool,
    /// The same, and tell credentials to other hosts too
    #[arg(long)]
    pub(crate) location_trusted: bool,
    /// How many redirects to follow (-1 for 4,000 million)
    #[arg(long, value_name = "num", default_value_t = 50, allow_negative_numbers = true)]
    pub(crate) max_redirs: i64,
    /// A POST stays one when redirected by 301
    #[arg(long)]
    pub(crate) post301: bool,
    /// A POST stays one when redirected by 302
    #[arg(long)]
    pub(crate) post302: bool,
    /// A POST stays one when redirected by 303
    #[arg(long)]
    pub(crate) post303: bool,
    /// Protocols to allow: `=https`, `-http`, `http,https`
    #[arg(long, value_name = "protocols")]
    pub(crate) proto: Option<String>,
    /// Protocols to allow in redirects
    #[arg(long, value_name = "protocols")]
    pub(crate) proto_redir: Option<String>,
    /// The scheme of URLs that have none
    #[arg(long, value_name = "protocol", default_value = "http")]
    pub(crate) proto_default: String,
    /// User and password (asked for if there is no colon)
    #[arg(short = 'u', long, value_name = "user:password")]
    pub(crate) user: Option<String>,
    /// Log in by Basic (what -u means by itself)
    #[arg(long)]
    pub(crate) basic: bool,
    /// Log in by Digest
    #[arg(long)]
    pub(crate) digest: bool,
    /// Log in by NTLM, where the worker's libcurl has it
    #[arg(long)]
    pub(crate) ntlm: bool,
    /// Log in by Negotiate, where the worker's libcurl has it
    #[arg(long)]
    pub(crate) negotiate: bool,
    /// Log in by the best of what the server asks for
    #[arg(long)]
    pub(crate) anyauth: bool,
    /// Log in by this OAuth 2.0 token
    #[arg(long, value_name = "token")]
    pub(crate) oauth2_bearer: Option<String>,
    /// Sign the request: `provider1[:provider2[:region[:service]]]`
    #[arg(long, value_name = "providers")]
    pub(crate) aws_sigv4: Option<String>,
    /// Send this cookie, `a=b; c=d`; or read cookies from this file, and keep those that come
    #[arg(short = 'b', long, value_name = "data | file")]
    pub(crate) cookie: Vec<String>,
    /// Write all cookies to this file when all is done ("-": standard output)
    #[arg(short = 'c', long, value_name = "file")]
    pub(crate) cookie_jar: Option<String>,
    /// Leave out session cookies when reading them from a file
    #[arg(short = 'j', long)]
    pub(crate) junk_session_cookies: bool,
    /// Ask for a compressed answer and undo the compression
    #[arg(long)]
    pub(crate) compressed: bool,
    /// Leave chunked bodies as they are
    #[arg(long)]
    pub(crate) raw: bool,
    /// Do not believe Content-Length
    #[arg(long)]
    pub(crate) ignore_content_length: bool,
    /// Never connect to these addresses: `10.0.0.0/8`
    ///
    /// Judged when a connection is made, whatever a name resolves to then and wherever a redirect leads. Not together with
    /// a proxy.
    #[arg(long, value_name = "network")]
    pub(crate) deny_net: Vec<Network>,
    /// Connect to these addresses alone
    #[arg(long, value_name = "network")]
    pub(crate) allow_net: Vec<Network>,
    /// Connect to public addresses alone: none of this machine, of its networks, of a cloud's metadata
    #[arg(long)]
    pub(crate) public_only: bool,
}
