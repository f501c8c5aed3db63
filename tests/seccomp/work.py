# What a function does, for tests/seccomp.rs: threads, a child process, loopback, timers, files. For 2.7 and 3.
import hashlib, os, select, shutil, signal, socket, ssl, subprocess, sys, tempfile, threading, time
place = tempfile.mkdtemp()
results = []
server = socket.socket(); server.bind(('127.0.0.1', 0)); server.listen(5)
def serve():
    peer, _ = server.accept(); peer.sendall(peer.recv(10)); peer.close()
threads = [threading.Thread(target=serve)] + [threading.Thread(target=lambda: results.append(sum(range(100000)))) for _ in range(8)]
for thread in threads: thread.start()
client = socket.create_connection(('127.0.0.1', server.getsockname()[1])); client.sendall(b'ping')
assert select.select([client], [], [], 10)[0] and client.recv(10) == b'ping'
for thread in threads: thread.join()
assert len(results) == 8
assert subprocess.check_output(['cat'], stdin=open(os.devnull)) == b''
assert subprocess.Popen('exit 3', shell=True).wait() == 3
signal.signal(signal.SIGALRM, lambda *_: results.append('alarm')); signal.setitimer(signal.ITIMER_REAL, 0.02)
deadline = time.time() + 10
while 'alarm' not in results and time.time() < deadline: time.sleep(0.01)
assert 'alarm' in results
path = os.path.join(place, 'a'); open(path, 'w').write('x' * 100000); shutil.copy2(path, path + '2'); os.rename(path + '2', path + '3')
assert sorted(os.listdir(place)) == ['a', 'a3']; os.statvfs(place); os.utime(path, None); os.chmod(path, 0o600)
socket.getaddrinfo('localhost', 80); ssl.create_default_context(); hashlib.sha256(os.urandom(32)); os.getloadavg()
# A text, for what 2.7 cannot read.
MODERN = r'''
import asyncio, ctypes, mmap, concurrent.futures
ctypes.CDLL(None).getpid()
async def work():
    process = await asyncio.create_subprocess_exec('true'); await process.wait(); await asyncio.sleep(0.01)
    await asyncio.get_running_loop().run_in_executor(None, time.sleep, 0.01); return process.returncode
assert asyncio.run(work()) == 0
with concurrent.futures.ProcessPoolExecutor(2) as pool: assert list(pool.map(abs, [-1, -2])) == [1, 2]
with open(path, 'r+b') as file, mmap.mmap(file.fileno(), 0) as pages: pages[0:1] = b'y'; pages.flush()
with os.scandir(place) as entries: assert len(list(entries)) == 2
'''
if sys.version_info >= (3, 7): exec(MODERN)
shutil.rmtree(place)
print('work done')
