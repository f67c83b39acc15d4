//! The system interface that has no safe wrapper.
#![allow(unsafe_code)] // Each block says why it is sound; nothing else of the crate may have any.

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, ensure};

/// Lets the kernel compute the checksums of what a device sends (ETHTOOL_STXCSUM), instead of leaving them to the device: a veth
/// pair never computes any, so that the receiver does not verify any either.
pub(super) fn compute_checksums(device: &str) -> Result<()> {
    const ETHTOOL_STXCSUM: u32 = 0x17;
    /// `struct ethtool_value`.
    #[repr(C)]
    struct Value {
        command: u32,
        data: u32,
    }
    let what = || format!("cannot turn off checksum offload of {device}");
    let socket = UdpSocket::bind("127.0.0.1:0").with_context(what)?;
    let mut value = Value { command: ETHTOOL_STXCSUM, data: 0 };
    // SAFETY: `ifreq` is plain data, for which zeroes are a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    ensure!(device.len() < request.ifr_name.len(), "{device}: too long for a device");
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: the descriptor is open; the kernel reads `request`, whose name ends in a zero, and reads and writes `value` behind
    // it, which has the layout that this command takes. Both outlive the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()).with_context(what) }
}
