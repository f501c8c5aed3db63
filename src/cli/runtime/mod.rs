//! `kiln runtime list|add|verify`: the root file systems that functions run in.
//!
//! Reads `runtimes_dir` itself, with the rights of whoever called: trees are readable for all. Only `add` writes there, and not with
//! its own hands: it runs the builder (`scripts/build-runtimes`), which needs root. kilnd reads recipes when it needs them,
//! so what is added can be used at once.

mod verify;

use std::fs;
use std::io::{IsTerminal, stderr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hyper::Method;
use serde_json::{Value, json};

use super::args::{AddRuntime, RuntimeCommand, WhichRuntimes};
use super::client::{Client, Socket};
use super::failure::Failure;
use super::output;
use crate::config::{self, Config};
use crate::runtime::{Recipe, RuntimeName};

pub async fn execute(client: &Client, command: RuntimeCommand, as_json: bool) -> Result<(), Failure> {
    let which = match &command {
        RuntimeCommand::Add(add) => &add.which,
        RuntimeCommand::List { which } | RuntimeCommand::Verify { which, .. } => which,
    };
    let dir = runtimes_dir(client, which).await?;
    match command {
        RuntimeCommand::Add(asked) => add(&dir, &asked, as_json),
        RuntimeCommand::List { .. } => list(&dir, as_json),
        RuntimeCommand::Verify { name, .. } => verify::execute(&dir, &chosen(&dir, name.as_deref())?, as_json),
    }
}

/// That of the configuration named, else of the kilnd that runs here, else of the default configuration.
async fn runtimes_dir(client: &Client, which: &WhichRuntimes) -> Result<PathBuf, Failure> {
    if let Some(dir) = &which.runtimes_dir {
        return std::path::absolute(dir).map_err(|error| Failure::Failed(format!("{}: {error}", dir.display())));
    }
    let read = |path: &Path| {
        let config = Config::read(path).map_err(|error| Failure::Failed(format!("{error:#}")))?;
        Ok(config.runtimes_dir)
    };
    if let Some(path) = &which.config {
        return read(path);
    }
    // Whoever may not ask, or finds nobody, looks where kilnd would.
    if let Ok(reply) = client.request(Socket::Control, Method::GET, "/v1/status", &[], "").await {
        if let Some(dir) = reply.json().ok().as_ref().and_then(|status| status["config"]["runtimes_dir"].as_str()) {
            return Ok(dir.into());
        }
    }
    match Path::new(config::DEFAULT_PATH) {
        path if path.exists() => read(path),
        _ => Ok(Config::default().runtimes_dir),
    }
}

/// The recipes asked for: one, or all.
fn chosen(dir: &Path, name: Option<&str>) -> Result<Vec<RuntimeName>, Failure> {
    let installed = Recipe::installed(dir).map_err(|error| unreadable(dir, &error))?;
    let Some(name) = name else {
        return match installed.is_empty() {
            true => Err(Failure::Failed(format!("{} has no runtime; sudo kiln runtime add NAME builds one", dir.display()))),
            false => Ok(installed),
        };
    };
    match installed.into_iter().find(|found| found.as_str() == name) {
        Some(found) => Ok(vec![found]),
        None => Err(Failure::Failed(format!("{} has no runtime {}; see kiln runtime list", dir.display(), output::plain(name)))),
    }
}

/// An error with its causes, and the cure.
fn unreadable(dir: &Path, error: &crate::runtime::RecipeError) -> Failure {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    let cure = match error {
        crate::runtime::RecipeError::Read { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            "sudo kiln runtime add NAME builds one there; --config FILE names another configuration"
        }
        crate::runtime::RecipeError::Read { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => "use sudo",
        _ => "sudo kiln runtime add NAME installs it anew",
    };
    Failure::Failed(format!("runtimes in {}: {error}{cause}; {cure}", dir.display()))
}

// ---- list ------------------------------------------------------------------------------------------------------------

/// One installed runtime.
struct Installed {
    recipe: Recipe,
    trees: Vec<String>,
    bytes: u64,
}

impl Installed {
    fn read(dir: &Path, name: &RuntimeName) -> Result<Self, Failure> {
        let recipe = Recipe::read(dir, name).map_err(|error| unreadable(dir, &error))?;
        let recipe = recipe.ok_or_else(|| Failure::Failed(format!("runtime {name} was removed just now")))?;
        let trees: Vec<String> =
            recipe.trees(dir).map_err(|error| unreadable(dir, &error))?.iter().map(ToString::to_string).collect();
        let mut bytes = 0;
        for tree in &trees {
            verify::walk(&dir.join("trees").join(tree), &mut |_, about| bytes += if about.is_file() { about.len() } else { 0 })
                .map_err(|(path, error)| Failure::Failed(format!("runtime {name}: {} cannot be read: {error}", path.display())))?;
        }
        Ok(Self { recipe, trees, bytes })
    }

    fn to_json(&self) -> Value {
        let Recipe { name, tree, start, execution_env, .. } = &self.recipe;
        json!({
            "name": name, "tree": tree.to_string(), "trees": self.trees, "bytes": self.bytes, "start": start,
            "execution_env": execution_env,
        })
    }
}

fn list(dir: &Path, as_json: bool) -> Result<(), Failure> {
    let names = Recipe::installed(dir).map_err(|error| unreadable(dir, &error))?;
    let installed = names.iter().map(|name| Installed::read(dir, name)).collect::<Result<Vec<_>, _>>()?;
    if as_json {
        let runtimes: Vec<Value> = installed.iter().map(Installed::to_json).collect();
        return output::print_json(&json!({ "runtimes_dir": dir, "runtimes": runtimes }));
    }
    if installed.is_empty() {
        output::say(&format!("no runtimes in {}; sudo kiln runtime add NAME builds one", dir.display()));
        return Ok(());
    }
    let rows = installed.iter().map(|runtime| {
        let programs: Vec<&str> = runtime.recipe.start.iter().filter_map(|line| line.first()).map(String::as_str).collect();
        vec![
            runtime.recipe.name.to_string(),
            runtime.recipe.tree.to_string()[..12].to_owned(),
            mib(runtime.bytes),
            programs.join(" or "),
        ]
    });
    output::print_line(&output::table(&["NAME", "TREE", "SIZE", "STARTS"], rows.collect()))
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

// ---- add -------------------------------------------------------------------------------------------------------------

fn add(dir: &Path, asked: &AddRuntime, as_json: bool) -> Result<(), Failure> {
    let recipe = asked.recipe.to_string_lossy();
    // As the builder reads it: a folder of one's own has a slash in it.
    let (name, argument) = if asked.recipe.components().count() == 1 && !recipe.starts_with('.') && !recipe.ends_with('/') {
        (recipe.clone().into_owned(), asked.recipe.clone())
    } else {
        let folder = fs::canonicalize(&asked.recipe)
            .map_err(|error| Failure::Usage(format!("the recipe {recipe} cannot be found: {error}")))?;
        (name_in(&folder.join("recipe.toml"))?, folder)
    };
    let builder = builder()?;
    if !nix::unistd::geteuid().is_root() {
        return Err(Failure::Failed(format!(
            "trees belong to a user of their own, which only root can give: sudo kiln runtime add {recipe}"
        )));
    }
    let mut command = Command::new(&builder);
    command.arg("--runtimes-dir").arg(dir).arg(&argument).stdin(Stdio::null());
    if let Some(cache) = &asked.cache_dir {
        command.arg("--cache-dir").arg(cache);
    }
    if asked.prune {
        command.arg("--prune");
    }
    if as_json {
        // Its table is for people; stdout is for what was asked.
        command.stdout(stderr());
    }
    if !stderr().is_terminal() {
        output::say(&format!("building {name} by {}", builder.display()));
    }
    let ended = command.status().map_err(|error| Failure::Failed(format!("{} cannot be run: {error}", builder.display())))?;
    if !ended.success() {
        return Err(Failure::Failed(format!(
            "runtime {name} is not installed: its builder ended with {ended}; its own words are above"
        )));
    }
    if as_json {
        let name = RuntimeName::parse(&name).map_err(|error| Failure::Failed(error.to_string()))?;
        return output::print_json(&Installed::read(dir, &name)?.to_json());
    }
    output::say(&format!("runtime {name} can be used now; try: kiln function create NAME --runtime {name} …"));
    Ok(())
}

fn name_in(recipe: &Path) -> Result<String, Failure> {
    let wrong = |why: String| Failure::Usage(format!("{}: {why}", recipe.display()));
    let text = fs::read_to_string(recipe).map_err(|error| wrong(error.to_string()))?;
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| wrong(error.message().to_owned()))?;
    table.get("name").and_then(toml::Value::as_str).map(str::to_owned).ok_or_else(|| wrong("it has no `name`".into()))
}

/// The builder: what KILN_BUILDER names, else build-runtimes beside this program, else what lies with it: in the checkout around it,
/// or below the prefix where it was installed (PREFIX/lib/kiln/kiln and PREFIX/share/kiln/scripts).
fn builder() -> Result<PathBuf, Failure> {
    if let Some(named) = std::env::var_os("KILN_BUILDER") {
        let named = PathBuf::from(named);
        return match named.is_file() {
            true => Ok(named),
            false => Err(Failure::Failed(format!("KILN_BUILDER names {}, which is no file", named.display()))),
        };
    }
    let this = std::env::current_exe().map_err(|error| Failure::Failed(format!("this program's own path: {error}")))?;
    let beside = this.with_file_name("build-runtimes");
    let around = this.ancestors().skip(1);
    let with_it =
        around.flat_map(|above| ["scripts", "share/kiln/scripts"].map(|within| above.join(within).join("build-runtimes")));
    std::iter::once(beside).chain(with_it).find(|path| path.is_file()).ok_or_else(|| {
        Failure::Failed(format!(
            "no builder of runtimes was found with {}, neither in a checkout nor installed: set KILN_BUILDER to Kiln's scripts/build-runtimes",
            this.display()
        ))
    })
}
