//! The unsafe calls: libnftnl through `nftnl_sys`, and readiness of a descriptor.

#![allow(unsafe_code)]

use std::alloc::{Layout, handle_alloc_error};
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;

use nftnl::expr::Expression;
use nftnl::nftnl_sys as ffi;
use nftnl::{MsgType, NlMsg, Rule};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A rule's expression by its name and attributes (`NFTNL_EXPR_*`): whatever nftnl has no type for.
#[derive(Clone)]
pub(super) struct Expr {
    name: &'static CStr,
    numbers: Vec<(u32, u32)>,
    bytes: Vec<(u32, Vec<u8>)>,
    texts: Vec<(u32, CString)>,
    octets: Vec<(u32, u8)>,
    nested: Vec<(u32, Self)>,
}

impl Expr {
    /// An expression without attributes. The name is one that libnftnl knows.
    pub(super) fn new(name: &'static CStr) -> Self {
        Self { name, numbers: Vec::new(), bytes: Vec::new(), texts: Vec::new(), octets: Vec::new(), nested: Vec::new() }
    }

    pub(super) fn number(mut self, attribute: u32, value: u32) -> Self {
        self.numbers.push((attribute, value));
        self
    }

    pub(super) fn byte(mut self, attribute: u32, value: u8) -> Self {
        self.octets.push((attribute, value));
        self
    }

    pub(super) fn bytes(mut self, attribute: u32, value: &[u8]) -> Self {
        self.bytes.push((attribute, value.to_vec()));
        self
    }

    /// The attribute is an expression (NFTNL_EXPR_DYNSET_EXPR alone).
    pub(super) fn nested(mut self, attribute: u32, value: Self) -> Self {
        self.nested.push((attribute, value));
        self
    }

    pub(super) fn text(mut self, attribute: u32, value: &CStr) -> Self {
        self.texts.push((attribute, value.to_owned()));
        self
    }
}

impl Expression for Expr {
    fn to_expr(&self, _rule: &Rule<'_>) -> NonNull<ffi::nftnl_expr> {
        self.make()
    }
}

impl Expr {
    /// The expression as libnftnl has it, which belongs to who asks for it.
    fn make(&self) -> NonNull<ffi::nftnl_expr> {
        // SAFETY: the name ends with NUL. The result is null or an expression that nobody else has; the rule that it is added
        // to frees it.
        let Some(expr) = NonNull::new(unsafe { ffi::nftnl_expr_alloc(self.name.as_ptr()) }) else {
            handle_alloc_error(Layout::new::<[u8; 256]>())
        };
        for (attribute, value) in &self.numbers {
            // SAFETY: `expr` is live; libnftnl takes the value by copy and ignores attributes that it does not know.
            unsafe { ffi::nftnl_expr_set_u32(expr.as_ptr(), *attribute as u16, *value) };
        }
        for (attribute, value) in &self.octets {
            // SAFETY: as above.
            unsafe { ffi::nftnl_expr_set_u8(expr.as_ptr(), *attribute as u16, *value) };
        }
        for (attribute, value) in &self.bytes {
            // SAFETY: as above; pointer and length are those of one live slice, which is copied.
            unsafe { ffi::nftnl_expr_set(expr.as_ptr(), *attribute as u16, value.as_ptr().cast(), value.len() as u32) };
        }
        for (attribute, value) in &self.texts {
            // SAFETY: as above; the text ends with NUL and is copied.
            unsafe { ffi::nftnl_expr_set_str(expr.as_ptr(), *attribute as u16, value.as_ptr()) };
        }
        for (attribute, value) in &self.nested {
            let value = value.make();
            // SAFETY: as above; the inner expression is nobody else's and goes with `expr`, which takes it over, whatever its length.
            unsafe { ffi::nftnl_expr_set(expr.as_ptr(), *attribute as u16, value.as_ptr().cast(), 0) };
        }
        expr
    }
}

/// Turns nftnl's objects into netlink messages.
pub(super) struct Writer(Vec<u8>);

impl Writer {
    pub(super) fn new() -> Self {
        Self(vec![0; nftnl::nft_nlmsg_maxsize() as usize])
    }

    /// The message that adds `object`.
    pub(super) fn add(&mut self, object: &impl NlMsg, seq: u32) -> &[u8] {
        // SAFETY: the buffer is as long as `write` asks for, nft_nlmsg_maxsize().
        unsafe { object.write(self.0.as_mut_ptr().cast(), seq, MsgType::Add) };
        let len = self.0.first_chunk().map_or(0, |len| u32::from_ne_bytes(*len) as usize);
        &self.0[..len.min(self.0.len())]
    }
}

/// A descriptor of which a runtime tells when it can be read.
pub(super) fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an owned descriptor stays the same and open until it is dropped, which the result does after deregistering it.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(io::Error::from)
}
