//! The C library's heap, from which Rust's values come too: mallopt(3), malloc_trim(3).

use std::io;

/// Pieces from this size on are mappings of their own, which go back to the kernel as soon as they are freed.
pub const LARGE: i32 = 64 << 10;

/// Without it the C library finds after the first large piece that such pieces are wanted again, and takes all others up to that
/// size from the heap, where one small neighbour keeps hundreds of freed megabytes. For the whole process; best called first.
pub fn give_back_large_pieces() -> io::Result<()> {
    // SAFETY: sets a number of the allocator's, under its own lock.
    match unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE) } {
        1 => Ok(()),
        _ => Err(io::Error::other("mallopt refused M_MMAP_THRESHOLD")),
    }
}

/// Gives back every whole page of the heap that nobody uses. Holds up whoever allocates meanwhile: milliseconds for what a storm
/// of small pieces has left.
pub fn give_back_free_pages() {
    // SAFETY: under the allocator's own locks; it touches nothing that is in use.
    unsafe { libc::malloc_trim(0) };
}
