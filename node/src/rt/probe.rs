//! What the machine must offer, asked before the runtime is built on it.

use std::io::Error as IoError;

use glommio::Placement;

use super::StartError;

/// What glommio wants to be lockable.
const LOCKED_BYTES_MIN: u64 = 512 * 1024;
/// Bytes of the kernel's `struct io_uring_params`.
const PARAMS_BYTES: usize = 120;

/// Makes a ring and drops it again: where that fails glommio would end the process.
pub fn io_uring() -> Result<(), StartError> {
    let mut params = [0_u64; PARAMS_BYTES / 8];
    // SAFETY: the params are zeroed, aligned and as long as the kernel's struct.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 4, params.as_mut_ptr()) };
    if fd < 0 {
        return Err(StartError::IoUring(IoError::last_os_error()));
    }
    // SAFETY: the call above gave this descriptor, nobody else has it.
    unsafe { libc::close(fd as i32) };
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid place for one rlimit.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) };
    if result == 0 && limit.rlim_cur < LOCKED_BYTES_MIN {
        return Err(StartError::LockedMemory { actual: limit.rlim_cur, needed: LOCKED_BYTES_MIN });
    }
    Ok(())
}

/// Where each shard runs: on a core of its own out of those that the process may use, or anywhere
/// if there are fewer cores than shards.
pub fn placements(shards: u16) -> Vec<Placement> {
    // SAFETY: an all-zero cpu_set_t is the empty set; its size is passed with it.
    let cpus: Vec<usize> = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        match libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) {
            0 => (0..libc::CPU_SETSIZE as usize).filter(|&n| libc::CPU_ISSET(n, &set)).collect(),
            _ => Vec::new(),
        }
    };
    let shards = usize::from(shards);
    match cpus.len() >= shards {
        true => cpus.into_iter().take(shards).map(Placement::Fixed).collect(),
        false => vec![Placement::Unbound; shards],
    }
}
