//! The platform's own log lines, byte for byte as Lambda writes them. Pure.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use crate::invocation::{Cause, RequestId};
use crate::meter::Row;
use crate::runtime::Recipe;

/// Which attempt an INIT_REPORT line is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The first init, outside of the invocation.
    Init,
    /// The second one, inside of it.
    Invoke,
}

/// First in the stream of an environment. Kiln's runtimes have no version of their own but the digest of their tree.
pub fn init_start(recipe: &Recipe, region: &str) -> String {
    // `nodejs8.10` is `nodejs:8.10` here, and `provided.al2023` is `provided:al2023`.
    let name = recipe.name.as_str();
    let (family, version) = name.split_at(name.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(name.len()));
    let version = version.strip_prefix('.').unwrap_or(version);
    let digest = &recipe.tree;
    format!("INIT_START Runtime Version: {family}:{version}\tRuntime Version ARN: arn:aws:lambda:{region}::runtime:{digest}\n")
}

pub fn start(request: RequestId, version: &str) -> String {
    format!("START RequestId: {request} Version: {version}\n")
}

pub fn end(request: RequestId) -> String {
    format!("END RequestId: {request}\n")
}

/// An error that the runtime itself reported is the handler's affair: there the books know of it, and the line does not.
pub fn report(row: &Row, cause: Option<&Cause>) -> String {
    let mut line = format!(
        "REPORT RequestId: {}\tDuration: {} ms\tBilled Duration: {} ms\tMemory Size: {} MB\tMax Memory Used: {} MB\t",
        row.request,
        ms(row.duration),
        row.billed.as_millis(),
        row.memory.mib(),
        row.max_memory_used_mib,
    );
    // Writing into a String cannot fail.
    if let Some(init) = row.init {
        let _ = write!(line, "Init Duration: {} ms\t", ms(init));
    }
    if let Some(cause) = cause.filter(|cause| !matches!(cause, Cause::Reported { .. })) {
        let _ = write!(line, "{}", status(cause.report_type()));
    }
    line.push('\n');
    line
}

/// A failed init.
pub fn init_report(took: Duration, phase: Phase, cause: &Cause) -> String {
    let phase = match phase {
        Phase::Init => "init",
        Phase::Invoke => "invoke",
    };
    format!("INIT_REPORT Init Duration: {} ms\tPhase: {phase}\t{}\n", ms(took), status(cause.report_type()))
}

fn status(error_type: &str) -> String {
    match error_type {
        "Sandbox.Timedout" => "Status: timeout".into(),
        other => format!("Status: error\tError Type: {other}"),
    }
}

/// What goes between the function's output and END when an invocation failed. Nothing for an error that the
/// runtime reported itself: its client has written it already.
pub fn failure(request: RequestId, cause: &Cause, now: SystemTime) -> String {
    match cause {
        Cause::Reported { .. } | Cause::Init { .. } => String::new(),
        Cause::Timeout(_) => format!("{} {request} {}\n\n", iso(now), cause.text()),
        _ => format!("RequestId: {request} Error: {}\n{}\n", cause.text(), cause.payload_type()),
    }
}

/// Beside the last init's failure, which a caller is told again.
pub fn not_tried_again(ago: Duration) -> String {
    let ago = ago.as_secs_f64();
    format!("KILN: this is how the init failed {ago:.1} s ago; it fails again and again, so it was not tried this time\n")
}

/// Before the end of what somebody killed by hand.
pub fn killed(container: &str, by: &str) -> String {
    format!("KILN: container {container} was killed by {by}\n")
}

/// Whoever reads what follows it knows that the function was not alone.
pub fn entered(container: &str, by: &str) -> String {
    format!("KILN: container {container} was entered by {by}\n")
}

/// From the whole microseconds that the books keep, so that the line can be had from them.
fn ms(duration: Duration) -> String {
    let hundredths = (duration.as_micros() + 5) / 10;
    format!("{}.{:02}", hundredths / 100, hundredths % 100)
}

/// `2018-12-01T12:00:00.000Z`
fn iso(time: SystemTime) -> String {
    let time = jiff::Timestamp::try_from(time).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    time.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::function::{FunctionName, Memory};
    use crate::invocation::ProcessEnd;

    fn row() -> Row {
        Row {
            request: RequestId::new(),
            function: FunctionName::parse("f").unwrap(),
            version: "$LATEST".into(),
            start: SystemTime::UNIX_EPOCH,
            duration: Duration::from_micros(3_014),
            billed: Duration::from_millis(100),
            memory: Memory::from_mib(128).unwrap(),
            max_memory_used_mib: 36,
            init: None,
            error_type: None,
        }
    }

    #[test]
    fn a_warm_report_has_no_init_duration_and_ends_with_a_tab() {
        let row = row();
        assert_eq!(
            report(&row, None),
            format!(
                "REPORT RequestId: {}\tDuration: 3.01 ms\tBilled Duration: 100 ms\tMemory Size: 128 MB\tMax Memory Used: 36 MB\t\n",
                row.request
            )
        );
    }

    #[test]
    fn an_environments_first_line_names_its_runtime_as_lambda_does() {
        use crate::code::Digest;
        use crate::runtime::{RuntimeName, TreeId};
        let line = |name: &str| {
            let (name, tree) = (RuntimeName::parse(name).unwrap(), TreeId(Digest::of(b"tree")));
            init_start(
                &Recipe { name, tree, start: vec![], execution_env: true, vars: Default::default(), hot: vec![] },
                "eu-west-1",
            )
        };
        let arn = format!("Runtime Version ARN: arn:aws:lambda:eu-west-1::runtime:{}\n", Digest::of(b"tree"));
        assert_eq!(line("nodejs8.10"), format!("INIT_START Runtime Version: nodejs:8.10\t{arn}"));
        assert_eq!(line("provided.al2023"), format!("INIT_START Runtime Version: provided:al2023\t{arn}"));
        assert_eq!(line("go"), format!("INIT_START Runtime Version: go:\t{arn}"));
    }

    #[test]
    fn a_cold_report_has_an_init_duration() {
        let line = report(&Row { init: Some(Duration::from_micros(110_099)), ..row() }, None);
        assert!(line.ends_with("\tMax Memory Used: 36 MB\tInit Duration: 110.10 ms\t\n"), "{line}");
    }

    #[test]
    fn a_failure_is_a_status_and_a_timeout_is_one_of_its_own() {
        let line = |cause| report(&row(), Some(&cause));
        assert!(line(Cause::OutOfMemory).ends_with(" MB\tStatus: error\tError Type: Runtime.OutOfMemory\n"));
        assert!(line(Cause::Timeout(Duration::from_secs(3))).ends_with(" MB\tStatus: timeout\n"));
        assert!(line(Cause::Reported { error_type: "Runtime.Unknown".into() }).ends_with(" MB\t\n"));
    }

    #[test]
    fn init_reports_are_lambdas() {
        let segfault = Cause::Exit(ProcessEnd::Killed { signal: 11, core: false });
        assert_eq!(
            init_report(Duration::from_micros(154_030), Phase::Init, &segfault),
            "INIT_REPORT Init Duration: 154.03 ms\tPhase: init\tStatus: error\tError Type: Runtime.ExitError\n"
        );
        assert_eq!(
            init_report(Duration::from_micros(10_008_050), Phase::Invoke, &Cause::Timeout(Duration::from_secs(10))),
            "INIT_REPORT Init Duration: 10008.05 ms\tPhase: invoke\tStatus: timeout\n"
        );
    }

    #[test]
    fn failure_lines_are_lambdas() {
        let id = RequestId::new();
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_543_665_600_007);
        assert_eq!(
            failure(id, &Cause::Timeout(Duration::from_secs(3)), at),
            format!("2018-12-01T12:00:00.007Z {id} Task timed out after 3.00 seconds\n\n")
        );
        assert_eq!(
            failure(id, &Cause::OutOfMemory, at),
            format!("RequestId: {id} Error: Runtime exited with error: signal: killed\nRuntime.ExitError\n")
        );
        assert_eq!(failure(id, &Cause::Reported { error_type: "Runtime.Unknown".into() }, at), "");
    }
}
