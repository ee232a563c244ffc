//! How fast to send: judged by canaries, one round trip at a time.

use super::canary::Sent;
use std::time::{Duration, Instant};

/// Packets per second that are never gone below by itself.
const SLOWEST: f64 = 2000.0;
/// Canaries that a judgement needs.
const SAMPLE: u32 = 8;
/// Growth of the round trip time that is a queue building up, microseconds.
const QUEUE: u32 = 20_000;
/// Longest pause for a queue to drain.
const DRAIN: Duration = Duration::from_millis(500);
/// Time between two answers from which a rate can be told, microseconds.
const SPAN: u32 = 10_000;
/// Growth of the round trip time that is more than chance, microseconds.
const GROWN: u32 = 5000;
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
    /// Until when a queue stood that was waited for.
    drained: Option<u32>,
    seen: u32,
    lost: u32,
    queued: u32,
    /// The first and the last answer since the last change.
    span: Option<[Answer; 2]>,
}

/// An answered canary.
#[derive(Debug, Clone, Copy)]
struct Answer {
    /// When, microseconds.
    came: u32,
    /// Round trip, microseconds.
    trip: u32,
    /// Packets that had gone ahead of the canary.
    after: u64,
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
            drained: None,
            seen: 0,
            lost: 0,
            queued: 0,
            span: None,
        }
    }

    /// Takes in a canary that was answered at `answered` (0: lost), microseconds.
    pub fn judge(&mut self, knock: &Sent, answered: u32) {
        if self.is_old(knock) {
            return;
        }
        self.seen += 1;
        if answered == 0 {
            self.lost += 1;
            return;
        }
        let trip = answered.wrapping_sub(knock.at);
        self.nearest = self.nearest.min(trip);
        let queue = QUEUE.max(self.nearest);
        self.queued += u32::from(trip > self.nearest.saturating_add(queue));
        self.glimpse(knock, answered);
    }

    /// Takes in an answer as a sign of a queue only; the same one may come again.
    pub fn glimpse(&mut self, knock: &Sent, answered: u32) {
        if self.is_old(knock) {
            return;
        }
        let here = Answer {
            came: answered,
            trip: answered.wrapping_sub(knock.at),
            after: knock.after,
        };
        self.span = Some([self.span.map_or(here, |[first, _]| first), here]);
    }

    /// Sent before the last change. Times wrap: a difference beyond half the range is negative.
    fn is_old(&self, knock: &Sent) -> bool {
        knock.at.wrapping_sub(self.changed) > u32::MAX / 2
    }

    /// True for a time before a queue was drained. No queue holds a packet for a minute; the clock, which has
    /// 32 bits, comes round in 71.
    pub fn was_queued(&self, sent: u32) -> bool {
        self.drained
            .is_some_and(|until| until.wrapping_sub(sent).wrapping_sub(1) < 60_000_000)
    }

    /// What a whole round lost.
    pub fn path_loses(&mut self, share: f64) {
        self.baseline = self.baseline.min(share.max(0.005));
    }

    /// What the path's narrowest point lets through, packets per second: packets between two canaries
    /// over the time between their answers. Only sensible while a queue stands there.
    fn lets_through(&self) -> Option<f64> {
        let [first, last] = self.span?;
        let time = last.came.wrapping_sub(first.came);
        let packets = last.after.checked_sub(first.after)?;
        ((SPAN..u32::MAX / 2).contains(&time) && packets > 0)
            .then(|| packets as f64 * 1e6 / f64::from(time))
    }

    /// True when answers come further and further behind: the way out of the quick start, before a
    /// queue stands (what HyStart++ does for TCP, RFC 9406).
    fn queue_grows(&self) -> bool {
        let Some([first, last]) = self.span else {
            return false;
        };
        let time = last.came.wrapping_sub(first.came);
        let grown = last.trip.saturating_sub(first.trip);
        (SPAN..u32::MAX / 2).contains(&time) && grown >= GROWN && grown > time / 4
    }

    /// How long what is under way takes, at `fits` packets per second, beyond the way itself.
    fn drains_in(&self, pushed: u64, fits: f64) -> Duration {
        let Some([_, last]) = self.span else {
            return Duration::ZERO;
        };
        let all = pushed.saturating_sub(last.after) as f64 / fits;
        Duration::from_secs_f64(all).saturating_sub(Duration::from_micros(self.nearest.into()))
    }

    /// Changes the rate when enough is known since the last change; `pushed`: packets sent so far.
    /// Returns how long to pause, for a queue that stands to drain.
    pub fn adapt(&mut self, now: u32, pushed: u64) -> Duration {
        let share = |count: u32| f64::from(count) / f64::from(self.seen.max(1));
        let enough = self.seen >= SAMPLE;
        if enough && share(self.queued) > 0.5 || self.untried && self.queue_grows() {
            // Guessing downwards would let the queue stand for long, or waste what there is.
            let fits = self.lets_through().unwrap_or(self.rate * 0.8);
            let pause = self.drains_in(pushed, fits).min(DRAIN);
            let micros = u32::try_from(pause.as_micros()).unwrap_or(0);
            self.untried = false;
            self.ceiling = fits.min(self.rate) * 0.95;
            self.set(self.ceiling * 0.95, now.wrapping_add(micros));
            self.drained = Some(self.changed);
            return pause;
        }
        if !enough {
            return Duration::ZERO;
        }
        if share(self.lost) > self.baseline + 0.1 {
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
        Duration::ZERO
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
        self.span = None;
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

    fn knock(at: u32, after: u64) -> Sent {
        Sent {
            port: 443,
            at,
            after,
        }
    }

    /// Feeds rounds of canaries, `lost` of ten unanswered, each trip as long as given.
    fn feed(flow: &mut Flow, times: u32, lost: u32, trip: u32) {
        for _ in 0..times {
            let now = flow.changed + 1;
            for number in 0..10 {
                flow.judge(&knock(now, 0), if number < lost { 0 } else { now + trip });
            }
            flow.adapt(now + trip, 0);
        }
    }

    #[test]
    fn a_clean_path_is_used_up_to_the_cap() {
        let mut flow = Flow::new(50_000.0, 400_000.0);
        feed(&mut flow, 12, 0, 1000);
        assert_eq!(flow.rate, 400_000.0);
    }

    #[test]
    fn loss_slows_down_and_is_remembered() {
        let mut flow = Flow::new(50_000.0, 400_000.0);
        feed(&mut flow, 3, 0, 1000);
        let before = flow.rate;
        feed(&mut flow, 1, 4, 1000);
        assert!((flow.rate - before * 0.7).abs() < 1.0, "{flow:?}");
        feed(&mut flow, 4, 0, 1000);
        assert!(flow.rate < before, "{flow:?}");
    }

    #[test]
    fn a_queue_drains_and_then_gets_what_the_path_lets_through() {
        let mut flow = Flow::new(50_000.0, 400_000.0);
        feed(&mut flow, 4, 0, 20_000);
        assert!(flow.rate > 300_000.0, "{flow:?}");
        // A canary every 32 packets, and 320 us between two answers: 100,000 a second get through.
        let now = flow.changed + 1;
        for number in 0..40 {
            let sent = now + number * 100;
            flow.judge(
                &knock(sent, u64::from(number) * 32),
                now + 90_000 + number * 320,
            );
        }
        let pause = flow.adapt(now + 102_480, 9640);
        assert!((85_000.0..95_000.0).contains(&flow.rate), "{flow:?}");
        assert!(
            (Duration::from_millis(60)..Duration::from_millis(70)).contains(&pause),
            "{pause:?}"
        );
        // What was sent before the pause is over does not count again.
        let late = knock(flow.changed - 1, 640);
        for _ in 0..20 {
            flow.judge(&late, flow.changed + 90_000);
        }
        assert_eq!(flow.adapt(flow.changed + 90_000, 9000), Duration::ZERO);
        assert!(flow.was_queued(flow.changed - 1) && !flow.was_queued(flow.changed));
        let an_hour_later = flow.changed.wrapping_add(3_600_000_000);
        assert!(!flow.was_queued(an_hour_later));
        feed(&mut flow, 4, 0, 20_000);
        assert!((90_000.0..105_000.0).contains(&flow.rate), "{flow:?}");
    }

    #[test]
    fn the_quick_start_ends_when_answers_fall_behind() {
        let mut flow = Flow::new(200_000.0, 400_000.0);
        // A canary every 160 us, its answers 220 us apart: 145,000 of 200,000 get through.
        for number in 0..100 {
            let sent = 1 + number * 160;
            flow.judge(
                &knock(sent, u64::from(number) * 32),
                sent + 20_000 + number * 60,
            );
        }
        assert!(flow.adapt(42_000, 6000) < Duration::from_millis(10));
        assert!((125_000.0..140_000.0).contains(&flow.rate), "{flow:?}");
    }

    #[test]
    fn one_burst_of_loss_slows_down_once() {
        let mut flow = Flow::new(100_000.0, 400_000.0);
        flow.changed = 1000;
        for _ in 0..10 {
            flow.judge(&knock(2000, 0), 0);
        }
        flow.adapt(5000, 0);
        let once = flow.rate;
        for _ in 0..10 {
            flow.judge(&knock(3000, 0), 0);
        }
        flow.adapt(6000, 0);
        assert_eq!(flow.rate, once);
    }
}
