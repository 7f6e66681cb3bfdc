//! Command lines as people type them.

use super::*;

fn line(words: &[&str]) -> Line {
    parse(words.iter().map(OsString::from)).expect("a line")
}

fn bad(words: &[&str]) -> BadLine {
    parse(words.iter().map(OsString::from)).expect_err("no line")
}

#[test]
fn options_are_read_as_curl_reads_them() {
    let line = line(&["-sSLofile", "-XPOST", "-d", "-x", "-H=odd", "http://h/", "-0", "--max-ti", "1.5"]);
    assert!(line.cli.output.silent && line.cli.output.show_error && line.cli.request.location);
    assert!(line.cli.connection.http1_0);
    assert_eq!(line.cli.request.request.as_deref(), Some("POST"));
    assert_eq!(line.cli.request.header, ["=odd"]);
    assert_eq!(line.data, [Datum::Ascii("-x".into())]);
    assert_eq!(line.cli.connection.max_time, Some(std::time::Duration::from_millis(1_500)));
    let (url, output) = (Some("http://h/".into()), Some(Target::Named("file".into())));
    assert_eq!(line.slots, [Slot { url, output, upload: None }]);
}

#[test]
fn outputs_and_uploads_go_to_the_first_url_without() {
    let line = line(&["-O", "a", "b", "-o", "-", "-T", "x", "--url", "c", "-T-", "--", "-d"]);
    let named = |name: &str| Some(Target::Named(name.into()));
    let slot = |url: &str, output, upload: Option<&str>| Slot {
        url: Some(url.into()),
        output,
        upload: upload.map(str::to_owned),
    };
    let expected = [
        slot("a", Some(Target::Remote), Some("x")),
        slot("b", named("-"), Some("-")),
        slot("c", None, None),
        slot("-d", None, None),
    ];
    assert_eq!(line.slots, expected);
}

#[test]
fn pieces_of_a_body_keep_their_order() {
    let line = line(&[
        "-d",
        "a",
        "--data-raw",
        "@b",
        "--data",
        "c",
        "--json",
        "{}",
        "u",
        "-F",
        "n=v",
        "--form-string",
        "m=@w",
    ]);
    let expected =
        [Datum::Ascii("a".into()), Datum::Raw("@b".into()), Datum::Ascii("c".into()), Datum::Json("{}".into())];
    assert_eq!(line.data, expected);
    assert_eq!(line.form, [FormArg::Form("n=v".into()), FormArg::Verbatim("m=@w".into())]);
}

#[test]
fn the_last_of_two_counts_and_no_takes_back() {
    let line = line(&["-m1", "-m", "2", "-L", "--no-location", "-s", "-s", "--http2", "--http1.1", "u"]);
    assert_eq!(line.cli.connection.max_time, Some(std::time::Duration::from_secs(2)));
    assert!(!line.cli.request.location && line.cli.output.silent);
    assert!(line.cli.connection.http1_1 && !line.cli.connection.http2);
}

#[test]
fn a_configuration_file_stands_where_it_is_named() {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    std::io::Write::write_all(&mut file, b"# mine\nurl = \"http://a/\"\n-o out\nlocation\nheader: X-A: b c\n")
        .expect("written");
    let path = file.path().to_str().expect("text").to_owned();
    let path = path.as_str();
    let line = line(&["-K", path, "http://b/"]);
    assert!(line.cli.request.location);
    assert_eq!(line.cli.request.header, ["X-A: b c"]);
    assert_eq!(line.slots.len(), 2);
    assert_eq!(line.slots[0].output, Some(Target::Named("out".into())));
    std::io::Write::write_all(&mut file, format!("config = \"{path}\"\n").as_bytes()).expect("written");
    assert_eq!(bad(&["-K", path]), BadLine::Depth);
}

#[test]
fn bad_lines_say_what_is_wrong() {
    assert_eq!(bad(&["--nonsense"]), BadLine::Unknown("--nonsense".into()));
    assert_eq!(bad(&["-sJ?"]), BadLine::Unknown("-?".into()));
    assert_eq!(bad(&["--data-"]), BadLine::Ambiguous("--data-".into()));
    assert_eq!(bad(&["--max-time"]), BadLine::NoValue("--max-time".into()));
    assert_eq!(bad(&["-o"]), BadLine::NoValue("-o".into()));
    assert!(matches!(bad(&["-m", "soon", "u"]), BadLine::Value(why) if why.contains("soon")));
    assert!(matches!(bad(&["--deny-net", "10.0.0.0/99", "u"]), BadLine::Value(why) if why.contains("10.0.0.0/99")));
    assert!(matches!(bad(&["-K", "/does/not/exist"]), BadLine::Config { .. }));
    assert!(matches!(bad(&["-Z", "--parallel-max", "0", "u"]), BadLine::Value(_)));
}

#[test]
fn help_names_every_option() {
    let (short, full) = (help(false), help(true));
    for option in ["--output", "--form", "--continue-at", "--public-only", "--parallel", "--resolve"] {
        assert!(short.contains(option) && full.contains(option), "{option}");
    }
    assert!(full.contains("Exit codes") && full.len() > short.len());
}
