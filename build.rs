//! Turns the compiled schema requests into Rust. The requests are committed, so that building needs no `capnp` tool;
//! `schema/regenerate` makes them. For `tests/versions` it builds the crate as another version of itself, for
//! `tests/storm` with a bug that the suites must find.

use std::error::Error;
use std::fs::File;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-env-changed=STRAIT_BUILD_AS");
    if let Ok(build) = std::env::var("STRAIT_BUILD_AS") {
        println!("cargo::rustc-cfg=strait_build=\"{build}\"");
    }
    println!("cargo::rerun-if-env-changed=STRAIT_PLANTED");
    if let Ok(plant) = std::env::var("STRAIT_PLANTED") {
        println!("cargo::rustc-cfg=strait_plant=\"{plant}\"");
    }
    for name in ["hello", "cache"] {
        let request = Path::new("schema").join(name).with_extension("cgr");
        println!("cargo::rerun-if-changed={}", request.display());
        capnpc::codegen::CodeGenerationCommand::new()
            .output_directory(std::env::var_os("OUT_DIR").ok_or("no OUT_DIR")?)
            .run(File::open(&request)?)?;
    }
    Ok(())
}
