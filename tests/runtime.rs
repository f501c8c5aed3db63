//! Runtimes as they are built, shown, checked and added: `kiln runtime`, the builder behind it, and what trees promise.
//!
//! What only looks needs the built runtimes (`scripts/build-runtimes`); what builds and runs needs root, and takes the packages from
//! KILN_TEST_CACHE (default target/cache).

#[path = "engine/host/mod.rs"]
#[allow(dead_code)] // serves several test programs; each uses its part
mod host;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use base64::Engine as _;
use host::{Instance, Options, code, eventually, runtimes_dir};
use kiln::runtime::{Recipe, RuntimeName};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

// ---- Trees ---------------------------------------------------------------------------------------------------------------

/// Every file that the wheels list is there with the wheels' own hash, and no file that they do not list.
#[test]
fn lambdas_python_client_is_the_wheels_own_files() {
    let Some(tree) = top_tree("python3.13") else { return };
    let runtime = tree.join("var/runtime");
    let mut listed = BTreeSet::new();
    for wheel in ["awslambdaric", "simplejson", "snapshot_restore_py"] {
        let info =
            entries(&runtime).into_iter().find(|name| name.starts_with(&format!("{wheel}-")) && name.ends_with(".dist-info"));
        let record = fs::read_to_string(runtime.join(info.expect(wheel)).join("RECORD")).unwrap();
        let mut compared = 0;
        for row in record.lines() {
            let mut parts = row.rsplitn(3, ',');
            let (_size, hash, path) = (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
            listed.insert(path.to_owned());
            // RECORD cannot have a hash of itself.
            let Some(wanted) = hash.strip_prefix("sha256=") else { continue };
            match fs::read(runtime.join(path)) {
                Ok(bytes) => {
                    let found = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(Sha256::digest(bytes));
                    assert_eq!(found, wanted, "{path}");
                    compared += 1;
                }
                // Only simplejson's own tests are left out.
                Err(_) => assert!(path.starts_with("simplejson/tests/"), "{path} of {wheel} is missing"),
            }
        }
        assert!(compared >= 4, "{wheel}: {compared} files compared");
    }
    let mut all = Vec::new();
    files(&runtime, &mut all);
    let own = |path: &&String| path.as_str() != "bootstrap" && !path.contains("__pycache__/");
    let strangers: Vec<&String> = all.iter().filter(own).filter(|path| !listed.contains(*path)).collect();
    assert!(strangers.is_empty(), "in no wheel: {strangers:?}");
}

/// unchecked-hash (PEP 552): nothing is compared at run time, so that it holds on a read-only tree with any times.
#[test]
fn pythons_library_is_compiled() {
    let Some(tree) = top_tree("python3.13") else { return };
    let mut compared = 0;
    for directory in ["var/lang/lib/python3.13", "var/runtime"] {
        let mut all = Vec::new();
        files(&tree.join(directory), &mut all);
        for source in all.iter().filter(|path| path.ends_with(".py")) {
            let source = tree.join(directory).join(source);
            let name = format!("{}.cpython-313.pyc", source.file_stem().unwrap().to_str().unwrap());
            let compiled = source.with_file_name("__pycache__").join(name);
            let bytes = fs::read(&compiled).unwrap_or_else(|error| panic!("{}: {error}", compiled.display()));
            assert_eq!(bytes[4..8], [1, 0, 0, 0], "{}: hash-based, unchecked", compiled.display());
            compared += 1;
        }
    }
    assert!(compared > 400, "{compared} modules");
}

#[test]
fn trees_are_r_s_alone_and_cannot_be_changed_by_others() {
    if top_tree("python3.13").is_none() {
        return;
    }
    let owner: u32 = fs::read_to_string(runtimes_dir().join("owner")).unwrap().trim().parse().unwrap();
    for tree in entries(&runtimes_dir().join("trees")) {
        let mut all = Vec::new();
        let root = runtimes_dir().join("trees").join(&tree);
        files(&root, &mut all);
        for path in all {
            let about = fs::symlink_metadata(root.join(&path)).unwrap();
            assert_eq!((about.uid(), about.gid()), (owner, owner), "{tree}/{path}");
            let mode = about.permissions().mode() & 0o7777;
            assert!(about.is_symlink() || [0o644, 0o755].contains(&mode), "{tree}/{path} has mode {mode:o}");
        }
    }
}

// ---- kiln runtime ----------------------------------------------------------------------------------------------------------

#[test]
fn list_shows_every_runtime_and_verify_finds_them_whole() {
    if top_tree("python3.13").is_none() {
        return;
    }
    let (out, _) = ended(&kiln(&runtimes_dir(), &["runtime", "list"], &[]), 0);
    for (name, starts) in [
        ("nodejs22.x", "/var/lang/bin/node"),
        ("provided.al2023", "/var/task/bootstrap or /opt/bootstrap"),
        ("python3.13", "/var/runtime/bootstrap"),
    ] {
        let line = out.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name} in\n{out}"));
        assert!(line.contains(" MiB") && line.ends_with(starts), "{line}");
    }
    let (out, _) = ended(&kiln(&runtimes_dir(), &["--json", "runtime", "list"], &[]), 0);
    let listed: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(listed["runtimes_dir"], json!(runtimes_dir()));
    let python = listed["runtimes"].as_array().unwrap().iter().find(|runtime| runtime["name"] == "python3.13").unwrap();
    assert_eq!(python["trees"].as_array().unwrap().len(), 2, "{python}");
    assert!(python["bytes"].as_u64().unwrap() > 50 << 20, "{python}");

    let (out, err) = ended(&kiln(&runtimes_dir(), &["runtime", "verify"], &[]), 0);
    assert!(out.lines().filter(|line| line.ends_with(" ok")).count() >= 4, "{out}{err}");
    let (_, err) = ended(&kiln(&runtimes_dir(), &["runtime", "verify", "cobol.60"], &[]), 1);
    assert!(err.contains("has no runtime cobol.60; see kiln runtime list"), "{err}");
    let (_, err) = ended(&kiln(Path::new("/nowhere"), &["runtime", "list"], &[]), 1);
    assert!(err.contains("/nowhere") && err.contains("sudo kiln runtime add"), "{err}");
}

#[test]
fn a_builder_that_is_not_found_or_fails_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let missing = [("KILN_BUILDER", "/nowhere/build-runtimes")];
    let (_, err) = ended(&kiln(dir.path(), &["runtime", "add", "python3.13"], &missing), 1);
    assert!(err.contains("KILN_BUILDER names /nowhere/build-runtimes"), "{err}");
    let (_, err) = ended(&kiln(dir.path(), &["runtime", "add", "./no-such-folder"], &[]), 2);
    assert!(err.contains("./no-such-folder cannot be found"), "{err}");
    if nix::unistd::geteuid().is_root() {
        let (_, err) = ended(&kiln(dir.path(), &["runtime", "add", "x"], &[("KILN_BUILDER", "/bin/false")]), 1);
        assert!(err.contains("runtime x is not installed") && err.contains("exit status: 1"), "{err}");
    }
}

/// The whole way of a runtime of one's own: built, used by a kilnd that was there before it, changed, broken, found out, mended.
#[test]
fn a_runtime_is_added_used_without_a_restart_verified_and_pruned() {
    if !host::ready() {
        return;
    }
    let runtimes = tempfile::tempdir_in("/var/tmp").unwrap();
    fs::set_permissions(runtimes.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let add = |what: &str, options: &[&str]| {
        let cache = cache();
        let words = [&["runtime", "add", what, "--cache-dir", cache.to_str().unwrap()], options].concat();
        kiln(runtimes.path(), &words, &[])
    };
    ended(&add("provided.al2023", &[]), 0);
    let instance = Instance::start_with(Options { runtimes_dir: Some(runtimes.path().into()), ..Options::default() });
    // Without being told: that of the kilnd that runs, or of a configuration.
    let (run, config) = (instance.run_dir(), instance.config_path());
    for words in [["--run", run.to_str().unwrap()], ["--config", config.to_str().unwrap()]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
        let (out, _) = ended(&command.args(["runtime", "list", "--json"]).args(words).output().unwrap(), 0);
        assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["runtimes_dir"], json!(runtimes.path()), "{words:?}");
    }
    let create = |name: &str| {
        let body = json!({
            "FunctionName": name, "Runtime": "mine1.0", "Handler": "x", "Role": "arn:aws:iam::000000000000:role/test",
            "Code": { "ZipFile": code::base64(&code::zip(&[("a", 0o644, b"a")])) },
        });
        instance.api().request("POST", "/2015-03-31/functions", &[], body.to_string().as_bytes())
    };
    let refused = create("early");
    assert!(refused.status == 400 && refused.text().contains("enum value set: [provided.al2023]"), "{}", refused.text());

    let recipe = tempfile::tempdir().unwrap();
    let write = |greeting: &str| {
        let text = "name = 'mine1.0'\non = 'base'\nstart = [['/var/runtime/bootstrap']]\nhot = ['/var/runtime/bootstrap']\n\
                    [files]\nbootstrap = '/var/runtime/bootstrap'\ngreeting = '/var/runtime/greeting'\n[vars]\nMINE = 'yes'\n";
        fs::write(recipe.path().join("recipe.toml"), text).unwrap();
        fs::write(recipe.path().join("greeting"), greeting).unwrap();
        fs::write(recipe.path().join("bootstrap"), code::probe_program()).unwrap();
        fs::set_permissions(recipe.path().join("bootstrap"), fs::Permissions::from_mode(0o755)).unwrap();
    };
    write("one");
    let (out, err) = ended(&add(recipe.path().to_str().unwrap(), &[]), 0);
    assert!(out.contains("mine1.0") && err.contains("runtime mine1.0 can be used now"), "{out}{err}");
    assert_eq!(create("first").status, 201);
    eventually("the function is Active", || instance.configuration("first")["State"] == "Active");
    let read = || instance.call("first", &json!({ "read": "/var/runtime/greeting" }));
    assert_eq!(read(), "one");
    eventually("the new runtime is warm", || instance.log().matches("hot files are in the page cache").count() >= 2);

    // Another content: a new tree; new containers run from it, and the old tree stays while somebody has it.
    write("two");
    let (out, _) =
        ended(&add(recipe.path().to_str().unwrap(), &["--prune", "--runtimes-dir", runtimes.path().to_str().unwrap()]), 0);
    assert!(out.contains("Removed 0 old trees") && out.contains("1 old tree stay"), "{out}");
    assert_eq!(read(), "one", "the warm container has its own root");
    assert_eq!(create("second").status, 201);
    eventually("the function is Active", || instance.configuration("second")["State"] == "Active");
    assert_eq!(instance.call("second", &json!({ "read": "/var/runtime/greeting" })), "two");
    assert_eq!(instance.call("second", &json!({ "do": "env" }))["MINE"], "yes");

    verify_finds(runtimes.path());

    drop(instance);
    // What nobody has mounted goes; what was broken is built anew.
    let (out, _) = ended(&add(recipe.path().to_str().unwrap(), &["--prune"]), 0);
    assert!(out.contains("Removed 1 old tree "), "{out}");
    ended(&kiln(runtimes.path(), &["runtime", "verify"], &[]), 0);
    assert_eq!(entries(&runtimes.path().join("trees")).len(), 2, "the base and one");
    assert_eq!(entries(&runtimes.path().join("listings")).len(), 2);
}

/// Each way in which a tree can differ is found and named, with exit code 1.
fn verify_finds(runtimes: &Path) {
    let name = RuntimeName::parse("mine1.0").unwrap();
    let recipe = Recipe::read(runtimes, &name).unwrap().unwrap();
    let top = runtimes.join("trees").join(recipe.trees(runtimes).unwrap()[0].to_string());
    let greeting = top.join("var/runtime/greeting");
    let owner = fs::symlink_metadata(&greeting).unwrap().uid();
    let says = |what: &str| {
        let (out, err) = ended(&kiln(runtimes, &["runtime", "verify", "mine1.0"], &[]), 1);
        assert!(out.contains(what) && err.contains("broken: mine1.0"), "no {what:?} in\n{out}{err}");
        let (out, _) = ended(&kiln(runtimes, &["--json", "runtime", "verify"], &[]), 1);
        let told: Value = serde_json::from_str(&out).unwrap();
        let states: BTreeMap<&str, bool> = told["runtimes"]
            .as_array()
            .unwrap()
            .iter()
            .map(|r| (r["name"].as_str().unwrap(), r["ok"].as_bool().unwrap()))
            .collect();
        assert_eq!(states, [("mine1.0", false), ("provided.al2023", true)].into());
    };
    let (out, _) = ended(&kiln(runtimes, &["runtime", "verify"], &[]), 0);
    assert!(out.contains("ok"), "{out}");
    fs::write(&greeting, "two!").unwrap();
    says("/var/runtime/greeting  its content was changed");
    fs::write(&greeting, "two").unwrap();
    fs::set_permissions(&greeting, fs::Permissions::from_mode(0o600)).unwrap();
    says("/var/runtime/greeting  has mode 0600, and should have 0644");
    fs::set_permissions(&greeting, fs::Permissions::from_mode(0o644)).unwrap();
    std::os::unix::fs::chown(&greeting, Some(0), None).unwrap();
    says(&format!("/var/runtime/greeting  belongs to 0:{owner}, and should to {owner}:{owner}"));
    std::os::unix::fs::chown(&greeting, Some(owner), None).unwrap();
    fs::write(top.join("stray"), "").unwrap();
    says("/stray  does not belong there");
    fs::remove_file(top.join("stray")).unwrap();
    ended(&kiln(runtimes, &["runtime", "verify"], &[]), 0);
    fs::remove_file(&greeting).unwrap();
    says("/var/runtime/greeting  is missing");
}

// ---- The page cache --------------------------------------------------------------------------------------------------------

/// With the files read ahead, and, to show what that is worth, without.
#[test]
fn the_first_container_is_not_charged_for_its_runtime() {
    if !host::ready() {
        return;
    }
    let charged = |warm: bool| {
        let runtimes = evicted_copy("nodejs22.x", warm);
        let instance = Instance::start_with(Options { runtimes_dir: Some(runtimes.path().into()), ..Options::default() });
        eventually("kilnd has read what is hot", || instance.log().contains("hot files are in the page cache"));
        let zip = code::zip(&[("index.js", 0o644, b"exports.handler = async () => 1;")]);
        instance.create("f", "nodejs22.x", "index.handler", &zip, json!({ "MemorySize": 256, "Timeout": 20 }));
        assert_eq!(instance.call("f", &json!({})), 1);
        let groups = host::snapshot::cgroups(&format!("kiln-{}-", instance.name));
        groups.iter().filter_map(|group| file_cache_mib(Path::new(group))).max().expect("the container's memory.stat")
    };
    let (warm, cold) = (charged(true), charged(false));
    println!("file cache of the first container of nodejs22.x: {warm} MiB with its files read ahead, {cold} MiB without");
    assert!(warm <= 8, "{warm} MiB of file cache are charged to the first container");
    assert!(cold >= 30, "only {cold} MiB without reading ahead: this test shows nothing");
}

/// A runtimes_dir with this one runtime, of which nothing is in the page cache.
fn evicted_copy(name: &str, warm: bool) -> tempfile::TempDir {
    let copy = tempfile::tempdir_in("/var/tmp").unwrap();
    fs::set_permissions(copy.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let from = runtimes_dir();
    let recipe = Recipe::read(&from, &RuntimeName::parse(name).unwrap()).unwrap().expect(name);
    for directory in ["trees", "sets"] {
        fs::create_dir(copy.path().join(directory)).unwrap();
    }
    fs::copy(from.join("owner"), copy.path().join("owner")).unwrap();
    let set = format!("sets/{}", recipe.tree);
    fs::copy(from.join(&set), copy.path().join(&set)).unwrap();
    let text = fs::read_to_string(from.join(format!("{name}.toml"))).unwrap();
    let without: String =
        text.lines().filter(|line| warm || !line.starts_with("hot = ")).map(|line| format!("{line}\n")).collect();
    fs::write(copy.path().join(format!("{name}.toml")), without).unwrap();
    for tree in recipe.trees(&from).unwrap() {
        let status =
            Command::new("cp").arg("-a").arg(from.join("trees").join(tree.to_string())).arg(copy.path().join("trees")).status();
        assert!(status.expect("run cp").success());
    }
    assert!(Command::new("sync").arg("-f").arg(copy.path()).status().expect("run sync").success());
    let mut all = Vec::new();
    files(copy.path(), &mut all);
    for path in all {
        // A link cannot be opened as a file of the tree.
        let path = copy.path().join(path);
        if path.symlink_metadata().unwrap().is_file() {
            let file = fs::File::open(path).unwrap();
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        }
    }
    copy
}

/// Page cache that is charged to a group, of either version.
fn file_cache_mib(group: &Path) -> Option<u64> {
    let text = fs::read_to_string(group.join("memory.stat")).ok()?;
    let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
    Some(value("total_cache ").or_else(|| value("file "))? >> 20)
}

// ---- Helpers ---------------------------------------------------------------------------------------------------------------

/// `kiln` on this runtimes_dir, unless the words name another.
fn kiln(runtimes: &Path, words: &[&str], vars: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
    command.args(words).env("KILN_RUN_DIR", "/nowhere");
    if !words.contains(&"--runtimes-dir") {
        command.arg("--runtimes-dir").arg(runtimes);
    }
    command.envs(vars.iter().copied()).output().expect("run kiln")
}

#[track_caller]
fn ended(output: &Output, code: i32) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "stdout: {out}\nstderr: {err}");
    (out, err)
}

fn cache() -> PathBuf {
    std::env::var_os("KILN_TEST_CACHE").map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/cache"), PathBuf::from)
}

/// The runtime's own tree; `None` says why the test does not run.
fn top_tree(name: &str) -> Option<PathBuf> {
    let recipe = Recipe::read(&runtimes_dir(), &RuntimeName::parse(name).unwrap()).ok().flatten();
    let Some(recipe) = recipe else {
        let why = format!("no {name} in {}: run scripts/build-runtimes --runtimes-dir target/runtimes", runtimes_dir().display());
        assert!(std::env::var_os("KILN_TESTS_MUST_RUN").is_none(), "{why}");
        eprintln!("SKIP: {why}");
        return None;
    };
    let trees = recipe.trees(&runtimes_dir()).unwrap();
    Some(runtimes_dir().join("trees").join(trees[0].to_string()))
}

fn entries(directory: &Path) -> Vec<String> {
    fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Everything below that is no directory, as paths from `root`.
fn files(root: &Path, found: &mut Vec<String>) {
    fn below(root: &Path, directory: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            match path.symlink_metadata().unwrap().is_dir() {
                true => below(root, &path, found),
                false => found.push(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned()),
            }
        }
    }
    below(root, root, found);
}
