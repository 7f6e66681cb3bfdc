//! The one thread that acts when the application is silent: it reads session sockets (frames, death), sends home what
//! has been owed for a while, and lets idle arenas give memory back. Started with the first session of a process, gone
//! with the last; asleep unless there is something to do.

use super::link::Core;
use crate::shm::arena::{Arena, WeakArena};
use crate::sys::fork::PerProcess;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigSet, SigmaskHow};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// How long a returned handle may wait for a slot that goes its way.
const TICK: Duration = Duration::from_millis(10);

/// How often, and how many times, an arena that fell idle is told to give memory back.
const COOL: Duration = Duration::from_secs(1);
const COOLINGS: u32 = 15;

/// A number for a link that no other link of this process had.
pub(super) fn new_token() -> u64 {
    static TOKENS: AtomicU64 = AtomicU64::new(ALARM + 1);
    TOKENS.fetch_add(1, Ordering::Relaxed)
}

/// Serves a link from now on; one without users until the peer needs nothing of it any more.
pub(super) fn add(core: &Arc<Core>, unused: bool) -> io::Result<()> {
    let mut current = WATCHER.lock();
    let watcher = match &*current {
        Some(watcher) => watcher.clone(),
        None => current.insert(Watcher::start()?).clone(),
    };
    let mut links = watcher.links.lock();
    let served = Served {
        core: Arc::downgrade(core),
        arena: core.arena().downgrade(),
        arena_id: core.arena().id(),
        lingering: unused.then(|| core.clone()),
        at_end: false,
    };
    links.served.insert(core.token(), served);
    let result = watcher.epoll.add(&**core, EpollEvent::new(EpollFlags::EPOLLIN, core.token()));
    if let Err(errno) = result {
        links.served.remove(&core.token());
        watcher.wake_if_over(&links);
        return Err(errno.into());
    }
    Ok(())
}

/// Serves a link no longer: somebody else does.
pub(super) fn release(core: &Arc<Core>) {
    let Some(watcher) = WATCHER.lock().clone() else { return };
    let mut links = watcher.links.lock();
    links.served.remove(&core.token());
    let _ = watcher.epoll.delete(&**core);
    watcher.wake_if_over(&links);
}

/// Has a link carry on when its socket takes more, or not any longer.
pub(super) fn when_writable(core: &Core, wanted: bool) {
    let Some(watcher) = WATCHER.lock().clone() else { return };
    let flags = if wanted { EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT } else { EpollFlags::EPOLLIN };
    // Refused once the socket is at its end, when there is nobody to carry anything to.
    let _ = watcher.epoll.modify(core, &mut EpollEvent::new(flags, core.token()));
}

/// Its users are gone; keeps it until the peer needs nothing of it any more.
pub(super) fn linger(core: &Arc<Core>) {
    let Some(watcher) = WATCHER.lock().clone() else { return };
    if let Some(served) = watcher.links.lock().served.get_mut(&core.token()).filter(|served| !served.at_end) {
        served.lingering = Some(core.clone());
    }
}

/// It is gone.
pub(super) fn forget(token: u64) {
    let Some(watcher) = WATCHER.lock().clone() else { return };
    let mut links = watcher.links.lock();
    links.served.remove(&token);
    watcher.wake_if_over(&links);
}

/// Ticks a link until it has nothing left to do. Wakes nobody now: a session that is over soon costs the watcher nothing.
pub(super) fn arm(token: u64) {
    let Some(watcher) = WATCHER.lock().clone() else { return };
    let mut links = watcher.links.lock();
    let Links { served, armed, cooling, next_tick } = &mut *links;
    let Some(served) = served.get(&token) else { return };
    armed.push(token);
    cooling.entry(served.arena_id).or_insert_with(|| (served.arena.clone(), 0)).1 = COOLINGS;
    if next_tick.is_none() {
        *next_tick = Some(Instant::now() + TICK);
        watcher.set_alarm();
    }
}

static WATCHER: PerProcess<Option<Arc<Watcher>>> = PerProcess::new(None);

/// The tokens of the eventfd and of the alarm.
const WAKE: u64 = 0;
const ALARM: u64 = 1;

struct Watcher {
    epoll: Epoll,
    wake: EventFd,
    /// For the first tick after a time without.
    alarm: TimerFd,
    links: Mutex<Links>,
}

/// What is asked at every turn is in lists of its own: no turn looks at every session.
#[derive(Default)]
struct Links {
    served: HashMap<u64, Served>,
    /// By token, each once: a link is armed once until it is disarmed. Some may be gone.
    armed: Vec<u64>,
    /// While any are armed.
    next_tick: Option<Instant>,
    /// Arenas by number, and how often each is still to be told. Many sessions share one.
    cooling: HashMap<u32, (WeakArena, u32)>,
}

struct Served {
    core: Weak<Core>,
    arena: WeakArena,
    arena_id: u32,
    lingering: Option<Arc<Core>>,
    /// The socket has nothing more to say; there may still be returns to send.
    at_end: bool,
}

impl Watcher {
    fn start() -> io::Result<Arc<Self>> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let alarm = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK)?;
        epoll.add(&wake, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, WAKE))?;
        epoll.add(alarm.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, ALARM))?;
        let watcher = Arc::new(Self { epoll, wake, alarm, links: Mutex::default() });
        let mine = watcher.clone();
        // A thread inherits the mask: signals are for the application's own.
        let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
        let spawned = std::thread::Builder::new().name("strait-watch".into()).spawn(move || mine.run());
        mask.thread_set_mask()?;
        spawned?;
        Ok(watcher)
    }

    /// The thread is to end if nothing is left to serve.
    fn wake_if_over(&self, links: &Links) {
        if links.served.is_empty() {
            let _ = self.wake.write(1);
        }
    }

    fn set_alarm(&self) {
        let at = Expiration::OneShot(TimeSpec::from_duration(TICK));
        let _ = self.alarm.set(at, TimerSetTimeFlags::empty());
    }

    fn run(self: Arc<Self>) {
        crate::shm::forgo_in_this_thread();
        let mut events = [EpollEvent::empty(); 64];
        let mut next_cooling = Instant::now();
        loop {
            let ready = match self.epoll.wait(&mut events, self.timeout(next_cooling)) {
                Ok(ready) => ready,
                Err(Errno::EINTR) => 0,
                Err(errno) => {
                    tracing::error!("the watcher cannot wait: {errno}");
                    std::thread::sleep(TICK);
                    0
                }
            };
            for event in events.iter().take(ready).filter(|event| event.data() > ALARM) {
                self.serve(event.data(), event.events());
            }
            let now = Instant::now();
            self.tick(now);
            if now >= next_cooling && self.cool() {
                next_cooling = now + COOL;
            }
            if self.over() {
                return;
            }
        }
    }

    /// Sleeps for good unless a link needs ticking or an arena cooling.
    fn timeout(&self, next_cooling: Instant) -> EpollTimeout {
        let links = self.links.lock();
        let cooling = (!links.cooling.is_empty()).then_some(next_cooling);
        let next = links.next_tick.into_iter().chain(cooling).min();
        drop(links);
        let Some(next) = next else { return EpollTimeout::NONE };
        let left = next.saturating_duration_since(Instant::now());
        // Rounded up: rounding down would spin through the last millisecond.
        let left = left + Duration::from_micros(999);
        EpollTimeout::try_from(left).unwrap_or(EpollTimeout::ZERO)
    }

    fn serve(&self, token: u64, events: EpollFlags) {
        let core = self.links.lock().served.get(&token).and_then(|served| served.core.upgrade());
        let Some(core) = core else { return };
        if events.contains(EpollFlags::EPOLLOUT) {
            core.on_writable();
        }
        if !core.on_readable() {
            let _ = self.epoll.delete(&*core);
            let lingering = self.links.lock().served.get_mut(&token).and_then(|served| {
                served.at_end = true;
                served.lingering.take()
            });
            // Outside the lock, which the end of a core takes.
            drop(lingering);
        }
    }

    fn tick(&self, now: Instant) {
        let armed: Vec<(u64, Arc<Core>)> = {
            let mut links = self.links.lock();
            if links.next_tick.is_none_or(|at| now < at) {
                return;
            }
            // Whoever is armed from here on finds the next tick arranged for.
            links.next_tick = Some(now + TICK);
            let armed = std::mem::take(&mut links.armed);
            armed.into_iter().filter_map(|token| Some((token, links.served.get(&token)?.core.upgrade()?))).collect()
        };
        for (token, core) in &armed {
            if core.tick() {
                self.links.lock().armed.push(*token);
                continue;
            }
            core.disarm();
            // Whoever queued work before that disarming saw the link armed, so look once more.
            if core.tick() {
                core.arm();
            }
        }
        let mut links = self.links.lock();
        if links.armed.is_empty() {
            links.next_tick = None;
        }
    }

    /// False if no arena was cooling.
    fn cool(&self) -> bool {
        let mut arenas = Vec::new();
        self.links.lock().cooling.retain(|_, (arena, times)| {
            *times = times.saturating_sub(1);
            let arena = arena.upgrade();
            let goes_on = arena.is_some() && *times > 0;
            arenas.extend(arena);
            goes_on
        });
        // Outside the lock: the last hold on an arena may be this one.
        arenas.iter().for_each(Arena::decay);
        !arenas.is_empty()
    }

    /// True if nothing is left to serve; a later session starts another watcher.
    fn over(&self) -> bool {
        let mut current = WATCHER.lock();
        let over = self.links.lock().served.is_empty();
        if over && current.as_ref().is_some_and(|watcher| std::ptr::eq(&**watcher, self)) {
            *current = None;
        }
        over
    }
}
