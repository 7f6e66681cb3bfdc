//! The one thread that acts when the application is silent: it reads session sockets (frames, death), sends home what
//! has been owed for a while, and lets idle arenas give memory back. Started with the first session of a process, gone
//! with the last; asleep unless there is something to do.

use super::link::Core;
use crate::sys::fork::PerProcess;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigSet, SigmaskHow};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::io;
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
    static TOKENS: AtomicU64 = AtomicU64::new(WAKE + 1);
    TOKENS.fetch_add(1, Ordering::Relaxed)
}

/// Serves a link from now on.
pub(super) fn add(core: &Arc<Core>) -> io::Result<()> {
    let mut current = WATCHER.lock();
    let watcher = match &*current {
        Some(watcher) => watcher.clone(),
        None => current.insert(Watcher::start()?).clone(),
    };
    let mut links = watcher.links.lock();
    let served = Served { core: Arc::downgrade(core), lingering: None, at_end: false, armed: false, coolings: 0 };
    links.insert(core.token(), served);
    let result = watcher.epoll.add(&**core, EpollEvent::new(EpollFlags::EPOLLIN, core.token()));
    if let Err(errno) = result {
        links.remove(&core.token());
        drop(links);
        watcher.wake();
        return Err(errno.into());
    }
    Ok(())
}

/// Its users are gone; keeps it until the peer needs nothing of it any more.
pub(super) fn linger(core: &Arc<Core>) {
    let Some(watcher) = WATCHER.lock().clone() else { return };
    if let Some(served) = watcher.links.lock().get_mut(&core.token()).filter(|served| !served.at_end) {
        served.lingering = Some(core.clone());
    }
    // The peer learns that nothing of its own is read here any more.
    core.stop_sending();
}

/// It is gone.
pub(super) fn forget(token: u64) {
    let Some(watcher) = WATCHER.lock().clone() else { return };
    watcher.links.lock().remove(&token);
    watcher.wake();
}

/// Ticks a link until it has nothing left to do.
pub(super) fn arm(token: u64) {
    let Some(watcher) = WATCHER.lock().clone() else { return };
    let ticking = {
        let mut links = watcher.links.lock();
        let ticking = links.values().any(|served| served.armed);
        if let Some(served) = links.get_mut(&token) {
            served.armed = true;
            served.coolings = COOLINGS;
        }
        ticking
    };
    if !ticking {
        watcher.wake();
    }
}

static WATCHER: PerProcess<Option<Arc<Watcher>>> = PerProcess::new(None);

/// The token of the eventfd.
const WAKE: u64 = 0;

struct Watcher {
    epoll: Epoll,
    wake: EventFd,
    links: Mutex<HashMap<u64, Served>>,
}

struct Served {
    core: Weak<Core>,
    lingering: Option<Arc<Core>>,
    /// The socket has nothing more to say; there may still be returns to send.
    at_end: bool,
    armed: bool,
    coolings: u32,
}

impl Watcher {
    fn start() -> io::Result<Arc<Self>> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        epoll.add(&wake, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, WAKE))?;
        let watcher = Arc::new(Self { epoll, wake, links: Mutex::default() });
        let mine = watcher.clone();
        // A thread inherits the mask: signals are for the application's own.
        let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
        let spawned = std::thread::Builder::new().name("strait-watch".into()).spawn(move || mine.run());
        mask.thread_set_mask()?;
        spawned?;
        Ok(watcher)
    }

    fn wake(&self) {
        let _ = self.wake.write(1);
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
            for event in events.iter().take(ready).filter(|event| event.data() != WAKE) {
                self.serve(event.data());
            }
            self.tick();
            if Instant::now() >= next_cooling {
                self.cool();
                next_cooling = Instant::now() + COOL;
            }
            if self.over() {
                return;
            }
        }
    }

    /// Sleeps for good unless a link needs ticking or an arena cooling.
    fn timeout(&self, next_cooling: Instant) -> EpollTimeout {
        let links = self.links.lock();
        if links.values().any(|served| served.armed) {
            return EpollTimeout::try_from(TICK).unwrap_or(EpollTimeout::ZERO);
        }
        if links.values().any(|served| served.coolings > 0) {
            let left = next_cooling.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            return EpollTimeout::try_from(left).unwrap_or(EpollTimeout::ZERO);
        }
        EpollTimeout::NONE
    }

    fn serve(&self, token: u64) {
        let core = self.links.lock().get(&token).and_then(|served| served.core.upgrade());
        let Some(core) = core else { return };
        if !core.on_readable() {
            let _ = self.epoll.delete(&*core);
            let lingering = self.links.lock().get_mut(&token).and_then(|served| {
                served.at_end = true;
                served.lingering.take()
            });
            // Outside the lock, which the end of a core takes.
            drop(lingering);
        }
    }

    fn tick(&self) {
        let armed: Vec<_> = self.links.lock().iter().filter(|(_, served)| served.armed).map(upgrade).collect();
        for (token, core) in armed {
            let Some(core) = core else { continue };
            if core.tick() {
                continue;
            }
            if let Some(served) = self.links.lock().get_mut(&token) {
                served.armed = false;
            }
            core.disarm();
            // Whoever queued work before that disarming saw the link armed, so look once more.
            if core.tick() {
                core.arm();
            }
        }
    }

    fn cool(&self) {
        let mut links = self.links.lock();
        let idle = links.iter_mut().filter(|(_, served)| served.coolings > 0);
        let cores: Vec<_> = idle
            .filter_map(|(_, served)| {
                served.coolings -= 1;
                served.core.upgrade()
            })
            .collect();
        drop(links);
        cores.iter().for_each(|core| core.arena().decay());
    }

    /// True if nothing is left to serve; a later session starts another watcher.
    fn over(&self) -> bool {
        let mut current = WATCHER.lock();
        let over = self.links.lock().is_empty();
        if over && current.as_ref().is_some_and(|watcher| std::ptr::eq(&**watcher, self)) {
            *current = None;
        }
        over
    }
}

fn upgrade((token, served): (&u64, &Served)) -> (u64, Option<Arc<Core>>) {
    (*token, served.core.upgrade())
}
