//! System calls without a standard library, and the entry point: kiln-init's whole runtime.
//!
//! Only kiln-init includes this file. One thin function per call, named like it; errors are [`Errno`].

#![allow(unsafe_code)] // part of `sys`, the only room that may

use core::arch::{asm, global_asm};
use core::ffi::CStr;
use core::marker::PhantomData;

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
compile_error!("kiln-init speaks to Linux on x86-64 only");

// The kernel enters here with no return address; the ABI wants the stack aligned at a call.
global_asm!(".globl _start", "_start:", "xor ebp, ebp", "and rsp, -16", "call {start}", "ud2", start = sym start);

extern "C" fn start() -> ! {
    crate::main()
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    exit(PANICKED)
}

/// The status of a panic: 128 + SIGABRT, as a shell would show an abort.
const PANICKED: i32 = 134;

/// What the compiler takes for granted and a C library would bring.
mod taken_for_granted {
    use core::arch::asm;

    // SAFETY (all three): the compiler calls these with the contract of the C functions, which is also that of the
    // string instructions: `count` bytes at each pointer are ours; the direction flag is clear by the ABI.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
        unsafe {
            asm!("rep movsb", inout("rcx") count => _, inout("rdi") to => _, inout("rsi") from => _, options(nostack));
        }
        to
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memset(to: *mut u8, byte: i32, count: usize) -> *mut u8 {
        unsafe {
            asm!("rep stosb", inout("rcx") count => _, inout("rdi") to => _, in("al") byte as u8, options(nostack));
        }
        to
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, count: usize) -> i32 {
        for i in 0..count {
            let (a, b) = unsafe { (*a.add(i), *b.add(i)) };
            if a != b {
                return i32::from(a) - i32::from(b);
            }
        }
        0
    }

    /// Named by the unwinding tables of `core`; with panic = "abort" nobody calls it.
    #[unsafe(no_mangle)]
    extern "C" fn rust_eh_personality() {}
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

/// A descriptor of kiln-init. Nothing is closed on drop: the program ends by `exit` or `execve`.
#[derive(Clone, Copy)]
pub struct Fd(pub i32);

/// x86-64 numbers of what kiln-init calls.
mod number {
    pub const READ: usize = 0;
    pub const WRITE: usize = 1;
    pub const CLOSE: usize = 3;
    pub const RT_SIGACTION: usize = 13;
    pub const RT_SIGPROCMASK: usize = 14;
    pub const IOCTL: usize = 16;
    pub const RECVFROM: usize = 45;
    pub const SENDMSG: usize = 46;
    pub const CLONE: usize = 56;
    pub const EXECVE: usize = 59;
    pub const WAIT4: usize = 61;
    pub const FCNTL: usize = 72;
    pub const CHDIR: usize = 80;
    pub const UMASK: usize = 95;
    pub const SETSID: usize = 112;
    pub const PRCTL: usize = 157;
    pub const EXIT_GROUP: usize = 231;
    pub const NEWFSTATAT: usize = 262;
    pub const PPOLL: usize = 271;
    pub const SIGNALFD4: usize = 289;
    pub const PIPE2: usize = 293;
}

/// # Safety
/// The arguments must be what the call `number` expects; memory it writes must be writable for as long as it says.
unsafe fn call(number: usize, args: [usize; 6]) -> Result<usize, Errno> {
    let [a, b, c, d, e, f] = args;
    let result: isize;
    // SAFETY: the x86-64 Linux convention: number in rax, arguments in these six, rcx and r11 overwritten. The
    // caller answers for what the call itself does.
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => result, in("rdi") a, in("rsi") b, in("rdx") c,
            in("r10") d, in("r8") e, in("r9") f, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    if result < 0 { Err(Errno(-result as i32)) } else { Ok(result as usize) }
}

pub fn exit(status: i32) -> ! {
    // SAFETY: takes no memory and does not return.
    let _ = unsafe { call(number::EXIT_GROUP, [status as usize, 0, 0, 0, 0, 0]) };
    // The call above cannot come back; should it, this is not a program any more.
    loop {
        core::hint::spin_loop();
    }
}

/// prctl(PR_SET_DUMPABLE, 0): nobody of the same uid may trace this process or open its descriptors.
pub fn set_not_dumpable() -> Result<(), Errno> {
    const PR_SET_DUMPABLE: usize = 4;
    // SAFETY: only numbers.
    unsafe { call(number::PRCTL, [PR_SET_DUMPABLE, 0, 0, 0, 0, 0]) }.map(drop)
}

/// prctl(PR_SET_NAME): executed by descriptor, we would be called by its number.
pub fn set_name(name: &CStr) {
    const PR_SET_NAME: usize = 15;
    // SAFETY: a NUL-terminated string that lives through the call; the kernel copies at most 16 bytes of it.
    let _ = unsafe { call(number::PRCTL, [PR_SET_NAME, name.as_ptr() as usize, 0, 0, 0, 0]) };
}

pub fn set_close_on_exec(fd: Fd) -> Result<(), Errno> {
    const F_SETFD: usize = 2;
    const FD_CLOEXEC: usize = 1;
    // SAFETY: only numbers.
    unsafe { call(number::FCNTL, [fd.0 as usize, F_SETFD, FD_CLOEXEC, 0, 0, 0]) }.map(drop)
}

/// Every signal back to its default: ignored ones stay ignored across an exec.
pub fn reset_signals() {
    /// struct sigaction of the kernel: handler, flags, restorer, mask; all zero is SIG_DFL.
    static DEFAULT: [usize; 4] = [0; 4];
    for signal in 1..=64 {
        // SAFETY: DEFAULT has the layout and lives for ever; nothing is written. SIGKILL and SIGSTOP answer
        // EINVAL, which is as good.
        let _ = unsafe { call(number::RT_SIGACTION, [signal, DEFAULT.as_ptr() as usize, 0, size_of::<u64>(), 0, 0]) };
    }
}

const SIGCHLD: usize = 17;
const SIGCHLD_MASK: u64 = 1 << (SIGCHLD - 1);

/// The signal mask becomes exactly SIGCHLD, or nothing.
pub fn block_only_sigchld(blocked: bool) -> Result<(), Errno> {
    const SIG_SETMASK: usize = 2;
    let mask: u64 = if blocked { SIGCHLD_MASK } else { 0 };
    // SAFETY: `mask` lives through the call, its size goes with it.
    unsafe { call(number::RT_SIGPROCMASK, [SIG_SETMASK, &raw const mask as usize, 0, size_of::<u64>(), 0, 0]) }.map(drop)
}

/// A descriptor that is readable when a child has ended.
pub fn signalfd_sigchld() -> Result<Fd, Errno> {
    const CLOEXEC_NONBLOCK: usize = 0o2_000_000 | 0o4_000;
    let mask = SIGCHLD_MASK;
    let args = [usize::MAX, &raw const mask as usize, size_of::<u64>(), CLOEXEC_NONBLOCK, 0, 0];
    // SAFETY: `mask` lives through the call, its size goes with it.
    unsafe { call(number::SIGNALFD4, args) }.map(|fd| Fd(fd as i32))
}

pub fn read(fd: Fd, into: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: the kernel writes at most `len` bytes into a buffer that is ours for the call.
    unsafe { call(number::READ, [fd.0 as usize, into.as_mut_ptr() as usize, into.len(), 0, 0, 0]) }
}

pub fn write(fd: Fd, bytes: &[u8]) -> Result<usize, Errno> {
    // SAFETY: the kernel reads `len` bytes of a live slice.
    unsafe { call(number::WRITE, [fd.0 as usize, bytes.as_ptr() as usize, bytes.len(), 0, 0, 0]) }
}

pub fn close(fd: Fd) {
    // SAFETY: only a number; `Fd` promises nothing about being open.
    let _ = unsafe { call(number::CLOSE, [fd.0 as usize, 0, 0, 0, 0, 0]) };
}

/// One packet; its full length, even when `into` was too short for it. 0 when the peer is gone.
pub fn recv(socket: Fd, into: &mut [u8]) -> Result<usize, Errno> {
    const MSG_TRUNC: usize = 0x20;
    // SAFETY: the kernel writes at most `len` bytes into a buffer that is ours for the call.
    unsafe { call(number::RECVFROM, [socket.0 as usize, into.as_mut_ptr() as usize, into.len(), MSG_TRUNC, 0, 0]) }
}

/// One packet, with a descriptor if there is one to give. Never raises SIGPIPE.
pub fn send(socket: Fd, bytes: &[u8], descriptor: Option<Fd>) -> Result<(), Errno> {
    const MSG_NOSIGNAL: usize = 0x4000;
    const SOL_SOCKET: i32 = 1;
    const SCM_RIGHTS: i32 = 1;

    #[repr(C)]
    struct Iovec {
        base: *const u8,
        length: usize,
    }
    #[repr(C)]
    struct Rights {
        length: usize,
        level: i32,
        kind: i32,
        descriptor: i32,
        padding: i32,
    }
    #[repr(C)]
    struct Msghdr {
        name: usize,
        name_length: u32,
        iov: *const Iovec,
        iov_length: usize,
        control: *const Rights,
        control_length: usize,
        flags: i32,
    }
    let iov = Iovec { base: bytes.as_ptr(), length: bytes.len() };
    // cmsg_len counts header and data without the padding at the end; msg_controllen counts that too.
    let length = size_of::<Rights>() - size_of::<i32>();
    let rights = descriptor.map(|fd| Rights { length, level: SOL_SOCKET, kind: SCM_RIGHTS, descriptor: fd.0, padding: 0 });
    let (control, control_length) = match &rights {
        Some(rights) => (&raw const *rights, size_of::<Rights>()),
        None => (core::ptr::null(), 0),
    };
    let message = Msghdr { name: 0, name_length: 0, iov: &iov, iov_length: 1, control, control_length, flags: 0 };
    // SAFETY: the structures have the kernel's layout (msghdr, iovec, cmsghdr of x86-64), and all of them and the
    // bytes they point to live to the end of this function; the kernel only reads them.
    unsafe { call(number::SENDMSG, [socket.0 as usize, &raw const message as usize, MSG_NOSIGNAL, 0, 0, 0]) }.map(drop)
}

/// Waits until one of the two can be read (or is closed by its peer), and says which.
pub fn poll(first: Fd, second: Fd) -> Result<(bool, bool), Errno> {
    #[repr(C)]
    struct Pollfd {
        fd: i32,
        events: i16,
        revents: i16,
    }
    const POLLIN: i16 = 1;
    let mut fds = [first, second].map(|fd| Pollfd { fd: fd.0, events: POLLIN, revents: 0 });
    // SAFETY: an array of two pollfds, ours for the call; no time-out, no mask.
    unsafe { call(number::PPOLL, [fds.as_mut_ptr() as usize, fds.len(), 0, 0, 0, 0]) }?;
    Ok((fds[0].revents != 0, fds[1].revents != 0))
}

/// Reaps one child that has ended: its pid and wait status. `None` when none has.
pub fn reap() -> Option<(i32, i32)> {
    const WNOHANG: usize = 1;
    let mut status = 0i32;
    // SAFETY: the kernel writes one int into `status`.
    match unsafe { call(number::WAIT4, [usize::MAX, &raw mut status as usize, WNOHANG, 0, 0, 0]) } {
        Ok(0) | Err(_) => None,
        Ok(pid) => Some((pid as i32, status)),
    }
}

pub fn chdir(path: &CStr) -> Result<(), Errno> {
    // SAFETY: a NUL-terminated string that lives through the call.
    unsafe { call(number::CHDIR, [path.as_ptr() as usize, 0, 0, 0, 0, 0]) }.map(drop)
}

pub fn umask(mask: u32) {
    // SAFETY: only a number; cannot fail.
    let _ = unsafe { call(number::UMASK, [mask as usize, 0, 0, 0, 0, 0]) };
}

pub fn setsid() -> Result<(), Errno> {
    // SAFETY: takes nothing.
    unsafe { call(number::SETSID, [0; 6]) }.map(drop)
}

/// The terminal at `fd` becomes this session's. Where it is none, nothing happens.
pub fn take_terminal(fd: Fd) {
    const TIOCSCTTY: usize = 0x540e;
    // SAFETY: only numbers.
    let _ = unsafe { call(number::IOCTL, [fd.0 as usize, TIOCSCTTY, 0, 0, 0, 0]) };
}

/// Whether `path`, links followed, is a regular file.
pub fn is_regular_file(path: &CStr) -> bool {
    const AT_FDCWD: usize = -100isize as usize;
    const S_IFMT: u32 = 0o170_000;
    const S_IFREG: u32 = 0o100_000;
    /// struct stat of x86-64 has 144 bytes; `st_mode` is the u32 at 24.
    const MODE: usize = 24;
    let mut stat = [0u8; 144];
    // SAFETY: a NUL-terminated string, and a buffer of the structure's size, both ours for the call.
    let found = unsafe { call(number::NEWFSTATAT, [AT_FDCWD, path.as_ptr() as usize, stat.as_mut_ptr() as usize, 0, 0, 0]) };
    let mode = u32::from_ne_bytes([stat[MODE], stat[MODE + 1], stat[MODE + 2], stat[MODE + 3]]);
    found.is_ok() && mode & S_IFMT == S_IFREG
}

/// Read end and write end, both close-on-exec.
pub fn pipe() -> Result<(Fd, Fd), Errno> {
    const O_CLOEXEC: usize = 0o2_000_000;
    let mut ends = [0i32; 2];
    // SAFETY: the kernel writes two ints into `ends`.
    unsafe { call(number::PIPE2, [ends.as_mut_ptr() as usize, O_CLOEXEC, 0, 0, 0, 0]) }?;
    Ok((Fd(ends[0]), Fd(ends[1])))
}

pub enum Fork {
    Parent { child: i32, pidfd: Fd },
    Child,
}

/// A child with its own copy of memory, and its pidfd.
pub fn fork() -> Result<Fork, Errno> {
    const CLONE_PIDFD: usize = 0x1000;
    let mut pidfd = -1i32;
    // SAFETY: without CLONE_VM the child has its own copy of the stack and returns on it; this process has no other
    // thread. The kernel writes the pidfd, one int, at the third argument.
    let pid = unsafe { call(number::CLONE, [CLONE_PIDFD | SIGCHLD, 0, &raw mut pidfd as usize, 0, 0, 0]) }?;
    // The kernel wrote behind the compiler's back, in the parent only.
    // SAFETY: an aligned, initialised int of this frame.
    let pidfd = Fd(unsafe { core::ptr::read_volatile(&raw const pidfd) });
    if pid == 0 { Ok(Fork::Child) } else { Ok(Fork::Parent { child: pid as i32, pidfd }) }
}

/// Words for execve(2): at most `N` - 1, always ended by a null pointer.
pub struct Words<'a, const N: usize> {
    pointers: [*const u8; N],
    count: usize,
    words: PhantomData<&'a CStr>,
}

impl<'a, const N: usize> Words<'a, N> {
    pub fn new() -> Self {
        Self { pointers: [core::ptr::null(); N], count: 0, words: PhantomData }
    }

    /// `false` when there is no room.
    #[must_use]
    pub fn push(&mut self, word: &'a CStr) -> bool {
        let room = self.count + 1 < N;
        if room {
            self.pointers[self.count] = word.as_ptr().cast();
            self.count += 1;
        }
        room
    }
}

/// Returns only when it fails.
pub fn execve<const N: usize, const M: usize>(path: &CStr, argv: &Words<'_, N>, envp: &Words<'_, M>) -> Errno {
    let args = [path.as_ptr() as usize, argv.pointers.as_ptr() as usize, envp.pointers.as_ptr() as usize, 0, 0, 0];
    // SAFETY: a NUL-terminated path and two null-terminated arrays of NUL-terminated strings (`Words`), all borrowed
    // for the call.
    match unsafe { call(number::EXECVE, args) } {
        Ok(_) => Errno(0),
        Err(errno) => errno,
    }
}
