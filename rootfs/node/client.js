'use strict';
// The Runtime API client that the nodejs runtimes share: takes one event at a time, hands it to the function's handler, and posts
// what came of it. Runs inside the container as the function's own user, in the function's own process: nothing here guards
// anything, the walls are outside. ES2015 without dependencies, so that it runs on Node 6.10 and on today's alike.
//
//   load the handler ──▶ next ──▶ handler ──▶ response or error ──▶ next …
//        └─ init/error, exit      └─ uncaught: error, exit
//
// How errors look to callers and in the log, and how a handler is found, changed over the years: that is in each runtime's own
// bootstrap.js, which gives its *manner* to `start`:
//
//   describe(thrown)         the error that callers see
//   log(what, thrown, error) writes it to the log; `what` is 'Init Error', 'Invoke Error', 'Uncaught Exception', …
//   unserializable(thrown)   the error of a result that JSON cannot hold
//   unfinished(promised)     { result } or { error } of a handler whose event loop ran empty before it had one
//   initExit                 the exit code after a failed init
//
// The one subtle matter is *when* to respond. A `callback(null, x)` counts only once the event loop has run empty
// (Node then emits 'beforeExit'), unless context.callbackWaitsForEmptyEventLoop is false. So nothing of ours may keep the
// loop alive while the handler works: the keep-alive agent unrefs an idle socket by itself, and refs it again for
// the request that reports. While we wait in `next` its socket is in use and holds the process, so
// 'beforeExit' comes only between an event and its answer. Promises and context.succeed|fail|done are answered at once.

// Taken before the function's code runs: tracing libraries replace properties of these modules.
const http = require('http');
const request = http.request;
const stringify = JSON.stringify;
const setImmediate = global.setImmediate;

const env = process.env;
const api = env.AWS_LAMBDA_RUNTIME_API.split(':');
const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });

let manner;
let handler = null;
// The invocation at work; null while we initialise or wait.
let current = null;
// For log lines: what runs on after its answer still speaks under its own id, until the next event comes.
let requestId;
// The exit code, once something was not caught; the answer on its way may still arrive.
let dying = 0;

// ---- What a bootstrap uses --------------------------------------------------------------------------------------------

exports.start = given => {
  manner = given;
};

// From the first event to the last; the server ends us.
exports.serve = found => {
  handler = found;
  next();
};

exports.failInit = thrown => {
  const error = manner.describe(thrown);
  manner.log('Init Error', thrown, error);
  reportInit(error, manner.initExit);
};

// What nobody caught: reported in place of an answer, and then the process ends.
exports.uncaught = (what, thrown, code) => {
  const error = manner.describe(thrown);
  manner.log(what, thrown, error);
  if (!handler) return reportInit(error, code);
  // While we wait for an event there is nobody to tell.
  if (!current) return process.exit(code);
  dying = code;
  if (current.sent) return;
  current.sent = true;
  postError('invocation/' + current.id + '/error', error, next);
};

// One console call is one event: Lambda splits events at \n and keeps \r.
exports.line = text => {
  process.stdout.write(new Date().toISOString() + '\t' + requestId + '\t' + text.replace(/\n/g, '\r') + '\n');
};

exports.isSet = isSet;

// ---- The Runtime API ------------------------------------------------------------------------------------------------

function call(method, resource, headers, body, done) {
  const sent = request({
    agent: agent, host: api[0], port: api[1], method: method, path: '/2018-06-01/runtime/' + resource,
    headers: body ? Object.assign({ 'Content-Length': body.length }, headers) : headers,
  }, answer => {
    const parts = [];
    answer.on('data', part => parts.push(part));
    answer.on('end', () => done(answer, Buffer.concat(parts)));
    answer.on('error', lost);
  });
  sent.on('error', lost);
  sent.setNoDelay(true);
  sent.end(body || undefined);
}

// The server has gone: it is ending us, or it died and our answer with it.
function lost(error) {
  process.stderr.write('the Runtime API is gone: ' + error.message + '\n');
  process.exit(1);
}

function postError(resource, error, done) {
  const headers = { 'Content-Type': 'application/json', 'Lambda-Runtime-Function-Error-Type': headerSafe(error.errorType) };
  call('POST', resource, headers, Buffer.from(stringify(error)), done);
}

function reportInit(error, code) {
  postError('init/error', error, () => process.exit(code));
}

function headerSafe(type) {
  return type !== undefined && /^[A-Za-z0-9_.]{1,100}$/.test(type) ? type : 'Unhandled';
}

function next() {
  if (dying) return process.exit(dying);
  current = null;
  call('GET', 'invocation/next', {}, null, (answer, body) => {
    if (answer.statusCode !== 200) lost(new Error('next was answered with ' + answer.statusCode));
    invoke(answer.headers, body);
  });
}

// ---- One invocation -------------------------------------------------------------------------------------------------

function invoke(headers, body) {
  const invocation = new Invocation(headers);
  current = invocation;
  requestId = invocation.id;
  if (headers['lambda-runtime-trace-id']) env._X_AMZN_TRACE_ID = headers['lambda-runtime-trace-id'];
  else delete env._X_AMZN_TRACE_ID;
  try {
    const event = JSON.parse(body.toString('utf8'));
    const returned = handler(event, invocation.context, (error, result) => invocation.called(error, result));
    // A promise that settles wins; any other return value never counted.
    if (returned && typeof returned.then === 'function') {
      invocation.promised = true;
      returned.then(result => invocation.succeed(result), error => invocation.fail(error));
    }
  } catch (error) {
    invocation.fail(error);
  }
}

class Invocation {
  constructor(headers) {
    this.id = headers['lambda-runtime-aws-request-id'];
    this.waits = true;
    // Whether the handler returned a promise.
    this.promised = false;
    // Set by the callback; sent when the loop is empty.
    this.outcome = null;
    this.sent = false;
    this.context = makeContext(this, headers);
  }

  called(error, result) {
    if (this.outcome || this.sent) return;
    this.outcome = isSet(error) ? { error: error } : { result: result };
    // Not from inside the callback: the lines after it in the handler still belong to this invocation.
    if (!this.waits) setImmediate(() => this.finish());
  }

  succeed(result) {
    this.outcome = { result: result };
    this.finish();
  }

  fail(error) {
    this.outcome = { error: error };
    this.finish();
  }

  // Sends the outcome, or what counts as one when the handler left without.
  finish() {
    if (this.sent) return;
    this.sent = true;
    const outcome = this.outcome || manner.unfinished(this.promised);
    if ('error' in outcome) return this.finishWithError(outcome.error);
    let text;
    try {
      text = stringify(outcome.result);
    } catch (error) {
      return this.finishWithError(manner.unserializable(error));
    }
    // undefined, a function and a symbol have no JSON.
    const body = Buffer.from(text === undefined ? 'null' : text);
    call('POST', 'invocation/' + this.id + '/response', { 'Content-Type': 'application/json' }, body, next);
  }

  finishWithError(thrown) {
    const error = manner.describe(thrown);
    manner.log('Invoke Error', thrown, error);
    postError('invocation/' + this.id + '/error', error, next);
  }
}

function makeContext(invocation, headers) {
  const deadline = Number(headers['lambda-runtime-deadline-ms']);
  const context = {
    logGroupName: env.AWS_LAMBDA_LOG_GROUP_NAME,
    logStreamName: env.AWS_LAMBDA_LOG_STREAM_NAME,
    functionName: env.AWS_LAMBDA_FUNCTION_NAME,
    memoryLimitInMB: env.AWS_LAMBDA_FUNCTION_MEMORY_SIZE,
    functionVersion: env.AWS_LAMBDA_FUNCTION_VERSION,
    invokeid: invocation.id,
    awsRequestId: invocation.id,
    invokedFunctionArn: headers['lambda-runtime-invoked-function-arn'],
    clientContext: parsed(headers['lambda-runtime-client-context']),
    identity: parsed(headers['lambda-runtime-cognito-identity']),
    getRemainingTimeInMillis: () => deadline - Date.now(),
    succeed: result => invocation.succeed(result),
    fail: error => invocation.fail(error),
    done: (error, result) => (isSet(error) ? invocation.fail(error) : invocation.succeed(result)),
  };
  Object.defineProperty(context, 'callbackWaitsForEmptyEventLoop', {
    enumerable: true,
    get: () => invocation.waits,
    set: waits => { invocation.waits = Boolean(waits); },
  });
  return context;
}

function isSet(error) {
  return error !== undefined && error !== null;
}

// Header text is Latin-1 to Node, and UTF-8 to those who sent it.
function parsed(header) {
  try {
    return header === undefined ? undefined : JSON.parse(Buffer.from(header, 'latin1').toString('utf8'));
  } catch (error) {
    return undefined;
  }
}

process.on('beforeExit', () => {
  if (current) current.finish();
});
