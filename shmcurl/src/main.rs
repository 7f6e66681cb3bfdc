//! `shmcurl`: curl's command line over the library `proc_curl`. Links neither libcurl nor TLS.

#![forbid(unsafe_code)]

mod body;
mod cli;
mod fault;
mod glob;
mod meter;
mod settings;
mod sink;
mod transfer;
mod units;
mod voice;
mod writeout;

use crate::cli::{Line, Slot};
use crate::fault::{FAILED_INIT, Fault, URL_MALFORMAT, WRITE_ERROR};
use crate::glob::Glob;
use crate::meter::{Meter, Style};
use crate::settings::Settings;
use crate::sink::{Habits, Sink};
use crate::transfer::{Context, JAR, Job};
use crate::voice::Voice;
use proc_curl::Client;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

fn main() -> ExitCode {
    // curl's exit codes are numbers of a byte.
    ExitCode::from(u8::try_from(run()).unwrap_or(u8::MAX))
}

fn run() -> u32 {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    let full = args.iter().any(|arg| arg == "--help");
    let line = match cli::parse(args) {
        Ok(line) => line,
        Err(bad) => {
            eprintln!("shmcurl: {bad}\nshmcurl: try 'shmcurl --help' for more information");
            return FAILED_INIT;
        }
    };
    if line.cli.general.help {
        return print(&cli::help(full));
    }
    let output = &line.cli.output;
    let (silent, voice) = (output.silent && !output.show_error, output.stderr.clone());
    match voice.map_or_else(|| Ok(Voice::stderr()), |file| Voice::file(&file)) {
        Ok(voice) => {
            let voice = Arc::new(voice);
            transfers(line, &voice).unwrap_or_else(|fault| {
                if !silent {
                    voice.line(&format!("shmcurl: ({}) {}", fault.code, fault.text));
                }
                fault.code
            })
        }
        Err(why) => {
            eprintln!("shmcurl: --stderr: {why}");
            FAILED_INIT
        }
    }
}

fn print(text: &str) -> u32 {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => 0,
        Err(_) => WRITE_ERROR,
    }
}

fn transfers(line: Line, voice: &Arc<Voice>) -> Result<u32, Fault> {
    if line.cli.general.version {
        return version(&line);
    }
    let jobs = Jobs::new(&line)?;
    let client = client(&line)?;
    let style = style(&line, jobs.total);
    let heads =
        line.cli.output.dump_header.as_deref().map(|name| Mutex::new(Sink::file(name, false, &Habits::default())));
    let meter = Arc::new(Meter::new(style, voice.clone()));
    let unfinished = Arc::new(Mutex::new(Vec::new()));
    let context = Context { settings: Settings::read(line)?, client, voice: voice.clone(), meter, heads, unfinished };
    let settings = &context.settings;
    if let Some(lines) = settings.jar.as_ref().filter(|lines| !lines.is_empty()) {
        context.client.add_cookies(JAR, lines).map_err(|error| Fault::from(&error))?;
    }
    watch_signals(&context);
    let code = if settings.cli.general.parallel { side_by_side(&context, jobs) } else { in_turn(&context, jobs) };
    context.meter.finish();
    if let (Some(_), Some(file)) = (&settings.jar, &settings.cli.request.cookie_jar) {
        let kept =
            context.client.cookies(JAR).map_err(|error| Fault::from(&error)).and_then(|lines| keep(file, &lines));
        // The transfers' own code counts; curl warns as well.
        if let Err(fault) = kept {
            voice.line(&format!("shmcurl: cannot keep the cookies: {}", fault.text));
        }
    }
    Ok(code)
}

fn keep(file: &str, lines: &[String]) -> Result<(), Fault> {
    let mut text = "# Netscape HTTP Cookie File\n# https://curl.se/docs/http-cookies.html\n\n".to_owned();
    lines.iter().for_each(|line| text.extend([line.as_str(), "\n"]));
    let mut sink = Sink::file(file, false, &Habits::default());
    sink.write_all(text.as_bytes()).map_err(|why| Fault::new(WRITE_ERROR, why.to_string()))
}

fn client(line: &Line) -> Result<Client, Fault> {
    let options = &line.cli.worker;
    let mut builder = Client::builder();
    if let Some(worker) = &options.worker {
        builder = match worker.contains("://") {
            false => builder.program(worker),
            true => {
                let uri = worker.parse().map_err(|bad| Fault::new(FAILED_INIT, format!("--worker: {bad}")))?;
                builder.attach(uri)
            }
        };
    }
    if let Some(version) = options.worker_min_version {
        builder = builder.min_version(version);
    }
    builder.build().map_err(|error| Fault::from(&error.into()))
}

fn version(line: &Line) -> Result<u32, Fault> {
    let client = client(line)?;
    let worker = client.worker_pid().map_or_else(String::new, |pid| format!(", worker {pid}"));
    Ok(print(&format!("shmcurl {}{worker}\nProtocols: http https\n", env!("CARGO_PKG_VERSION"))))
}

/// Whether and how progress is shown: never between what goes to a terminal.
fn style(line: &Line, jobs: u64) -> Style {
    let output = &line.cli.output;
    let to_terminal = std::io::stdout().is_terminal() && line.slots.iter().any(|slot| slot.output.is_none());
    match () {
        () if output.silent || output.no_progress_meter => Style::None,
        () if to_terminal && !output.remote_name_all => Style::None,
        () if line.cli.general.parallel && jobs > 1 => Style::Many,
        () if output.progress_bar => Style::Bar,
        () => Style::Table,
    }
}

/// Interrupted, the program leaves the terminal and its files in order and ends as if it had done nothing about it. The
/// worker sees its client gone and cancels what it does.
fn watch_signals(context: &Context) {
    let (voice, unfinished) = (context.voice.clone(), context.unfinished.clone());
    // Without, the program simply dies of them.
    let Ok(mut signals) = signal_hook::iterator::Signals::new([SIGHUP, SIGINT, SIGTERM]) else { return };
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            voice.finish_line();
            for path in unfinished.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                // What cannot be removed stays.
                let _ = std::fs::remove_file(path);
            }
            // Fails for none of these.
            let _ = signal_hook::low_level::emulate_default_handler(signal);
        }
    });
}

/// All URLs of the command line, made as they are needed.
struct Jobs {
    globs: Vec<(Glob, Slot)>,
    at: usize,
    within: u64,
    number: u64,
    total: u64,
}

impl Jobs {
    fn new(line: &Line) -> Result<Self, Fault> {
        let mut globs = Vec::new();
        for slot in &line.slots {
            let url = slot
                .url
                .as_deref()
                .filter(|url| !url.is_empty())
                .ok_or_else(|| Fault::new(URL_MALFORMAT, "no URL specified"))?;
            let glob = match line.cli.general.globoff {
                true => Ok(Glob::literal(url)),
                false => Glob::parse(url),
            };
            globs.push((glob.map_err(|bad| Fault::new(URL_MALFORMAT, bad.to_string()))?, slot.clone()));
        }
        if globs.is_empty() {
            return Err(Fault::new(FAILED_INIT, "no URL specified; try 'shmcurl --help' for more information"));
        }
        let total = globs.iter().fold(0u64, |total, (glob, _)| total.saturating_add(glob.count()));
        Ok(Self { globs, at: 0, within: 0, number: 0, total })
    }
}

impl Iterator for Jobs {
    type Item = Job;

    fn next(&mut self) -> Option<Job> {
        let (glob, slot) = self.globs.get(self.at)?;
        let (url, values) = glob.nth(self.within);
        let job = Job { number: self.number, url, values, slot: slot.clone() };
        self.number += 1;
        self.within += 1;
        if self.within >= glob.count() {
            (self.at, self.within) = (self.at + 1, 0);
        }
        Some(job)
    }
}

/// One after the other; the exit code is the last's, or with --fail-early the first that is not 0.
fn in_turn(context: &Context, jobs: Jobs) -> u32 {
    let mut code = 0;
    for job in jobs {
        code = transfer::run(context, &job);
        if code != 0 && context.settings.cli.general.fail_early {
            break;
        }
    }
    code
}

/// Many at a time; the exit code is 0 if all went well.
fn side_by_side(context: &Context, jobs: Jobs) -> u32 {
    let threads = u64::from(context.settings.cli.general.parallel_max).min(jobs.total).max(1);
    let (jobs, code) = (Mutex::new(jobs), Mutex::new(0));
    let next = || jobs.lock().unwrap_or_else(PoisonError::into_inner).next();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(job) = next() {
                    let own = transfer::run(context, &job);
                    if own != 0 {
                        *code.lock().unwrap_or_else(PoisonError::into_inner) = own;
                        if context.settings.cli.general.fail_early {
                            // What is under way goes on to its end; nothing else begins.
                            jobs.lock().unwrap_or_else(PoisonError::into_inner).at = usize::MAX;
                        }
                    }
                }
            });
        }
    });
    code.into_inner().unwrap_or_else(PoisonError::into_inner)
}
