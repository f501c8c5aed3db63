//! Whether kilnd runs, whether it can be reached, and whether it is the one that we belong to.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::finding::{Finding, broken, ok, warn};
use super::host::Host;
use crate::config::Config;
use crate::config::reload::AT_START;

/// `compare` is the file that the caller named: a running kilnd that has read another is worth a word.
pub fn checks(host: &Host, config: &Config, compare: Option<&Config>) -> Vec<Finding> {
    let run = config.run_dir.display();
    let service = host.systemd.as_ref().map_or("kilnd.service", |systemd| systemd.service.as_str());
    if host.kilnd.waits {
        for path in [config.api_socket(), config.control_socket()] {
            if !host.exists(&path) {
                let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
                let found = format!("there is no {}, although systemd listens: somebody removed it", path.display());
                let sockets = host.systemd.as_ref().map(|systemd| systemd.sockets.join(" ")).unwrap_or_default();
                return vec![broken(name, found, format!("systemctl restart {sockets}"))];
            }
        }
        return vec![ok(
            "kilnd",
            format!("not running; systemd holds the doors in {run} and starts {service} with the first caller"),
        )];
    }
    let both_absent = [host.kilnd.api, host.kilnd.control].iter().all(|door| *door == Some(io::ErrorKind::NotFound));
    if both_absent {
        let found = format!("not running: there is no socket in {run}");
        let cure = format!(
            "start it (systemctl start {service}, scripts/quickstart, or kilnd --config FILE); or name another instance with --run DIR or --config FILE"
        );
        return vec![warn("kilnd", found, cure)];
    }
    let mut findings = vec![
        door(host, "kiln.sock", &config.api_socket(), host.kilnd.api, &config.invoke_group, "invoke_group"),
        door(host, "control.sock", &config.control_socket(), host.kilnd.control, &config.admin_group, "admin_group"),
    ];
    if let Some(trouble) = &host.kilnd.trouble {
        findings.push(broken(
            "kilnd",
            format!("it takes connections, but gives no answer: {trouble}"),
            "look into its log (journalctl -u kilnd, or where its output goes), then restart it",
        ));
    }
    let Some(status) = &host.kilnd.status else { return findings };
    let server = status.server_pid;
    findings.insert(
        0,
        match status.draining {
            false => ok("kilnd", format!("running in {run}, its server is process {server}")),
            true => {
                let found = format!("stopping in {run}: its server, process {server}, waits for running invocations");
                warn("kilnd", found, "wait until it has ended (drain_s), or look whether it was to be restarted")
            }
        },
    );
    let ours = env!("CARGO_PKG_VERSION");
    // Who may not look into the server sees no link.
    let program = std::fs::read_link(host.root.join(format!("proc/{server}/exe"))).unwrap_or_default();
    findings.push(if let Some(path) = program.to_string_lossy().strip_suffix(" (deleted)") {
        let found = format!("the running kilnd was started from another file than the one that is {path} now");
        warn("versions", found, format!("systemctl restart {service}: callers queue meanwhile"))
    } else if status.version == ours {
        ok("versions", format!("kiln and kilnd are both {ours}"))
    } else {
        let found = format!("this kiln is {ours}, the running kilnd is {}", status.version);
        warn("versions", found, "restart kilnd after an upgrade, or use the kiln beside it")
    });
    findings.extend(status.config().and_then(|running| metrics(&running, status.metrics.as_deref())));
    let compared = compare.zip(status.config()).map(|(file, running)| same(file, &running));
    findings.extend(compared.or_else(|| waiting(&status.waiting_for_restart)));
    findings
}

fn door(host: &Host, check: &'static str, path: &Path, refused: Option<io::ErrorKind>, group: &str, key: &str) -> Finding {
    let shown = path.display();
    match refused {
        None => {}
        Some(io::ErrorKind::NotFound) => {
            return broken(
                check,
                format!("there is no {shown}, although its neighbour is there"),
                "restart kilnd: somebody removed it",
            );
        }
        Some(io::ErrorKind::ConnectionRefused) => {
            return broken(
                check,
                format!("{shown} is there, but nobody listens: kilnd was killed"),
                "start kilnd again; it removes what its predecessor left",
            );
        }
        Some(io::ErrorKind::PermissionDenied) => {
            let cure = format!("sudo usermod -aG {group} $USER, and log in again; or use sudo");
            return warn(check, format!("{shown} is not for this user: it belongs to {group}"), cure);
        }
        Some(io::ErrorKind::WouldBlock) => {
            let found = format!("{shown} takes no more connections: its queue is full");
            return broken(check, found, "look into kilnd's log for what it waits for, then restart it");
        }
        Some(other) => return broken(check, format!("{shown}: {other}"), "restart kilnd"),
    }
    let Ok(about) = std::fs::symlink_metadata(host.path(path)) else { return ok(check, format!("{shown} answers")) };
    let mode = about.mode() & 0o777;
    match host.group(group) {
        Some(id) if id != about.gid() => {
            let found = format!("{shown} belongs to the group {}, not to {group} ({id})", about.gid());
            broken(check, found, format!("restart kilnd with this configuration, or correct {key}"))
        }
        _ if mode & 0o007 != 0 => broken(
            check,
            format!("{shown} is open to everybody (mode {mode:04o})"),
            "restart kilnd, which makes it 0660; find out who changed it",
        ),
        _ => ok(check, format!("{shown} answers; group {group}")),
    }
}

/// Where the configuration in force wants metrics to be served, and where they are.
fn metrics(running: &Config, served: Option<&str>) -> Option<Finding> {
    let wanted = running.metrics_address()?;
    if served.and_then(|served| served.parse().ok()) == Some(wanted) {
        return Some(ok("metrics", format!("http://{wanted}/metrics")).about("metrics_listen"));
    }
    let found = format!("metrics_listen is {wanted}, but kilnd could not listen there: its log says why");
    let cure = format!(
        "ss -ltnp 'sport = :{port}' tells who has that port: stop it, or set another; then systemctl reload kilnd",
        port = wanted.port()
    );
    Some(broken("metrics", found, cure).about("metrics_listen"))
}

fn same(file: &Config, running: &Config) -> Finding {
    let table = |config: &Config| toml::Table::try_from(config).unwrap_or_default();
    let (file, running) = (table(&file.clone().settled()), table(running));
    let differ: Vec<&str> =
        file.iter().filter(|(key, value)| running.get(*key) != Some(value)).map(|(key, _)| key.as_str()).collect();
    if differ.is_empty() {
        return ok("in-force", "kilnd runs with this configuration");
    }
    let cure = match differ.iter().any(|key| AT_START.contains(key)) {
        true => "restart kilnd: some of these take effect at its start only",
        false => "systemctl reload kilnd, or send SIGHUP to its supervisor: these take effect while it runs",
    };
    warn("in-force", format!("kilnd runs with other values of {}", differ.join(", ")), cure)
}

/// What kilnd itself knows of its file, as of its last reload.
fn waiting(keys: &[String]) -> Option<Finding> {
    let found = format!("the file has other values of {}", keys.join(", "));
    (!keys.is_empty()).then(|| warn("in-force", found, "restart kilnd: these take effect at its start only"))
}
