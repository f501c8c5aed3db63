//! Names of entries and targets of links, from raw bytes to something that stays inside of the tree. Pure.

use crate::wire::supervisor::ZipRefusal;

/// As long a name as a path of Linux may well be inside a function, and far below PATH_MAX.
const LONGEST: usize = 1024;
/// NAME_MAX of every file system that we meet.
const LONGEST_PART: usize = 255;
const DEEPEST: usize = 64;

/// Where an entry goes: `a/b/c`, never empty, without `.`, `..`, `//` or a slash at either end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place(String);

/// What a name says beside the place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Plain,
    /// A slash: it must be a directory.
    Slash,
}

impl Place {
    /// From the raw bytes of a name. `Ok(None)` is the tree itself (`./`).
    pub fn parse(raw: &[u8]) -> Result<Option<(Self, Ending)>, ZipRefusal> {
        let name = std::str::from_utf8(raw).map_err(|_| ZipRefusal::BadName)?;
        // A backslash is a separator to some tools and a letter to others: whoever checks must not differ from whoever
        // unpacks. So it is refused, as a NUL is.
        if name.is_empty() || name.len() > LONGEST || name.starts_with('/') || name.contains(['\0', '\\']) {
            return Err(ZipRefusal::BadName);
        }
        let parts: Vec<&str> = name.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
        if parts.len() > DEEPEST || parts.iter().any(|part| *part == ".." || part.len() > LONGEST_PART) {
            return Err(ZipRefusal::BadName);
        }
        let ending = if name.ends_with('/') || name.ends_with("/.") { Ending::Slash } else { Ending::Plain };
        Ok(if parts.is_empty() { None } else { Some((Self(parts.join("/")), ending)) })
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The directory it is in (`None`: the tree), and its last part.
    pub fn split(&self) -> (Option<Self>, &str) {
        match self.0.rsplit_once('/') {
            Some((directory, last)) => (Some(Self(directory.to_owned())), last),
            None => (None, &self.0),
        }
    }

    /// Whether a link here, pointing at `target`, stays inside of the tree as far as words go. What it means by way
    /// of other links is asked of the kernel, when all are there.
    pub fn may_point_at(&self, target: &[u8]) -> bool {
        let Ok(target) = std::str::from_utf8(target) else { return false };
        if target.is_empty() || target.starts_with('/') || target.contains('\0') {
            return false;
        }
        let mut depth = self.0.matches('/').count();
        for part in target.split('/') {
            match part {
                "" | "." => {}
                ".." if depth == 0 => return false,
                ".." => depth -= 1,
                _ => depth += 1,
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(raw: &[u8]) -> Result<Option<(String, Ending)>, ZipRefusal> {
        Ok(Place::parse(raw)?.map(|(place, ending)| (place.0, ending)))
    }

    #[test]
    fn names_of_ordinary_zips_are_taken() {
        for (raw, expected, ending) in [
            ("index.js", "index.js", Ending::Plain),
            ("./a//b/./c", "a/b/c", Ending::Plain),
            ("node_modules/", "node_modules", Ending::Slash),
            ("ä/…", "ä/…", Ending::Plain),
            ("..a/b..", "..a/b..", Ending::Plain),
            ("C:x", "C:x", Ending::Plain),
        ] {
            assert_eq!(place(raw.as_bytes()), Ok(Some((expected.to_owned(), ending))), "{raw}");
        }
        assert_eq!(place(b"./"), Ok(None));
    }

    #[test]
    fn names_that_leave_the_tree_or_mean_two_things_are_refused() {
        let long = "a/".repeat(600);
        let part = "a".repeat(256);
        let deep = "a/".repeat(65);
        let bad: [&[u8]; 13] = [
            b"",
            b"/",
            b"/etc/passwd",
            b"..",
            b"../x",
            b"a/../b",
            b"a/..",
            b"a\\..\\b",
            b"a\0b",
            b"\xff",
            long.as_bytes(),
            part.as_bytes(),
            deep.as_bytes(),
        ];
        for raw in bad {
            assert_eq!(place(raw), Err(ZipRefusal::BadName), "{}", String::from_utf8_lossy(raw));
        }
    }

    #[test]
    fn a_link_may_point_around_inside_and_not_out() {
        let (link, _) = Place::parse(b"a/b/link").unwrap().unwrap();
        for good in ["x", "../x", "../../x", "./../../a/b", "../../"] {
            assert!(link.may_point_at(good.as_bytes()), "{good}");
        }
        for bad in ["", "/", "/etc/passwd", "../../..", "../../../x", "x/../../../../a", "a\0b"] {
            assert!(!link.may_point_at(bad.as_bytes()), "{bad}");
        }
        assert!(!link.may_point_at(b"\xff"));
    }
}
