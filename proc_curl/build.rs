//! Turns the compiled schema request into Rust, as the root's own `build.rs` does.

use std::error::Error;
use std::fs::File;

fn main() -> Result<(), Box<dyn Error>> {
    let request = "schema/proc_curl.cgr";
    println!("cargo::rerun-if-changed={request}");
    capnpc::codegen::CodeGenerationCommand::new()
        .output_directory(std::env::var_os("OUT_DIR").ok_or("no OUT_DIR")?)
        .run(File::open(request)?)?;
    Ok(())
}
