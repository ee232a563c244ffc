//! How fast to send: judged by canaries, one round trip at a time.

use std::time::{Duration, Instant};

/// Packets per second that are never gone below by itself.
const SLOWEST: f64 = 2000.0;
/// Canaries that a judgement needs.
const SAMPLE: u32 = 8;
/// Growth of the round trip time that is a queue building up, microseconds.
const QUEUE: u32 = 30_000;
/// Lost time that is made up for at the most, so that a stall is not followed by a burst.
const SLACK: Duration = Duration::from_millis(5);

/// The rate, and what the canaries since its last change say.
#[derive(Debug)]
pub struct Flow {
    /// Packets per second.
    pub rate: f64,
    most: f64,
    /// Where it was too much before; beyond, growth is careful.
    ceiling: f64,
    /// Nothing was ever too much: the way up is quick, as TCP's slow start is (RFC 5681, 3.1).
    untried: bool,
    /// Share that the path loses anyway.
    baseline: f64,
    /// Shortest round trip seen, microseconds.
    nearest: u32,
    changed: u32,
    seen: u32,
    lost: u32,
    queued: u32,
}

impl Flow {
    /// Starts at `rate`, never above `most` packets per second.
    pub fn new(rate: f64, most: f64) -> Self {
        let most = most.max(100.0);
        Flow {
            rate: rate.clamp(100.0, most),
            most,
            ceiling: most,
            untried: true,
            baseline: 0.05,
            nearest: u32::MAX,
            changed: 0,
            seen: 0,
            lost: 0,
            queued: 0,
        }
    }

    /// Takes in a canary sent at `sent` and answered at `answered` (0: lost), microseconds.
    pub fn judge(&mut self, sent: u32, answered: u32) {
        // Times wrap; a difference beyond half the range is one from before the change.
        if sent.wrapping_sub(self.changed) > u32::MAX / 2 {
            return;
        }
        self.seen += 1;
        if answered == 0 {
            self.lost += 1;
            return;
        }
        let trip = answered.wrapping_sub(sent);
        self.nearest = self.nearest.min(trip);
        let queue = QUEUE.max(self.nearest);
        self.queued += u32::from(trip > self.nearest.saturating_add(queue));
    }

    /// What a whole round lost.
    pub fn path_loses(&mut self, share: f64) {
        self.baseline = self.baseline.min(share.max(0.005));
    }

    /// Changes the rate when enough is known since the last change.
    pub fn adapt(&mut self, now: u32) {
        if self.seen < SAMPLE {
            return;
        }
        let share = |count: u32| f64::from(count) / f64::from(self.seen);
        if share(self.lost) > self.baseline + 0.1 || share(self.queued) > 0.5 {
            self.ceiling = self.rate * 0.9;
            self.untried = false;
            self.set(self.rate * 0.7, now);
        } else if self.rate < self.ceiling {
            let growth = if self.untried { 1.6 } else { 1.25 };
            self.set((self.rate * growth).min(self.ceiling), now);
        } else {
            self.ceiling = (self.ceiling * 1.02).min(self.most);
            self.set(self.ceiling, now);
        }
    }

    /// Slows down hard.
    pub fn halve(&mut self, now: u32) {
        self.ceiling = self.rate * 0.7;
        self.untried = false;
        self.set(self.rate * 0.5, now);
    }

    fn set(&mut self, rate: f64, now: u32) {
        self.rate = rate.max(SLOWEST).min(self.most);
        self.ceiling = self.ceiling.max(self.rate);
        self.changed = now;
        (self.seen, self.lost, self.queued) = (0, 0, 0);
    }
}

/// Keeps to a rate.
#[derive(Debug)]
pub struct Pace {
    due: Instant,
}

impl Pace {
    /// Starts now.
    pub fn new() -> Self {
        Pace {
            due: Instant::now(),
        }
    }

    /// Waits until `packets` more were due.
    pub fn take(&mut self, packets: u32, rate: f64) {
        self.due += Duration::from_secs_f64(f64::from(packets) / rate);
        let now = Instant::now();
        match self.due.checked_duration_since(now) {
            Some(ahead) if ahead > Duration::from_micros(100) => std::thread::sleep(ahead),
            Some(_) => {}
            None => self.due = self.due.max(now.checked_sub(SLACK).unwrap_or(now)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds rounds of canaries, `lost` of ten unanswered, each trip as long as given.
    fn feed(flow: &mut Flow, times: u32, lost: u32, trip: u32) {
        for _ in 0..times {
            let now = flow.changed + 1;
            for number in 0..10 {
                flow.judge(now, if number < lost { 0 } else { now + trip });
            }
            flow.adapt(now + trip);
        }
    }

    #[test]
    fn a_clean_path_is_used_up_to_the_cap() {
        let mut flow = Flow::new(50_000.0, 400_000.0);
        feed(&mut flow, 12, 0, 1000);
        assert_eq!(flow.rate, 400_000.0);
    }

    #[test]
    fn loss_and_queues_slow_down_and_are_remembered() {
        for (lost, trip) in [(4, 1000), (0, 200_000)] {
            let mut flow = Flow::new(50_000.0, 400_000.0);
            feed(&mut flow, 3, 0, 1000);
            let before = flow.rate;
            feed(&mut flow, 1, lost, trip);
            assert!((flow.rate - before * 0.7).abs() < 1.0, "{flow:?}");
            feed(&mut flow, 4, 0, 1000);
            assert!(flow.rate < before, "{flow:?}");
        }
    }

    #[test]
    fn one_burst_of_loss_slows_down_once() {
        let mut flow = Flow::new(100_000.0, 400_000.0);
        flow.changed = 1000;
        for _ in 0..10 {
            flow.judge(2000, 0);
        }
        flow.adapt(5000);
        let once = flow.rate;
        for _ in 0..10 {
            flow.judge(3000, 0);
        }
        flow.adapt(6000);
        assert_eq!(flow.rate, once);
    }
}
