//! What Lambda's Node runtimes promise to handlers, as a table: a handler, what is sent to it, what must come back.
//!
//! No row knows how it is run: `tests/node.rs` drives the bootstraps over a stub of the Runtime API, and the same rows
//! run inside containers. A row is one environment; its calls go to it one after the other. Most rows hold for every Node runtime;
//! where Lambda changed its mind between 2018 and today, each says whose it is.

use serde_json::{Value, json};

/// One environment and what happens in it.
pub struct Row {
    pub name: &'static str,
    /// The one runtime that promises it; `None` is all.
    pub only: Option<&'static str>,
    /// The function's files; the first is the handler's.
    pub files: &'static [(&'static str, &'static str)],
    pub handler: &'static str,
    pub calls: &'static [Call],
}

pub const NODE_8: &str = "nodejs8.10";
pub const NODE_22: &str = "nodejs22.x";

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
    /// A function error; without a type, of something thrown that is no Error.
    Error { message: &'static str, kind: Option<&'static str> },
    /// The same, after which the process ends by itself with this code.
    LastError { message: &'static str, kind: &'static str, code: i32 },
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

impl Row {
    pub fn is_of(&self, runtime: &str) -> bool {
        self.only.is_none_or(|only| only == runtime)
    }

    const fn of(self, runtime: &'static str) -> Self {
        Self { only: Some(runtime), ..self }
    }

    const fn at(self, handler: &'static str) -> Self {
        Self { handler, ..self }
    }
}

/// Whether `body` is this error in the shape that `runtime` gives to its errors.
pub fn is_error(runtime: &str, body: &Value, message: &str, kind: Option<&str>) -> bool {
    let trace = |name: &str| body[name].as_array().is_some_and(|trace| trace.iter().all(Value::is_string));
    // Node after 10 explains a circular structure in further lines.
    let first = |text: &str| text.lines().next().map(str::to_owned);
    let same = first(body["errorMessage"].as_str().unwrap_or_default()) == first(message);
    match (runtime, kind) {
        (NODE_8, Some(kind)) => same && body["errorType"] == kind && trace("stackTrace"),
        (NODE_8, None) => *body == json!({ "errorMessage": message }),
        (_, Some(kind)) => {
            same && body["errorType"] == kind && trace("trace") && body["trace"][0].as_str().is_some_and(|l| l.contains(kind))
        }
        (_, None) => *body == json!({ "errorType": "string", "errorMessage": message, "trace": [] }),
    }
}

/// The exit code after a failed init.
pub fn init_exit(runtime: &str) -> i32 {
    if runtime == NODE_8 { 1 } else { 129 }
}

const fn call(event: &'static str, answer: Answer) -> Call {
    Call { event, answer, time: Time::Any, logged: &[] }
}

const fn logged(event: &'static str, answer: Answer, logged: &'static [&'static str]) -> Call {
    Call { event, answer, time: Time::Any, logged }
}

const fn result(json: &'static str) -> Answer {
    Answer::Result(json)
}

const fn error(message: &'static str, kind: &'static str) -> Answer {
    Answer::Error { message, kind: Some(kind) }
}

/// A function of one file, `index.js`.
macro_rules! row {
    ($name:expr, $source:expr, $calls:expr $(,)?) => {
        Row { name: $name, only: None, files: &[("index.js", $source)], handler: "index.handler", calls: $calls }
    };
}

const fn files(name: &'static str, files: &'static [(&'static str, &'static str)], calls: &'static [Call]) -> Row {
    Row { name, only: None, files, handler: "index.handler", calls }
}

#[rustfmt::skip] // one row is one thought
pub const ROWS: &[Row] = &[
    // ---- callback
    row!("a callback's result is the answer",
        "exports.handler = (event, context, callback) => callback(null, { got: event.n + 1 });",
        &[call(r#"{"n":1}"#, result(r#"{"got":2}"#)), call(r#"{"n":2}"#, result(r#"{"got":3}"#))]),
    row!("a callback's result waits until the event loop is empty",
        "exports.handler = (event, context, callback) => { callback(null, 'early'); setTimeout(() => console.log('late work'), 400); };",
        &[Call { event: "{}", answer: result(r#""early""#), time: Time::NotBefore { ms: 400 }, logged: &["\tlate work"] }]),
    row!("a callback's error waits for the event loop too",
        "exports.handler = (event, context, callback) => { callback('no'); setTimeout(() => console.log('late work'), 400); };",
        &[Call { event: "{}", answer: Answer::Error { message: "no", kind: None }, time: Time::NotBefore { ms: 400 }, logged: &["\tlate work"] }]),
    row!("callbackWaitsForEmptyEventLoop = false answers at once, and the environment serves on",
        "exports.handler = (event, context, callback) => { context.callbackWaitsForEmptyEventLoop = false;
            setTimeout(() => {}, 600000); callback(null, context.callbackWaitsForEmptyEventLoop); };",
        &[call("{}", result("false")), call("{}", result("false"))]),
    row!("callbackWaitsForEmptyEventLoop is true again at the next event",
        "let first = true; exports.handler = (event, context, callback) => { const was = context.callbackWaitsForEmptyEventLoop;
            context.callbackWaitsForEmptyEventLoop = first = !first; callback(null, was); };",
        &[call("{}", result("true")), call("{}", result("true"))]),
    row!("without a callback the answer is null, once the event loop is empty",
        "exports.handler = event => { setTimeout(() => console.log('done'), 200); return 'ignored'; };",
        &[Call { event: "{}", answer: result("null"), time: Time::NotBefore { ms: 200 }, logged: &["\tdone"] }]),
    row!("undefined, and what has no JSON, becomes null",
        "exports.handler = (event, context, callback) => callback(null, [undefined, () => 1, Symbol('s')][event]);",
        &[call("0", result("null")), call("1", result("null")), call("2", result("null"))]),
    row!("callback(Error) is a function error, and logged",
        "exports.handler = (event, context, callback) => callback(new TypeError('wrong\\nshape'));",
        &[Call { event: "{}", answer: error("wrong\nshape", "TypeError"), time: Time::Any,
                 logged: &[r#"{"errorMessage":"wrong\nshape","errorType":"TypeError","stackTrace":["exports.handler"#] }]).of(NODE_8),
    row!("callback(Error) is a function error, and logged with everything on it",
        "exports.handler = (event, context, callback) => callback(Object.assign(new TypeError('wrong\\nshape'), { code: 'E7', table: 'orders' }));",
        &[logged("{}", error("wrong\nshape", "TypeError"),
            &[r#"	ERROR	Invoke Error 	{"errorType":"TypeError","errorMessage":"wrong\nshape","code":"E7","table":"orders","stack":["TypeError: wrong","shape","#])]).of(NODE_22),
    row!("callback('text') is a function error with that message alone",
        "exports.handler = (event, context, callback) => callback('just text');",
        &[call("{}", Answer::Error { message: "just text", kind: None })]),
    row!("only the first callback counts",
        "exports.handler = (event, context, callback) => { callback(null, 1); callback(null, 2); callback(new Error('3')); };",
        &[call("{}", result("1"))]),
    row!("a callback that comes after its invocation changes no later one",
        "let old; exports.handler = (event, context, callback) => { if (old) { old(null, 'stale'); return callback(null, 'own'); }
            context.callbackWaitsForEmptyEventLoop = false; old = callback; context.succeed('first'); };",
        &[call("{}", result(r#""first""#)), call("{}", result(r#""own""#))]),
    // ---- promises
    row!("an async handler's value is the answer, at once",
        "const pause = ms => new Promise(done => setTimeout(done, ms));
         exports.handler = async event => { setTimeout(() => {}, 600000); await pause(20); return { sum: event.a + event.b }; };",
        &[call(r#"{"a":1,"b":2}"#, result(r#"{"sum":3}"#)), call(r#"{"a":3,"b":4}"#, result(r#"{"sum":7}"#))]),
    row!("a returned promise's rejection is a function error, and the environment serves on",
        "exports.handler = event => event ? Promise.reject(new RangeError('too far')) : Promise.resolve();",
        &[call("1", error("too far", "RangeError")), call("0", result("null"))]),
    row!("when a promise settles, it wins over the callback",
        "exports.handler = async (event, context, callback) => { callback(null, 'callback'); return 'promise'; };",
        &[call("{}", result(r#""promise""#))]),
    row!("a promise that never settles answers null, once the event loop is empty",
        "exports.handler = () => new Promise(() => {});",
        &[call("{}", result("null"))]).of(NODE_8),
    row!("a promise that never settles is a function error, once the event loop is empty",
        "exports.handler = event => event ? new Promise(() => {}) : Promise.resolve('on');",
        &[call("1", error("The event loop is empty, but the promise that the handler returned never settled.", "Runtime.NodeJsExit")),
          call("0", result(r#""on""#))]).of(NODE_22),
    row!("a rejection that nobody handles does no harm",
        "exports.handler = (event, context, callback) => { const lost = Promise.reject(new Error('lost')); setTimeout(() => { lost.catch(() => {}); callback(null, 'fine'); }, 0); };",
        &[call("{}", result(r#""fine""#)), call("{}", result(r#""fine""#))]).of(NODE_8),
    row!("a rejection that nobody handles is reported, then the process ends",
        "exports.handler = (event, context, callback) => { Promise.reject(new RangeError('lost')); setTimeout(() => callback(null, 'fine'), 1000); };",
        &[logged("{}", Answer::LastError { message: "RangeError: lost", kind: "Runtime.UnhandledPromiseRejection", code: 128 },
            &["\tERROR\tUnhandled Promise Rejection \t{\"errorType\":\"Runtime.UnhandledPromiseRejection\",\"errorMessage\":\"RangeError: lost\""])]).of(NODE_22),
    // ---- context
    row!("context.succeed, fail and done answer at once",
        "exports.handler = (event, context) => { setTimeout(() => {}, 600000); context[event.how](...event.with); };",
        &[call(r#"{"how":"succeed","with":["yes"]}"#, result(r#""yes""#)),
          call(r#"{"how":"done","with":[null,"yes"]}"#, result(r#""yes""#)),
          call(r#"{"how":"done","with":["no"]}"#, Answer::Error { message: "no", kind: None }),
          call(r#"{"how":"fail","with":["no"]}"#, Answer::Error { message: "no", kind: None })]),
    row!("context tells about function and invocation",
        "exports.handler = (event, context, callback) => { const left = context.getRemainingTimeInMillis(); callback(null, {
            named: context.functionName === process.env.AWS_LAMBDA_FUNCTION_NAME && context.functionName.length > 0,
            version: context.functionVersion, memory: typeof context.memoryLimitInMB, id: /^[0-9a-f-]{36}$/.test(context.awsRequestId),
            arn: context.invokedFunctionArn.split(':').slice(0, 3).join(':') + ':' + context.invokedFunctionArn.endsWith(context.functionName),
            log: context.logGroupName === '/aws/lambda/' + context.functionName && context.logStreamName.length > 0,
            left: left > 0 && left <= 900000, traced: /^Root=1-/.test(process.env._X_AMZN_TRACE_ID), identity: context.identity }); };",
        &[call("{}", result(r#"{"named":true,"version":"$LATEST","memory":"string","id":true,"arn":"arn:aws:lambda:true","log":true,"left":true,"traced":true}"#))]),
    // ---- errors and ends
    row!("what a handler throws is a function error, and the environment serves on",
        "let n = 0; exports.handler = (event, context, callback) => { n += 1; if (event) throw new SyntaxError('bad ' + n); callback(null, n); };",
        &[call("1", error("bad 1", "SyntaxError")), call("0", result("2"))]),
    row!("a result that JSON cannot hold is a function error",
        "exports.handler = (event, context, callback) => { const a = {}; a.a = a; try { JSON.stringify(a); } catch (e) { exports.text = e.message; }
            callback(null, event ? a : exports.text.split('\\n')[0]); };",
        &[call("0", result(r#""Converting circular structure to JSON""#)), call("1", error("Unable to stringify body as json: Converting circular structure to JSON", "TypeError"))]).of(NODE_8),
    row!("a result that JSON cannot hold is a function error of the runtime's",
        "exports.handler = async event => { const a = {}; a.a = a; return event ? { big: 1n } : a; };",
        &[call("0", error("Unable to stringify response body", "Runtime.JSONStringifyError")),
          call("1", error("Unable to stringify response body", "Runtime.JSONStringifyError"))]).of(NODE_22),
    row!("what is thrown and no Error has its JavaScript type",
        "exports.handler = async () => { throw 'just text'; };",
        &[call("{}", Answer::Error { message: "just text", kind: None })]).of(NODE_22),
    row!("an exception that nobody catches is reported, then the process ends",
        "exports.handler = () => { setTimeout(() => { throw new Error('behind your back'); }, 10); };",
        &[call("{}", Answer::LastError { message: "behind your back", kind: "Error", code: 129 })]),
    row!("process.exit just ends the process",
        "exports.handler = () => { console.log('leaving'); process.exit(7); };",
        &[Call { event: "{}", answer: Answer::Exit(7), time: Time::Any, logged: &["\tleaving"] }]),
    row!("globals survive from one event to the next",
        "const connection = { made: Math.random(), uses: 0 }; let first;
         exports.handler = async () => { first = first || connection.made; connection.uses += 1; return [connection.made === first, connection.uses]; };",
        &[call("{}", result("[true,1]")), call("{}", result("[true,2]")), call("{}", result("[true,3]"))]),
    row!("one console call is one line of the log, whatever is in it",
        "exports.handler = async () => { console.log('two\\nlines, %d', 7); console.error({ a: 1 }); return null; };",
        &[Call { event: "{}", answer: result("null"), time: Time::Any, logged: &["\ttwo\rlines, 7", "\t{ a: 1 }"] }]),
    row!("unicode goes through unchanged, both ways",
        "exports.handler = async event => ({ echo: event, own: 'żółw 🐢 \\u00e9\\u0000' });",
        &[call(r#""Ünïcödé 語 🦀 é""#, result(r#"{"echo":"Ünïcödé 語 🦀 é","own":"żółw 🐢 é\u0000"}"#))]),
    row!("a handler may be an export's property, in a folder or not",
        "exports.api = { v1: async () => 'v1' };", &[call("{}", result(r#""v1""#))]).at("./index.api.v1"),
    files("a handler may lie in a folder, and finds what lies beside it",
        &[("src/api/index.js", "const { greet } = require('../lib/words'); exports.handler = async () => greet;"), ("src/lib/words.js", "exports.greet = 'hi';")],
        &[call("{}", result(r#""hi""#))]).at("src/api/index.handler"),
    // ---- ES modules
    files("an ES module may await at its top level",
        &[("index.mjs", "const ready = await new Promise(done => setTimeout(done, 20, 'ready')); export const handler = async () => ready;")],
        &[call("{}", result(r#""ready""#)), call("{}", result(r#""ready""#))]).of(NODE_22),
    files("a package of type module has ES modules in .js, and CommonJS in .cjs",
        &[("index.js", "import { twice } from './lib/twice.cjs'; import fs from 'node:fs'; export const handler = async event => [twice(event), typeof fs.statSync, typeof require];"),
          ("package.json", r#"{"type":"module"}"#), ("lib/twice.cjs", "exports.twice = n => 2 * n;")],
        &[call("4", result(r#"[8,"function","undefined"]"#))]).of(NODE_22),
    files("the nearest package.json counts",
        &[("src/index.js", "exports.handler = async () => typeof require;"), ("src/package.json", r#"{"name":"inner"}"#), ("package.json", r#"{"type":"module"}"#)],
        &[call("{}", result(r#""function""#))]).at("src/index.handler").of(NODE_22),
    files("a handler may be a .cjs file, or a directory's index",
        &[("index.cjs", "exports.handler = async () => require('./parts').name;"), ("parts/index.js", "exports.name = 'part';")],
        &[call("{}", result(r#""part""#))]).of(NODE_22),
    files("a handler may be a property of an ES module's default export",
        &[("index.mjs", "export default { api: { v1: (event, context, callback) => callback(null, 'v1') } };")],
        &[call("{}", result(r#""v1""#))]).at("index.api.v1").of(NODE_22),
    files("a missing dependency of an ES module is named",
        &[("index.mjs", "import 'no-such-thing'; export const handler = async () => 1;")],
        &[logged("{}", Answer::InitError { holds: "Cannot find package 'no-such-thing'", kind: "Runtime.ImportModuleError" }, &["\tERROR\tInit Error \t{\"errorType\":\"Runtime.ImportModuleError\""])]).of(NODE_22),
    files("a syntax error of an ES module is named", &[("index.mjs", "export const handler = (event => {;")],
        &[call("{}", Answer::InitError { holds: "SyntaxError: ", kind: "Runtime.UserCodeSyntaxError" })]).of(NODE_22),
    files("a top-level await that never settles is named", &[("index.mjs", "await new Promise(() => {}); export const handler = async () => 1;")],
        &[call("{}", Answer::InitError { holds: "top-level await of the function never settled", kind: "Runtime.NodeJsExit" })]).of(NODE_22),
    row!("a handler that streams is refused clearly", "exports.handler = awslambda.streamifyResponse(async (event, stream) => stream.end('x'));",
        &[call("{}", Answer::InitError { holds: "does not stream responses", kind: "Runtime.StreamingNotSupported" })]).of(NODE_22),
    row!("each console call has its level",
        "exports.handler = async () => { for (const level of ['log', 'trace', 'debug', 'info', 'warn', 'error', 'fatal']) console[level]('to', level); };",
        &[logged("{}", result("null"), &["\tINFO\tto log", "\tTRACE\tto trace", "\tDEBUG\tto debug", "\tINFO\tto info", "\tWARN\tto warn", "\tERROR\tto error", "\tFATAL\tto fatal"])]).of(NODE_22),
    // ---- init
    row!("a missing module is named", "",
        &[logged("{}", Answer::InitError { holds: "Cannot find module", kind: "Runtime.ImportModuleError" }, &["Cannot find module"])]).at("absent.handler"),
    row!("a missing dependency is named", "require('no-such-thing'); exports.handler = () => {};",
        &[logged("{}", Answer::InitError { holds: "Cannot find module 'no-such-thing'", kind: "Runtime.ImportModuleError" }, &["Cannot find module 'no-such-thing'"])]),
    row!("a syntax error is named", "exports.handler = (event => {;",
        &[logged("{}", Answer::InitError { holds: "SyntaxError: ", kind: "Runtime.UserCodeSyntaxError" }, &["SyntaxError: "])]),
    row!("a missing handler is named", "exports.other = () => {};",
        &[logged("{}", Answer::InitError { holds: "index.handler is undefined or not exported", kind: "Runtime.HandlerNotFound" }, &["is undefined or not exported"])]),
    row!("a handler that is no function is named", "exports.handler = 'text';",
        &[call("{}", Answer::InitError { holds: "index.handler is not a function", kind: "Runtime.HandlerNotFound" })]),
    row!("a handler without a dot is named", "exports.handler = () => {};",
        &[call("{}", Answer::InitError { holds: "Bad handler", kind: "Runtime.MalformedHandlerName" })]).at("index"),
    row!("a handler outside of the package is named", "exports.handler = () => {};",
        &[call("{}", Answer::InitError { holds: "andler", kind: "Runtime.MalformedHandlerName" })]).at("../task/index.handler"),
    row!("what the module throws while it is loaded is the error of init", "throw new RangeError('no database');",
        &[logged("{}", Answer::InitError { holds: "no database", kind: "RangeError" }, &["no database"])]),
];
