'use strict';
// nodejs8.10 as Lambda had it in 2018: how it finds a handler, and how its errors and log lines look. ES2015, so that it runs on
// Node 6.10 and on today's alike. Everything else is in the client that the nodejs runtimes share.

const path = require('path');
const util = require('util');
const client = require('./client.js');

const stringify = JSON.stringify;
const LOG_LIMIT = 256 * 1024; // of a logged error, as Lambda cut it

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

client.start({
  describe: describe,
  log: (what, thrown, error) => {
    const text = stringify(error);
    client.line(text.length > LOG_LIMIT ? text.slice(0, LOG_LIMIT) + '... Truncated by Lambda' : text);
  },
  unserializable: error => {
    try {
      error.message = 'Unable to stringify body as json: ' + error.message;
    } catch (frozen) {
      // Thrown by somebody's toJSON; it stays as it is.
    }
    return error;
  },
  // A promise that never settles leaves an empty loop too; its answer, as Lambda's, is null.
  unfinished: () => ({ result: null }),
  initExit: 1,
});

process.on('uncaughtException', thrown => client.uncaught('Uncaught Exception', thrown, 129));

['log', 'info', 'warn', 'error', 'debug'].forEach(name => {
  console[name] = function () { client.line(util.format.apply(null, arguments)); };
});

// ---- Init -----------------------------------------------------------------------------------------------------------

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
  const file = path.resolve(process.env.LAMBDA_TASK_ROOT, parts[1]);
  let found;
  try {
    found = require(file);
  } catch (error) {
    if (error instanceof SyntaxError) throw new InitError('Runtime.UserCodeSyntaxError', String(error), error.stack);
    if (error && error.code === 'MODULE_NOT_FOUND') throw new InitError('Runtime.ImportModuleError', String(error), error.stack);
    throw error;
  }
  parts[2].split('.').forEach(property => { found = client.isSet(found) ? found[property] : undefined; });
  if (!client.isSet(found)) throw new InitError('Runtime.HandlerNotFound', name + ' is undefined or not exported');
  if (typeof found !== 'function') throw new InitError('Runtime.HandlerNotFound', name + ' is not a function');
  return found;
}

let handler = null;
try {
  handler = load(process.env._HANDLER || '');
} catch (thrown) {
  client.failInit(thrown);
}
if (handler) client.serve(handler);
