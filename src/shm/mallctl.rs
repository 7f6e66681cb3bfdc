//! jemalloc's control tree, typed: the few keys the arena needs.

use super::jemalloc;
use nix::errno::Errno;
use std::ffi::CString;
use std::ptr;

/// Values jemalloc reads and writes by address. The implementor's layout is the C type the key names.
///
/// # Safety
/// Every bit pattern jemalloc may write must be a valid value.
pub(super) unsafe trait Value: Copy {}
// SAFETY: integers have no invalid patterns.
unsafe impl Value for u32 {}
// SAFETY: as above; `ssize_t`.
unsafe impl Value for isize {}
// SAFETY: as above; `size_t`.
unsafe impl Value for usize {}
// SAFETY: a raw pointer may hold anything.
unsafe impl Value for *mut jemalloc::extent_hooks_t {}

pub(super) fn read<T: Value + Default>(key: &str) -> Result<T, Errno> {
    let mut value = T::default();
    let mut size = size_of::<T>();
    let key = name(key)?;
    // SAFETY: `value` has room for `size` bytes, which jemalloc checks against the key's type; nothing is written in.
    let result =
        unsafe { jemalloc::mallctl(key.as_ptr(), ptr::from_mut(&mut value).cast(), &raw mut size, ptr::null_mut(), 0) };
    check(result)?;
    Ok(value)
}

/// Reads what is made of a value that is given.
pub(super) fn exchange<T: Value + Default>(key: &str, mut given: impl Value) -> Result<T, Errno> {
    let mut value = T::default();
    let mut size = size_of::<T>();
    let given_size = size_of_val(&given);
    let key = name(key)?;
    // SAFETY: both values are live and of the sizes given, which jemalloc checks against the key's types.
    let result = unsafe {
        jemalloc::mallctl(
            key.as_ptr(),
            ptr::from_mut(&mut value).cast(),
            &raw mut size,
            ptr::from_mut(&mut given).cast(),
            given_size,
        )
    };
    check(result)?;
    Ok(value)
}

pub(super) fn write<T: Value>(key: &str, mut value: T) -> Result<(), Errno> {
    let key = name(key)?;
    // SAFETY: `value` is live and of the size given, which jemalloc checks against the key's type.
    let result = unsafe {
        jemalloc::mallctl(
            key.as_ptr(),
            ptr::null_mut(),
            ptr::null_mut(),
            ptr::from_mut(&mut value).cast(),
            size_of::<T>(),
        )
    };
    check(result)
}

/// A key that is an order, not a value.
pub(super) fn order(key: &str) -> Result<(), Errno> {
    let key = name(key)?;
    // SAFETY: no value is passed either way.
    check(unsafe { jemalloc::mallctl(key.as_ptr(), ptr::null_mut(), ptr::null_mut(), ptr::null_mut(), 0) })
}

fn name(key: &str) -> Result<CString, Errno> {
    CString::new(key).map_err(|_| Errno::EINVAL)
}

fn check(result: i32) -> Result<(), Errno> {
    if result == 0 { Ok(()) } else { Err(Errno::from_raw(result)) }
}
