//! Behaviours that take: memory, CPU, processes, threads, /tmp; and the ways to die.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use std::{hint, process, ptr, thread};

use serde_json::{Value, json};

use crate::tell;

const MIB: usize = 1 << 20;

/// Touched anonymous memory, given back to the kernel when dropped.
pub struct Pages {
    start: *mut libc::c_void,
    bytes: usize,
}

impl Pages {
    pub fn touch(mib: usize) -> io::Result<Self> {
        let bytes = mib * MIB;
        if bytes == 0 {
            return Ok(Self { start: ptr::null_mut(), bytes });
        }
        let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: an anonymous mapping where the kernel likes; nothing of ours is there.
        let start = unsafe { libc::mmap(ptr::null_mut(), bytes, access, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        for page in (0..bytes).step_by(4096) {
            // SAFETY: inside the mapping just made. Volatile, so that the write is really done.
            unsafe { start.cast::<u8>().add(page).write_volatile(1) };
        }
        Ok(Self { start, bytes })
    }

    pub fn mib(&self) -> usize {
        self.bytes / MIB
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        if self.bytes > 0 {
            // SAFETY: exactly the mapping made in `touch`, of which no reference is left.
            unsafe { libc::munmap(self.start, self.bytes) };
        }
    }
}

/// Works for so long by the clock and says how far it came.
pub fn spin(time: Duration) -> u64 {
    let end = Instant::now() + time;
    let mut iterations: u64 = 0;
    while Instant::now() < end {
        for _ in 0..1000 {
            iterations = hint::black_box(iterations + 1);
        }
    }
    iterations
}

/// By the signal itself: Rust's handler for SIGSEGV would turn it into SIGABRT.
pub fn die_by(signal: i32) -> ! {
    // SAFETY: signal(2) and kill(2) on ourselves, no memory involved.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::kill(libc::getpid(), signal);
    }
    crate::behave::hang()
}

/// Fork; the child runs `child` and ends without returning here. Other threads do not exist in the child, so it may
/// neither allocate nor lock: `child` uses system calls only.
fn fork(child: impl FnOnce()) -> io::Result<libc::pid_t> {
    // SAFETY: see above; every caller passes a closure of plain system calls.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            child();
            // SAFETY: ends the child without Rust's or libc's exit handlers, which are the parent's.
            unsafe { libc::_exit(0) }
        }
        pid => Ok(pid),
    }
}

fn pipe() -> io::Result<(File, File)> {
    let mut ends = [0; 2];
    // SAFETY: two integers for two descriptors, which nobody else owns.
    unsafe {
        if libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) == -1 {
            return Err(io::Error::last_os_error());
        }
        Ok((File::from_raw_fd(ends[0]), File::from_raw_fd(ends[1])))
    }
}

fn wait(pid: libc::pid_t) -> String {
    let mut status = 0;
    // SAFETY: our own child, one integer for its status.
    unsafe { libc::waitpid(pid, &mut status, 0) };
    match libc::WIFSIGNALED(status) {
        true => format!("signal {}", libc::WTERMSIG(status)),
        false => format!("exit {}", libc::WEXITSTATUS(status)),
    }
}

/// Children that all hold their memory at the same time; tells how each ended (`exit 0` when it had all it wanted).
pub fn children(each_mib: &[usize], held: Duration) -> io::Result<Value> {
    let (mut touched, say_touched) = pipe()?;
    let (released, release) = pipe()?;
    let mut pids = Vec::new();
    for &mib in each_mib {
        pids.push(fork(|| {
            // The child's copy; the parent's is the one whose closing releases.
            close(&release);
            match Pages::touch(mib) {
                Ok(pages) => {
                    let _ = (&say_touched).write_all(&[1]);
                    close(&say_touched);
                    let _ = (&released).read(&mut [0]);
                    drop(pages);
                }
                // SAFETY: as in `fork`.
                Err(_) => unsafe { libc::_exit(1) },
            }
        })?);
    }
    // The read ends when each child has written or has died.
    drop(say_touched);
    let mut ready = vec![0; each_mib.len()];
    let all = touched.read_exact(&mut ready).is_ok();
    thread::sleep(held);
    drop(release);
    let ends: Vec<String> = pids.into_iter().map(wait).collect();
    Ok(json!({ "all_at_once": all, "ends": ends }))
}

/// Closes a child's copy of a descriptor; the child ends by `_exit`, so that nobody closes it again.
fn close(file: &File) {
    // SAFETY: see above; the number is open.
    unsafe { libc::close(file.as_raw_fd()) };
}

/// Adds files to /tmp until so much is there, or no more goes in.
pub fn fill_tmp(mib: u64) -> Value {
    let name = format!("/tmp/fill-{}-{}", process::id(), FILLS.fetch_add(1, Ordering::Relaxed));
    let chunk = vec![7; MIB];
    let written = File::create(&name).map_or_else(
        |error| (0, Some(error)),
        |mut file| {
            for done in 0..mib {
                if let Err(error) = file.write_all(&chunk) {
                    return (done, Some(error));
                }
            }
            (mib, None)
        },
    );
    json!({ "file": name, "written_mib": written.0, "error": written.1.as_ref().map(tell::errno) })
}
static FILLS: AtomicU64 = AtomicU64::new(0);

/// Empty files in /tmp, until so many are there or no more go in.
pub fn make_tmp_files(count: u64) -> Value {
    for made in 0..count {
        if let Err(error) = File::create(format!("/tmp/empty-{made}")) {
            return json!({ "made": made, "error": tell::errno(&error) });
        }
    }
    json!({ "made": count })
}

/// A process that the function leaves behind: a session of its own, its parent gone.
pub fn daemon() -> io::Result<i32> {
    let (mut tell_pid, say_pid) = pipe()?;
    let between = fork(|| {
        // SAFETY: system calls without memory.
        unsafe { libc::setsid() };
        let _ = fork(|| {
            // SAFETY: as above.
            let pid = unsafe { libc::getpid() };
            let _ = (&say_pid).write_all(&pid.to_le_bytes());
            loop {
                // SAFETY: as above.
                unsafe { libc::pause() };
            }
        });
    })?;
    wait(between);
    let mut pid = [0; 4];
    tell_pid.read_exact(&mut pid)?;
    Ok(i32::from_le_bytes(pid))
}

/// So many threads at once, or as many as there can be.
pub fn threads(count: usize) -> Value {
    let gate = std::sync::Arc::new(std::sync::RwLock::new(()));
    let closed = gate.write().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut started = Vec::new();
    let mut refused = None;
    for _ in 0..count {
        let gate = gate.clone();
        let wait_at_gate = move || drop(gate.read());
        match thread::Builder::new().stack_size(64 << 10).spawn(wait_at_gate) {
            Ok(thread) => started.push(thread),
            Err(error) => {
                refused = Some(tell::errno(&error));
                break;
            }
        }
    }
    drop(closed);
    let count = started.len();
    started.into_iter().for_each(|thread| drop(thread.join()));
    json!({ "started": count, "error": refused })
}

/// So many processes at once, or as many as there can be.
pub fn processes(count: usize) -> Value {
    let Ok((released, release)) = pipe() else { return json!({ "error": "EMFILE" }) };
    let mut pids = Vec::new();
    let mut refused = None;
    for _ in 0..count {
        let child = fork(|| {
            close(&release);
            let _ = (&released).read(&mut [0]);
        });
        match child {
            Ok(pid) => pids.push(pid),
            Err(error) => {
                refused = Some(tell::errno(&error));
                break;
            }
        }
    }
    drop(release);
    let count = pids.len();
    for pid in pids {
        wait(pid);
    }
    json!({ "started": count, "error": refused, "parent": process::id() })
}
