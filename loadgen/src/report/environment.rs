//! What a run ran on: the machine, and the versions of what was measured and of what measured.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Versions of what wrote a report.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// The load generator's version.
    pub loadgen: String,
    /// The git revision that it was built from, with `-dirty` if files were changed.
    pub git_revision: String,
    /// `release` or `debug`.
    pub build: String,
}

impl Versions {
    /// Of this binary.
    pub fn of_this_build() -> Versions {
        Versions {
            loadgen: env!("CARGO_PKG_VERSION").to_owned(),
            git_revision: env!("CHATRING_GIT_REVISION").to_owned(),
            build: if cfg!(debug_assertions) { "debug" } else { "release" }.to_owned(),
        }
    }
}

/// The machine of the generator. What it does not tell is empty or zero.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's model.
    pub cpu: String,
    /// Cores that are online.
    pub cores: u32,
    /// Cores that the generator may use, as the kernel lists them.
    pub cores_allowed: String,
    /// The kernel's release.
    pub kernel: String,
    /// Whether the kernel gives cores to sessions of processes in turn, not to threads
    /// (`kernel.sched_autogroup_enabled`): it makes syncs late where a core is busy.
    #[serde(default)]
    pub autogroup: bool,
    /// Memory.
    pub memory_bytes: u64,
    /// File system where the node keeps its key: that of its data folder, unless the node is on
    /// another machine.
    pub file_system: String,
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Machine { cpu, cores, file_system, .. } = self;
        write!(f, "{cpu}, {cores} cores, Linux {}, {file_system}", self.kernel_and_groups())
    }
}

impl Machine {
    /// This one. `data` is a file of the node.
    pub fn look(data: &Path) -> Machine {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = text("/proc/cpuinfo");
        let processors = cpuinfo.lines().filter(|line| line.starts_with("processor"));
        let memory = field(&text("/proc/meminfo"), "MemTotal").unwrap_or_default();
        let memory_kib: u64 = memory.trim_end_matches(" kB").parse().unwrap_or_default();
        Machine {
            cpu: field(&cpuinfo, "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cores: processors.count() as u32,
            cores_allowed: field(&text("/proc/self/status"), "Cpus_allowed_list")
                .unwrap_or_default(),
            kernel: text("/proc/sys/kernel/osrelease").trim().to_owned(),
            autogroup: text("/proc/sys/kernel/sched_autogroup_enabled").trim() == "1",
            memory_bytes: memory_kib * 1024,
            file_system: file_system(&text("/proc/self/mountinfo"), data).unwrap_or_default(),
        }
    }

    /// The kernel, and how it gives out cores.
    pub fn kernel_and_groups(&self) -> String {
        let groups = if self.autogroup { "with" } else { "without" };
        format!("{}, {groups} autogroups", self.kernel)
    }
}

/// The value of a `name : value` line.
fn field(text: &str, name: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    })
}

/// The type of the file system that holds a file: that of the longest mount point above it, and
/// the last one mounted there.
fn file_system(mountinfo: &str, file: &Path) -> Option<String> {
    let file = fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
    let mounts = mountinfo.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let point = before.split(' ').nth(4)?.replace("\\040", " ");
        let kind = after.split(' ').next()?;
        file.starts_with(&point).then_some((point.len(), kind))
    });
    mounts.max_by_key(|(length, _)| *length).map(|(_, kind)| kind.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_name_cores_and_memory() {
        let machine = Machine::look(Path::new("/"));
        assert!(!machine.cpu.is_empty() && machine.cores > 0 && machine.memory_bytes > 1 << 20);
        assert!(!machine.kernel.is_empty() && !machine.cores_allowed.is_empty());
        assert!(!machine.file_system.is_empty());
        assert!(!Versions::of_this_build().git_revision.is_empty());
    }

    #[test]
    fn the_file_system_is_that_of_the_longest_mount_point() {
        let mounts = "21 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
                      22 21 0:5 / /no-such/data rw shared:3 - xfs /dev/sdb rw\n\
                      23 21 0:6 / /no-such/dat rw - tmpfs tmpfs rw\n";
        let at = |path: &str| file_system(mounts, Path::new(path));
        assert_eq!(at("/no-such/data/key.pem").as_deref(), Some("xfs"));
        assert_eq!(at("/no-such/database").as_deref(), Some("ext4"));
        assert_eq!(file_system("nonsense", Path::new("/x")), None);
    }
}
