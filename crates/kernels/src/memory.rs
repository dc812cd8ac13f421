//! How much memory this process took, as Linux reports it.
//!
//! ```
//! use mope_kernels::memory::{peak_bytes, reset_peak};
//!
//! let before = peak_bytes();
//! let buffer = vec![1u8; 64 << 20];
//! assert!(before == 0 || peak_bytes() > buffer.len() as u64);
//! drop(buffer);
//! if reset_peak() {
//!     assert!(peak_bytes() < before + (64 << 20));
//! }
//! ```

/// Largest resident memory in bytes since the process began or since [`reset_peak`]; 0 if the platform does not report it.
pub fn peak_bytes() -> u64 {
    status("VmHWM:").unwrap_or(0)
}

/// Resident memory in bytes; `None` if the platform does not report it.
pub fn resident_bytes() -> Option<u64> {
    status("VmRSS:")
}

/// A line of what Linux says about this process, in bytes.
fn status(name: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix(name))?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kib * 1024)
}

/// Memory that this process can still take, in bytes: what is free on the machine, within the limit of the process's
/// cgroup; `None` if the platform does not report it.
pub fn available_bytes() -> Option<u64> {
    let machine = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = machine
        .lines()
        .find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let free: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    let number = |path: &str| {
        std::fs::read_to_string(path)
            .ok()?
            .trim()
            .parse::<u64>()
            .ok()
    };
    let group = || {
        let most = number("/sys/fs/cgroup/memory.max")?;
        Some(most.saturating_sub(number("/sys/fs/cgroup/memory.current")?))
    };
    let free = free * 1024;
    Some(group().map_or(free, |group| group.min(free)))
}

/// Resets the peak to what is in use now, after [`trim_heap`], so that what ran before does not count. Says whether
/// the system allowed it; if not, the peak stays that of the whole process, which is no smaller.
pub fn reset_peak() -> bool {
    trim_heap();
    std::fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// Returns memory that was freed, and is only kept for later, to the system, where the allocator can (glibc).
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn trim_heap() {
    unsafe extern "C" {
        fn malloc_trim(pad: usize) -> i32;
    }
    // SAFETY: it takes a number, may be called at any time from any thread and touches free memory alone.
    unsafe {
        malloc_trim(0);
    }
}

/// Returns memory that was freed, and is only kept for later, to the system, where the allocator can (glibc).
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn trim_heap() {}

#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
mod tests {
    use super::*;

    #[test]
    fn what_was_freed_before_does_not_count() {
        // Small pieces with one in use on top stay with the process when they are freed.
        let pieces: Vec<Vec<u8>> = (0..6000).map(|i| vec![i as u8; 50_000]).collect();
        let top = vec![1u8; 50_000];
        let before = peak_bytes();
        assert!(before > 300_000_000, "{before}");
        drop(pieces);
        if reset_peak() {
            let after = peak_bytes();
            assert!(after + 200_000_000 < before, "{after} {before}");
        }
        drop(top);
    }
}
