//! The comparison with what a user would pick instead: a program of its own, in a workspace of its own, which cargo builds
//! when it is wanted.

use crate::cli::Usage;
use anyhow::Context;
use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, ExitCode};

/// Beside the sources of this program, as they were when it was built.
const MANIFEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../peers/Cargo.toml");

/// `perf_demo peers`: builds and runs it.
pub(crate) fn run(args: &[OsString]) -> anyhow::Result<ExitCode> {
    if !Path::new(MANIFEST).is_file() {
        return Err(Usage(format!("the sources of peers are gone: no {MANIFEST}")).into());
    }
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["run", "--release", "--locked", "--manifest-path", MANIFEST, "--"]).args(args);
    let status = cargo.status().context("cannot run cargo, which builds what is compared with")?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(ExitCode::from(code.unwrap_or(1)))
}
