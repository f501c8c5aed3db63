// What a function does, for tests/seccomp.rs: threads, a child process, loopback, timers, files.
const http = require('http'), fs = require('fs'), os = require('os'), crypto = require('crypto'), zlib = require('zlib');
const dns = require('dns');
const { spawn, execFileSync } = require('child_process');
const assert = require('assert');
let worker = Promise.resolve(42);
try {
  const { Worker } = require('worker_threads');
  worker = new Promise((ok, no) => new Worker("require('worker_threads').parentPort.postMessage(42)", { eval: true }).on('message', ok).on('error', no));
} catch (old) {}
const timer = new Promise(ok => setTimeout(ok, 20));
const child = new Promise((ok, no) => spawn('echo', ['hello'], { stdio: ['ignore', 'pipe', 'inherit'] }).on('error', no).on('exit', code => ok(code)));
const loopback = new Promise((ok, no) => {
  const server = http.createServer((_, response) => response.end('pong')).listen(0, '127.0.0.1', () =>
    http.get({ port: server.address().port, host: '127.0.0.1' }, response => response.on('data', data => { server.close(); ok(String(data)); })).on('error', no));
});
const hash = new Promise((ok, no) => crypto.pbkdf2('a', 'b', 1000, 32, 'sha256', (error, key) => error ? no(error) : ok(key)));
const name = new Promise((ok, no) => dns.lookup('localhost', (error, address) => error ? no(error) : ok(address)));
fs.mkdirSync('node-files'); fs.writeFileSync('node-files/a', 'x'); fs.copyFileSync('node-files/a', 'node-files/b');
fs.watch('node-files', () => {}).close(); fs.readdirSync('node-files'); fs.realpathSync('.'); fs.statSync('node-files/b');
os.networkInterfaces(); os.cpus(); os.freemem(); os.userInfo(); process.memoryUsage(); process.cpuUsage();
assert.strictEqual(String(execFileSync('cat', ['node-files/b'])), 'x');
assert.strictEqual(String(zlib.gunzipSync(zlib.gzipSync('zip'))), 'zip');
let sum = 0; for (let i = 0; i < 3e6; i++) sum += i % 7; // long enough for the optimising compiler
Promise.all([worker, timer, child, loopback, hash, name]).then(([fromWorker, , code, pong]) => {
  assert.strictEqual(fromWorker, 42); assert.strictEqual(code, 0); assert.strictEqual(pong, 'pong');
  console.log('work done');
}).catch(error => { console.error(error); process.exit(1); });
