//! How much memory this process took, as Linux reports it.

/// Largest resident memory in bytes since the process began or since [`forget`]; 0 where nobody tells.
pub fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let kib = line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// Lets the peak begin again from what is resident now, where the system allows it.
pub fn forget() {
    // Elsewhere the peak is that of the whole process, which is no smaller.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}
