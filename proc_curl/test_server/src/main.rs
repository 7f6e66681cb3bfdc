//! The test servers as a program: prints where each listens, writes the authority's certificate beside its argument if it
//! has one, and runs until its standard input ends.

use curl_test_server::TestServer;
use std::io::Read;

fn main() -> std::io::Result<()> {
    let server = TestServer::start();
    if let Some(path) = std::env::args().nth(1) {
        std::fs::write(path, server.authority())?;
    }
    for line in format!("{:#?}", server.at).lines().filter_map(|line| line.strip_prefix("    ")) {
        println!("{}", line.trim_end_matches(','));
    }
    println!("unix: {}", server.unix().display());
    std::io::stdin().read_to_end(&mut Vec::new()).map(drop)
}
