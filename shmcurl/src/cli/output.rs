//! Options that say what to do with what comes.

use super::super::units;
use clap::Args;

/// What becomes of the answer.
#[derive(Args, Debug)]
#[command(next_help_heading = "Output")]
pub(crate) struct OutputArgs {
    /// Write the body to this file ("-": standard output)
    ///
    /// `#1`, `#2`… stand for what braces and brackets in the URL stand for. Once for each URL.
    #[arg(short = 'o', long, value_name = "file")]
    pub(crate) output: Vec<String>,
    /// Write the body to a file named like the URL's last part
    #[arg(short = 'O', long, num_args = 0..=1, default_missing_value = "", require_equals = true, hide_possible_values = true, value_name = "")]
    pub(crate) remote_name: Vec<String>,
    /// The same for all URLs
    #[arg(long)]
    pub(crate) remote_name_all: bool,
    /// With -O: the name that the server says
    #[arg(short = 'J', long)]
    pub(crate) remote_header_name: bool,
    /// Where files of -o and -O go
    #[arg(long, value_name = "dir")]
    pub(crate) output_dir: Option<String>,
    /// Make the directories that -o names
    #[arg(long)]
    pub(crate) create_dirs: bool,
    /// Overwrite no file: choose another name
    #[arg(long, overrides_with = "clobber")]
    pub(crate) no_clobber: bool,
    /// Overwrite files, as it is by default
    #[arg(long)]
    pub(crate) clobber: bool,
    /// Remove what was written if the transfer fails
    #[arg(long)]
    pub(crate) remove_on_error: bool,
    /// Give files the time that the server says
    #[arg(short = 'R', long)]
    pub(crate) remote_time: bool,
    /// Show the answer's head before its body
    #[arg(short = 'i', long, visible_alias = "show-headers")]
    pub(crate) include: bool,
    /// Write heads to this file ("-": standard output)
    #[arg(short = 'D', long, value_name = "file")]
    pub(crate) dump_header: Option<String>,
    /// What to say when a transfer is done
    ///
    /// Variables: %{http_code}, %{response_code}, %{http_connect}, %{http_version}, %{method}, %{scheme}, %{url}, %{urlnum},
    /// %{url_effective}, %{redirect_url}, %{num_redirects}, %{num_connects}, %{num_retries}, %{num_headers},
    /// %{content_type}, %{size_download}, %{size_upload}, %{size_header}, %{size_request}, %{size_delivered},
    /// %{speed_download}, %{speed_upload}, %{time_namelookup}, %{time_connect}, %{time_appconnect}, %{time_pretransfer},
    /// %{time_starttransfer}, %{time_redirect}, %{time_total}, %{remote_ip}, %{remote_port}, %{local_ip}, %{local_port},
    /// %{filename_effective}, %{exitcode}, %{errormsg}, %{header{Name}} as %header{Name}, %{json}, %{header_json}; %{stdout}
    /// and %{stderr} say where the rest goes, %{onerror} that it is for failures. `\n`, `\r`, `\t` are read as C does, `%%`
    /// is a percent sign; `@file` reads it from a file ("@-": standard input).
    #[arg(short = 'w', long, value_name = "format")]
    pub(crate) write_out: Option<String>,
    /// Show neither progress nor errors
    #[arg(short = 's', long)]
    pub(crate) silent: bool,
    /// Show errors all the same
    #[arg(short = 'S', long)]
    pub(crate) show_error: bool,
    /// Say what is sent and received, except bodies
    #[arg(short = 'v', long)]
    pub(crate) verbose: bool,
    /// Show progress as a bar
    #[arg(short = '#', long)]
    pub(crate) progress_bar: bool,
    /// Show no progress
    #[arg(long)]
    pub(crate) no_progress_meter: bool,
    /// Write what goes to standard error to this file ("-": standard output)
    #[arg(long, value_name = "file")]
    pub(crate) stderr: Option<String>,
    /// A status of 400 or more is a failure without output
    #[arg(short = 'f', long)]
    pub(crate) fail: bool,
    /// A status of 400 or more is a failure, with output
    #[arg(long, conflicts_with = "fail")]
    pub(crate) fail_with_body: bool,
    /// Write at once what comes
    #[arg(short = 'N', long)]
    pub(crate) no_buffer: bool,
    /// The largest body to take, in bytes or with k, M, G
    ///
    /// Counted after decompression, whatever the server says.
    #[arg(long, value_name = "bytes", value_parser = units::bytes)]
    pub(crate) max_filesize: Option<u64>,
}
