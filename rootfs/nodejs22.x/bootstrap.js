'use strict';
// nodejs22.x: how it finds a handler (CommonJS and ES modules), and how its errors and log lines look, as Lambda's own client for
// Node has them today. Everything else is in the client that the nodejs runtimes share.

const fs = require('fs');
const path = require('path');
const util = require('util');
const { pathToFileURL } = require('url');
const client = require('./client.js');

const stringify = JSON.stringify;

class RuntimeError extends Error {
  constructor(type, message) {
    super(message);
    this.name = `Runtime.${type}`;
  }
}

// ---- Errors ---------------------------------------------------------------------------------------------------------

// { errorType, errorMessage, trace }, whatever was thrown.
function describe(thrown) {
  try {
    if (!isError(thrown)) return { errorType: typeof thrown, errorMessage: String(thrown), trace: [] };
    return { errorType: String(thrown.name), errorMessage: String(thrown.message), trace: String(thrown.stack ?? '').split('\n') };
  } catch {
    const errorMessage = 'callback called with Error argument, but there was a problem while retrieving one or more of its message, name, and stack';
    return { errorType: 'handled', errorMessage, trace: [] };
  }
}

function isError(thrown) {
  return util.types.isNativeError(thrown) || thrown instanceof Error;
}

// With the properties that people give to their errors; errors inside of errors too.
function inFull(error) {
  const spread = (key, value) => {
    if (!isError(value)) return value;
    const all = Object.assign({ errorType: value.name, errorMessage: value.message, code: value.code }, value);
    if (typeof value.stack === 'string') all.stack = value.stack.split('\n');
    return all;
  };
  try {
    return stringify(isError(error) ? error : new Error(String(error)), spread);
  } catch {
    return stringify(describe(error));
  }
}

client.start({
  describe,
  log: (what, thrown) => client.line(`ERROR\t${what} \t${inFull(thrown)}`),
  unserializable: () => new RuntimeError('JSONStringifyError', 'Unable to stringify response body'),
  // With a callback there may be no answer, which is null; a promise that never settles is a mistake.
  unfinished: promised => promised ? { error: new RuntimeError('NodeJsExit', UNSETTLED) } : { result: null },
  initExit: 129,
});

const UNSETTLED = 'The event loop is empty, but the promise that the handler returned never settled.';

process.on('uncaughtException', thrown => client.uncaught('Uncaught Exception', thrown, 129));
process.on('unhandledRejection', (reason, promise) => {
  const error = new RuntimeError('UnhandledPromiseRejection', String(reason));
  // For the log; neither is part of what callers see.
  Object.assign(error, { reason, promise });
  client.uncaught('Unhandled Promise Rejection', error, 128);
});

// ---- Logs -----------------------------------------------------------------------------------------------------------

for (const [name, level] of Object.entries({ log: 'INFO', trace: 'TRACE', debug: 'DEBUG', info: 'INFO', warn: 'WARN', error: 'ERROR', fatal: 'FATAL' })) {
  console[name] = (...words) => client.line(`${level}\t${util.format(...words)}`);
}

// ---- Init -----------------------------------------------------------------------------------------------------------

const STREAMING = Symbol.for('aws.lambda.runtime.handler.streaming');

// Marks the handler; what it was marked for does not work here, which `load` says.
globalThis.awslambda = {
  streamifyResponse: handler => Object.assign(handler, { [STREAMING]: 'response' }),
  HttpResponseStream: class { static from() { throw new RuntimeError('StreamingNotSupported', NO_STREAMS); } },
};

const NO_STREAMS = 'Kiln does not stream responses: export the handler without awslambda.streamifyResponse, and return the response.';

// "dir/file.export", "file.object.export": the file's name ends at the first dot behind the last slash.
async function load(name) {
  if (name.includes('..')) {
    throw new RuntimeError('MalformedHandlerName', `'${name}' is not a valid handler name. Use absolute paths when specifying root directories in handler names.`);
  }
  const parts = /^(.*\/)?([^./]*)\.(.*)$/.exec(name);
  if (!parts) throw new RuntimeError('MalformedHandlerName', 'Bad handler');
  const [, directory = '', file, exported] = parts;
  const module = await loadModule(path.resolve(process.env.LAMBDA_TASK_ROOT, directory), file);
  // What a CommonJS module exports is an ES module's default.
  const found = follow(module, exported) ?? follow(module?.default, exported);
  if (!client.isSet(found)) throw new RuntimeError('HandlerNotFound', `${name} is undefined or not exported`);
  if (typeof found !== 'function') throw new RuntimeError('HandlerNotFound', `${name} is not a function`);
  if (found[STREAMING]) throw new RuntimeError('StreamingNotSupported', NO_STREAMS);
  return found;
}

function follow(value, properties) {
  return properties.split('.').reduce((inner, property) => (client.isSet(inner) ? inner[property] : undefined), value);
}

async function loadModule(directory, name) {
  const file = path.join(directory, name);
  const has = extension => fs.existsSync(file + extension);
  const imported = extension => import(pathToFileURL(file + extension));
  try {
    if (fs.statSync(file, { throwIfNoEntry: false })?.isFile()) return require(file);
    if (has('.js')) return isModule(directory) ? await imported('.js') : require(file + '.js');
    if (has('.mjs')) return await imported('.mjs');
    if (has('.cjs')) return require(file + '.cjs');
    // A directory with an index, or a package of a layer's.
    return require(require.resolve(`./${name}`, { paths: [directory] }));
  } catch (error) {
    if (error instanceof SyntaxError) throw renamed('UserCodeSyntaxError', error);
    if (['MODULE_NOT_FOUND', 'ERR_MODULE_NOT_FOUND'].includes(error?.code)) throw renamed('ImportModuleError', error);
    throw error;
  }
}

// The message names what it really was, and the stack where.
function renamed(type, error) {
  const renamed = new RuntimeError(type, String(error));
  renamed.stack = `${renamed.name}: ${error.stack}`;
  return renamed;
}

// What the nearest package.json says of .js files, as Node looks for it.
function isModule(directory) {
  for (let at = directory; !at.endsWith('/node_modules'); at = path.dirname(at)) {
    const file = path.join(at, 'package.json');
    if (fs.existsSync(file)) {
      try {
        return JSON.parse(fs.readFileSync(file, 'utf8')).type === 'module';
      } catch (error) {
        console.warn(`${file} cannot be read, it will be ignored for ES module detection purposes.`, error);
        return false;
      }
    }
    if (at === '/') return false;
  }
  return false;
}

let loaded = false;
load(process.env._HANDLER ?? '').then(handler => {
  loaded = true;
  client.serve(handler);
}, thrown => {
  loaded = true;
  client.failInit(thrown);
});

process.on('beforeExit', () => {
  if (loaded) return;
  loaded = true;
  client.failInit(new RuntimeError('NodeJsExit', 'The event loop is empty, but a top-level await of the function never settled.'));
});
