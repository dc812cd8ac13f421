//! How much memory this process took, as Linux reports it.

/// Largest resident memory in bytes since the process began or since [`forget`]; 0 where nobody tells.
pub fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let kib = line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// Lets the peak begin again from what is in use now, where the system allows it; elsewhere the peak is that of the
/// whole process, which is no smaller. Memory that was freed and is only kept for later goes back first, so that what
/// ran before does not count.
pub fn forget() -> bool {
    give_back();
    std::fs::write("/proc/self/clear_refs", "5").is_ok()
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn give_back() {
    unsafe extern "C" {
        fn malloc_trim(pad: usize) -> i32;
    }
    // SAFETY: it takes a number, may be called at any time from any thread and touches free memory alone.
    unsafe {
        malloc_trim(0);
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn give_back() {}

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
        if forget() {
            let after = peak_bytes();
            assert!(after + 200_000_000 < before, "{after} {before}");
        }
        drop(top);
    }
}
