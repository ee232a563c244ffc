//! Canaries in a scan under way: which ports serve, what they tell about the path, how the rate
//! follows.

use super::{Bounds, Rounds, wait_micros};
use crate::packet::canary::{FIRST_TRIAL, Failure, PERCHES, SECOND_TRIAL, Sent, is_ssh};
use crate::packet::listen::{CLOSED, OPEN, Slot};
use crate::packet::risk::loss_bound;
use std::collections::HashMap;
use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// Canary knocks of a round and target at the least, if it is short and if it is one over all ports:
/// what is waited for is in proportion to what another round would cost.
const ENOUGH: (usize, usize) = (400, 1024);
/// Longest wait for an answer ever.
const LONGEST_WAIT: Duration = Duration::from_secs(3);
/// Rest before doubted canaries are asked again.
const REST: Duration = Duration::from_millis(500);
/// Rests in one scan at the most.
const RESTS: u32 = 8;

impl Rounds<'_> {
    /// A new number for the cookies of canaries; what is still under way counts no more.
    pub(super) fn begin_turn(&mut self) {
        self.turn += 1;
        self.shared.round.store(self.turn, Relaxed);
        for slot in self.shared.slots.iter().flatten() {
            slot.answered.store(0, Relaxed);
            slot.refused.store(false, Relaxed);
        }
        for canaries in &mut self.canaries {
            canaries.begin();
        }
    }

    /// Ports that may become canaries: open ones, else closed ones, else those of ssh, but these
    /// only after every other port was asked.
    pub(super) fn candidates(&self, target: usize) -> Vec<u16> {
        let canaries = &self.canaries[target];
        let of = |wanted: u8, ssh: bool| -> Vec<u16> {
            self.ports
                .iter()
                .copied()
                .filter(|port| is_ssh(*port) == ssh && self.shared.state(target, *port) == wanted)
                .filter(|port| !canaries.has_failed(*port))
                .take(PERCHES)
                .collect()
        };
        for (state, ssh) in [(OPEN, false), (CLOSED, false), (OPEN, true), (CLOSED, true)] {
            if ssh && self.bounds[target].is_empty() {
                break;
            }
            let found = of(state, ssh);
            if !found.is_empty() {
                return found;
            }
        }
        Vec::new()
    }

    /// True when a port answered that is worth a trial, without looking at each.
    pub(super) fn found_candidate(&self, ports: &[u16]) -> bool {
        (0..self.syns.len()).any(|target| {
            ports.iter().any(|port| {
                let state = self.shared.state(target, *port);
                (state == OPEN || state == CLOSED)
                    && !is_ssh(*port)
                    && !self.canaries[target].has_failed(*port)
            })
        })
    }

    /// Puts ports to the test for every target that has no canaries: a few knocks, then more.
    pub(super) fn trial(&mut self) -> io::Result<()> {
        let mut asked: Vec<(usize, Vec<u16>)> = (0..self.syns.len())
            .filter(|target| self.canaries[*target].perches.is_empty() && !self.sure(*target))
            .map(|target| (target, self.candidates(target)))
            .filter(|(_, ports)| !ports.is_empty())
            .collect();
        for (knocks, needed, why) in [
            (FIRST_TRIAL, 1, Failure::Silent),
            (SECOND_TRIAL, SECOND_TRIAL / 2, Failure::Limited),
        ] {
            if asked.iter().all(|(_, ports)| ports.is_empty()) {
                return Ok(());
            }
            let answered = self.ask(&asked, knocks)?;
            for ((target, ports), answered) in asked.iter_mut().zip(answered) {
                ports.retain(|port| {
                    let good = answered.get(port).copied().unwrap_or(0) >= needed;
                    if !good {
                        self.canaries[*target].fail(*port, why);
                    }
                    good
                });
            }
        }
        for (target, ports) in asked {
            for port in ports {
                self.canaries[target].trust(port);
            }
        }
        self.learn_patience();
        Ok(())
    }

    /// Knocks `count` times on each of these ports; how often each answered.
    fn ask(
        &mut self,
        asked: &[(usize, Vec<u16>)],
        count: u32,
    ) -> io::Result<Vec<HashMap<u16, u32>>> {
        self.begin_turn();
        for _ in 0..count {
            for (target, ports) in asked {
                for port in ports {
                    self.send_by_itself(*target, *port)?;
                }
            }
            self.sender.flush()?;
            std::thread::sleep(Duration::from_millis(1));
        }
        let begun = Instant::now();
        loop {
            let (mut missing, mut slowest) = (false, 0);
            for (target, _) in asked {
                for (slot, knock) in self.knocks(*target) {
                    match slot.answered.load(Relaxed) {
                        0 => missing = true,
                        at => slowest = slowest.max(at.wrapping_sub(knock.at)),
                    }
                }
            }
            let wait = match slowest {
                0 => super::FIRST_WAIT,
                slowest => Duration::from_micros(u64::from(slowest) * 2 + 50_000)
                    .min(super::FIRST_WAIT * 2),
            };
            if !missing || begun.elapsed() >= wait {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(asked
            .iter()
            .map(|(target, _)| {
                let mut answered = HashMap::new();
                for (slot, knock) in self.knocks(*target) {
                    if slot.answered.load(Relaxed) != 0 {
                        *answered.entry(knock.port).or_default() += 1;
                    }
                }
                answered
            })
            .collect())
    }

    /// The canary knocks of this turn with their slots.
    fn knocks(&self, target: usize) -> impl Iterator<Item = (&Slot, Sent)> {
        self.shared.slots[target]
            .iter()
            .zip(self.canaries[target].sent.iter().copied())
    }

    /// How long an answer may take, from the round trips of this turn: twice what nine in ten
    /// took, with room for a queue that fills. A SYN-ACK that had to be sent again is no measure.
    pub(super) fn learn_patience(&mut self) {
        let mut trips: Vec<u32> = (0..self.syns.len())
            .flat_map(|target| self.knocks(target))
            .filter_map(|(slot, knock)| match slot.answered.load(Relaxed) {
                0 => None,
                at => Some(at.wrapping_sub(knock.at)),
            })
            .collect();
        if trips.len() < FIRST_TRIAL as usize {
            return;
        }
        let at = trips.len() * 9 / 10;
        let (_, most, _) = trips.select_nth_unstable(at);
        self.patience = Duration::from_micros(u64::from(*most) * 2 + 20_000).min(LONGEST_WAIT);
    }

    /// Sends a target's next canary, unless too many are under way.
    pub(super) fn canary(&mut self, target: usize) -> io::Result<bool> {
        let slots = &self.shared.slots[target];
        let canaries = &mut self.canaries[target];
        if canaries.sent.len() >= slots.len() {
            return Ok(false);
        }
        let now = self.shared.now();
        let most = canaries.most();
        if canaries.sent.len() - canaries.judged >= most {
            let patience = wait_micros(self.patience);
            let under_way = canaries.sent[canaries.judged..]
                .iter()
                .zip(&slots[canaries.judged..])
                .filter(|(knock, slot)| {
                    slot.answered.load(Relaxed) == 0 && now.wrapping_sub(knock.at) < patience
                })
                .count();
            if under_way >= most {
                return Ok(false);
            }
        }
        let slot = canaries.sent.len();
        let Some(port) = canaries.next(now, self.sender.pushed()) else {
            return Ok(false);
        };
        self.send_canary_as(target, port, slot)?;
        Ok(true)
    }

    /// A canary knock outside of a round's turn.
    fn send_by_itself(&mut self, target: usize, port: u16) -> io::Result<()> {
        let slot = self.canaries[target].sent.len();
        self.send_canary_as(target, port, slot)?;
        let (at, after) = (self.shared.now(), self.sender.pushed());
        self.canaries[target].sent.push(Sent { port, at, after });
        Ok(())
    }

    fn send_canary_as(&mut self, target: usize, port: u16, slot: usize) -> io::Result<()> {
        let own = self.shared.sport + 1 + slot as u16;
        let address = self.shared.group.targets[target];
        let seq = self.shared.cookies.sequence(address, own, port, self.turn);
        match &self.syns[target] {
            Some(syn) => self.sender.push(|out| syn.write(out, own, port, seq)),
            None => Ok(()),
        }
    }

    /// Sends what the round was too short for, slowly enough for the listeners' queues.
    pub(super) fn finish_canaries(&mut self, done: &[bool]) -> io::Result<()> {
        let stop = Instant::now() + self.patience * 8;
        let enough = (self.ports.len() / 64).clamp(ENOUGH.0, ENOUGH.1);
        while Instant::now() < stop.min(self.end) {
            let mut waiting = false;
            for (target, done) in done.iter().enumerate() {
                let canaries = &self.canaries[target];
                if *done || canaries.perches.is_empty() || canaries.sent.len() >= enough {
                    continue;
                }
                waiting = true;
                for _ in 0..16 {
                    if !self.canary(target)? {
                        break;
                    }
                }
            }
            self.sender.flush()?;
            if !waiting {
                break;
            }
            self.adapt()?;
            std::thread::sleep(Duration::from_micros(300));
        }
        Ok(())
    }

    /// Speeds up after a clean epoch, slows down when more is lost than the path loses anyway or a
    /// queue builds up, and doubts ports that fell silent. Each change is judged by canaries sent
    /// after it, so that one burst of loss slows down once.
    pub(super) fn adapt(&mut self) -> io::Result<()> {
        let now = self.shared.now();
        let patience = wait_micros(self.patience);
        let mut doubted = Vec::new();
        for (target, canaries) in self.canaries.iter_mut().enumerate() {
            while let Some(knock) = canaries.sent.get(canaries.judged).copied() {
                let at = self.shared.slots[target][canaries.judged]
                    .answered
                    .load(Relaxed);
                if at == 0 && now.wrapping_sub(knock.at) < patience {
                    break;
                }
                canaries.judged += 1;
                self.flow.judge(&knock, at);
                // What stood in a queue came late; that says nothing about its port.
                let late = at == 0 && self.flow.was_queued(knock.at);
                if !late
                    && canaries.heard(knock, at != 0)
                    && !doubted.contains(&(target, knock.port))
                {
                    doubted.push((target, knock.port));
                }
            }
            // One that is lost is waited for; answers to later ones tell of a queue meanwhile.
            let later = canaries.sent[canaries.judged..].iter();
            for (knock, slot) in later.zip(&self.shared.slots[target][canaries.judged..]) {
                match slot.answered.load(Relaxed) {
                    0 => {}
                    at => self.flow.glimpse(knock, at),
                }
            }
        }
        if doubted.is_empty() {
            let queue = self.flow.adapt(now, self.sender.pushed());
            if !queue.is_zero() {
                self.sender.flush()?;
                std::thread::sleep(queue);
            }
            return Ok(());
        }
        self.rest(&doubted)
    }

    /// Canaries fell silent: either too much was sent at once, or their ports answer no more. A
    /// rest and a few knocks tell which.
    fn rest(&mut self, doubted: &[(usize, u16)]) -> io::Result<()> {
        self.sender.flush()?;
        self.rests += 1;
        if self.rests <= RESTS {
            std::thread::sleep(REST.max(self.patience));
        }
        let mut first = Vec::new();
        for &(target, port) in doubted {
            let canaries = &self.canaries[target];
            let from = canaries.sent.len();
            for _ in 0..8 {
                if self.canaries[target].sent.len() >= self.shared.slots[target].len() {
                    break;
                }
                self.send_by_itself(target, port)?;
                self.sender.flush()?;
                std::thread::sleep(Duration::from_millis(1));
            }
            first.push(from);
        }
        std::thread::sleep(self.patience.max(Duration::from_millis(100)));
        for (&(target, port), from) in doubted.iter().zip(first) {
            let asked = self.canaries[target].sent.len() > from;
            let alive = self
                .knocks(target)
                .skip(from)
                .any(|(slot, knock)| knock.port == port && slot.answered.load(Relaxed) != 0);
            if alive {
                self.canaries[target].forgive();
                self.flow.halve(self.shared.now());
            } else if asked {
                self.canaries[target].fail(port, Failure::Stopped);
            }
        }
        Ok(())
    }

    /// The bounds on what this round lost: should it be the last one, then an answer counts as lost
    /// that took longer than an ordinary port is waited for; and with another round after it, in which
    /// late answers to ordinary knocks are still heard. A port that answers far worse than the others
    /// limits its rate and tells nothing about the path.
    pub(super) fn judge(&mut self, target: usize) -> Bounds {
        let as_last = self.lost(target, wait_micros(self.patience));
        let (sent, lost) = self.lost(target, u32::MAX);
        if sent > 0 {
            self.flow.path_loses(f64::from(lost) / f64::from(sent));
        }
        Bounds {
            as_last: loss_bound(as_last.0, as_last.1),
            with_more: loss_bound(sent, lost),
        }
    }

    /// Canaries of this round that count, and how many of them were not answered within `patience`.
    fn lost(&self, target: usize, patience: u32) -> (u32, u32) {
        let mut tally: HashMap<u16, (u32, u32)> = HashMap::new();
        for (slot, knock) in self.knocks(target) {
            let at = slot.answered.load(Relaxed);
            let answered = at != 0 && at.wrapping_sub(knock.at) <= patience;
            let entry = tally.entry(knock.port).or_default();
            entry.0 += 1;
            entry.1 += u32::from(!answered);
        }
        let rate = |(sent, lost): &(u32, u32)| f64::from(*lost) / f64::from((*sent).max(1));
        let best = tally.values().map(rate).fold(1.0, f64::min);
        tally
            .values()
            .filter(|entry| rate(entry) <= 3.0 * best + 0.1)
            .fold((0, 0), |sum, entry| (sum.0 + entry.0, sum.1 + entry.1))
    }
}
