//! Turns the compiled schema requests into Rust, as the library's own `build.rs` does.

use std::error::Error;
use std::fs::File;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    for request in ["../schema/cache.cgr", "schema/fetch.cgr"] {
        let request = Path::new(request);
        println!("cargo::rerun-if-changed={}", request.display());
        capnpc::codegen::CodeGenerationCommand::new()
            .output_directory(std::env::var_os("OUT_DIR").ok_or("no OUT_DIR")?)
            .run(File::open(request)?)?;
    }
    Ok(())
}
