//! Calls that give, change and describe memory.

use libc::*;

use super::{Row, calls};

pub const ROWS: &[Row] = &[
    Row {
        calls: calls![SYS_munmap, SYS_mprotect],
        why: "glibc's loader and malloc; JITs (V8, the JVM, .NET) make their code pages so, hence no test of PROT_EXEC",
    },
    Row { calls: calls![SYS_brk, SYS_mremap, SYS_madvise], why: "glibc malloc grows, moves and gives back its heap" },
    Row { calls: calls![SYS_mincore], why: "the JVM looks how much of a thread's stack is really there" },
    Row { calls: calls![SYS_msync], why: "Python's mmap.flush, LMDB, the JVM's MappedByteBuffer.force" },
    Row {
        calls: calls![SYS_mlock, SYS_mlock2, SYS_munlock],
        why: "libsodium and GnuPG keep keys out of swap, within RLIMIT_MEMLOCK",
    },
    Row {
        calls: calls![SYS_mlockall, SYS_munlockall],
        why: "Java services by JNA (bootstrap.memory_lock), within RLIMIT_MEMLOCK",
    },
    Row {
        calls: calls![SYS_pkey_mprotect, SYS_pkey_alloc, SYS_pkey_free],
        why: "V8 of Node 20 and later guards its code pages by keys",
    },
    Row { calls: calls![SYS_membarrier], why: ".NET's FlushProcessWriteBuffers, the JVM's UseSystemMemoryBarrier" },
    Row {
        calls: calls![SYS_shmget, SYS_shmat, SYS_shmctl],
        why: "PostgreSQL's start-up lock, the JVM's UseSHM; in the container's IPC namespace",
    },
    Row { calls: calls![SYS_shmdt], why: "PostgreSQL leaves the segment of its start-up lock" },
];
