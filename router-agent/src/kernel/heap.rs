//! The heap of this process: how much of it is free, and giving that back to the kernel.
//!
//! glibc keeps what was freed below the top of its heaps, so that a gateway stays as large as its worst minute. `malloc_trim(3)`
//! gives whole free pages back; it takes the lock of each heap in turn, so it is for moments when little goes on.

/// Bytes that were freed and are still held, over all heaps; 0 where the C library does not tell.
pub fn free_bytes() -> usize {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: mallinfo2(3) takes no argument and returns a structure by value.
        let info = unsafe { libc::mallinfo2() };
        info.fordblks
    }
    #[cfg(not(target_env = "gnu"))]
    0
}

/// Gives free pages back. Milliseconds for a hundred MiB.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) is safe in threads; the argument is what to keep at the top.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_freed_can_be_given_back() {
        // Small pieces: large ones are mappings of their own, and go back at once.
        let pieces: Vec<Vec<u8>> = (0..200_000).map(|_| vec![1; 200]).collect();
        let kept: Vec<_> = pieces.iter().step_by(1_000).cloned().collect();
        drop(pieces);
        if cfg!(target_env = "gnu") {
            assert!(free_bytes() > 10_000_000, "{}", free_bytes());
        }
        give_back();
        assert_eq!(kept.len(), 200);
    }
}
