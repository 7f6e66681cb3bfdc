//! perf_demo as its users meet it: two processes, their output, their exit codes, and what they leave behind.

use serde_json::Value;
use std::error::Error;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

type Outcome = Result<(), Box<dyn Error>>;

fn perf_demo() -> Command {
    Command::new(env!("CARGO_BIN_EXE_perf_demo"))
}

/// The rows of a run that must have succeeded.
fn rows(output: &Output) -> Result<Vec<Value>, Box<dyn Error>> {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {stderr}", output.status);
    let text = std::str::from_utf8(&output.stdout)?;
    Ok(text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
}

fn techniques(rows: &[Value]) -> Vec<&str> {
    rows.iter().filter_map(|row| row["technique"].as_str()).collect()
}

/// The keys of an object, whose order is the reader's business.
fn sorted(object: &serde_json::Map<String, Value>) -> Vec<&str> {
    let mut keys: Vec<&str> = object.keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

#[test]
fn a_small_run_verifies_every_row_and_has_exactly_the_promised_keys() -> Outcome {
    let temp = tempfile::tempdir()?;
    let output = perf_demo()
        .args(["--payload", "64B,100KiB", "--rounds", "200", "--wait", "spin,adaptive,park", "--json"])
        .env("TMPDIR", temp.path())
        .output()?;
    let rows = rows(&output)?;
    assert_eq!(rows.len(), 2 * 3 * 5);
    for row in &rows {
        let keys = sorted(row.as_object().ok_or("no object")?);
        let promised =
            ["fresh", "payload_bytes", "pin", "rounds", "rtt_ns", "sleeps_per_recv", "technique", "verified", "wait"];
        assert_eq!(keys, promised);
        let rtt = row["rtt_ns"].as_object().ok_or("no object")?;
        assert_eq!(sorted(rtt), ["max", "min", "p50", "p90", "p99", "p999"]);
        let ascending = ["min", "p50", "p90", "p99", "p999", "max"].map(|key| rtt[key].as_u64());
        assert!(ascending.is_sorted() && ascending[0].is_some(), "{row}");
        assert_eq!(row["verified"], true, "{row}");
        assert_eq!(row["fresh"], false, "{row}");
        let is_floor = row["technique"].as_str().is_some_and(|name| name.starts_with("floor-"));
        assert!(if is_floor { row["rounds"].as_u64() >= Some(200) } else { row["rounds"] == 200 }, "{row}");
    }
    let group = ["classic", "bare", "shm", "snapshot"];
    assert_eq!(techniques(&rows[..4]), group);
    assert_eq!(techniques(&rows[4..5]), ["floor-line"]);
    assert_eq!(techniques(&rows[14..15]), ["floor-socket"]);
    assert_eq!(std::fs::read_dir(temp.path())?.count(), 0, "something was left behind");
    Ok(())
}

#[test]
fn meeting_is_measured_and_leaves_nothing() -> Outcome {
    let temp = tempfile::tempdir()?;
    let few = ["open", "--rounds", "5", "--idle", "10", "--requests", "50"];
    let output = perf_demo().args(few).env("TMPDIR", temp.path()).output()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = std::str::from_utf8(&output.stdout)?;
    for line in ["bare: connect", "a session, connect to first answer", "a session commits", "beside 10 idle sessions"]
    {
        assert!(text.contains(line), "{line} in {text}");
    }
    assert_eq!(std::fs::read_dir(temp.path())?.count(), 0, "something was left behind");
    Ok(())
}

#[test]
fn messages_inside_slots_are_measured_beside_those_on_loan() -> Outcome {
    let temp = tempfile::tempdir()?;
    let output = perf_demo().args(["inline", "--rounds", "10"]).env("TMPDIR", temp.path()).output()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = std::str::from_utf8(&output.stdout)?;
    for line in ["inside p50", "            24 ", "            32 ", "           256 "] {
        assert!(text.contains(line), "{line} in {text}");
    }
    assert_eq!(std::fs::read_dir(temp.path())?.count(), 0, "something was left behind");
    Ok(())
}

#[test]
fn a_table_a_chart_and_a_picture_are_drawn() -> Outcome {
    let temp = tempfile::tempdir()?;
    let plot = temp.path().join("plot.svg");
    let output = perf_demo()
        .args(["--payload", "64B,3MiB", "--rounds", "20", "--technique", "classic,shm", "--wait", "adaptive"])
        .arg("--plot")
        .arg(&plot)
        .output()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    for expected in ["p99.9", "/ floor", "vs classic", "floor-line", "3 MiB", "█"] {
        assert!(text.contains(expected), "no {expected} in\n{text}");
    }
    let picture = std::fs::read_to_string(plot)?;
    assert!(picture.starts_with("<svg") && picture.contains("classic adaptive"));
    Ok(())
}

#[test]
fn fresh_answers_are_right_too_and_marked() -> Outcome {
    let args = ["--fresh", "--payload", "1B,2100000B", "--rounds", "20", "--wait", "park", "--pin", "same", "--json"];
    for row in rows(&perf_demo().args(args).output()?)? {
        let builds = matches!(row["technique"].as_str(), Some("classic" | "shm" | "snapshot"));
        assert_eq!(row["fresh"], builds, "{row}");
        assert_eq!(row["pin"], "same");
        assert_eq!(row["verified"], true, "{row}");
    }
    Ok(())
}

#[test]
fn spinning_on_one_cpu_ends() -> Outcome {
    let args = ["--payload", "64B", "--rounds", "50", "--wait", "spin", "--pin", "same,none", "--json"];
    assert_eq!(rows(&perf_demo().args(args).output()?)?.len(), 10);
    let text = perf_demo().args(&args[..8]).output()?;
    let marked = String::from_utf8(text.stdout)?.lines().any(|line| line.contains("needs a second CPU"));
    assert!(marked);
    Ok(())
}

#[test]
fn real_files_are_served() -> Outcome {
    let temp = tempfile::tempdir()?;
    let paths = [temp.path().join("one"), temp.path().join("other")];
    std::fs::write(&paths[0], "x")?;
    std::fs::write(&paths[1], (0..3_000_001_u32).map(|i| (i % 251) as u8).collect::<Vec<_>>())?;
    let output = perf_demo()
        .args(["--rounds", "10", "--wait", "adaptive", "--json", "--file"])
        .arg(&paths[0])
        .arg("--file")
        .arg(&paths[1])
        .output()?;
    let rows = rows(&output)?;
    let sizes: Vec<Option<u64>> = rows.iter().map(|row| row["payload_bytes"].as_u64()).collect();
    assert_eq!(sizes, [vec![Some(1); 5], vec![Some(3_000_001); 5]].concat());
    assert!(rows.iter().all(|row| row["verified"] == true));
    Ok(())
}

#[test]
fn what_cannot_be_asked_for_is_said_with_exit_code_2() -> Outcome {
    let temp = tempfile::tempdir()?;
    let empty = temp.path().join("empty");
    std::fs::write(&empty, "")?;
    let empty = empty.display().to_string();
    let missing = temp.path().join("missing").display().to_string();
    let nowhere = temp.path().join("missing/plot.svg").display().to_string();
    let cases: [(&[&str], &str); 10] = [
        (&["--payload", "12XB"], "12XB"),
        (&["--payload", "64B,lots"], "lots"),
        (&["--payload", "0"], "first byte"),
        (&["--rounds", "0"], "--rounds"),
        (&["--wait", "never"], "never"),
        (&["--file", &missing], &missing),
        (&["--file", &empty], &empty),
        (&["--file", "/"], "not a regular file"),
        (&["serve", "--file", &missing], &missing),
        // Known after the server has come up, and no fault of the server's.
        (&["--payload", "64B", "--plot", &nowhere], "cannot write"),
    ];
    for (args, expected) in cases {
        let output = perf_demo().args(args).output()?;
        let stderr = String::from_utf8(output.stderr)?;
        assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
        assert!(stderr.contains(expected), "{args:?}: {stderr}");
        assert!(output.stdout.is_empty());
    }
    Ok(())
}

#[test]
fn without_a_server_the_client_says_where_it_looked() -> Outcome {
    let temp = tempfile::tempdir()?;
    let output = perf_demo().arg("client").arg("--run-dir").arg(temp.path()).output()?;
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr)?;
    assert!(stderr.contains("no server at") && stderr.contains(&temp.path().display().to_string()), "{stderr}");
    Ok(())
}

/// A server by hand, ready.
fn serve(dir: &Path) -> Result<(Child, BufReader<ChildStdout>), Box<dyn Error>> {
    let mut server = perf_demo().arg("serve").arg("--run-dir").arg(dir).stdout(Stdio::piped()).spawn()?;
    let mut out = BufReader::new(server.stdout.take().ok_or("no stdout")?);
    let mut line = String::new();
    out.read_line(&mut line)?;
    assert!(line.contains("perf_demo client"), "{line}");
    Ok((server, out))
}

fn signal(process: &Child, signal: &str) -> Outcome {
    let status = Command::new("kill").arg(format!("-{signal}")).arg(process.id().to_string()).status()?;
    assert!(status.success());
    Ok(())
}

fn client(dir: &Path) -> Result<Vec<Value>, Box<dyn Error>> {
    let output = perf_demo()
        .args(["client", "--payload", "64B", "--rounds", "20", "--wait", "spin,park", "--json", "--run-dir"])
        .arg(dir)
        .output()?;
    rows(&output)
}

#[test]
fn halves_by_hand_work_and_sigterm_leaves_nothing() -> Outcome {
    let temp = tempfile::tempdir()?;
    let dir = temp.path().join("run");
    let (mut server, _out) = serve(&dir)?;
    for _ in 0..2 {
        assert_eq!(client(&dir)?.len(), 10);
    }
    signal(&server, "TERM")?;
    assert_eq!(server.wait()?.code(), Some(0));
    assert!(!dir.exists(), "the server left its directory");
    Ok(())
}

#[test]
fn a_killed_server_is_replaced_and_a_killed_client_is_survived() -> Outcome {
    let temp = tempfile::tempdir()?;
    let dir = temp.path().join("run");
    let (mut killed, _out) = serve(&dir)?;
    killed.kill()?;
    killed.wait()?;
    let (mut server, _out) = serve(&dir)?;
    for wait in ["spin", "park"] {
        let mut client = perf_demo()
            .args(["client", "--json", "--payload", "64B", "--rounds", "100", "--pin", "none"])
            .args(["--wait", &format!("{wait},{}", [wait; 2000].join(","))])
            .arg("--run-dir")
            .arg(&dir)
            .stdout(Stdio::piped())
            .spawn()?;
        // Once a row is there, the next group is under way.
        BufReader::new(client.stdout.take().ok_or("no stdout")?).read_line(&mut String::new())?;
        client.kill()?;
        client.wait()?;
    }
    assert_eq!(client(&dir)?.len(), 10);
    signal(&server, "INT")?;
    assert_eq!(server.wait()?.code(), Some(0));
    assert!(!dir.exists());
    Ok(())
}

#[test]
fn a_run_that_is_told_to_stop_takes_its_server_and_directory_with_it() -> Outcome {
    for wait in ["spin", "park"] {
        let temp = tempfile::tempdir()?;
        let mut run = perf_demo()
            .args(["--json", "--payload", "64B", "--rounds", "100", "--pin", "none"])
            .args(["--wait", &[wait; 2000].join(",")])
            .env("TMPDIR", temp.path())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut out = BufReader::new(run.stdout.take().ok_or("no stdout")?);
        out.read_line(&mut String::new())?;
        signal(&run, "TERM")?;
        // Its rows must have somewhere to go.
        std::io::copy(&mut out, &mut std::io::sink())?;
        assert_eq!(run.wait()?.code(), Some(128 + 15));
        assert_eq!(std::fs::read_dir(temp.path())?.count(), 0, "something was left behind");
    }
    Ok(())
}

#[test]
fn a_sweep_that_is_told_to_stop_takes_its_host_and_directory_with_it() -> Outcome {
    let temp = tempfile::tempdir()?;
    let mut run = perf_demo()
        .args(["scale", "--json", "--sweep", "in-flight", "--rounds", "100", "--pin", "none"])
        .args(["--in-flight", &["1"; 10_000].join(",")])
        .env("TMPDIR", temp.path())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut out = BufReader::new(run.stdout.take().ok_or("no stdout")?);
    out.read_line(&mut String::new())?;
    signal(&run, "TERM")?;
    std::io::copy(&mut out, &mut std::io::sink())?;
    assert_eq!(run.wait()?.code(), Some(128 + 15));
    assert_eq!(std::fs::read_dir(temp.path())?.count(), 0, "something was left behind");
    Ok(())
}

#[test]
fn a_killed_run_takes_its_server_and_directory_with_it() -> Outcome {
    let temp = tempfile::tempdir()?;
    let mut run = perf_demo()
        .args(["--json", "--payload", "64B", "--rounds", "100", "--pin", "none"])
        .args(["--wait", &["adaptive"; 2000].join(",")])
        .env("TMPDIR", temp.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    BufReader::new(run.stdout.take().ok_or("no stdout")?).read_line(&mut String::new())?;
    run.kill()?;
    run.wait()?;
    // Its server has the same stderr, which ends when that does.
    std::io::copy(&mut run.stderr.take().ok_or("no stderr")?, &mut std::io::sink())?;
    assert_eq!(std::fs::read_dir(temp.path())?.count(), 0, "something was left behind");
    Ok(())
}

#[test]
fn costs_are_counted_in_every_row() -> Outcome {
    let temp = tempfile::tempdir()?;
    let plot = temp.path().join("cost.svg");
    let few = ["--millis", "20", "--payload", "64B", "--every", "100,200", "--sessions", "20", "--channels", "5"];
    let output = perf_demo()
        .args(["cost", "--idle", "1", "--settle", "0", "--wait", "park", "--pin", "same", "--json", "--plot"])
        .arg(&plot)
        .args(few)
        .env("TMPDIR", temp.path())
        .output()?;
    let rows = rows(&output)?;
    let of = |figure: &str| rows.iter().filter(|row| row["figure"] == figure).collect::<Vec<_>>();
    let per_request = of("cpu-per-request");
    assert_eq!(techniques(&rows[..4]), ["classic", "snapshot", "shm", "floor-socket"]);
    assert_eq!(per_request.len(), 4);
    for row in per_request.iter().chain(&of("cpu-per-paced-request")) {
        assert!(row["client_cpu_ns"].as_u64() > Some(0) && row["server_cpu_ns"].as_u64() > Some(0), "{row}");
    }
    assert_eq!(of("cpu-per-paced-request").len(), 2);
    let held = of("held");
    assert_eq!(held.len(), 4);
    // A session is a descriptor on either side, a channel none.
    for (row, descriptors) in held.iter().skip(1).zip([1.0, 1.0, 0.0]) {
        assert_eq!(
            (&row["client_descriptors"], &row["server_descriptors"]),
            (&descriptors.into(), &descriptors.into())
        );
    }
    assert_eq!(of("idle-cpu").len(), 1);
    assert!(std::fs::read_to_string(&plot)?.starts_with("<svg"));
    std::fs::remove_file(plot)?;
    assert_eq!(std::fs::read_dir(temp.path())?.count(), 0, "something was left behind");
    Ok(())
}

#[test]
fn every_sweep_has_a_row_for_every_value() -> Outcome {
    let temp = tempfile::tempdir()?;
    let plot = temp.path().join("scale.svg");
    let few = ["--rounds", "100", "--payload", "64B,1MiB", "--in-flight", "1,8", "--channels", "1,3"];
    let output = perf_demo()
        .args(["scale", "--sessions", "1,20", "--threads", "1,3", "--json", "--plot"])
        .arg(&plot)
        .args(few)
        .env("TMPDIR", temp.path())
        .output()?;
    let rows = rows(&output)?;
    let sweeps = ["payload", "in-flight", "channels", "sessions", "loop-sessions", "threads", "sharing"];
    let found: Vec<&str> = rows.iter().filter_map(|row| row["sweep"].as_str()).collect();
    assert_eq!(found, sweeps.iter().flat_map(|&sweep| [sweep; 2]).collect::<Vec<_>>());
    for row in &rows {
        assert!(row["p50_ns"].as_u64() > Some(0) && row["p99_ns"].as_u64() >= row["p50_ns"].as_u64(), "{row}");
        assert!(row["rounds"].as_u64() > Some(0), "{row}");
    }
    let marked = rows.iter().filter(|row| row["value"] == 3 && row["sweep"] == "threads");
    assert!(marked.clone().count() == 1);
    assert!(std::fs::read_to_string(&plot)?.contains("loop-sessions"));
    std::fs::remove_file(plot)?;
    assert_eq!(std::fs::read_dir(temp.path())?.count(), 0, "something was left behind");
    Ok(())
}
