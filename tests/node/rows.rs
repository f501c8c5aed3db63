//! What Lambda's Node 8.10 promised to handlers, as a table: a handler, what is sent to it, what must come back.
//!
//! No row knows how it is run: `tests/node.rs` drives the bootstrap over a stub of the Runtime API, and the same rows
//! run inside containers. A row is one environment; its calls go to it one after the other.

/// One environment and what happens in it.
pub struct Row {
    pub name: &'static str,
    /// `index.js` of the function.
    pub source: &'static str,
    pub handler: &'static str,
    pub calls: &'static [Call],
}

pub struct Call {
    pub event: &'static str,
    pub answer: Answer,
    pub time: Time,
    /// Each is part of a line of the log, after this call at the latest.
    pub logged: &'static [&'static str],
}

pub enum Answer {
    /// The caller's payload, as a JSON value.
    Result(&'static str),
    /// A function error; with a type it must have a stack trace, without one it has only a message.
    Error { message: &'static str, kind: Option<&'static str> },
    /// The same, after which the process ends by itself.
    LastError { message: &'static str, kind: &'static str },
    /// Init reported an error and the process ended; the message holds this text.
    InitError { holds: &'static str, kind: &'static str },
    /// The process ends with this code and no answer.
    Exit(i32),
}

/// When the answer must come. Where it must come at once, a timer of ten minutes would hold it up.
pub enum Time {
    Any,
    NotBefore { ms: u64 },
}

const fn call(event: &'static str, answer: Answer) -> Call {
    Call { event, answer, time: Time::Any, logged: &[] }
}

const fn result(json: &'static str) -> Answer {
    Answer::Result(json)
}

const fn error(message: &'static str, kind: &'static str) -> Answer {
    Answer::Error { message, kind: Some(kind) }
}

const fn row(name: &'static str, source: &'static str, calls: &'static [Call]) -> Row {
    Row { name, source, handler: "index.handler", calls }
}

#[rustfmt::skip] // one row is one thought
pub const ROWS: &[Row] = &[
    // ---- callback
    row("a callback's result is the answer",
        "exports.handler = (event, context, callback) => callback(null, { got: event.n + 1 });",
        &[call(r#"{"n":1}"#, result(r#"{"got":2}"#)), call(r#"{"n":2}"#, result(r#"{"got":3}"#))]),
    row("a callback's result waits until the event loop is empty",
        "exports.handler = (event, context, callback) => { callback(null, 'early'); setTimeout(() => console.log('late work'), 400); };",
        &[Call { event: "{}", answer: result(r#""early""#), time: Time::NotBefore { ms: 400 }, logged: &["\tlate work"] }]),
    row("a callback's error waits for the event loop too",
        "exports.handler = (event, context, callback) => { callback('no'); setTimeout(() => console.log('late work'), 400); };",
        &[Call { event: "{}", answer: Answer::Error { message: "no", kind: None }, time: Time::NotBefore { ms: 400 }, logged: &["\tlate work"] }]),
    row("callbackWaitsForEmptyEventLoop = false answers at once, and the environment serves on",
        "exports.handler = (event, context, callback) => { context.callbackWaitsForEmptyEventLoop = false;
            setTimeout(() => {}, 600000); callback(null, context.callbackWaitsForEmptyEventLoop); };",
        &[call("{}", result("false")), call("{}", result("false"))]),
    row("callbackWaitsForEmptyEventLoop is true again at the next event",
        "let first = true; exports.handler = (event, context, callback) => { const was = context.callbackWaitsForEmptyEventLoop;
            context.callbackWaitsForEmptyEventLoop = first = !first; callback(null, was); };",
        &[call("{}", result("true")), call("{}", result("true"))]),
    row("without a callback the answer is null, once the event loop is empty",
        "exports.handler = event => { setTimeout(() => console.log('done'), 200); return 'ignored'; };",
        &[Call { event: "{}", answer: result("null"), time: Time::NotBefore { ms: 200 }, logged: &["\tdone"] }]),
    row("undefined, and what has no JSON, becomes null",
        "exports.handler = (event, context, callback) => callback(null, [undefined, () => 1, Symbol('s')][event]);",
        &[call("0", result("null")), call("1", result("null")), call("2", result("null"))]),
    row("callback(Error) is a function error, and logged",
        "exports.handler = (event, context, callback) => callback(new TypeError('wrong\\nshape'));",
        &[Call { event: "{}", answer: error("wrong\nshape", "TypeError"), time: Time::Any,
                 logged: &[r#"{"errorMessage":"wrong\nshape","errorType":"TypeError","stackTrace":["exports.handler"#] }]),
    row("callback('text') is a function error with that message alone",
        "exports.handler = (event, context, callback) => callback('just text');",
        &[call("{}", Answer::Error { message: "just text", kind: None })]),
    row("only the first callback counts",
        "exports.handler = (event, context, callback) => { callback(null, 1); callback(null, 2); callback(new Error('3')); };",
        &[call("{}", result("1"))]),
    row("a callback that comes after its invocation changes no later one",
        "let old; exports.handler = (event, context, callback) => { if (old) { old(null, 'stale'); return callback(null, 'own'); }
            context.callbackWaitsForEmptyEventLoop = false; old = callback; context.succeed('first'); };",
        &[call("{}", result(r#""first""#)), call("{}", result(r#""own""#))]),
    // ---- promises
    row("an async handler's value is the answer, at once",
        "const pause = ms => new Promise(done => setTimeout(done, ms));
         exports.handler = async event => { setTimeout(() => {}, 600000); await pause(20); return { sum: event.a + event.b }; };",
        &[call(r#"{"a":1,"b":2}"#, result(r#"{"sum":3}"#)), call(r#"{"a":3,"b":4}"#, result(r#"{"sum":7}"#))]),
    row("a returned promise's rejection is a function error, and the environment serves on",
        "exports.handler = event => event ? Promise.reject(new RangeError('too far')) : Promise.resolve();",
        &[call("1", error("too far", "RangeError")), call("0", result("null"))]),
    row("when a promise settles, it wins over the callback",
        "exports.handler = async (event, context, callback) => { callback(null, 'callback'); return 'promise'; };",
        &[call("{}", result(r#""promise""#))]),
    row("a promise that never settles answers null, once the event loop is empty",
        "exports.handler = () => new Promise(() => {});",
        &[call("{}", result("null"))]),
    row("a rejection that nobody handles does no harm",
        "exports.handler = (event, context, callback) => { const lost = Promise.reject(new Error('lost')); setTimeout(() => { lost.catch(() => {}); callback(null, 'fine'); }, 0); };",
        &[call("{}", result(r#""fine""#)), call("{}", result(r#""fine""#))]),
    // ---- context
    row("context.succeed, fail and done answer at once",
        "exports.handler = (event, context) => { setTimeout(() => {}, 600000); context[event.how](...event.with); };",
        &[call(r#"{"how":"succeed","with":["yes"]}"#, result(r#""yes""#)),
          call(r#"{"how":"done","with":[null,"yes"]}"#, result(r#""yes""#)),
          call(r#"{"how":"done","with":["no"]}"#, Answer::Error { message: "no", kind: None }),
          call(r#"{"how":"fail","with":["no"]}"#, Answer::Error { message: "no", kind: None })]),
    row("context tells about function and invocation",
        "exports.handler = (event, context, callback) => { const left = context.getRemainingTimeInMillis(); callback(null, {
            named: context.functionName === process.env.AWS_LAMBDA_FUNCTION_NAME && context.functionName.length > 0,
            version: context.functionVersion, memory: typeof context.memoryLimitInMB, id: /^[0-9a-f-]{36}$/.test(context.awsRequestId),
            arn: context.invokedFunctionArn.split(':').slice(0, 3).join(':') + ':' + context.invokedFunctionArn.endsWith(context.functionName),
            log: context.logGroupName === '/aws/lambda/' + context.functionName && context.logStreamName.length > 0,
            left: left > 0 && left <= 900000, traced: /^Root=1-/.test(process.env._X_AMZN_TRACE_ID), identity: context.identity }); };",
        &[call("{}", result(r#"{"named":true,"version":"$LATEST","memory":"string","id":true,"arn":"arn:aws:lambda:true","log":true,"left":true,"traced":true}"#))]),
    // ---- errors and ends
    row("what a handler throws is a function error, and the environment serves on",
        "let n = 0; exports.handler = (event, context, callback) => { n += 1; if (event) throw new SyntaxError('bad ' + n); callback(null, n); };",
        &[call("1", error("bad 1", "SyntaxError")), call("0", result("2"))]),
    row("a result that JSON cannot hold is a function error",
        "exports.handler = (event, context, callback) => { const a = {}; a.a = a; try { JSON.stringify(a); } catch (e) { exports.text = e.message; }
            callback(null, event ? a : exports.text.split('\\n')[0]); };",
        &[call("0", result(r#""Converting circular structure to JSON""#)), call("1", error("Unable to stringify body as json: Converting circular structure to JSON", "TypeError"))]),
    row("an exception that nobody catches is reported, then the process ends",
        "exports.handler = () => { setTimeout(() => { throw new Error('behind your back'); }, 10); };",
        &[call("{}", Answer::LastError { message: "behind your back", kind: "Error" })]),
    row("process.exit just ends the process",
        "exports.handler = () => { console.log('leaving'); process.exit(7); };",
        &[Call { event: "{}", answer: Answer::Exit(7), time: Time::Any, logged: &["\tleaving"] }]),
    row("globals survive from one event to the next",
        "const connection = { made: Math.random(), uses: 0 }; let first;
         exports.handler = async () => { first = first || connection.made; connection.uses += 1; return [connection.made === first, connection.uses]; };",
        &[call("{}", result("[true,1]")), call("{}", result("[true,2]")), call("{}", result("[true,3]"))]),
    row("one console call is one line of the log, whatever is in it",
        "exports.handler = async () => { console.log('two\\nlines, %d', 7); console.error({ a: 1 }); return null; };",
        &[Call { event: "{}", answer: result("null"), time: Time::Any, logged: &["\ttwo\rlines, 7", "\t{ a: 1 }"] }]),
    row("unicode goes through unchanged, both ways",
        "exports.handler = async event => ({ echo: event, own: 'żółw 🐢 \\u00e9\\u0000' });",
        &[call(r#""Ünïcödé 語 🦀 é""#, result(r#"{"echo":"Ünïcödé 語 🦀 é","own":"żółw 🐢 é\u0000"}"#))]),
    Row { name: "a handler may be an export's property, in a folder or not", handler: "./index.api.v1",
        source: "exports.api = { v1: async () => 'v1' };", calls: &[call("{}", result(r#""v1""#))] },
    // ---- init
    Row { name: "a missing module is named", handler: "absent.handler", source: "",
        calls: &[call("{}", Answer::InitError { holds: "Cannot find module", kind: "Runtime.ImportModuleError" })] },
    row("a missing dependency is named", "require('no-such-thing'); exports.handler = () => {};",
        &[call("{}", Answer::InitError { holds: "Cannot find module 'no-such-thing'", kind: "Runtime.ImportModuleError" })]),
    row("a syntax error is named", "exports.handler = (event => {;",
        &[call("{}", Answer::InitError { holds: "SyntaxError: ", kind: "Runtime.UserCodeSyntaxError" })]),
    row("a missing handler is named", "exports.other = () => {};",
        &[call("{}", Answer::InitError { holds: "index.handler is undefined or not exported", kind: "Runtime.HandlerNotFound" })]),
    row("a handler that is no function is named", "exports.handler = 'text';",
        &[call("{}", Answer::InitError { holds: "index.handler is not a function", kind: "Runtime.HandlerNotFound" })]),
    Row { name: "a handler without a dot is named", handler: "index", source: "exports.handler = () => {};",
        calls: &[call("{}", Answer::InitError { holds: "Bad handler", kind: "Runtime.MalformedHandlerName" })] },
    row("what the module throws while it is loaded is the error of init", "throw new RangeError('no database');",
        &[call("{}", Answer::InitError { holds: "no database", kind: "RangeError" })]),
];
