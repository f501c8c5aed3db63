# What a function does, for tests/seccomp.rs: threads, a child process, loopback, timers, files.
set -euo pipefail
mkdir -p bash-files/sub && cd bash-files
for i in $(seq 1 20); do printf 'line %s\n' "$i"; done | sort -r | tee all | wc -l | grep -qx 20
cp -a all sub/copy && mv sub/copy sub/moved && ln -s moved sub/link && touch -d yesterday sub/moved && chmod 600 sub/moved
mkfifo queue && (cat queue > got &) && echo through > queue
tar -cf - sub | tar -tf - | grep -q sub/link
ls -lR . > /dev/null; find . -type f | xargs stat -c %s > /dev/null; df . > /dev/null; id > /dev/null; uname -a > /dev/null
ulimit -n 256; nice -n 5 true; timeout 1 sleep 5 || test $? = 124
sleep 30 & kill $!; wait $! || test $? = 143
rm -rf sub && echo "work done"
