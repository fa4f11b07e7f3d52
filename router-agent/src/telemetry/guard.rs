//! Metrics of the XDP guard. The kernel counts; at a scrape its counters are copied here.

use prometheus::{IntCounterVec, IntGaugeVec};

use super::metrics::{Maker, Result};
use crate::{
    kernel::{Attached, GuardAction, GuardCounts, GuardRuleCount},
    limits::GUARD_RULE_SERIES_MAX,
};

/// What the guard does; all zero where there is none.
#[derive(Debug)]
pub struct GuardMetrics {
    packets: IntCounterVec,
    rule_packets: IntCounterVec,
    rules: IntGaugeVec,
    interfaces: IntGaugeVec,
    log_lines: IntCounterVec,
}

/// What rules beyond [`GUARD_RULE_SERIES_MAX`] are called.
const OTHER: &str = "other";

/// In lower case, as the configuration and the admin API write it.
pub const fn action_label(action: GuardAction) -> &'static str {
    match action {
        GuardAction::Deny => "deny",
        GuardAction::Allow => "allow",
    }
}

impl GuardMetrics {
    pub(super) fn new(make: &Maker) -> Result<Self> {
        let metrics = Self {
            packets: make.counters(
                "warmpath_guard_packets_total",
                "TCP packets to the listening port that the XDP guard saw, by what it did and why.",
                &["action", "reason"],
            )?,
            rule_packets: make.counters(
                "warmpath_guard_rule_packets_total",
                "Packets that a rule of the guard decided on; rules beyond the first thousand share one series.",
                &["cidr", "action"],
            )?,
            rules: make.gauges("warmpath_guard_rules", "Rules of the guard in use.", &["action"])?,
            interfaces: make.gauges(
                "warmpath_guard_interfaces",
                "Interfaces that the guard was asked for, by how it is attached (the log says why it is refused).",
                &["state"],
            )?,
            log_lines: make.counters(
                "warmpath_guard_log_lines_total",
                "Drops by whether the log has a line about them; it has ten per second at most.",
                &["result"],
            )?,
        };
        metrics.set_counts(&GuardCounts::ZERO);
        metrics.set_rules(&[]);
        metrics.set_interfaces(&[]);
        Ok(metrics)
    }

    /// Notes what the program has done so far.
    pub fn set_counts(&self, counts: &GuardCounts) {
        for (action, reason, now) in [
            ("pass", "allow_rule", counts.passed_allow_rule),
            ("pass", "no_rule", counts.passed_no_rule),
            ("pass", "syn", counts.passed_syn),
            ("drop", "deny_rule", counts.dropped_deny_rule),
            ("drop", "syn_rate", counts.dropped_syn_rate),
            ("drop", "malformed", counts.dropped_malformed),
            ("drop", "headers", counts.dropped_headers),
        ] {
            raise(&self.packets, &[action, reason], now);
        }
        raise(&self.log_lines, &["written"], counts.logged);
        raise(&self.log_lines, &["suppressed"], counts.not_logged);
    }

    /// Notes the rules in use, the oldest first, and what they have decided on. A rule that is gone loses its series.
    pub fn set_rules(&self, rules: &[GuardRuleCount]) {
        self.rule_packets.reset();
        for action in [GuardAction::Deny, GuardAction::Allow] {
            let label = action_label(action);
            let of_action = rules.iter().filter(|count| count.rule.action == action);
            self.rules.with_label_values(&[label]).set(of_action.count() as i64);
            self.rule_packets.with_label_values(&[OTHER, label]);
        }
        for (i, count) in rules.iter().enumerate() {
            let cidr = count.rule.cidr.to_string();
            let name = if i < GUARD_RULE_SERIES_MAX { &cidr } else { OTHER };
            let labels = [name, action_label(count.rule.action)];
            self.rule_packets.with_label_values(&labels).inc_by(count.packets);
        }
    }

    /// Notes how the interfaces fared.
    pub fn set_interfaces(&self, interfaces: &[(String, Attached)]) {
        for state in ["native", "generic", "refused"] {
            let of_state = interfaces.iter().filter(|(_, attached)| attached.label() == state);
            self.interfaces.with_label_values(&[state]).set(of_state.count() as i64);
        }
    }
}

fn raise(counters: &IntCounterVec, labels: &[&str], now: u64) {
    let counter = counters.with_label_values(labels);
    counter.inc_by(now.saturating_sub(counter.get()));
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use crate::{
        config::Cidr,
        kernel::{GuardAction, GuardRule, GuardRuleCount},
        limits::GUARD_RULE_SERIES_MAX,
        telemetry::Metrics,
    };

    #[test]
    fn many_rules_share_a_series_and_a_rule_that_goes_takes_its_series_along() {
        let metrics = Metrics::new().unwrap();
        let rule = |i: u32| {
            let cidr = Cidr::of(IpAddr::V4(Ipv4Addr::from_bits(i)), 32);
            GuardRuleCount { rule: GuardRule { cidr, action: GuardAction::Deny }, packets: 3 }
        };
        let rules: Vec<_> = (0..GUARD_RULE_SERIES_MAX as u32 + 5).map(rule).collect();
        metrics.guard.set_rules(&rules);
        let series =
            |text: &str| text.lines().filter(|l| l.starts_with("warmpath_guard_rule_packets_total{")).count();
        let text = metrics.encode().unwrap();
        assert_eq!(series(&text), GUARD_RULE_SERIES_MAX + 2, "`other` of deny and allow");
        assert!(
            text.contains("warmpath_guard_rule_packets_total{action=\"deny\",cidr=\"other\"} 15\n"),
            "{text}"
        );
        metrics.guard.set_rules(&rules[..1]);
        assert_eq!(series(&metrics.encode().unwrap()), 3);
    }
}
