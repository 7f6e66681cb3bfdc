//! The house, enforced from its sources: a room imports only from floors below it, `unsafe` lives in three rooms, every
//! file says what it is for, and a test that a document names is there.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const FLOORS: [(&str, u8); 10] = [
    ("sys", 0),
    ("shm", 1),
    ("ring", 2),
    ("wait", 2),
    ("transport", 3),
    ("message", 3),
    ("channel", 4),
    ("session", 5),
    ("multicast", 5),
    ("event", 6),
];

const MAY_BE_UNSAFE: [&str; 3] = ["sys", "shm", "message"];

fn floor(room: &str) -> Option<u8> {
    FLOORS.iter().find(|(name, _)| *name == room).map(|(_, floor)| *floor)
}

/// Comments, literals and test modules out: what is left is the code that ships.
fn shipped(source: &str) -> String {
    let code = without_comments(source);
    let mut out = String::new();
    let mut rest = code.as_str();
    while let Some(at) = rest.find("#[cfg(") {
        let end = at + rest[at..].find(")]").expect("closed attribute") + 2;
        let condition = &rest[at..end];
        if !condition.contains("test") || condition.contains("not(test") {
            out.push_str(&rest[..end]);
            rest = &rest[end..];
            continue;
        }
        out.push_str(&rest[..at]);
        // The item: up to its `;`, or its block.
        rest = &rest[end..];
        let stop = rest.find(['{', ';']).expect("an item");
        rest = if rest[stop..].starts_with(';') { &rest[stop + 1..] } else { &rest[stop + block(&rest[stop..])..] };
    }
    out + rest
}

/// How long the block is that begins here.
fn block(code: &str) -> usize {
    let mut depth = 0;
    for (at, byte) in code.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' if depth == 1 => return at + 1,
            b'}' => depth -= 1,
            _ => {}
        }
    }
    code.len()
}

fn without_comments(source: &str) -> String {
    let mut out = String::new();
    let mut chars = source.char_indices().peekable();
    while let Some((at, found)) = chars.next() {
        let rest = &source[at..];
        let skip = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if found == '"' {
            let mut escaped = false;
            let end = rest[1..].find(|char| {
                let closes = char == '"' && !escaped;
                escaped = char == '\\' && !escaped;
                closes
            });
            end.map_or(rest.len(), |end| end + 2)
        } else if rest.starts_with("'\"'") || rest.starts_with("'{'") || rest.starts_with("'}'") {
            3
        } else {
            out.push(found);
            continue;
        };
        out.push(' ');
        while chars.peek().is_some_and(|(next, _)| *next < at + skip) {
            chars.next();
        }
    }
    out
}

/// First segments of everything named from the crate's root: `crate::x::…`, `use crate::{x::…, y}`.
fn names_from_root(code: &str) -> Vec<String> {
    let word = |text: &str| text.chars().take_while(|char| char.is_alphanumeric() || *char == '_').collect::<String>();
    let mut names = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        // `pub(crate)` has no `::`; `$crate::` is a macro's own and means the same crate.
        let rest = &code[at + "crate::".len()..];
        if !rest.starts_with('{') {
            names.push(word(rest));
            continue;
        }
        let group = &rest[1..block(rest) - 1];
        let mut depth = 0;
        let split = group.split(|char| {
            depth += i32::from(char == '{') - i32::from(char == '}');
            char == ',' && depth == 0
        });
        names.extend(split.map(|part| word(part.trim())).filter(|name| !name.is_empty()));
    }
    names
}

/// `super::…` that climbs out of the room: a file in `room/` may climb once to the room, a nested module more.
fn climbs(code: &str, room: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("super::super::") {
        let rest = &code[at + "super::super::".len()..];
        let target: String = rest.chars().take_while(|char| char.is_alphanumeric() || *char == '_').collect();
        if floor(&target).is_some() && target != room {
            found.push(target);
        }
    }
    found
}

/// What `lib.rs` re-exports: public name to room.
fn exports(lib: &str) -> BTreeMap<String, String> {
    let code = without_comments(lib);
    let at = code.find("pub use self::").expect("re-exports") + "pub use self::".len();
    let group = &code[at + 1..at + block(&code[at..]) - 1];
    let (mut rooms, mut depth, mut path, mut word) = (BTreeMap::new(), 0, Vec::<String>::new(), String::new());
    for char in group.chars().chain([',']) {
        match char {
            '{' => {
                path.push(std::mem::take(&mut word));
                depth += 1;
            }
            ',' | '}' => {
                let name = std::mem::take(&mut word);
                let name = name.rsplit("::").next().unwrap_or_default().to_owned();
                let whole = path.first().cloned().unwrap_or_else(|| name.clone());
                if !name.is_empty() {
                    rooms.insert(name, whole.split("::").next().unwrap_or_default().to_owned());
                }
                if char == '}' {
                    depth -= 1;
                    path.pop();
                } else if depth == 0 {
                    path.clear();
                }
            }
            char if char.is_whitespace() => {}
            char => {
                word.push(char);
                // `wait::Wait` without braces.
                if depth == 0 && word.ends_with("::") && !group.contains(&format!("{word}{{")) {
                    path = vec![word.trim_end_matches("::").to_owned()];
                }
            }
        }
    }
    rooms
}

/// Breaches of the floor plan in one file.
fn breaches(room: &str, source: &str, exports: &BTreeMap<String, String>) -> Vec<String> {
    let code = shipped(source);
    let own = floor(room).expect("a room");
    let mut found = Vec::new();
    for name in names_from_root(&code).into_iter().chain(climbs(&code, room)) {
        let target = if floor(&name).is_some() { Some(name.as_str()) } else { exports.get(&name).map(String::as_str) };
        match target {
            Some(target) if target == room => {}
            Some(target) if floor(target).is_some_and(|floor| floor < own) => {}
            Some(target) => found.push(format!("{room} names {name}, which is of {target}")),
            None => found.push(format!("{room} names crate::{name}, which is of no room")),
        }
    }
    found
}

fn has_unsafe(source: &str) -> bool {
    let code = shipped(source);
    let plain = |char: Option<char>| !char.is_some_and(|char| char.is_alphanumeric() || char == '_');
    let whole = |at: usize| plain(code[..at].chars().next_back()) && plain(code[at + 6..].chars().next());
    code.match_indices("unsafe").any(|(at, _)| whole(at))
}

/// Every source file with its path below `src`.
fn sources() -> Vec<(PathBuf, String)> {
    fn walk(dir: &Path, into: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).expect("directory") {
            let path = entry.expect("entry").path();
            if path.is_dir() {
                walk(&path, into);
            } else if path.extension().is_some_and(|ext| ext == "rs") {
                into.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    walk(&root, &mut paths);
    assert!(paths.len() > 40, "the sources are elsewhere");
    let read =
        |path: PathBuf| (path.strip_prefix(&root).expect("below").to_owned(), fs::read_to_string(&path).unwrap());
    paths.into_iter().map(read).collect()
}

/// Files of shipped code, with their rooms.
fn rooms() -> Vec<(String, PathBuf, String)> {
    let of_tests = |path: &Path| path.ends_with("tests.rs") || path.ends_with("models.rs");
    let in_rooms = sources().into_iter().filter(|(path, _)| path.components().count() > 1 && !of_tests(path));
    in_rooms
        .map(|(path, source)| {
            (path.components().next().unwrap().as_os_str().to_str().unwrap().to_owned(), path, source)
        })
        .collect()
}

fn lib_exports() -> BTreeMap<String, String> {
    exports(&sources().into_iter().find(|(path, _)| path == Path::new("lib.rs")).expect("lib.rs").1)
}

#[test]
fn rooms_import_only_from_below() {
    let exports = lib_exports();
    let mut seen = 0;
    for (room, path, source) in rooms() {
        let found = breaches(&room, &source, &exports);
        assert!(found.is_empty(), "{}: {found:?}", path.display());
        seen += names_from_root(&shipped(&source)).len();
    }
    assert!(seen > 100, "the imports are not being found: {seen}");
}

#[test]
fn unsafe_stays_in_its_rooms() {
    for (room, path, source) in rooms() {
        assert!(MAY_BE_UNSAFE.contains(&room.as_str()) || !has_unsafe(&source), "unsafe in {}", path.display());
    }
}

/// Whoever sets the clock of the machine changes nothing here.
#[test]
fn nobody_asks_for_the_time_of_day() {
    for (_, path, source) in rooms() {
        assert!(!asks_for_the_time(&shipped(&source)), "the time of day in {}", path.display());
    }
    assert!(asks_for_the_time("let now = SystemTime::now();") && asks_for_the_time("libc::CLOCK_REALTIME"));
    assert!(!asks_for_the_time("let now = Instant::now(); // CLOCK_MONOTONIC"));
}

fn asks_for_the_time(code: &str) -> bool {
    ["SystemTime", "UNIX_EPOCH", "CLOCK_REALTIME", "CLOCK_TAI", "gettimeofday"].iter().any(|name| code.contains(name))
}

#[test]
fn every_file_says_what_it_is_for() {
    for (path, source) in sources() {
        let opens = source.starts_with("//!") || source.starts_with("#![doc");
        assert!(opens, "{} does not open with //!", path.display());
        assert!(source.lines().count() < 500, "{} is too long", path.display());
    }
}

/// What stands in backticks in the last column, if that is of tests, of a document's tables: by name or by path.
fn named_tests(document: &str) -> Vec<&str> {
    let tables = document.split("\n\n").filter_map(|part| part.split_once(" test |\n"));
    let last =
        tables.flat_map(|(_, rows)| rows.lines()).filter_map(|row| row.trim_end_matches([' ', '|']).rsplit('|').next());
    let quoted = last.flat_map(|cell| cell.split('`').skip(1).step_by(2));
    // Not a command.
    quoted.filter(|name| !name.contains(' ')).collect()
}

fn is_test(name: &str) -> bool {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = |path: String| fs::read_to_string(root.join(path)).unwrap_or_default();
    let parts: Vec<&str> = name.split("::").collect();
    match parts.as_slice() {
        [path] => root.join(path).exists(),
        ["lib", modules @ .., case] => {
            // In a file of its own, or at the end of the module's.
            let outer = modules.split_last().map_or(String::new(), |(_, outer)| outer.join("/"));
            let inner = modules.join("/");
            let files = [format!("src/{inner}.rs"), format!("src/{outer}.rs"), format!("src/{outer}/mod.rs")];
            files.into_iter().any(|file| text(file).contains(&format!("fn {case}(")))
        }
        ["conformance", case] => {
            let each = case.split_once('_').map_or(*case, |(_, each)| each);
            text("tests/conformance.rs".into()).contains(&format!("::{each}\n"))
        }
        [suite, case] => {
            let suite = text(format!("tests/{suite}.rs"));
            suite.contains(&format!("\"{case}\"")) || suite.contains(&format!("fn {case}("))
        }
        _ => false,
    }
}

#[test]
fn tests_that_documents_name_are_there() {
    let document = include_str!("../docs/flow-ipc.md");
    let named = named_tests(document);
    assert!(named.len() > 100, "the names are not being found: {}", named.len());
    let missing: Vec<_> = named.into_iter().filter(|name| !is_test(name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
    // That names are looked at.
    for none in ["talk::no_such_case", "lib::shm::tests::no_such_case", "conformance::heap_no_such_case", "no/path"] {
        assert!(!is_test(none), "{none}");
    }
    let tables = "| x | test |\n|---|---|\n| a | `b` | `c::d`, `e f`, `g` |\n\ntext `h`\n\n| x | y |\n| a | `b` |\n";
    assert_eq!(named_tests(tables), ["c::d", "g"]);
}

#[test]
fn planted_breaches_are_found() {
    let exports = lib_exports();
    assert_eq!(exports.get("PeerMisbehaved").map(String::as_str), Some("sys"));
    assert_eq!(exports.get("Channel").map(String::as_str), Some("channel"));
    assert_eq!(exports.get("Wait").map(String::as_str), Some("wait"));
    let caught = |room: &str, source: &str| !breaches(room, source, &exports).is_empty();
    for (room, source) in [
        ("sys", "use crate::shm::arena::Arena;"),
        ("ring", "use crate::wait::Wait;"),
        ("message", "use crate::{sys::x, transport::{Lane, Link}};"),
        ("transport", "use crate::{message, shm};"),
        ("shm", "fn f() { crate::session::go() }"),
        ("channel", "use super::super::session::Session;"),
        ("wait", "fn f() -> crate::Channel<u8> {}"),
        ("wait", "fn f() -> crate::Unheard {}"),
        ("ring", "#[cfg(not(test))] use crate::wait::Wait;"),
    ] {
        assert!(caught(room, source), "{room}: {source}");
    }
    for (room, source) in [
        ("sys", "//! [`x`](crate::Channel)\nuse crate::sys::futex;"),
        ("ring", "#[cfg(test)]\nmod tests { use crate::wait::Wait; fn f() { {} } }\nuse crate::sys::x;"),
        ("ring", "#[cfg(all(test, strait_loom))]\nmod models;\nuse crate::sys::x;"),
        ("ring", "const X: &str = \"crate::session\";"),
        ("session", "use crate::{channel::Channel, wait::Wait}; fn f(x: crate::Wait) {}"),
    ] {
        assert!(!caught(room, source), "{room}: {source}: {:?}", breaches(room, source, &exports));
    }
    assert!(has_unsafe("unsafe fn f() {}"));
    assert!(!has_unsafe("#![deny(unsafe_op_in_unsafe_fn)] // unsafe\nfn f() { \"unsafe\"; }"));
}
