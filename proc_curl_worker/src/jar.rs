//! Cookies, in jars that belong to one client each. What a transfer leaves differs from what it was given by what servers
//! said; only that goes back into the jar, which others use meanwhile.

use crate::outcome::Fault;
use crate::wish::Handle;
use std::collections::HashMap;

/// All jars.
#[derive(Debug, Default)]
pub(crate) struct Jars(HashMap<(u64, u32), Jar>);

/// Lines of a Netscape cookie file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Jar(Vec<String>);

/// Of one client.
const JARS_MAX: usize = 64;
/// In one jar.
const COOKIES_MAX: usize = 3000;

impl Jars {
    /// Gives a transfer its cookies.
    pub(crate) fn fill(&self, client: u64, number: u32, easy: &mut Handle) -> Result<(), Fault> {
        if number == 0 {
            return Ok(());
        }
        let full = || self.0.keys().filter(|(owner, _)| *owner == client).count() >= JARS_MAX;
        if !self.0.contains_key(&(client, number)) && full() {
            return Err(Fault::bad(format!("more than {JARS_MAX} cookie jars")));
        }
        let set = |result: Result<(), curl::Error>| result.map_err(|error| Fault::option("cookies", &error));
        // No file: it only turns cookies on.
        set(easy.cookie_file(""))?;
        let jar = self.0.get(&(client, number)).cloned().unwrap_or_default();
        for line in &jar.0 {
            set(easy.cookie_list(line))?;
        }
        easy.get_mut().cookies = jar;
        Ok(())
    }

    /// Takes back what servers have said to it.
    pub(crate) fn take(&mut self, client: u64, number: u32, easy: &mut Handle) {
        if number == 0 {
            return;
        }
        let Ok(list) = easy.cookies() else { return };
        let after = Jar(list.iter().map(|line| String::from_utf8_lossy(line).into_owned()).collect());
        let before = std::mem::take(&mut easy.get_mut().cookies);
        self.0.entry((client, number)).or_default().learn(&before, after);
    }

    pub(crate) fn lines(&self, client: u64, number: u32) -> &[String] {
        self.0.get(&(client, number)).map_or(&[], |jar| &jar.0)
    }

    /// Adds lines of a cookie file or `Set-Cookie:` headers, which libcurl reads.
    pub(crate) fn add(&mut self, client: u64, number: u32, lines: &[String]) {
        let mut easy = curl::easy::Easy::new();
        if easy.cookie_file("").is_err() {
            return;
        }
        for line in self.lines(client, number).iter().chain(lines) {
            // What is no cookie is no reason not to take the others.
            let _ = easy.cookie_list(line);
        }
        let Ok(list) = easy.cookies() else { return };
        let lines = list.iter().map(|line| String::from_utf8_lossy(line).into_owned()).take(COOKIES_MAX);
        self.0.insert((client, number), Jar(lines.collect()));
    }

    pub(crate) fn clear(&mut self, client: u64, number: u32) {
        self.0.remove(&(client, number));
    }

    /// A client is gone.
    pub(crate) fn forget(&mut self, client: u64) {
        self.0.retain(|(owner, _), _| *owner != client);
    }
}

/// What makes two cookies one: domain, path and name.
fn key(line: &str) -> (&str, &str, &str) {
    let mut fields = line.split('\t');
    let domain = fields.next().unwrap_or_default();
    let path = fields.nth(1).unwrap_or_default();
    (domain, path, fields.nth(2).unwrap_or_default())
}

impl Jar {
    fn learn(&mut self, before: &Self, after: Self) {
        let kept = |line: &String| after.0.iter().any(|now| key(now) == key(line));
        // Those that it had and that are gone were deleted, or have expired.
        self.0.retain(|line| !before.0.contains(line) || kept(line));
        for line in after.0 {
            if before.0.contains(&line) {
                continue;
            }
            let full = self.0.len() >= COOKIES_MAX;
            match self.0.iter_mut().find(|known| key(known) == key(&line)) {
                Some(known) => *known = line,
                None if full => {}
                None => self.0.push(line),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jar(cookies: &[(&str, &str)]) -> Jar {
        Jar(cookies.iter().map(|(name, value)| format!("h\tFALSE\t/\tFALSE\t0\t{name}\t{value}")).collect())
    }

    #[test]
    fn transfers_side_by_side_lose_nothing_of_each_others() {
        let before = jar(&[("a", "1"), ("gone", "1"), ("b", "1")]);
        let mut shared = before.clone();
        shared.learn(&before, jar(&[("a", "2"), ("b", "1"), ("new", "1")]));
        // The other one began at the same time, and saw another change.
        shared.learn(&before, jar(&[("a", "1"), ("gone", "1"), ("b", "3")]));
        assert_eq!(shared, jar(&[("a", "2"), ("b", "3"), ("new", "1")]));
    }
}
