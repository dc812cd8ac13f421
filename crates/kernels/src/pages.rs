//! Large pages of memory.

/// Asks for large pages where the operating system gives them on request: what is read from end to end at
/// every step then misses no translation. A hint that changes nothing else; small slices are left alone.
pub fn advise_large<T>(memory: &mut [T]) {
    #[cfg(target_os = "linux")]
    {
        const PAGE: usize = 2 << 20;
        let bytes = size_of_val(memory);
        let start = memory.as_mut_ptr() as usize;
        let (first, end) = (start.next_multiple_of(4096), (start + bytes) & !4095);
        if bytes >= 2 * PAGE && first < end {
            // SAFETY: whole pages inside of the slice; the advice leaves their content as it is.
            unsafe { libc::madvise(first as *mut _, end - first, libc::MADV_HUGEPAGE) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = memory;
}
