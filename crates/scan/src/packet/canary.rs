//! Canaries: knocks on ports that are known to answer tell what a round lost.
//!
//! A port has to earn that trust. Three knocks come first, then twenty: one that answers the first
//! knock and then no more has a rate limit (`ufw limit` refuses the sixth in 30 seconds), and its
//! silence says nothing about the path. Ports of ssh are asked last of all, and only when nothing
//! else answers.

/// Canary knocks under way at once on one port: a listener's queue of half-open connections is not
/// flooded.
const BACKLOG: usize = 64;
/// Ports of a target that serve at once at the most.
pub const PERCHES: usize = 16;
/// Knocks of the first trial of a port; with the ordinary one before it, four.
pub const FIRST_TRIAL: u32 = 3;
/// Knocks of the second trial: more than any sensible limit lets through.
pub const SECOND_TRIAL: u32 = 20;
/// Unanswered knocks in a row after which a trusted port is doubted.
const DOUBT: u32 = 48;
/// Ports that sshd commonly listens on: limits are likeliest there, and hurt most.
const SSH: [u16; 4] = [22, 222, 2222, 22222];

/// True for a port that is likely sshd's.
pub fn is_ssh(port: u16) -> bool {
    SSH.contains(&port)
}

/// A port that canaries knock on.
#[derive(Debug, Clone)]
pub struct Perch {
    pub port: u16,
    silent_in_row: u32,
}

/// A canary knock of the round under way.
#[derive(Debug, Clone, Copy)]
pub struct Sent {
    pub port: u16,
    /// When, microseconds since the start.
    pub at: u32,
    /// Packets sent before it.
    pub after: u64,
}

/// The canaries of one target.
#[derive(Debug, Default)]
pub struct Canaries {
    /// Ports that earned trust and still have it.
    pub perches: Vec<Perch>,
    /// Ports that were tried and failed, with the reason.
    pub failed: Vec<(u16, Failure)>,
    /// Knocks of this round, by slot.
    pub sent: Vec<Sent>,
    /// Slots before this one were judged for pacing and doubt.
    pub judged: usize,
    turn: usize,
}

/// Why a port is no canary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// It answered once and not again.
    Silent,
    /// It answered a few knocks and then no more.
    Limited,
    /// It was a canary and stopped answering in the middle of the scan.
    Stopped,
}

impl Canaries {
    /// Begins a round.
    pub fn begin(&mut self) {
        self.sent.clear();
        self.judged = 0;
    }

    /// Trusts a port from now on.
    pub fn trust(&mut self, port: u16) {
        self.perches.push(Perch {
            port,
            silent_in_row: 0,
        });
    }

    /// Never asks this port again.
    pub fn fail(&mut self, port: u16, why: Failure) {
        self.perches.retain(|perch| perch.port != port);
        self.failed.push((port, why));
    }

    /// True when the port was tried and failed.
    pub fn has_failed(&self, port: u16) -> bool {
        self.failed.iter().any(|(failed, _)| *failed == port)
    }

    /// How many may be under way at once.
    pub fn most(&self) -> usize {
        BACKLOG * self.perches.len().max(1)
    }

    /// The port of the next canary.
    pub fn next(&mut self, at: u32, after: u64) -> Option<u16> {
        let perch = self.turn % self.perches.len().max(1);
        let port = self.perches.get(perch)?.port;
        self.turn = self.turn.wrapping_add(1);
        self.sent.push(Sent { port, at, after });
        Some(port)
    }

    /// Notes whether a knock was answered; true when its port has now been silent for too long.
    pub fn heard(&mut self, knock: Sent, answered: bool) -> bool {
        let Some(perch) = self
            .perches
            .iter_mut()
            .find(|perch| perch.port == knock.port)
        else {
            return false;
        };
        if answered {
            perch.silent_in_row = 0;
        } else {
            perch.silent_in_row += 1;
        }
        perch.silent_in_row >= DOUBT
    }

    /// Believes in its ports again, after a pause showed that they live.
    pub fn forgive(&mut self) {
        for perch in &mut self.perches {
            perch.silent_in_row = 0;
        }
    }

    /// Why this target cannot be judged, in words; only sensible without perches.
    pub fn excuse(&self) -> String {
        let list = |why: Failure| -> Vec<String> {
            let mut ports: Vec<u16> = self
                .failed
                .iter()
                .filter(|(_, failure)| *failure == why)
                .map(|(port, _)| *port)
                .collect();
            ports.sort_unstable();
            ports.dedup();
            ports.iter().take(8).map(u16::to_string).collect()
        };
        let (limited, stopped) = (list(Failure::Limited), list(Failure::Stopped));
        if !stopped.is_empty() {
            return format!(
                "port {} stopped answering in the middle of the scan: this source was banned, or a \
                 filter has had enough; silence proves nothing after that",
                stopped.join(", ")
            );
        }
        if !limited.is_empty() {
            return format!(
                "the only port that answers has a rate limit (port {}: it answered a few knocks, \
                 then no more), so it cannot be measured what was lost on the way; silence proves \
                 nothing here",
                limited.join(", ")
            );
        }
        if self.failed.is_empty() {
            return "no port answered: a wrong address looks the same as a perfect firewall".into();
        }
        "no port answers reliably, so it cannot be measured what was lost on the way".into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flock(ports: &[u16]) -> Canaries {
        let mut canaries = Canaries::default();
        for port in ports {
            canaries.trust(*port);
        }
        canaries
    }

    #[test]
    fn ports_take_turns_and_a_failed_one_is_left_out() {
        let mut canaries = flock(&[80, 443]);
        assert_eq!(
            [1, 2, 3].map(|at| canaries.next(at, 0)),
            [Some(80), Some(443), Some(80)]
        );
        canaries.fail(80, Failure::Stopped);
        assert_eq!(
            [4, 5].map(|at| canaries.next(at, 0)),
            [Some(443), Some(443)]
        );
        assert!(canaries.has_failed(80));
        canaries.fail(443, Failure::Stopped);
        assert_eq!(canaries.next(6, 0), None);
        assert!(canaries.excuse().contains("port 80, 443 stopped"));
    }

    #[test]
    fn doubt_needs_silence_without_a_break() {
        let mut canaries = flock(&[443]);
        canaries.next(1, 0);
        let knock = canaries.sent[0];
        for _ in 1..DOUBT {
            assert!(!canaries.heard(knock, false));
        }
        assert!(!canaries.heard(knock, true));
        for _ in 1..DOUBT {
            assert!(!canaries.heard(knock, false));
        }
        assert!(canaries.heard(knock, false));
    }
}
