'use strict';
// The Runtime API client of nodejs8.10: takes one event at a time, hands it to the function's handler, and posts what
// came of it. Runs inside the container as the function's own user, in the function's own process: nothing here guards
// anything, the walls are outside. ES2015 without dependencies, so that it runs on Node 6.10 and on today's alike.
//
//   load the handler ──▶ next ──▶ handler ──▶ response or error ──▶ next …
//        └─ init/error, exit 1     └─ uncaught: error, exit 129
//
// The one subtle matter is *when* to respond. A `callback(null, x)` counts only once the event loop has run empty
// (Node then emits 'beforeExit'), unless context.callbackWaitsForEmptyEventLoop is false. So nothing of ours may keep the
// loop alive while the handler works: the keep-alive agent unrefs an idle socket by itself, and refs it again for
// the request that reports. While we wait in `next` its socket is in use and holds the process, so
// 'beforeExit' comes only between an event and its answer. Promises and context.succeed|fail|done are answered at once.

// Taken before the function's code runs: tracing libraries replace properties of these modules.
const http = require('http');
const path = require('path');
const util = require('util');
const request = http.request;
const stringify = JSON.stringify;
const setImmediate = global.setImmediate;

const env = process.env;
const api = env.AWS_LAMBDA_RUNTIME_API.split(':');
const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
const LOG_LIMIT = 256 * 1024; // of a logged error, as Lambda cut it

// The invocation at work; null while we initialise or wait.
let current = null;
// For log lines: what runs on after its answer still speaks under its own id, until the next event comes.
let requestId;
let handler = null;
// An exception was not caught; the answer on its way may still arrive.
let dying = false;

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

function headerSafe(type) {
  return type !== undefined && /^[A-Za-z0-9_.]{1,100}$/.test(type) ? type : 'Unhandled';
}

function next() {
  if (dying) return process.exit(129);
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

  // Sends the outcome; null when the handler left without one.
  finish() {
    if (this.sent) return;
    this.sent = true;
    const outcome = this.outcome || { result: null };
    if ('error' in outcome) return this.finishWithError(describe(outcome.error));
    let text;
    try {
      text = stringify(outcome.result);
    } catch (error) {
      const described = describe(error);
      described.errorMessage = 'Unable to stringify body as json: ' + described.errorMessage;
      return this.finishWithError(described);
    }
    // undefined, a function and a symbol have no JSON.
    const body = Buffer.from(text === undefined ? 'null' : text);
    call('POST', 'invocation/' + this.id + '/response', { 'Content-Type': 'application/json' }, body, next);
  }

  finishWithError(error) {
    logError(error);
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
  // A promise that never settles leaves an empty loop too; its answer, as Lambda's, is null.
  if (current) current.finish();
});

// ---- Errors ---------------------------------------------------------------------------------------------------------

// { errorMessage, errorType, stackTrace } of an error, { errorMessage } of anything else.
function describe(thrown) {
  try {
    if (!(thrown instanceof Error) && Object.prototype.toString.call(thrown) !== '[object Error]') return { errorMessage: String(thrown) };
    // Calls, and before them the "file:line" that a syntax error begins with.
    const frames = String(thrown.stack || '').split('\n').filter(line => /^\s+at |^\/.*:\d+$/.test(line));
    return {
      errorMessage: String(thrown.message),
      errorType: String(thrown.name || 'Error'),
      stackTrace: frames.map(line => line.replace(/^\s+at /, '')),
    };
  } catch (error) {
    return { errorMessage: 'the error thrown cannot be read' };
  }
}

function logError(error) {
  const text = stringify(error);
  line(text.length > LOG_LIMIT ? text.slice(0, LOG_LIMIT) + '... Truncated by Lambda' : text);
}

process.on('uncaughtException', thrown => {
  const error = describe(thrown);
  logError(error);
  if (!handler) return failInit(error);
  // While we wait for an event there is nobody to tell.
  if (!current) return process.exit(129);
  dying = true;
  if (current.sent) return;
  current.sent = true;
  postError('invocation/' + current.id + '/error', error, next);
});

// ---- Logs -----------------------------------------------------------------------------------------------------------

// One console call is one event: Lambda splits events at \n and keeps \r.
function line(text) {
  process.stdout.write(new Date().toISOString() + '\t' + requestId + '\t' + text.replace(/\n/g, '\r') + '\n');
}

['log', 'info', 'warn', 'error', 'debug'].forEach(name => {
  console[name] = function () { line(util.format.apply(null, arguments)); };
});

// ---- Init -----------------------------------------------------------------------------------------------------------

function failInit(error) {
  postError('init/error', error, () => process.exit(1));
}

class InitError extends Error {
  constructor(type, message, stack) {
    super(message);
    this.name = type;
    this.stack = stack || '';
  }
}

// "dir/file.export", and "file.object.export".
function load(name) {
  const parts = /^((?:.*\/)?[^./]+)\.(.+)$/.exec(name);
  if (!parts || name.split('/').indexOf('..') >= 0) throw new InitError('Runtime.MalformedHandlerName', 'Bad handler ' + name);
  const file = path.resolve(env.LAMBDA_TASK_ROOT, parts[1]);
  let found;
  try {
    found = require(file);
  } catch (error) {
    if (error instanceof SyntaxError) throw new InitError('Runtime.UserCodeSyntaxError', String(error), error.stack);
    if (error && error.code === 'MODULE_NOT_FOUND') throw new InitError('Runtime.ImportModuleError', String(error), error.stack);
    throw error;
  }
  parts[2].split('.').forEach(property => { found = isSet(found) ? found[property] : undefined; });
  if (!isSet(found)) throw new InitError('Runtime.HandlerNotFound', name + ' is undefined or not exported');
  if (typeof found !== 'function') throw new InitError('Runtime.HandlerNotFound', name + ' is not a function');
  return found;
}

try {
  handler = load(env._HANDLER || '');
} catch (thrown) {
  const error = describe(thrown);
  logError(error);
  failInit(error);
}
if (handler) next();
