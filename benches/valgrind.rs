//! Counts of what a case does for an item, taken by valgrind and so the same on every machine: the
//! difference of two runs that prepare the same and work through different numbers of items.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// glibc picks its copy routines by the processor; this leaves it the ones that all have.
const GLIBC_TUNABLES: &str = "glibc.cpu.hwcaps=-AVX512VL,-AVX512F,-AVX2,-AVX,-ERMS,-FSRM,-SSSE3,\
    -SSE4_1,-SSE4_2,-BMI2,-MOVBE,-LZCNT,-POPCNT,-AVX2_Usable,-AVX_Fast_Unaligned_Load,\
    -Fast_Unaligned_Copy,-Fast_Copy_Backward";
/// The share of a case's items that the shorter run works through, as a divisor.
const SHORT_DIVISOR: u64 = 4;

/// What one item costs.
#[derive(Clone, Debug, Default)]
pub struct Profile {
    /// Instructions by whose code they are.
    pub instructions: BTreeMap<String, f64>,
    /// Instructions by function.
    pub functions: BTreeMap<String, f64>,
    /// Calls that take memory.
    pub allocations: f64,
}

impl Profile {
    /// All instructions together.
    pub fn total(&self) -> f64 {
        self.instructions.values().sum()
    }
}

/// Whether valgrind can be run.
pub fn is_there() -> bool {
    Command::new("valgrind").arg("--version").output().is_ok_and(|out| out.status.success())
}

/// Profiles a case of `items` items with callgrind. `program` is one that understands
/// `run CASE ITEMS`.
pub fn profile(program: &Path, case: &str, items: u64) -> Result<Profile, String> {
    let short = items / SHORT_DIVISOR;
    let few = callgrind(program, case, short)?;
    let all = callgrind(program, case, items)?;
    let each = |all: u64, few: u64| (all as f64 - few as f64) / (items - short) as f64;
    let mut profile =
        Profile { allocations: each(all.allocations, few.allocations), ..Profile::default() };
    for ((object, function), count) in &all.instructions {
        let before = few.instructions.get(&(object.clone(), function.clone()));
        let cost = each(*count, before.copied().unwrap_or(0));
        *profile.instructions.entry(owner(object, function)).or_default() += cost;
        *profile.functions.entry(function.clone()).or_default() += cost;
    }
    Ok(profile)
}

/// Bytes that an item copies with the library's routines, and bytes of memory that it takes.
pub fn bytes_moved(program: &Path, case: &str, items: u64) -> Result<(f64, f64), String> {
    let short = items / SHORT_DIVISOR;
    let mut moved = [0.0; 2];
    for (moved, mode) in moved.iter_mut().zip(["--mode=copy", "--mode=heap"]) {
        let few = dhat(program, case, short, mode)?;
        let all = dhat(program, case, items, mode)?;
        *moved = (all as f64 - few as f64) / (items - short) as f64;
    }
    Ok((moved[0], moved[1]))
}

#[derive(Debug, Default)]
struct Counts {
    instructions: BTreeMap<(String, String), u64>,
    allocations: u64,
}

fn callgrind(program: &Path, case: &str, items: u64) -> Result<Counts, String> {
    let file = temporary("callgrind")?;
    let tool = ["--tool=callgrind".to_owned(), format!("--callgrind-out-file={}", file.display())];
    valgrind(&tool, program, case, items)?;
    let text = std::fs::read_to_string(&file).map_err(|error| error.to_string())?;
    let _ = std::fs::remove_file(&file);
    Ok(parse_callgrind(&text))
}

fn dhat(program: &Path, case: &str, items: u64, mode: &str) -> Result<u64, String> {
    let file = temporary("dhat")?;
    let tool =
        ["--tool=dhat".to_owned(), mode.to_owned(), format!("--dhat-out-file={}", file.display())];
    let said = valgrind(&tool, program, case, items)?;
    let _ = std::fs::remove_file(&file);
    let total = said.lines().find_map(|line| line.split_once("Total:")?.1.trim().split(' ').next());
    let digits = total.map(|total| total.replace(',', ""));
    digits.and_then(|digits| digits.parse().ok()).ok_or_else(|| format!("no total in: {said}"))
}

/// Runs a case and gives what valgrind has to say about it.
fn valgrind(tool: &[String], program: &Path, case: &str, items: u64) -> Result<String, String> {
    let output = Command::new("valgrind")
        .args(tool)
        .arg(program)
        .args(["run", case, &items.to_string()])
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("GLIBC_TUNABLES", GLIBC_TUNABLES)
        .output()
        .map_err(|error| format!("valgrind: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(said) } else { Err(said) }
}

fn temporary(name: &str) -> Result<PathBuf, String> {
    let file = std::env::temp_dir().join(format!("chatring-{name}-{}", std::process::id()));
    if file.exists() {
        return Err(format!("{} is there already", file.display()));
    }
    Ok(file)
}

/// Reads callgrind's file: the own cost of each function, and how often memory was taken.
fn parse_callgrind(text: &str) -> Counts {
    let mut counts = Counts::default();
    let (mut objects, mut functions) = (BTreeMap::new(), BTreeMap::new());
    let (mut object, mut function, mut callee) = (String::new(), String::new(), String::new());
    let mut of_call = false;
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("ob=") {
            object = named(&mut objects, name);
        } else if let Some(name) = line.strip_prefix("fn=") {
            function = named(&mut functions, name);
        } else if let Some(name) = line.strip_prefix("cfn=") {
            callee = named(&mut functions, name);
        } else if let Some(name) = line.strip_prefix("cob=") {
            named(&mut objects, name);
        } else if let Some(calls) = line.strip_prefix("calls=") {
            of_call = true;
            let takes = matches!(&*callee, "malloc" | "calloc" | "realloc" | "posix_memalign");
            let times = calls.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0);
            counts.allocations += if takes { times } else { 0 };
        } else if line.starts_with(|c: char| c.is_ascii_digit() || "+-*".contains(c)) {
            // What a call cost stands with the functions that it called.
            if !std::mem::take(&mut of_call) {
                let cost = line.split(' ').nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
                *counts.instructions.entry((object.clone(), function.clone())).or_default() += cost;
            }
        }
    }
    counts
}

/// `(7) name` gives number 7 its name, `(7)` refers to it.
fn named(names: &mut BTreeMap<String, String>, text: &str) -> String {
    match text.split_once(") ") {
        Some((number, name)) => {
            names.insert(number.to_owned(), name.to_owned());
            name.to_owned()
        }
        None => names.get(text.trim_end_matches(')')).cloned().unwrap_or_default(),
    }
}

/// Whose code a function is.
fn owner(object: &str, function: &str) -> String {
    if object.contains("libc.so") || object.contains("ld-linux") {
        let copies = function.contains("mem") && !function.contains("memalign");
        return if copies { "libc: copying, comparing" } else { "libc: memory" }.to_owned();
    }
    for (start, name) in [
        ("chatring_wire", "wire"),
        ("chatring_core", "core"),
        ("chatring_node::gateway", "node: gateway"),
        ("chatring_node", "node: store"),
        ("chatring_benches", "the benchmark itself"),
        ("instructions::", "the benchmark itself"),
        ("cost_table::", "the benchmark itself"),
    ] {
        if function.contains(start) {
            return name.to_owned();
        }
    }
    let first = function.trim_start_matches(['<', '&', '*']).split("::").next().unwrap_or("");
    match first {
        "bytes" => "bytes (crate)".to_owned(),
        "ring" => "ring (crate)".to_owned(),
        _ if function.contains("hashbrown") => "std: hash tables".to_owned(),
        _ => "std and others".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_costs_are_summed_and_costs_of_calls_are_not() {
        let text = "events: Ir\n\nob=(1) /bin/x\nfl=(1) a.rs\nfn=(1) chatring_core::a\n10 5\n+2 7\n\
                    cob=(2) /lib/libc.so.6\ncfn=(2) malloc\ncalls=3 0\n* 900\n* 1\n\n\
                    ob=(2)\nfn=(2)\n0 900\n\nob=(1)\nfn=(1)\n20 2\n";
        let counts = parse_callgrind(text);
        let of = |object: &str, function: &str| {
            counts.instructions[&(object.to_owned(), function.to_owned())]
        };
        assert_eq!(of("/bin/x", "chatring_core::a"), 15);
        assert_eq!(of("/lib/libc.so.6", "malloc"), 900);
        assert_eq!(counts.allocations, 3);
    }

    #[test]
    fn generic_code_belongs_to_whom_it_is_made_for() {
        let whose = |function| owner("/bin/x", function);
        assert_eq!(whose("core::ptr::drop_in_place<chatring_core::effect::Effect>"), "core");
        assert_eq!(whose("<bytes::bytes::Bytes as core::ops::drop::Drop>::drop"), "bytes (crate)");
        assert_eq!(owner("/lib/libc.so.6", "__memcpy_sse2_unaligned"), "libc: copying, comparing");
        assert_eq!(owner("/lib/libc.so.6", "_int_malloc"), "libc: memory");
    }
}
