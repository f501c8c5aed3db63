'use strict';
// What the rows of tests/behaviours.rs ask of a function, in JavaScript that Node 8 understands.

const fs = require('fs');

if (process.env.PROBE_INIT === 'error') throw new RangeError('init was told to fail');

let invocations = 0;
const held = [];
// Node 8 knows them by name only.
const signals = { 9: 'SIGKILL', 11: 'SIGSEGV' };

const behaviours = {
  echo: event => event,
  respond_bytes: event => 'x'.repeat(event.n - 2),
  error: event => { throw new RangeError(event.message); },
  // Outside of the handler's promise.
  unhandled: event => new Promise(() => setTimeout(() => { throw new RangeError(event.message); }, 10)),
  sleep: event => new Promise(done => setTimeout(done, event.ms)),
  hold_mib: event => {
    // One by one, as memory fills; given back to nobody.
    for (let n = 0; n < event.n; n += 1) held.push(Buffer.alloc(1 << 20, 1));
    return new Promise(done => setTimeout(done, 10000));
  },
  exit: event => process.exit(event.n),
  signal: event => { process.kill(process.pid, signals[event.n]); return new Promise(done => setTimeout(done, 10000)); },
  global: () => ({ invocations: invocations }),
  write: event => { fs.writeFileSync(event.path, event.text); return null; },
  read: event => fs.readFileSync(event.path, 'utf8'),
  log: event => { console.log(event.text); return null; },
  print: event => { process[event.to || 'stdout'].write(event.text + '\n'); return null; },
  env: () => Object.assign({}, process.env),
  native: () => require('./answer.node').answer(),
  context: (event, context) => ({
    name: context.functionName, version: context.functionVersion, arn: context.invokedFunctionArn, memory: context.memoryLimitInMB,
    id: context.awsRequestId, group: context.logGroupName, stream: context.logStreamName,
    left: context.getRemainingTimeInMillis(), client: context.clientContext && context.clientContext.custom,
  }),
};

exports.handler = async (event, context) => {
  invocations += 1;
  return behaviours[(event && event.do) || 'echo'](event, context);
};
