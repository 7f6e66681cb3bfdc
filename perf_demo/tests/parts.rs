//! `perf_demo rings` and `perf_demo memcpy` as their users meet them.

use serde_json::Value;
use std::error::Error;
use std::process::Command;

type Outcome = Result<(), Box<dyn Error>>;

fn perf_demo(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_perf_demo"));
    command.args(args);
    command
}

/// The lines of a run that must have succeeded.
fn lines(command: &mut Command) -> Result<Vec<String>, Box<dyn Error>> {
    let output = command.output()?;
    assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.lines().map(str::to_owned).collect())
}

fn objects(command: &mut Command) -> Result<Vec<Value>, Box<dyn Error>> {
    Ok(lines(command)?.iter().map(|line| serde_json::from_str(line)).collect::<Result<_, _>>()?)
}

fn keys(object: &Value) -> Vec<&str> {
    let mut keys: Vec<_> =
        object.as_object().into_iter().flat_map(|object| object.keys().map(String::as_str)).collect();
    // Their order is the reader's business.
    keys.sort_unstable();
    keys
}

const FEW: [&str; 5] = ["rings", "--values", "900", "--busy", "1000"];

#[test]
fn every_ring_is_measured_and_loses_nothing() -> Outcome {
    let rows = objects(perf_demo(&FEW).arg("--json"))?;
    let found: Vec<_> = rows.iter().map(|row| (&row["kind"], &row["between"], &row["queue"])).collect();
    let mut expected = Vec::new();
    for kind in ["spsc", "mpsc", "spmc", "mpmc"] {
        let queues: &[&str] = if kind == "spsc" {
            &["strait", "rtrb", "array-queue", "vyukov"]
        } else {
            &["strait", "array-queue", "vyukov"]
        };
        expected.extend(queues.iter().map(|&queue| (kind, "threads", queue)));
    }
    expected.extend([("spsc", "processes", "strait"), ("spsc", "processes", "vyukov")]);
    assert!(
        found
            .iter()
            .zip(&expected)
            .all(|(found, expected)| *found.0 == expected.0 && *found.1 == expected.1 && *found.2 == expected.2)
    );
    assert_eq!(found.len(), expected.len());
    for row in &rows {
        let promised = [
            "against",
            "between",
            "busy_ns_per_value",
            "busy_ratio",
            "kind",
            "latency_ns",
            "marks",
            "queue",
            "receive_ns",
            "receive_retries",
            "send_ns",
            "send_retries",
            "slots",
            "values",
            "verified",
        ];
        assert_eq!(keys(row), promised);
        assert_eq!((&row["verified"], &row["slots"]), (&Value::from(true), &Value::from(10)), "{row}");
        assert!(row["values"].as_u64() >= Some(900), "{row}");
        for times in ["send_ns", "receive_ns", "latency_ns"] {
            assert_eq!(keys(&row[times]), ["max", "min", "p50", "p90", "p99", "p999"]);
            let ascending = ["min", "p50", "p90", "p99", "p999", "max"].map(|key| row[times][key].as_u64());
            assert!(ascending.is_sorted() && ascending[0].is_some(), "{row}");
        }
        assert_eq!(row["busy_ratio"].is_null(), row["queue"] == row["against"], "{row}");
    }
    Ok(())
}

#[test]
fn a_table_and_a_picture_of_rings() -> Outcome {
    let temp = tempfile::tempdir()?;
    let plot = temp.path().join("rings.svg");
    let text = lines(perf_demo(&FEW).args(["--slots", "16", "--plot"]).arg(&plot))?.join("\n");
    for expected in ["send retries", "receive retries", "latency p50", "p99.9", "x rtrb", "x ArrayQueue", "processes"] {
        assert!(text.contains(expected), "no {expected} in\n{text}");
    }
    let picture = std::fs::read_to_string(plot)?;
    assert!(picture.starts_with("<svg") && picture.contains("strait SPSC, processes"));
    Ok(())
}

#[test]
fn a_ring_without_its_cpus_is_marked() -> Outcome {
    // More threads than any one CPU can run at a time, and no other to go to.
    let allowed = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0))?;
    let first = (0..nix::sched::CpuSet::count()).find(|&cpu| allowed.is_set(cpu) == Ok(true)).ok_or("no CPU")?;
    let mut taskset = Command::new("taskset");
    let rows =
        objects(taskset.args(["-c", &first.to_string(), env!("CARGO_BIN_EXE_perf_demo")]).args(FEW).arg("--json"))?;
    assert!(rows.iter().all(|row| row["marks"].as_str().is_some_and(|marks| marks.contains("crowded"))));
    Ok(())
}

#[test]
fn copies_and_loans_are_measured() -> Outcome {
    let temp = tempfile::tempdir()?;
    let plot = temp.path().join("memcpy.svg");
    let own = temp.path().join("own");
    std::fs::create_dir(&own)?;
    let run = || {
        let mut command = perf_demo(&["memcpy", "--rounds", "3"]);
        command.env("TMPDIR", &own);
        command
    };
    let objects = objects(run().arg("--json").arg("--plot").arg(&plot))?;
    let (sizes, loans) = objects.split_at(objects.len().checked_sub(4).ok_or("too few")?);
    assert_eq!(sizes.iter().filter(|size| size["best"] == true).count(), 5);
    for size in sizes {
        assert_eq!(keys(size), ["best", "bytes", "bytes_per_tick", "nanos", "rounds"]);
        assert!(size["rounds"] == 3 && size["nanos"].as_f64() > Some(0.0), "{size}");
    }
    for (loan, bytes) in loans.iter().zip([32, 88, 144, 200]) {
        assert_eq!(loan["message_bytes"], bytes);
        for expected in ["inside_ns", "loan_ns", "inside_across_ns", "loan_across_ns"] {
            assert!(loan[expected].as_f64() > Some(0.0), "{loan}");
        }
    }
    assert!(std::fs::read_to_string(plot)?.starts_with("<svg"));
    let text = lines(&mut run())?.join("\n");
    for expected in ["bytes/tick", "one of the five best", "on loan", "across CPUs"] {
        assert!(text.contains(expected), "no {expected} in\n{text}");
    }
    assert_eq!(std::fs::read_dir(own)?.count(), 0, "something was left behind");
    Ok(())
}

#[test]
fn what_cannot_be_asked_for_is_refused() -> Outcome {
    for wrong in [
        ["rings", "--slots", "1"],
        ["rings", "--slots", "513"],
        ["rings", "--values", "0"],
        ["rings", "--plot", "/nowhere/x.svg"],
        ["memcpy", "--rounds", "0"],
        ["memcpy", "--plot", "/nowhere/x.svg"],
    ] {
        assert_eq!(perf_demo(&wrong).output()?.status.code(), Some(2), "{wrong:?}");
    }
    Ok(())
}
