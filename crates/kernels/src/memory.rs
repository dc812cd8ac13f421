//! How much memory this process took and how much there is, as Linux reports it.
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

use std::path::Path;

/// Memory in bytes that this process may still take: what the system has available, or what its control groups leave if
/// that is less. `None` if the platform does not report it.
///
/// ```
/// let available = mope_kernels::memory::available_bytes();
/// assert!(available.is_none_or(|bytes| bytes > 1 << 20));
/// ```
pub fn available_bytes() -> Option<u64> {
    available_under(Path::new("/"))
}

/// The same with `proc` and `sys` in another folder.
fn available_under(root: &Path) -> Option<u64> {
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    let system = read(&root.join("proc/meminfo")).and_then(|text| {
        let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"));
        let kib: u64 = line?.trim().trim_end_matches(" kB").parse().ok()?;
        Some(kib * 1024)
    })?;
    let groups = read(&root.join("proc/self/cgroup")).unwrap_or_default();
    let left = groups.lines().flat_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next().unwrap_or(""), parts.next().unwrap_or("/"));
        let (folder, files) = match controllers {
            "" => ("sys/fs/cgroup", ["memory.max", "memory.current"]),
            list if list.split(',').any(|c| c == "memory") => (
                "sys/fs/cgroup/memory",
                ["memory.limit_in_bytes", "memory.usage_in_bytes"],
            ),
            _ => return Vec::new(),
        };
        // A group is also held to the limits of those around it; in a container its own is the top.
        let top = root.join(folder);
        let inner = top.join(path.trim_start_matches('/'));
        let around = inner
            .ancestors()
            .take_while(|group| group.starts_with(&top));
        let left = around.filter_map(|group| group_leaves(group, files));
        left.collect()
    });
    left.chain([system]).min()
}

/// What a control group leaves: its limit without what is in use, files that can be dropped not counted.
fn group_leaves(group: &Path, [limit, usage]: [&str; 2]) -> Option<u64> {
    let number = |file: &str| -> Option<u64> {
        let text = std::fs::read_to_string(group.join(file)).ok()?;
        text.trim().parse().ok()
    };
    let statistics = std::fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let droppable = statistics.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        let counts = name == "inactive_file" || name == "total_inactive_file";
        counts.then(|| value.parse::<u64>().ok()).flatten()
    });
    let used = number(usage)?.saturating_sub(droppable.unwrap_or(0));
    Some(number(limit)?.saturating_sub(used))
}

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

#[cfg(test)]
mod limits {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_narrowest_limit_counts() {
        let folder = std::env::temp_dir().join(format!("mope-limits-{}", std::process::id()));
        let put = |name: &str, text: &str| {
            let path = folder.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let available = || available_under(&folder).map(|bytes| bytes >> 20);
        assert_eq!(available(), None);
        put(
            "proc/meminfo",
            "MemTotal: 9000000 kB\nMemAvailable:    8388608 kB\n",
        );
        assert_eq!(available(), Some(8192));
        // Version 2: a group without a limit in one with 4 GiB, of which 1 GiB is in use, half of it droppable.
        put("proc/self/cgroup", "0::/outer/inner\n");
        put("sys/fs/cgroup/outer/inner/memory.max", "max\n");
        put("sys/fs/cgroup/outer/inner/memory.current", "1073741824\n");
        assert_eq!(available(), Some(8192));
        put("sys/fs/cgroup/outer/memory.max", "4294967296\n");
        put("sys/fs/cgroup/outer/memory.current", "1073741824\n");
        put(
            "sys/fs/cgroup/outer/memory.stat",
            "anon 1\ninactive_file 536870912\n",
        );
        assert_eq!(available(), Some(4096 - 512));
        // Version 1, seen from inside of a container, where the group's path is not there.
        put(
            "proc/self/cgroup",
            "5:cpu,cpuacct:/x\n4:memory:/docker/abc\n",
        );
        put("sys/fs/cgroup/memory/memory.limit_in_bytes", "2147483648\n");
        put("sys/fs/cgroup/memory/memory.usage_in_bytes", "1073741824\n");
        assert_eq!(available(), Some(1024));
        put("sys/fs/cgroup/memory/memory.usage_in_bytes", "4294967296\n");
        assert_eq!(available(), Some(0));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}

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
