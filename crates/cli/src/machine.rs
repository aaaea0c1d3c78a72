//! What the operating system says about this machine. Where it says nothing, so do we.

use std::path::Path;
use sysinfo::{Disks, System};

/// Name of the processor, as the system gives it.
pub fn processor() -> String {
    let brand = System::new().ok().and_then(|mut system| {
        system.refresh_cpu_all();
        system.cpus().first().map(|cpu| cpu.brand().trim().to_owned())
    });
    brand.filter(|brand| !brand.is_empty()).unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

/// Total and available memory in bytes.
pub fn memory() -> Option<(u64, u64)> {
    let mut system = System::new().ok()?;
    system.refresh_memory();
    Some((system.total_memory(), system.available_memory()))
}

/// Memory of this process now, in bytes.
pub fn resident_bytes() -> Option<usize> {
    of_process("VmRSS:")
}

/// Most memory that this process has had, in bytes.
pub fn peak_bytes() -> Option<usize> {
    of_process("VmHWM:")
}

/// Memory of this process now that is no part of a file, in bytes.
pub fn anonymous_bytes() -> Option<usize> {
    of_process("RssAnon:")
}

fn of_process(key: &str) -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()? << 10)
}

/// Free bytes on the disk that holds `path`.
pub fn free_disk(path: &Path) -> Option<u64> {
    let path = path.canonicalize().ok()?;
    let disks = Disks::new_with_refreshed_list().ok()?;
    let holding = disks.iter().filter(|disk| path.starts_with(disk.mount_point()));
    holding.max_by_key(|disk| disk.mount_point().as_os_str().len()).map(|disk| disk.available_space())
}
