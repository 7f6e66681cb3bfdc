//! What the worker gives up before it hears from any network: descriptors, privileges, files, system calls. Best effort by
//! what the kernel has, and said so in `--protocols`.

use crate::settings::Settings;
use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, NetPort, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetStatus, Scope, path_beneath_rules,
};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, getppid, setgroups, setresgid, setresuid};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};
use std::collections::BTreeMap;
use std::os::fd::RawFd;

/// Who nobody is.
const NOBODY: u32 = 65_534;

/// What was done, by what it is called in `--protocols`.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Hardened {
    pub(crate) landlock: Level,
    pub(crate) seccomp: Level,
}

/// How much of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Level {
    #[default]
    Off,
    None,
    Partly,
    Full,
}

impl Level {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::None => "none",
            Self::Partly => "partly",
            Self::Full => "full",
        }
    }
}

/// What costs nothing and is always done, first thing: nothing is inherited but the three standard descriptors, nothing is
/// gained by `exec`, nobody of this user may look into the memory, and no core is left.
pub(crate) fn basics() {
    close_inherited();
    let _ = prctl::set_no_new_privs();
    let _ = prctl::set_dumpable(false);
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
}

/// Ends with the process that started it, if that is what it is to do.
pub(crate) fn end_with_parent() {
    let parent = getppid();
    let _ = prctl::set_pdeathsig(Signal::SIGKILL);
    if getppid() != parent {
        // It was gone before the kernel was told.
        std::process::exit(1);
    }
}

fn close_inherited() {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return };
    let number = |entry: std::io::Result<std::fs::DirEntry>| entry.ok()?.file_name().to_str()?.parse::<RawFd>().ok();
    let open: Vec<RawFd> = entries.filter_map(number).filter(|fd| *fd > 2).collect();
    // Among them is the one that was read from, which is closed by now.
    for fd in open {
        let _ = nix::unistd::close(fd);
    }
}

/// Becomes nobody, if it is root. Clears what makes it end with its parent, which is to be said again.
pub(crate) fn leave_root(settings: &Settings) -> anyhow::Result<()> {
    if !Uid::effective().is_root() || settings.stay_root {
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(settings.uid.unwrap_or(NOBODY)), Gid::from_raw(settings.uid.unwrap_or(NOBODY)));
    setgroups(&[])?;
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    let _ = prctl::set_dumpable(false);
    Ok(())
}

/// Where libcurl, the resolver and TLS read.
const READ: [&str; 17] = [
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/host.conf",
    "/etc/nsswitch.conf",
    "/etc/gai.conf",
    "/etc/services",
    "/etc/protocols",
    "/etc/localtime",
    "/etc/ssl",
    "/etc/pki",
    "/usr/share/ca-certificates",
    "/run/systemd/resolve",
    "/run/resolvconf",
    "/lib",
    "/lib64",
    "/usr/lib",
    "/dev/urandom",
];

/// Leaves only those files that are read, and, if ports are named, only connections to them. In this thread and those it
/// starts from now on.
pub(crate) fn landlock(settings: &Settings) -> Level {
    if !settings.landlock {
        return Level::Off;
    }
    match restrict(settings) {
        Ok(RulesetStatus::FullyEnforced) => Level::Full,
        Ok(RulesetStatus::PartiallyEnforced) => Level::Partly,
        Ok(RulesetStatus::NotEnforced) | Err(_) => Level::None,
    }
}

fn restrict(settings: &Settings) -> anyhow::Result<RulesetStatus> {
    let abi = ABI::V6;
    let mut rules =
        Ruleset::default().set_compatibility(CompatLevel::BestEffort).handle_access(AccessFs::from_all(abi))?;
    rules = rules.scope(Scope::Signal)?;
    if !settings.ports.is_empty() {
        rules = rules.handle_access(AccessNet::ConnectTcp)?;
    }
    let mut rules = rules.create()?;
    // Not what landlock calls reading, which has executing in it.
    let reading = AccessFs::ReadFile | AccessFs::ReadDir;
    let own = settings.authorities.iter().map(|path| path.as_os_str());
    let places = READ.iter().map(std::ffi::OsStr::new).chain(own);
    rules = rules.add_rules(path_beneath_rules(places, reading))?;
    if let Some(dir) = &settings.own_dir {
        // Its socket's name goes when it ends.
        rules = rules.add_rules(path_beneath_rules([dir], reading | AccessFs::RemoveFile))?;
    }
    for port in &settings.ports {
        rules = rules.add_rule(NetPort::new(*port, AccessNet::ConnectTcp))?;
    }
    Ok(rules.restrict_self()?.ruleset)
}

/// Leaves only the system calls that a worker makes, to all of its threads.
pub(crate) fn seccomp(settings: &Settings) -> Level {
    if !settings.seccomp {
        return Level::Off;
    }
    match filters(settings.trap)
        .map(|filters| filters.iter().try_for_each(|filter| seccompiler::apply_filter_all_threads(filter)))
    {
        Ok(Ok(())) => Level::Full,
        _ => Level::None,
    }
}

fn filters(trap: bool) -> anyhow::Result<[BpfProgram; 2]> {
    let arch = std::env::consts::ARCH.try_into()?;
    let refused = if trap { SeccompAction::Trap } else { SeccompAction::Errno(libc::EPERM as u32) };
    let anything = |calls: &[libc::c_long]| calls.iter().map(|call| (*call, Vec::new())).collect::<BTreeMap<_, _>>();
    // glibc falls back to `clone`, whose flags can be seen.
    let newer = anything(&[libc::SYS_clone3]);
    let newer = SeccompFilter::new(newer, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS as u32), arch)?;
    let mut allowed = anything(CALLS);
    allowed.insert(libc::SYS_clone3, Vec::new());
    let one_of = |values: &[u64]| {
        let is = |value: &u64| {
            SeccompRule::new(vec![SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, *value)?])
        };
        values.iter().map(is).collect::<Result<Vec<_>, _>>()
    };
    let families = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK].map(|family| family as u64);
    allowed.insert(libc::SYS_socket, one_of(&families)?);
    allowed.insert(libc::SYS_prctl, one_of(&[libc::PR_SET_NAME as u64, libc::PR_SET_VMA as u64])?);
    allowed.insert(libc::SYS_tgkill, one_of(&[u64::from(std::process::id())])?);
    let thread = libc::CLONE_THREAD as u64;
    let threads = SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(thread), thread)?;
    allowed.insert(libc::SYS_clone, vec![SeccompRule::new(vec![threads])?]);
    let allowed = SeccompFilter::new(allowed, refused, SeccompAction::Allow, arch)?;
    Ok([newer.try_into()?, allowed.try_into()?])
}

/// What a worker calls, whatever the arguments.
const CALLS: &[libc::c_long] = &[
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_brk,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_connect,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fallocate,
    libc::SYS_fchmod,
    libc::SYS_fcntl,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_ftruncate,
    libc::SYS_futex,
    libc::SYS_futex_waitv,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpeername,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getrandom,
    libc::SYS_getrlimit,
    libc::SYS_getrusage,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_getuid,
    libc::SYS_ioctl,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_memfd_create,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_pidfd_open,
    libc::SYS_pipe2,
    libc::SYS_ppoll,
    libc::SYS_pread64,
    libc::SYS_prlimit64,
    libc::SYS_pselect6,
    libc::SYS_read,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_set_robust_list,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_sigaltstack,
    libc::SYS_signalfd4,
    libc::SYS_socketpair,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_sysinfo,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_uname,
    libc::SYS_unlinkat,
    libc::SYS_write,
    libc::SYS_writev,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_access,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_arch_prctl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_dup2,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_getdents,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lstat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_pipe,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_select,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
];
