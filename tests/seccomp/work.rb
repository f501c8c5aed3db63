# What a function does, for tests/seccomp.rs: threads, a child process, loopback, timers, files.
require 'socket'; require 'tmpdir'; require 'digest'; require 'timeout'
server = TCPServer.new('127.0.0.1', 0)
thread = Thread.new { peer = server.accept; peer.write(peer.readpartial(10)); peer.close }
client = TCPSocket.new('127.0.0.1', server.addr[1]); client.write('ping'); raise unless client.readpartial(10) == 'ping'
thread.join
raise unless `echo hello` == "hello\n"
raise unless Process.wait2(fork { exit 3 })[1].exitstatus == 3
begin; Timeout.timeout(0.02) { sleep }; raise 'no timeout'; rescue Timeout::Error; end
Dir.mktmpdir { |place| File.write("#{place}/a", 'x'); raise unless Dir.children(place) == ['a'] }
raise unless 8.times.map { |i| Thread.new { (1..10000).sum + i } }.map(&:value).size == 8
Digest::SHA256.hexdigest('x')
puts 'work done'
