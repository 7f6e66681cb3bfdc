//! A victim under ptrace: run to where its operation begins, then step by step, then killed. Only the thread that starts
//! it may step it. Its watcher thread is not traced and runs on meanwhile.
//!
//! A step costs some 20 us in a virtual machine, so most of the way is run instead: to a breakpoint of the CPU's own, which
//! this thread alone meets, at an instruction that a first victim came to for the first time just before.

use crate::common::peer::Peer;
#[cfg(target_arch = "x86_64")]
use crate::stores::Stores;
use nix::libc;
use nix::sched::{CpuSet, sched_getcpu, sched_setaffinity};
use nix::sys::personality::{self, Persona};
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill, raise};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::collections::HashSet;
use std::thread;
use std::time::Duration;

/// What one step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stride {
    Instruction,
    /// To the next beginning or end of a system call.
    Call,
}

/// Where a victim dies, in strides from where its operation begins.
#[derive(Clone, Copy, Debug)]
pub enum Point {
    After(Stride, u64),
    /// Right after a store to shared memory.
    Stored(Store),
    /// Some time into the system call, if it is one, that the stride after these leads through.
    Inside(u64),
}

/// A store to shared memory: after how many steps it was made, and which address was next.
pub type Store = (u64, u64);

/// The way through an operation, as one victim took it.
#[derive(Default)]
pub struct Trace {
    pub instructions: u64,
    pub stores: Vec<Store>,
    /// After how many steps which address was next for the first time.
    firsts: Vec<(u64, u64)>,
}

/// Has everything that is started from here on lie at the same addresses every time, and run on one CPU: a step is two
/// switches between two processes.
pub fn settle() {
    let persona = personality::get().expect("personality");
    personality::set(persona | Persona::ADDR_NO_RANDOMIZE).expect("personality");
    let mut here = CpuSet::new();
    here.set(sched_getcpu().expect("a CPU")).expect("a CPU");
    sched_setaffinity(Pid::from_raw(0), &here).expect("affinity");
}

const MARK: Signal = Signal::SIGUSR1;

/// In a victim: what comes up to the next mark is its operation.
pub fn mark() {
    raise(MARK).expect("signal");
}

/// In a victim, before its first mark.
pub fn be_traced() {
    ptrace::traceme().expect("ptrace");
}

/// The address of the next instruction.
#[cfg(target_arch = "x86_64")]
fn next(registers: &libc::user_regs_struct) -> u64 {
    registers.rip
}

#[cfg(not(target_arch = "x86_64"))]
fn next(_: &libc::user_regs_struct) -> u64 {
    0
}

/// What tells stores to shared memory, where it is known how.
#[cfg(not(target_arch = "x86_64"))]
struct Stores;

#[cfg(not(target_arch = "x86_64"))]
impl Stores {
    fn of(_: Pid) -> Self {
        Self
    }

    fn is_next(&mut self, _: &libc::user_regs_struct) -> bool {
        false
    }
}

/// A victim that has called [`be_traced`].
pub struct Traced(pub Peer);

impl Traced {
    /// Lets it run to where its operation begins.
    pub fn run_to_mark(&self) {
        assert!(!self.wait(None), "stopped on the way");
        let options = ptrace::Options::PTRACE_O_EXITKILL | ptrace::Options::PTRACE_O_TRACESYSGOOD;
        ptrace::setoptions(self.pid(), options).expect("ptrace");
    }

    /// The whole operation, system call by system call.
    pub fn count_calls(&self) -> u64 {
        let mut count = 0;
        while self.step(Stride::Call) {
            count += 1;
        }
        count
    }

    /// The whole operation, instruction by instruction.
    pub fn trace(&self) -> Trace {
        let (mut trace, mut met) = (Trace::default(), HashSet::new());
        let mut stores = Stores::of(self.pid());
        let mut registers = self.registers();
        loop {
            let is_store = stores.is_next(&registers);
            if !self.step(Stride::Instruction) {
                return trace;
            }
            registers = self.registers();
            trace.instructions += 1;
            let at = next(&registers);
            if met.insert(at) {
                trace.firsts.push((trace.instructions, at));
            }
            if is_store {
                trace.stores.push((trace.instructions, at));
            }
        }
    }

    fn registers(&self) -> libc::user_regs_struct {
        ptrace::getregs(self.pid()).expect("ptrace")
    }

    /// Takes it where it is to die, and kills it there. False if its operation was over before, or it came elsewhere.
    pub fn kill_at(self, point: Point, trace: &Trace) -> bool {
        let (stride, strides) = match point {
            Point::After(Stride::Instruction, strides) | Point::Stored((strides, _)) => {
                (Stride::Instruction, self.run_ahead(strides, trace))
            }
            Point::After(stride, strides) => (stride, Some(strides)),
            Point::Inside(strides) => (Stride::Call, Some(strides)),
        };
        let arrived = strides.is_some_and(|strides| (0..strides).all(|_| self.step(stride)));
        if let (Point::Inside(_), true) = (point, arrived) {
            self.resume(stride, None);
            // Nothing waits for this: how far it gets meanwhile is what is to differ.
            thread::sleep(Duration::from_micros(20));
        }
        let there = match point {
            Point::Stored((_, next)) => arrived && self.instruction() == next,
            _ => arrived,
        };
        kill(self.pid(), Signal::SIGKILL).expect("kill");
        self.0.wait_killed();
        there
    }

    /// Runs as many steps as it can; tells how many are left, unless it came to the mark.
    #[cfg(target_arch = "x86_64")]
    fn run_ahead(&self, steps: u64, trace: &Trace) -> Option<u64> {
        let before = trace.firsts.partition_point(|&(step, _)| step <= steps);
        let Some(&(step, at)) = before.checked_sub(1).and_then(|last| trace.firsts.get(last)) else {
            return Some(steps);
        };
        let set = |register: usize, value: u64| {
            let offset = std::mem::offset_of!(libc::user, u_debugreg) + register * size_of::<u64>();
            ptrace::write_user(self.pid(), offset as *mut libc::c_void, value as i64).is_ok()
        };
        // The first register is in use, for execution. Not every machine has them.
        if !(set(0, at) && set(7, 1)) {
            return Some(steps);
        }
        ptrace::cont(self.pid(), None).expect("ptrace");
        let met = self.wait(None);
        assert!(set(7, 0), "a breakpoint stays");
        met.then(|| {
            assert_eq!(self.instruction(), at, "another breakpoint");
            steps - step
        })
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn run_ahead(&self, steps: u64, _: &Trace) -> Option<u64> {
        Some(steps)
    }

    /// The address of the next instruction.
    fn instruction(&self) -> u64 {
        next(&self.registers())
    }

    /// False at the mark.
    fn step(&self, stride: Stride) -> bool {
        self.resume(stride, None);
        self.wait(Some(stride))
    }

    fn resume(&self, stride: Stride, signal: Option<Signal>) {
        match stride {
            Stride::Instruction => ptrace::step(self.pid(), signal),
            Stride::Call => ptrace::syscall(self.pid(), signal),
        }
        .expect("ptrace");
    }

    /// Until it stops: false at a mark. Other signals are its own.
    fn wait(&self, stride: Option<Stride>) -> bool {
        loop {
            match waitpid(self.pid(), Some(WaitPidFlag::__WALL)).expect("wait") {
                WaitStatus::Stopped(_, MARK) => return false,
                WaitStatus::Stopped(_, Signal::SIGTRAP) | WaitStatus::PtraceSyscall(_) => return true,
                WaitStatus::Stopped(_, signal) => match stride {
                    Some(stride) => self.resume(stride, Some(signal)),
                    None => ptrace::cont(self.pid(), signal).expect("ptrace"),
                },
                other => panic!("{other:?}"),
            }
        }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.0.pid() as i32)
    }
}
