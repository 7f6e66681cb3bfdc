//! What the engine does by itself: starts requests, ends them, tries them again, tells of them, and keeps their time.

use super::{Engine, FEED, Front, State, Told, Transfer};
use crate::handler::{Out, Stopped, Transferring};
use crate::outcome::{Fault, Info, Outcome, Stage, Why};
use crate::raw;
use crate::retry;
use crate::setup::set_up;
use crate::wish::{Handle, Terms};
use curl::easy::{Easy, Easy2};
use curl::multi::Easy2Handle;
use std::rc::Rc;
use std::time::{Duration, Instant};

impl Engine {
    pub(super) fn flush(&mut self, now: Instant) {
        loop {
            let due = self.hub.flushes.borrow().front().is_some_and(|(at, _)| *at <= now);
            let Some((_, key)) = due.then(|| self.hub.flushes.borrow_mut().pop_front()).flatten() else { break };
            if let Some(handler) = self.handler(key) {
                handler.flush();
                handler.hurry();
            }
        }
    }

    pub(super) fn feed(&mut self, now: Instant) {
        if self.feed_at.is_none_or(|at| at > now) {
            if self.feed_at.is_none() && !self.hub.starved.borrow().is_empty() {
                self.feed_at = Some(now + FEED);
            }
            return;
        }
        let starved = std::mem::take(&mut *self.hub.starved.borrow_mut());
        self.feed_at = None;
        for key in starved {
            if self.handler(key).is_some_and(Transferring::fed) {
                self.go_on(key);
            }
        }
        if !self.hub.starved.borrow().is_empty() {
            self.feed_at = Some(now + FEED);
        }
    }

    /// Has libcurl look again at requests that wait until it is known whether another's connection can carry them too. It
    /// does so by itself when it can; when it cannot, only when some request ends, which may be never if its body is not
    /// read. It looks at one of them, in turn, whenever a handle is taken out, and which of them wait it does not say.
    pub(super) fn rouse(&mut self) {
        if !self.hub.connected.take() || self.running < 2 {
            return;
        }
        let waits = |transfer: &&Transfer| match &transfer.state {
            State::Running(handle) => !handle.get_ref().heads.is_decided(),
            _ => false,
        };
        // But for the one that has the connection.
        for _ in 1..self.transfers.values().filter(waits).count() {
            let easy = self.rouser.take().unwrap_or_else(Easy::new);
            self.rouser = self.multi.add(easy).and_then(|handle| self.multi.remove(handle)).ok();
        }
    }

    /// Timeouts that are not libcurl's, and pauses that are over.
    pub(super) fn look(&mut self, now: Instant) {
        while let Some(&(at, key)) = self.looks.first() {
            if at > now {
                break;
            }
            self.looks.pop_first();
            let Some(mut transfer) = self.transfers.remove(&key) else { continue };
            transfer.look = None;
            let out_of_time = transfer.due().is_some_and(|due| due <= now);
            match &mut transfer.state {
                State::Queued | State::Pausing if out_of_time => {
                    self.waiting.remove(transfer.origin.client, key);
                    let text = "timed out before it could be sent";
                    self.over(key, transfer, Fault::new(28, Why::Code, Stage::Queue, text));
                    continue;
                }
                State::Pausing => {
                    transfer.state = State::Queued;
                    self.waiting.push(transfer.origin.client, key);
                    let due = transfer.due();
                    self.look_at(key, &mut transfer, due);
                }
                State::Running(handle) => match next_look(handle.get_mut(), &transfer.terms, now) {
                    Some(Err(stopped)) => {
                        handle.get_mut().stopped = Some(stopped);
                        self.transfers.insert(key, transfer);
                        self.ended(key, Err(curl::Error::new(curl_sys::CURLE_OPERATION_TIMEDOUT)));
                        continue;
                    }
                    Some(Ok(at)) => self.look_at(key, &mut transfer, Some(at)),
                    None => {}
                },
                State::Queued | State::Over(_) => {}
            }
            self.transfers.insert(key, transfer);
        }
    }

    pub(super) fn start_waiting(&mut self) {
        while self.running < self.limits.active {
            let Some(key) = self.waiting.pop() else { break };
            let Some(mut transfer) = self.transfers.remove(&key) else { continue };
            match self.prepare(key, &mut transfer).and_then(|easy| self.add(key, easy)) {
                Ok(mut handle) => {
                    self.running += 1;
                    // Of the time in all libcurl takes care from here on.
                    let next = next_look(handle.get_mut(), &transfer.terms, Instant::now());
                    self.look_at(key, &mut transfer, next.and_then(Result::ok));
                    transfer.state = State::Running(Box::new(handle));
                    self.transfers.insert(key, transfer);
                }
                Err(fault) => self.over(key, transfer, fault),
            }
        }
    }

    fn add(&self, key: usize, easy: Handle) -> Result<Easy2Handle<Transferring>, Fault> {
        let failed = |text: String| Fault::new(2, Why::WorkerFault, Stage::Prepare, text);
        let mut handle = self.multi.add2(easy).map_err(|error| failed(error.to_string()))?;
        handle.set_token(key).map_err(|error| failed(error.to_string()))?;
        Ok(handle)
    }

    /// A handle of libcurl's for a request.
    fn prepare(&mut self, key: usize, transfer: &mut Transfer) -> Result<Handle, Fault> {
        let (wish, hub) = (&transfer.wish, &self.hub);
        let (guard, manner) =
            (Rc::new(wish.guard(hub.connected.clone())?), wish.manner(&transfer.terms, transfer.began)?);
        let upload = std::mem::take(&mut transfer.upload);
        let handler = Transferring::new(key, hub, transfer.arena.clone(), guard.clone(), upload, manner);
        let mut easy = Easy2::new(handler);
        raw::set_guard(&easy, &guard).map_err(|error| Fault::option("address policy", &error))?;
        wish.read(|request| set_up(&mut easy, request, &self.house))?;
        if transfer.fresh {
            easy.fresh_connect(true).map_err(|error| Fault::option("connection", &error))?;
        }
        if let Some(total) = transfer.terms.total {
            let left = total.saturating_sub(transfer.began.elapsed()).max(Duration::from_millis(1));
            easy.timeout(left).map_err(|error| Fault::option("timeout", &error))?;
        }
        self.jars.fill(transfer.origin.client, transfer.terms.jar, &mut easy)?;
        Ok(easy)
    }

    /// Those that libcurl has done with.
    pub(super) fn finish(&mut self) {
        let mut ended = Vec::new();
        let transfers = &self.transfers;
        self.multi.messages(|message| {
            let Ok(key) = message.token() else { return };
            if let Some(Transfer { state: State::Running(handle), .. }) = transfers.get(&key)
                && let Some(result) = message.result_for2(handle)
            {
                ended.push((key, result));
            }
        });
        for (key, result) in ended {
            self.ended(key, result);
        }
    }

    fn ended(&mut self, key: usize, result: Result<(), curl::Error>) {
        let Some(mut transfer) = self.transfers.remove(&key) else { return };
        let State::Running(handle) = std::mem::replace(&mut transfer.state, State::Pausing) else {
            self.transfers.insert(key, transfer);
            return;
        };
        self.running -= 1;
        let Ok(mut easy) = self.multi.remove2(*handle) else {
            let fault = Fault::new(2, Why::WorkerFault, Stage::Body, "libcurl does not let go of it");
            return self.over(key, transfer, fault);
        };
        let sockets = easy.get_ref().guard.sockets();
        transfer.connections += sockets;
        self.counts.connections += u64::from(sockets);
        self.jars.take(transfer.origin.client, transfer.terms.jar, &mut easy);
        let fault = result.err().map(|error| Fault::of(&error, &easy, transfer.connections));
        if let Some(pause) = self.pause(&mut transfer, &mut easy, fault.as_ref()) {
            let handler = easy.get_mut();
            transfer.before.extend(handler.take_all());
            transfer.upload = std::mem::take(&mut handler.upload);
            transfer.upload.seek(std::io::SeekFrom::Start(0));
            let until = Instant::now() + pause;
            let look = transfer.due().map_or(until, |due| due.min(until));
            self.look_at(key, &mut transfer, Some(look));
            self.transfers.insert(key, transfer);
            return;
        }
        let handler = easy.get_mut();
        if fault.is_some() {
            handler.pass()
        } else {
            handler.decide()
        }
        handler.flush();
        let info = Info::of(&easy, transfer.terms.retries.done, transfer.connections);
        let handler = easy.get_mut();
        self.counts.received += handler.delivered;
        self.counts.sent += handler.upload.taken();
        if fault.is_some() {
            self.counts.failed += 1
        } else {
            self.counts.done += 1
        }
        let trailers = handler.heads.take_trailers();
        let mut out = std::mem::take(&mut transfer.before);
        out.extend(handler.take_all());
        out.push(Out::End(Box::new(Outcome { fault, info, trailers })));
        self.look_at(key, &mut transfer, None);
        transfer.state = State::Over(out);
        self.transfers.insert(key, transfer);
        self.hub.dirty.borrow_mut().push(key);
    }

    /// How long to wait until the next attempt, if there is to be one.
    fn pause(&mut self, transfer: &mut Transfer, easy: &mut Handle, fault: Option<&Fault>) -> Option<Duration> {
        let handler = easy.get_mut();
        if handler.delivered > 0 || handler.heads.is_decided() || !handler.upload.can_rewind() {
            return None;
        }
        if handler.guard.is_stale() && !transfer.fresh && fault.is_some() {
            transfer.fresh = true;
            return Some(Duration::ZERO);
        }
        let age = transfer.began.elapsed();
        let pause = match fault {
            _ if handler.retry_in.is_some() => handler.retry_in?,
            Some(fault) => {
                let late = transfer.terms.total.is_some_and(|total| age >= total);
                let passing = fault.why != Why::PolicyDenied && retry::code_may_pass(fault.code) && !late;
                transfer.terms.retries.pause(None, 0, age).filter(|_| passing)?
            }
            // One without a body.
            None if handler.will_retry() => handler.retry_in?,
            None => return None,
        };
        transfer.terms.retries.done += 1;
        handler.pass();
        Some(pause)
    }

    /// Tells what there is to tell of a request.
    pub(super) fn tell(&mut self, key: usize, front: &mut impl Front) {
        let Some(transfer) = self.transfers.get_mut(&key) else { return };
        let (line, wish) = (transfer.origin.line, transfer.wish.clone());
        let mut told = Told::Taken;
        match &mut transfer.state {
            State::Running(handle) => {
                let handler = handle.get_mut();
                handler.looked();
                while told == Told::Taken
                    && let Some(out) = transfer.before.first().or_else(|| handler.front())
                {
                    told = front.tell(line, key, &wish, out);
                    if told == Told::Taken {
                        if transfer.before.is_empty() { handler.pop() } else { drop(transfer.before.remove(0)) }
                    }
                }
            }
            State::Over(out) => {
                if is_whole(out) {
                    told = front.tell_whole(line, key, &wish, out);
                } else {
                    let mut taken = 0;
                    while told == Told::Taken
                        && let Some(next) = out.get(taken)
                    {
                        told = front.tell(line, key, &wish, next);
                        taken += usize::from(told == Told::Taken);
                    }
                    out.drain(..taken);
                }
                if told == Told::Taken {
                    self.remove(key, front);
                }
            }
            State::Queued | State::Pausing => {}
        }
        if told == Told::Unwanted {
            self.cancel(key, front);
        }
    }
}

/// Whether all of an answer is there, in one piece at most: then it is told as one.
fn is_whole(out: &[Out]) -> bool {
    let Some((Out::End(end), rest)) = out.split_last() else { return false };
    let mut bodies = 0;
    let plain = rest.iter().all(|out| match out {
        Out::Body(at, _) => {
            bodies += 1;
            *at == 0 || bodies > 1
        }
        Out::Head(_) => true,
        _ => false,
    });
    end.fault.is_none() && plain && bodies <= 16 && rest.iter().any(|out| matches!(out, Out::Head(_)))
}

/// When to look at a running request again, or what it has exceeded; `None` if there is nothing to look for.
fn next_look(handler: &mut Transferring, terms: &Terms, now: Instant) -> Option<Result<Instant, Stopped>> {
    let mut next = None;
    if let (Some(limit), false) = (terms.first_byte, handler.first_byte) {
        // It counts from the last byte that was sent.
        let from = handler.guard.ready().map_or(now, |ready| ready.max(handler.last_byte));
        if from + limit <= now {
            return Some(Err(Stopped::FirstByte));
        }
        next = Some(from + limit);
    }
    if let Some(limit) = terms.idle {
        let from = if handler.paused { now } else { handler.last_byte };
        if from + limit <= now {
            return Some(Err(Stopped::Idle));
        }
        next = Some(next.map_or(from + limit, |at: Instant| at.min(from + limit)));
    }
    next.map(Ok)
}
