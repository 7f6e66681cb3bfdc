//! What needs `unsafe`, and all of it: options of libcurl that the crate `curl` has no safe setter for, the two callbacks
//! that see addresses, and descriptors by libcurl's numbers.

use crate::guard::Guard;
use curl::easy::Easy2;
use curl_sys::{CURL_SOCKET_BAD, CURLoption, curl_easy_setopt, curl_sockaddr, curl_socket_t, curlsocktype};
use std::ffi::{CStr, CString, c_char, c_int, c_long, c_void};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{BorrowedFd, RawFd};
use std::rc::Rc;

/// Options whose value is a number.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Number {
    HttpAuth,
    Protocols,
    ProxyAuth,
    RedirectProtocols,
}

/// Options whose value is text.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Text {
    Bearer,
    RequestTarget,
}

const PREREQ_FUNCTION: CURLoption = curl_sys::CURLOPTTYPE_FUNCTIONPOINT + 312;
const PREREQ_DATA: CURLoption = curl_sys::CURLOPTTYPE_OBJECTPOINT + 313;

/// Sets an option whose value is a number.
pub(crate) fn set_number<H>(easy: &Easy2<H>, option: Number, value: c_long) -> Result<(), curl::Error> {
    let option = match option {
        Number::HttpAuth => curl_sys::CURLOPT_HTTPAUTH,
        Number::Protocols => curl_sys::CURLOPT_PROTOCOLS,
        Number::ProxyAuth => curl_sys::CURLOPT_PROXYAUTH,
        Number::RedirectProtocols => curl_sys::CURLOPT_REDIR_PROTOCOLS,
    };
    // SAFETY: the handle is alive, and libcurl reads a `long` for each of these options.
    judge(unsafe { curl_easy_setopt(easy.raw(), option, value) })
}

/// Sets an option whose value is text.
pub(crate) fn set_text<H>(easy: &Easy2<H>, option: Text, value: &str) -> Result<(), curl::Error> {
    let option = match option {
        Text::Bearer => curl_sys::CURLOPTTYPE_OBJECTPOINT + 220,
        Text::RequestTarget => curl_sys::CURLOPTTYPE_OBJECTPOINT + 266,
    };
    let value = CString::new(value).map_err(|_| curl::Error::new(curl_sys::CURLE_BAD_FUNCTION_ARGUMENT))?;
    // SAFETY: the handle is alive; libcurl reads a C string for each of these options, and copies it.
    judge(unsafe { curl_easy_setopt(easy.raw(), option, value.as_ptr()) })
}

/// Has a guard asked about every address and every connection. The caller keeps the guard for as long as the handle lives.
pub(crate) fn set_guard<H>(easy: &Easy2<H>, guard: &Rc<Guard>) -> Result<(), curl::Error> {
    let data: *const Guard = Rc::as_ptr(guard);
    let open: curl_sys::curl_opensocket_callback = open_socket;
    let ready: extern "C" fn(*mut c_void, *mut c_char, *mut c_char, c_int, c_int) -> c_int = about_to_send;
    // SAFETY: the handle is alive; libcurl reads a function of this type and a pointer for these options. It gives the
    // pointer to the functions below and to nobody else, as long as the handle lives, and the guard lives longer.
    unsafe {
        judge(curl_easy_setopt(easy.raw(), curl_sys::CURLOPT_OPENSOCKETFUNCTION, open))?;
        judge(curl_easy_setopt(easy.raw(), curl_sys::CURLOPT_OPENSOCKETDATA, data))?;
        judge(curl_easy_setopt(easy.raw(), PREREQ_FUNCTION, ready))?;
        judge(curl_easy_setopt(easy.raw(), PREREQ_DATA, data))
    }
}

fn judge(code: curl_sys::CURLcode) -> Result<(), curl::Error> {
    if code == curl_sys::CURLE_OK { Ok(()) } else { Err(curl::Error::new(code)) }
}

/// libcurl wants a socket to this address.
extern "C" fn open_socket(data: *mut c_void, _: curlsocktype, address: *mut curl_sockaddr) -> curl_socket_t {
    // SAFETY: `set_guard` gave this pointer, and its caller keeps what it points to. Nobody has it mutably: all of a
    // guard is behind cells.
    let guard = unsafe { &*data.cast_const().cast::<Guard>() };
    // SAFETY: libcurl gives the address of a structure that lives as long as this call.
    let (family, kind, protocol, found) =
        unsafe { ((*address).family, (*address).socktype, (*address).protocol, ip_of(address)) };
    if !guard.allows(family, found) {
        return CURL_SOCKET_BAD;
    }
    // SAFETY: takes numbers and returns one.
    let socket = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) };
    if socket < 0 {
        guard.no_socket(nix::errno::Errno::last_raw());
        return CURL_SOCKET_BAD;
    }
    guard.opened();
    socket
}

/// The IP address in libcurl's structure, if it is one.
///
/// # Safety
/// `address` is one that libcurl gave a callback that is still running.
unsafe fn ip_of(address: *const curl_sockaddr) -> Option<IpAddr> {
    // SAFETY: alive, says the caller. libcurl reserves a `sockaddr_storage` from this field on, of which `addrlen` bytes
    // are filled in, as long as the family's own structure.
    unsafe {
        let len = (*address).addrlen as usize;
        let at = std::ptr::addr_of!((*address).addr);
        match (*address).family {
            libc::AF_INET if len >= size_of::<libc::sockaddr_in>() => {
                let v4 = at.cast::<libc::sockaddr_in>().read_unaligned();
                Some(Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr)).into())
            }
            libc::AF_INET6 if len >= size_of::<libc::sockaddr_in6>() => {
                let v6 = at.cast::<libc::sockaddr_in6>().read_unaligned();
                Some(Ipv6Addr::from(v6.sin6_addr.s6_addr).into())
            }
            _ => None,
        }
    }
}

/// A connection, new or used before, is about to carry the request.
extern "C" fn about_to_send(data: *mut c_void, ip: *mut c_char, _: *mut c_char, _: c_int, _: c_int) -> c_int {
    // SAFETY: as for `open_socket`.
    let guard = unsafe { &*data.cast_const().cast::<Guard>() };
    let ip = if ip.is_null() {
        None
    } else {
        // SAFETY: libcurl gives a C string that lives as long as this call.
        let text = unsafe { CStr::from_ptr(ip) };
        text.to_str().ok().and_then(|text| text.split('%').next()?.parse().ok())
    };
    i32::from(!guard.allows_connection(ip))
}

/// A socket of libcurl's as the loop takes it.
pub(crate) fn borrow(socket: RawFd) -> BorrowedFd<'static> {
    // SAFETY: used for one call, made right after libcurl named this socket as one of its own and before libcurl is called
    // again, so it is open; were it not, the kernel would say so. -1 is never among them.
    unsafe { BorrowedFd::borrow_raw(socket) }
}

/// For `--check-sandbox`: asks to trace a process.
pub(crate) fn try_ptrace(pid: i32) -> std::io::Result<()> {
    // SAFETY: PTRACE_SEIZE reads no memory of this process, and is given none. It succeeds only where it should not.
    let done = unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid, 0, 0) };
    if done == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// For `--check-sandbox`: asks for a socket of a family.
pub(crate) fn try_socket(family: c_int, kind: c_int) -> std::io::Result<()> {
    // SAFETY: takes numbers and returns one, which goes with this process.
    let socket = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, 0) };
    if socket >= 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}
