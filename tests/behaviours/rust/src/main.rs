//! What the rows of tests/behaviours.rs ask of a function, in Rust on lambda_runtime.

use std::io::Write;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};
use std::{env, fs, process, thread};

use lambda_runtime::{Context, Diagnostic, Error, LambdaEvent, run, service_fn};
use serde_json::{Value, json};

static INVOCATIONS: AtomicU32 = AtomicU32::new(0);

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct RangeError(String);

impl From<RangeError> for Diagnostic {
    fn from(error: RangeError) -> Self {
        Self { error_type: "RangeError".into(), error_message: error.to_string() }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    if env::var("PROBE_INIT").is_ok_and(|wanted| wanted == "error") {
        return Err("init was told to fail".into());
    }
    run(service_fn(handler)).await
}

async fn handler(event: LambdaEvent<Value>) -> Result<Value, RangeError> {
    let invocations = INVOCATIONS.fetch_add(1, Ordering::Relaxed) + 1;
    let LambdaEvent { payload: event, context } = event;
    let text = |field: &str| event[field].as_str().unwrap_or_default().to_owned();
    let number = |field: &str| event[field].as_u64().unwrap_or_default();
    let answer = match event["do"].as_str().unwrap_or("echo") {
        "echo" => event,
        "respond_bytes" => "x".repeat(number("n") as usize - 2).into(),
        "error" => return Err(RangeError(text("message"))),
        "panic" => panic!("{}", text("message")),
        "unhandled" => {
            let message = text("message");
            let ended = thread::spawn(move || panic!("{message}")).join();
            assert!(ended.is_err(), "it has panicked");
            "went on".into()
        }
        "sleep" => {
            thread::sleep(Duration::from_millis(number("ms")));
            Value::Null
        }
        "hold_mib" => {
            let held: Vec<Vec<u8>> = (0..number("n")).map(|_| vec![1; 1 << 20]).collect();
            thread::sleep(Duration::from_secs(10));
            held.len().into()
        }
        "exit" => process::exit(number("n") as i32),
        "signal" => die_by(number("n") as i32),
        "global" => json!({ "invocations": invocations }),
        "write" => fs::write(text("path"), text("text")).map_err(|error| RangeError(error.to_string()))?.into_value(),
        "read" => fs::read_to_string(text("path")).map_err(|error| RangeError(error.to_string()))?.into(),
        "log" => {
            println!("{}", text("text"));
            Value::Null
        }
        "print" => {
            let line = text("text") + "\n";
            let written = if event["to"] == "stderr" {
                std::io::stderr().write_all(line.as_bytes())
            } else {
                std::io::stdout().write_all(line.as_bytes())
            };
            written.map_err(|error| RangeError(error.to_string()))?.into_value()
        }
        "env" => env::vars().map(|(name, value)| (name, Value::from(value))).collect(),
        // SAFETY: it takes nothing, and returns a number.
        "native" => unsafe { kiln_answer() }.into(),
        "context" => tell(&context),
        other => return Err(RangeError(format!("{other}: no such behaviour"))),
    };
    Ok(answer)
}

trait IntoValue {
    fn into_value(self) -> Value;
}

impl IntoValue for () {
    fn into_value(self) -> Value {
        Value::Null
    }
}

fn tell(context: &Context) -> Value {
    let deadline = SystemTime::UNIX_EPOCH + Duration::from_millis(context.deadline);
    let left = deadline.duration_since(SystemTime::now()).unwrap_or_default();
    json!({
        "name": context.env_config.function_name,
        "version": context.env_config.version,
        "arn": context.invoked_function_arn,
        "memory": context.env_config.memory.to_string(),
        "id": context.request_id,
        "group": context.env_config.log_group,
        "stream": context.env_config.log_stream,
        "left": left.as_millis() as u64,
        "client": context.client_context.as_ref().map(|client| &client.custom),
    })
}

unsafe extern "C" {
    fn kiln_answer() -> libc::c_int;
}

/// Rust has a handler of its own for SIGSEGV, which lets the first one from outside pass.
fn die_by(signal: libc::c_int) -> ! {
    // SAFETY: both calls take numbers only, and the process ends here.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
    process::abort()
}
