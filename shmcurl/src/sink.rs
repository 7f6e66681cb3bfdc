//! Where a body goes: standard output or a file, which is made when the first byte comes.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// How files are made.
#[derive(Clone, Debug, Default)]
pub(crate) struct Habits {
    pub(crate) dir: Option<PathBuf>,
    pub(crate) create_dirs: bool,
    /// Take another name rather than overwrite.
    pub(crate) keep_others: bool,
}

/// How often another name is tried.
const OTHER_NAMES: u32 = 100;

/// The end of a body's way.
#[derive(Debug)]
pub(crate) enum Sink {
    Stdout,
    /// A file that is still to be made.
    Wanted(Wanted),
    Open(File, PathBuf),
}

#[derive(Debug)]
pub(crate) struct Wanted {
    path: PathBuf,
    append: bool,
    /// A name that a server chose never overwrites.
    fresh: bool,
    habits: Habits,
}

impl Sink {
    pub(crate) fn file(name: &str, append: bool, habits: &Habits) -> Self {
        if name == "-" {
            return Self::Stdout;
        }
        let path = habits.dir.as_ref().map_or_else(|| PathBuf::from(name), |dir| dir.join(name));
        Self::Wanted(Wanted { path, append, fresh: false, habits: habits.clone() })
    }

    /// Takes another name, which the server said, if nothing is written yet.
    pub(crate) fn rename(&mut self, name: &str) {
        if let Self::Wanted(wanted) = self {
            wanted.path.set_file_name(name);
            wanted.fresh = true;
        }
    }

    pub(crate) fn is_stdout(&self) -> bool {
        matches!(self, Self::Stdout)
    }

    /// The file's name, if it is one.
    pub(crate) fn path(&self) -> Option<&Path> {
        match self {
            Self::Stdout => None,
            Self::Wanted(wanted) => Some(&wanted.path),
            Self::Open(_, path) => Some(path),
        }
    }

    /// How large the file is already.
    pub(crate) fn existing(&self) -> u64 {
        self.path().and_then(|path| std::fs::metadata(path).ok()).map_or(0, |metadata| metadata.len())
    }

    /// Makes the file if that is still to be done.
    pub(crate) fn open(&mut self) -> io::Result<()> {
        if let Self::Wanted(wanted) = self {
            let (file, path) = wanted.open().map_err(|why| named(&wanted.path, &why))?;
            *self = Self::Open(file, path);
        }
        Ok(())
    }

    /// Removes what was made.
    pub(crate) fn remove(&self) {
        if let Self::Open(_, path) = self {
            // Not there or not to be removed: there is nothing else to do about it.
            let _ = std::fs::remove_file(path);
        }
    }

    /// Gives the file a time.
    pub(crate) fn set_time(&self, time: SystemTime) -> io::Result<()> {
        match self {
            Self::Open(file, _) => file.set_modified(time),
            _ => Ok(()),
        }
    }
}

/// An error that says which file it is of.
fn named(path: &Path, why: &io::Error) -> io::Error {
    io::Error::new(why.kind(), format!("{}: {why}", path.display()))
}

impl Wanted {
    fn open(&self) -> io::Result<(File, PathBuf)> {
        if let Some(dir) = self.path.parent().filter(|_| self.habits.create_dirs) {
            std::fs::create_dir_all(dir)?;
        }
        let mut options = OpenOptions::new();
        match (self.append, self.fresh || self.habits.keep_others) {
            (true, _) => options.append(true).create(true),
            (false, true) => options.write(true).create_new(true),
            (false, false) => options.write(true).create(true).truncate(true),
        };
        match options.open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && self.habits.keep_others => {}
            done => return done.map(|file| (file, self.path.clone())),
        }
        for number in 1..=OTHER_NAMES {
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".{number}"));
            match options.open(&name) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                done => return done.map(|file| (file, name.into())),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.open()?;
        match self {
            Self::Open(file, path) => file.write(bytes).map_err(|why| named(path, &why)),
            _ => io::stdout().write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Stdout => io::stdout().flush(),
            _ => Ok(()),
        }
    }
}

/// The last part of a URL's path, which -O names a file by.
pub(crate) fn remote_name(url: &str) -> Option<String> {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let path = rest.split(['?', '#']).next()?;
    let (_, name) = path.rsplit_once('/')?;
    (!name.is_empty() && name != "." && name != "..").then(|| name.to_owned())
}

/// The name in a `Content-Disposition`, without the directories it may pretend. `None` for names that hide.
pub(crate) fn disposition_name(value: &str) -> Option<String> {
    let named = value.split(';').map(str::trim).find_map(|piece| {
        let (name, value) = piece.split_once('=')?;
        name.trim().eq_ignore_ascii_case("filename").then_some(value.trim())
    })?;
    let name = named.trim_matches('"').rsplit(['/', '\\']).next()?;
    let safe = !name.is_empty() && !name.starts_with('.') && !name.chars().any(char::is_control);
    safe.then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_urls_and_headers() {
        assert_eq!(remote_name("http://h/a/b.txt?q=/x#/y"), Some("b.txt".into()));
        assert_eq!(remote_name("http://h/a/"), None);
        assert_eq!(remote_name("http://h"), None);
        assert_eq!(remote_name("http://h/.."), None);
        let name = disposition_name;
        assert_eq!(name("attachment; filename=\"../../etc/a.txt\""), Some("a.txt".into()));
        assert_eq!(name("attachment; FileName=b.txt"), Some("b.txt".into()));
        assert_eq!(name("attachment; filename=\".bashrc\""), None);
        assert_eq!(name("attachment; filename=\"C:\\x\\y.exe\""), Some("y.exe".into()));
        assert_eq!(name("inline"), None);
    }

    #[test]
    fn files_are_made_late_and_never_over_others_if_told_so() {
        let dir = tempfile::tempdir().expect("a directory");
        let habits = Habits { dir: Some(dir.path().join("deep/er")), create_dirs: true, keep_others: true };
        let mut first = Sink::file("x", false, &habits);
        assert!(!dir.path().join("deep").exists());
        first.write_all(b"one").expect("written");
        let mut second = Sink::file("x", false, &habits);
        second.write_all(b"two").expect("written");
        assert_eq!(std::fs::read(dir.path().join("deep/er/x")).expect("read"), b"one");
        assert_eq!(std::fs::read(dir.path().join("deep/er/x.1")).expect("read"), b"two");
        let mut more = Sink::file("x", true, &habits);
        assert_eq!(more.existing(), 3);
        more.write_all(b"!").expect("written");
        assert_eq!(std::fs::read(dir.path().join("deep/er/x")).expect("read"), b"one!");
        first.remove();
        assert!(!dir.path().join("deep/er/x").exists());
    }
}
