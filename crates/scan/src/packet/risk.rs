//! How sure a scan may be that it missed nothing.

/// Open ports that may be hidden; the risk is that of missing any one of them.
const HIDDEN: f64 = 10.0;
/// A scan is sure when the risk of a missed open port is at most this.
pub const SURE: f64 = 1e-6;
/// One minus the confidence of a round's bound on its loss.
const ALPHA: f64 = 1e-3;

/// Upper bound on the loss of a round in which `lost` of `sent` canaries went unanswered, at
/// 99.9 % confidence (Clopper and Pearson 1934, one-sided). 1 when none was sent.
pub fn loss_bound(sent: u32, lost: u32) -> f64 {
    if sent == 0 || lost >= sent {
        return 1.0;
    }
    // The bound is the p at which seeing `lost` or fewer becomes less likely than ALPHA.
    let (mut low, mut high) = (f64::from(lost) / f64::from(sent), 1.0);
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        if at_most(lost, sent, middle) > ALPHA {
            low = middle;
        } else {
            high = middle;
        }
    }
    high
}

/// Risk of a missed open port after rounds with these bounds.
pub fn risk(bounds: &[f64]) -> f64 {
    (HIDDEN * bounds.iter().product::<f64>()).min(1.0)
}

/// Probability of `k` or fewer losses in `n` at rate `p`, summed in logarithms.
fn at_most(k: u32, n: u32, p: f64) -> f64 {
    if p <= 0.0 {
        return 1.0;
    }
    if p >= 1.0 {
        return 0.0;
    }
    let (ln_p, ln_q) = (p.ln(), (1.0 - p).ln());
    let mut term = f64::from(n) * ln_q;
    let mut sum = term.exp();
    for i in 0..k {
        term += (f64::from(n - i) / f64::from(i + 1)).ln() + ln_p - ln_q;
        sum += term.exp();
    }
    sum.min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(sent: u32, lost: u32, expect: f64) {
        let bound = loss_bound(sent, lost);
        assert!((bound - expect).abs() < 5e-4, "{sent} {lost}: {bound}");
    }

    #[test]
    fn bounds_agree_with_the_tables() {
        // 1 - 0.001^(1/n) for no loss; the others from the beta quantile.
        check(1000, 0, 0.006_884);
        check(100, 0, 0.066_746);
        check(100, 2, 0.107_24);
        check(1000, 20, 0.037_70);
        check(0, 0, 1.0);
        check(5, 5, 1.0);
    }

    #[test]
    fn silence_without_canaries_never_becomes_sure() {
        assert!(risk(&[loss_bound(0, 0); 100]) > SURE);
        assert!(risk(&[]) > SURE);
        assert!(risk(&[loss_bound(2048, 0); 2]) > SURE);
        assert!(risk(&[loss_bound(2048, 0); 3]) <= SURE);
        assert!(risk(&[loss_bound(2048, 41); 4]) > SURE);
        assert!(risk(&[loss_bound(2048, 41); 5]) <= SURE);
    }
}
