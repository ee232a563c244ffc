//! What a knock loses on the way, measured on ports that answer.

use super::{Knocker, Tally};
use crate::packet::canary::{FIRST_TRIAL, PERCHES, SECOND_TRIAL, is_ssh};
use crate::packet::risk::{SURE, loss_bound, risk};
use crate::{PortState, ScanError};
use std::time::Instant;

/// Canary knocks that measure the loss.
const CANARIES: u32 = 500;
/// Attempts on a silent port at the most.
const MOST_ATTEMPTS: u32 = 8;

impl Knocker<'_> {
    /// Measures what a knock loses on ports that answer, and knocks on the silent ones until the
    /// risk of a missed open port is small enough; else says why silence proves nothing.
    pub(super) fn make_sure(&mut self, tell: &mut dyn FnMut(usize)) -> Result<(), ScanError> {
        let Some(bound) = self.measure()? else {
            self.result.note = Some(
                "no port answers reliably (none at all, or only with a rate limit), so it cannot \
                 be measured what was lost on the way"
                    .into(),
            );
            return Ok(());
        };
        let needed = (1..=MOST_ATTEMPTS)
            .find(|attempts| risk(&vec![bound; *attempts as usize]) <= SURE)
            .unwrap_or(u32::MAX);
        if needed > MOST_ATTEMPTS {
            self.result.note = Some(format!(
                "too much is lost on the way to be sure (up to {:.0} % of the knocks)",
                bound * 100.0
            ));
            return Ok(());
        }
        if needed > self.attempts {
            let made = self.attempts;
            self.attempts = needed;
            self.result.summary.filtered = 0;
            let silent = std::mem::take(&mut self.result.silent);
            self.queue.extend(silent.iter().map(|port| (*port, made)));
            self.drain(tell)?;
        }
        Ok(())
    }

    /// Upper bound on the share of knocks that are lost; `None` without a port to measure it on.
    /// As with packets: a few knocks first, more on what bore them, ssh last of all.
    fn measure(&mut self) -> Result<Option<f64>, ScanError> {
        let open: Vec<u16> = self
            .result
            .ports
            .iter()
            .filter(|port| port.state == PortState::Open)
            .map(|port| port.port)
            .collect();
        let not_ssh = |ports: &[u16]| -> Vec<u16> {
            let good = ports.iter().copied().filter(|port| !is_ssh(*port));
            good.take(PERCHES).collect()
        };
        for ports in [not_ssh(&open), not_ssh(&self.result.closed), open.clone()] {
            let mut good = Vec::new();
            for port in ports.into_iter().take(PERCHES) {
                let first = self.knock_often(&[port], FIRST_TRIAL)?;
                if first.lost < first.sent {
                    let second = self.knock_often(&[port], SECOND_TRIAL)?;
                    if second.lost * 2 <= second.sent && second.sent > 0 {
                        good.push(port);
                    }
                }
            }
            if !good.is_empty() {
                let tally = self.knock_often(&good, CANARIES / good.len() as u32 + 1)?;
                return Ok(Some(loss_bound(tally.sent, tally.lost)));
            }
        }
        Ok(None)
    }

    fn knock_often(&mut self, ports: &[u16], times: u32) -> Result<Tally, ScanError> {
        self.measuring = Some(Tally::default());
        let mut left = times;
        while left > 0 && Instant::now() < self.end {
            // Few at once: a listener's queue is not flooded.
            let now = left.min((4 / ports.len() as u32).max(1));
            for _ in 0..now {
                self.queue.extend(ports.iter().map(|port| (*port, 0)));
            }
            left -= now;
            self.drain(&mut |_| {})?;
        }
        Ok(self.measuring.take().unwrap_or_default())
    }
}
