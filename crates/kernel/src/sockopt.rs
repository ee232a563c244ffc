//! getsockopt(2) for options that no library knows.

use nix::errno::Errno;
use std::os::fd::{AsFd, AsRawFd};

/// Asks a socket; how many bytes of `buffer` the answer took.
pub(crate) fn get(
    fd: impl AsFd,
    level: libc::c_int,
    option: libc::c_int,
    buffer: &mut [u8],
) -> Result<usize, Errno> {
    let mut length = buffer.len() as libc::socklen_t;
    // SAFETY: `fd` is open; the kernel writes at most `length` bytes into `buffer`, which is that
    // long and lives across the call.
    let result = unsafe {
        libc::getsockopt(
            fd.as_fd().as_raw_fd(),
            level,
            option,
            buffer.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    Errno::result(result)?;
    Ok((length as usize).min(buffer.len()))
}

/// An option of `N` bytes.
pub(crate) fn bytes<const N: usize>(
    fd: impl AsFd,
    level: libc::c_int,
    option: libc::c_int,
) -> Result<[u8; N], rustix::io::Errno> {
    let mut value = [0; N];
    match get(fd, level, option, &mut value) {
        Ok(length) if length == N => Ok(value),
        Ok(_) => Err(rustix::io::Errno::INVAL),
        Err(errno) => Err(rustix::io::Errno::from_raw_os_error(errno as i32)),
    }
}
