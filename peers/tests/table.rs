//! The comparison as its users meet it: every peer has a row, whatever becomes of it.

use std::error::Error;
use std::process::{Command, Output};

type Outcome = Result<(), Box<dyn Error>>;

/// The rows of a run that must have succeeded, as text: this workspace has no need of JSON otherwise.
fn rows(output: &Output) -> Result<Vec<&str>, Box<dyn Error>> {
    assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    Ok(std::str::from_utf8(&output.stdout)?.lines().collect())
}

fn of<'a>(rows: &[&'a str], peer: &str) -> Vec<&'a str> {
    rows.iter().copied().filter(|row| row.contains(&format!("\"peer\":\"{peer}\""))).collect()
}

const PEERS: [&str; 12] = [
    "line",
    "futex",
    "echo",
    "strait",
    "strait-fresh",
    "iceoryx2-rr",
    "iceoryx2-rr-copy",
    "iceoryx2-pub-sub",
    "ipc-bytes",
    "ipc-shared",
    "capnp-rpc",
    "socket",
];

#[test]
fn all_peers_answer_with_the_right_bytes_and_leave_nothing() -> Outcome {
    let temp = tempfile::tempdir()?;
    let plot = temp.path().join("peers.svg");
    let output = Command::new(env!("CARGO_BIN_EXE_peers"))
        .args(["--payload", "64B,2MiB", "--rounds", "20", "--json", "--plot"])
        .arg(&plot)
        .env("TMPDIR", temp.path())
        .output()?;
    let rows = rows(&output)?;
    for peer in PEERS {
        let rows = of(&rows, peer);
        assert!(!rows.is_empty(), "no {peer}");
        for row in rows {
            assert!(row.contains("\"verified\":true") && row.contains("\"rounds\":20,"), "{row}");
        }
    }
    assert!(std::fs::read_to_string(&plot)?.contains("iceoryx2-rr"));
    std::fs::remove_file(plot)?;
    assert_eq!(std::fs::read_dir(temp.path())?.count(), 0, "something was left behind");
    Ok(())
}

#[test]
fn what_flows_one_way_arrives() -> Outcome {
    let temp = tempfile::tempdir()?;
    let output = Command::new(env!("CARGO_BIN_EXE_peers"))
        .args(["stream", "--messages", "1000", "--json"])
        .env("TMPDIR", temp.path())
        .output()?;
    let rows = rows(&output)?;
    assert_eq!(rows.len(), 5);
    for row in rows {
        assert!(row.contains("\"ns_per_message\":") && !row.contains("\"ns_per_message\":null"), "{row}");
    }
    assert_eq!(std::fs::read_dir(temp.path())?.count(), 0, "something was left behind");
    Ok(())
}

#[test]
fn a_peer_that_does_not_start_is_a_marked_row() -> Outcome {
    // Files of at most 2 MiB: iceoryx2 and ipc-channel want larger ones for answers of 4 MiB, sockets want none.
    let limited = "ulimit -f 2048; exec \"$0\" --payload 4MiB --rounds 5 --json --wait block \
                   --peer iceoryx2-rr,ipc-shared,socket";
    let output = Command::new("sh").args(["-c", limited, env!("CARGO_BIN_EXE_peers")]).output()?;
    let rows = rows(&output)?;
    for peer in ["iceoryx2-rr", "ipc-shared"] {
        let rows = of(&rows, peer);
        assert!(!rows.is_empty(), "no {peer}");
        for row in rows {
            assert!(row.contains("\"rtt_ns\":null") && row.contains("did not start"), "{row}");
        }
    }
    for row in of(&rows, "socket") {
        assert!(row.contains("\"verified\":true"), "{row}");
    }
    Ok(())
}
