//! Whether the program of a function's own runtime can run on this host at all.
//!
//! Lambda finds out at the first invocation (`exec format error`); that a zip was built on a laptop with another processor is
//! the commonest mistake with these runtimes, so we look when code or runtime are set. Only at a file's first bytes, and
//! only at what the runtime starts out of the function's code.

use std::io::Read;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};

use crate::code::Digest;
use crate::code::machine::{ENOUGH, HOST, Machine};
use crate::runtime::Recipe;

/// Where a container finds the function's code.
const TASK: &str = "/var/task/";

/// What is wrong with the program that `recipe` would start, if that is in the code. What cannot be read says nothing: the
/// invocation will.
pub fn foreign(code_dir: &Path, code: Digest, recipe: &Recipe) -> Option<String> {
    let name = recipe.start.iter().find_map(|line| line.first()?.strip_prefix(TASK))?;
    let machine = machine(code_dir, code, name)?;
    let why = format!("{name} was built for {machine}, and this host runs {HOST}: build it for {HOST}.");
    (machine != HOST).then_some(why)
}

fn machine(code_dir: &Path, code: Digest, name: &str) -> Option<Machine> {
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let tree = openat(CWD, code_dir.join(code.to_string()), directory, Mode::empty()).ok()?;
    // It may be a link, but never out of the tree.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = openat2(tree, name, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_XDEV).ok()?;
    let mut first = Vec::new();
    std::fs::File::from(file).take(ENOUGH as u64).read_to_end(&mut first).ok()?;
    Machine::of(&first)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn recipe(start: &str) -> Recipe {
        toml::from_str(&format!("name='r'\ntree='{}'\nstart=[['{start}'],['/opt/bootstrap']]", Digest::of(b""))).unwrap()
    }

    #[test]
    fn only_the_program_that_is_started_is_looked_at() {
        let code_dir = tempfile::tempdir().unwrap();
        let code = Digest::of(b"zip");
        let tree = code_dir.path().join(code.to_string());
        fs::create_dir(&tree).unwrap();
        let mut arm = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0".to_vec();
        arm.extend([40, 0]);
        fs::write(tree.join("bootstrap"), &arm).unwrap();
        fs::copy("/proc/self/exe", tree.join("own")).unwrap();
        let foreign = |start: &str| foreign(code_dir.path(), code, &recipe(start));
        let why = foreign("/var/task/bootstrap").unwrap();
        assert!(why.contains("bootstrap was built for 32-bit arm"), "{why}");
        for start in ["/var/task/own", "/var/task/missing", "/opt/bootstrap", "/var/lang/bin/node"] {
            assert_eq!(foreign(start), None, "{start}");
        }
        symlink("bootstrap", tree.join("link")).unwrap();
        assert!(foreign("/var/task/link").is_some());
        // It leads out of the tree: nobody follows it there.
        fs::write(code_dir.path().join("outside"), &arm).unwrap();
        symlink("../outside", tree.join("out")).unwrap();
        assert_eq!(foreign("/var/task/out"), None);
    }
}
