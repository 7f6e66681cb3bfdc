//! Which instructions of a traced victim store to memory that it shares: decoded where they lie, and resolved by its
//! registers at the time.

use iced_x86::{Decoder, DecoderOptions, InstructionInfoFactory, Mnemonic, OpAccess, Register, UsedMemory};
use nix::libc::user_regs_struct;
use nix::sys::ptrace;
use nix::unistd::Pid;
use std::collections::HashMap;
use std::ops::Range;

/// What is known of a victim's code and memory.
pub struct Stores {
    pid: Pid,
    /// What it shares and may write: its arenas.
    shared: Vec<Range<u64>>,
    /// By address, what an instruction writes.
    known: HashMap<u64, Known>,
}

struct Known {
    writes: Vec<UsedMemory>,
    calls: bool,
}

impl Stores {
    pub fn of(pid: Pid) -> Self {
        Self { pid, shared: shared(pid), known: HashMap::new() }
    }

    /// Whether the next instruction stores to shared memory.
    pub fn is_next(&mut self, registers: &user_regs_struct) -> bool {
        let pid = self.pid;
        let known = self.known.entry(registers.rip).or_insert_with(|| Known::at(pid, registers.rip));
        if known.calls {
            // It may map something.
            self.shared = shared(pid);
        }
        known.writes.iter().any(|memory| {
            let address = memory.virtual_address(0, |register, _, _| value(register, registers));
            let size = memory.memory_size().size().max(1) as u64;
            address.is_some_and(|at| self.shared.iter().any(|range| at < range.end && at + size > range.start))
        })
    }
}

impl Known {
    fn at(pid: Pid, address: u64) -> Self {
        // Fifteen bytes are the most it has; what lies behind them need not be there.
        let words = [address, address + 8].map(|at| ptrace::read(pid, at as ptrace::AddressType).unwrap_or(0));
        let bytes = words.map(i64::to_ne_bytes).concat();
        let instruction = Decoder::with_ip(64, &bytes, address, DecoderOptions::NONE).decode();
        let mut factory = InstructionInfoFactory::new();
        let used = factory.info(&instruction).used_memory();
        let stores = |memory: &&UsedMemory| {
            use OpAccess::{CondWrite, ReadCondWrite, ReadWrite, Write};
            matches!(memory.access(), Write | CondWrite | ReadWrite | ReadCondWrite)
                && !matches!(memory.segment(), Register::FS | Register::GS)
        };
        Self {
            writes: used.iter().filter(stores).copied().collect(),
            calls: matches!(instruction.mnemonic(), Mnemonic::Syscall),
        }
    }
}

fn shared(pid: Pid) -> Vec<Range<u64>> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let arenas = maps.lines().filter(|line| line.contains("memfd:strait") && line.contains(" rw-s "));
    let range = |line: &str| {
        let (start, end) = line.split(' ').next()?.split_once('-')?;
        Some(u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?)
    };
    arenas.filter_map(range).collect()
}

fn value(register: Register, all: &user_regs_struct) -> Option<u64> {
    Some(match register {
        Register::RAX => all.rax,
        Register::RBX => all.rbx,
        Register::RCX => all.rcx,
        Register::RDX => all.rdx,
        Register::RSI => all.rsi,
        Register::RDI => all.rdi,
        Register::RBP => all.rbp,
        Register::RSP => all.rsp,
        Register::R8 => all.r8,
        Register::R9 => all.r9,
        Register::R10 => all.r10,
        Register::R11 => all.r11,
        Register::R12 => all.r12,
        Register::R13 => all.r13,
        Register::R14 => all.r14,
        Register::R15 => all.r15,
        // Flat.
        Register::DS | Register::ES | Register::SS | Register::CS => 0,
        _ => return None,
    })
}
