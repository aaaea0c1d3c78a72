//! What the run finds around it: memory, processor, commit, time.

use std::fs;
use std::path::Path;

use loam_models::StepMemory;
use serde_json::{Value, json};

/// Most memory the process has had so far, in MiB; 0 where the system does not say.
pub fn peak_rss_mib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")).and_then(|kib| kib.trim().parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}

/// What the program takes besides the buffers of a step: its code, its threads' stacks and scratch.
const PROGRAM_MIB: u64 = 16;

/// Most memory that a process will have that trains such steps, in MiB. The pool's gaps add three percent to what is
/// held (measured); below 200 MiB its slabs of 36 MiB count for more than that.
pub fn predicted_rss_mib(step: &StepMemory) -> u64 {
    ((step.peak as u64 / 100 * 103) >> 20) + PROGRAM_MIB
}

/// Memory that the system could give to this process, in MiB; `None` where it does not say. A control group's limit
/// counts where it is lower.
pub fn available_mib() -> Option<u64> {
    let info = fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let free = line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? / 1024;
    let read = |name: &str| fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok()?.trim().parse::<u64>().ok();
    let group = read("memory.max").zip(read("memory.current")).map(|(most, now)| most.saturating_sub(now) >> 20);
    Some(group.map_or(free, |group| group.min(free)))
}

/// `environment.json`: what besides the recipe may have shaped a run.
pub fn environment(threads: usize, data: &Value, base: &Value) -> Value {
    json!({
        "loam_version": env!("CARGO_PKG_VERSION"),
        "git": std::env::current_dir().ok().and_then(|dir| commit(&dir)),
        "started": timestamp(),
        "os": std::env::consts::OS,
        "arch": std::env::consts::ARCH,
        "cpu": cpu_name(),
        "isa": loam_kernels::isa::isa().name(),
        "bf16": loam_kernels::isa::has_fast_bf16(),
        "amx": loam_kernels::isa::has_tiles(),
        "threads": threads,
        "data": data,
        "base": base,
    })
}

/// Local time, as `2026-01-31T12:00:00+00:00`.
pub fn timestamp() -> String {
    jiff::Zoned::now().strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
}

/// Local time as part of a directory name.
pub(crate) fn directory_time() -> String {
    jiff::Zoned::now().strftime("%Y%m%d-%H%M%S").to_string()
}

fn cpu_name() -> Option<String> {
    let info = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = info.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_string())
}

/// Commit that is checked out in the repository around a directory, if there is one.
fn commit(dir: &Path) -> Option<String> {
    let git = dir.ancestors().map(|dir| dir.join(".git")).find(|git| git.is_dir())?;
    let head = fs::read_to_string(git.join("HEAD")).ok()?;
    let Some(reference) = head.trim().strip_prefix("ref: ") else { return Some(head.trim().to_string()) };
    if let Ok(id) = fs::read_to_string(git.join(reference)) {
        return Some(id.trim().to_string());
    }
    let packed = fs::read_to_string(git.join("packed-refs")).ok()?;
    packed.lines().find_map(|line| line.strip_suffix(reference)).map(|id| id.trim().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commit_is_found_behind_a_branch_a_packed_branch_and_a_detached_head() {
        let dir = tempfile::tempdir().unwrap();
        let git = dir.path().join(".git");
        fs::create_dir_all(git.join("refs/heads")).unwrap();
        fs::create_dir_all(dir.path().join("deep/er")).unwrap();
        let found = || commit(&dir.path().join("deep/er"));
        fs::write(git.join("HEAD"), "ref: refs/heads/main\n").unwrap();
        assert_eq!(found(), None);
        fs::write(git.join("packed-refs"), "# pack-refs\naaa refs/heads/main\n").unwrap();
        assert_eq!(found().as_deref(), Some("aaa"));
        fs::write(git.join("refs/heads/main"), "bbb\n").unwrap();
        assert_eq!(found().as_deref(), Some("bbb"));
        fs::write(git.join("HEAD"), "ccc\n").unwrap();
        assert_eq!(found().as_deref(), Some("ccc"));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_process_has_some_memory() {
        assert!(peak_rss_mib() > 0);
    }
}
