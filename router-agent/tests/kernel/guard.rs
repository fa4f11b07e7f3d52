//! The guard's program on frames made here (`BPF_PROG_TEST_RUN`): no interface, no traffic. What it does on a network
//! is told by the behaviour tests.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
};

use router_agent::kernel::{
    DEFAULT_ROOT, Guard, GuardAction, GuardCounts, GuardOptions, GuardRule, Kernel, Options, PinnedMaps,
    SynLimit,
};
use router_common::limits::GUARD_RULES_MAX;

use super::{instance, options};

const PORT: u16 = 8080;
const HOUR_NS: u64 = 3_600_000_000_000;

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const SYN_ACK: u8 = 0x12;

/// A guard without interfaces.
struct Bench {
    kernel: Kernel,
    guard: Guard,
}

impl Bench {
    /// `None`, having said why, where this process may not load it.
    fn new(name: &str, rules: &[(&str, GuardAction)], limit: SynLimit) -> Option<Self> {
        let guard = GuardOptions {
            port: PORT,
            interfaces: Vec::new(),
            mode: router_agent::config::GuardMode::Auto,
            rules: rules.iter().map(|(cidr, action)| rule(cidr, *action)).collect(),
            limit,
        };
        let (kernel, capabilities) = Kernel::open(&Options { guard: Some(guard), ..options(name, 1) });
        for needed in [&capabilities.load, &capabilities.guard, &capabilities.pins] {
            let reason = needed.to_string();
            if reason.contains("needs root") || reason.contains("no BPF file system") {
                println!("skipped: {reason}");
                return None;
            }
        }
        assert!(capabilities.guard.is_available(), "{capabilities:?}");
        let guard = kernel.guard().expect("it is available");
        Some(Self { kernel, guard })
    }

    fn drops(&mut self, frame: &[u8]) -> bool {
        self.kernel.guard_verdict(frame, 1).expect("the program runs").dropped
    }

    fn counts(&self) -> GuardCounts {
        self.guard.counts().expect("readable")
    }

    fn packets(&self, cidr: &str) -> u64 {
        let rules = self.guard.rules().expect("readable");
        rules.iter().find(|count| count.rule.cidr.to_string() == cidr).expect("the rule is there").packets
    }
}

fn rule(cidr: &str, action: GuardAction) -> GuardRule {
    GuardRule { cidr: cidr.parse().expect("a range"), action }
}

/// A TCP segment in an Ethernet frame, to be made odd.
#[derive(Clone)]
struct Frame {
    source: IpAddr,
    port: u16,
    flags: u8,
    /// VLAN tags, outermost first, by their EtherType.
    vlans: Vec<u16>,
    /// IPv4 options.
    options: Vec<u8>,
    /// IPv4's flags and fragment offset.
    fragment: u16,
    /// IPv6 extension headers: the number of each and its bytes, the first of which is overwritten with the next.
    extensions: Vec<(u8, Vec<u8>)>,
    tcp: Vec<u8>,
}

impl Frame {
    fn new(source: &str, flags: u8) -> Self {
        let mut tcp = vec![0; 20];
        tcp[..2].copy_from_slice(&40_000_u16.to_be_bytes());
        tcp[12] = 5 << 4;
        let source = source.parse().expect("an address");
        let empty = Vec::new();
        Self {
            source,
            port: PORT,
            flags,
            vlans: Vec::new(),
            options: empty,
            fragment: 0,
            extensions: Vec::new(),
            tcp,
        }
    }

    fn to(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut tcp = self.tcp.clone();
        tcp[2..4].copy_from_slice(&self.port.to_be_bytes());
        if let Some(flags) = tcp.get_mut(13) {
            *flags = self.flags;
        }
        let mut frame = vec![2; 12];
        for tag in &self.vlans {
            frame.extend(tag.to_be_bytes());
            frame.extend([0, 7]);
        }
        match self.source {
            IpAddr::V4(source) => {
                frame.extend([0x08, 0x00]);
                let length = 20 + self.options.len();
                frame.extend([0x40 | (length / 4) as u8, 0]);
                frame.extend(((length + tcp.len()) as u16).to_be_bytes());
                frame.extend([0, 1]);
                frame.extend(self.fragment.to_be_bytes());
                frame.extend([64, 6, 0, 0]);
                frame.extend(source.octets());
                frame.extend(Ipv4Addr::new(192, 0, 2, 1).octets());
                frame.extend(&self.options);
            }
            IpAddr::V6(source) => {
                let extensions: usize = self.extensions.iter().map(|(_, bytes)| bytes.len()).sum();
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                frame.extend(((extensions + tcp.len()) as u16).to_be_bytes());
                let numbers = self.extensions.iter().map(|(number, _)| *number);
                let numbers: Vec<u8> = numbers.chain([6]).collect();
                frame.extend([numbers[0], 64]);
                frame.extend(source.octets());
                frame.extend(Ipv6Addr::LOCALHOST.octets());
                for (next, (_, bytes)) in numbers[1..].iter().zip(&self.extensions) {
                    frame.push(*next);
                    frame.extend(&bytes[1..]);
                }
            }
        }
        frame.extend(tcp);
        frame
    }
}

fn syn(source: &str) -> Vec<u8> {
    Frame::new(source, SYN).bytes()
}

fn ack(source: &str) -> Vec<u8> {
    Frame::new(source, ACK).bytes()
}

#[test]
fn the_longest_prefix_decides_in_both_families() {
    let rules = [
        ("10.0.0.0/8", GuardAction::Deny),
        ("10.1.0.0/16", GuardAction::Allow),
        ("10.1.2.3/32", GuardAction::Deny),
        ("2001:db8::/32", GuardAction::Deny),
        ("2001:db8:1::/48", GuardAction::Allow),
        ("2001:db8:1::bad/128", GuardAction::Deny),
    ];
    let Some(mut bench) = Bench::new("guard-lpm", &rules, SynLimit::NONE) else { return };
    for (source, dropped) in [
        ("10.0.0.1", true),
        ("10.1.0.1", false),
        ("10.1.2.2", false),
        ("10.1.2.3", true),
        ("11.0.0.1", false),
        ("2001:db8::1", true),
        ("2001:db8:1::1", false),
        ("2001:db8:1::bad", true),
        ("2001:db9::1", false),
        // The first 32 bits of 10.0.0.0 as an IPv6 address: families do not see each other's rules.
        ("a00::1", false),
    ] {
        assert_eq!(bench.drops(&syn(source)), dropped, "{source}");
        assert_eq!(bench.drops(&ack(source)), dropped, "{source}: a deny rule cuts open connections too");
    }
    assert_eq!((bench.packets("10.0.0.0/8"), bench.packets("10.1.0.0/16")), (2, 4));
    assert_eq!((bench.packets("10.1.2.3/32"), bench.packets("2001:db8::/32")), (2, 2));
    let counts = bench.counts();
    assert_eq!((counts.dropped_deny_rule, counts.passed_allow_rule), (8, 6));
    assert_eq!((counts.passed_syn, counts.passed_no_rule), (3, 3));
}

#[test]
fn a_rule_for_everybody_is_the_shortest_prefix() {
    let rules = [("0.0.0.0/0", GuardAction::Deny), ("192.0.2.0/24", GuardAction::Allow)];
    let Some(mut bench) = Bench::new("guard-all", &rules, SynLimit::NONE) else { return };
    assert!(bench.drops(&syn("8.8.8.8")) && !bench.drops(&syn("192.0.2.9")));
    assert!(!bench.drops(&syn("2001:db8::1")), "of IPv4 only");
}

#[test]
fn other_ports_and_protocols_pass_uncounted() {
    let rules = [("0.0.0.0/0", GuardAction::Deny), ("::/0", GuardAction::Deny)];
    let Some(mut bench) = Bench::new("guard-port", &rules, SynLimit::every(HOUR_NS, 1)) else { return };
    let mut udp = syn("10.0.0.1");
    udp[14 + 9] = 17;
    let mut arp = syn("10.0.0.1");
    arp[12..14].copy_from_slice(&[0x08, 0x06]);
    for frame in [
        Frame::new("10.0.0.1", SYN).to(PORT + 1).bytes(),
        Frame::new("2001:db8::1", SYN).to(22).bytes(),
        Frame::new("10.0.0.1", SYN).to(0).bytes(),
        udp,
        arp,
    ] {
        assert!(!bench.drops(&frame));
    }
    assert_eq!(bench.counts(), GuardCounts::ZERO);
    assert!(bench.drops(&syn("10.0.0.1")) && bench.drops(&syn("2001:db8::1")));
}

#[test]
fn new_connections_of_a_source_are_limited_and_open_ones_are_not() {
    let Some(mut bench) = Bench::new("guard-syn", &[], SynLimit::every(HOUR_NS, 3)) else { return };
    let verdicts: Vec<bool> = (0..6).map(|_| bench.drops(&syn("10.0.0.1"))).collect();
    assert_eq!(verdicts, [false, false, false, true, true, true], "the burst, and then nothing for an hour");
    assert!(!bench.drops(&syn("10.0.0.2")), "another source has a bucket of its own");
    for flags in [ACK, SYN_ACK, 0x11, 0x04, 0x18] {
        assert!(!bench.drops(&Frame::new("10.0.0.1", flags).bytes()), "{flags:#x} opens no connection");
    }
    let counts = bench.counts();
    assert_eq!((counts.passed_syn, counts.dropped_syn_rate, counts.passed_no_rule), (4, 3, 5));

    let maps = PinnedMaps::open(Path::new(DEFAULT_ROOT), Some(&instance("guard-syn"))).expect("pinned");
    let sources = maps.guard_sources().expect("readable");
    assert_eq!(sources[0].source.to_string(), "10.0.0.1/32");
    assert_eq!((sources[0].value.passed, sources[0].value.dropped), (3, 3));
    assert_eq!((sources[1].value.passed, sources[1].value.dropped), (1, 0));
}

#[test]
fn a_bucket_fills_again() {
    let Some(mut bench) = Bench::new("guard-fill", &[], SynLimit::every(HOUR_NS, 1)) else { return };
    assert!(!bench.drops(&syn("10.0.0.1")) && bench.drops(&syn("10.0.0.1")));
    // Another limit: full buckets, and a token every 50 ms.
    bench.guard.set_limit(SynLimit::new(20, 1)).expect("set");
    let start = std::time::Instant::now();
    let mut passed = 0;
    while passed < 4 {
        passed += u32::from(!bench.drops(&syn("10.0.0.1")));
        assert!(start.elapsed().as_secs() < 20, "tokens come back");
    }
    assert!(start.elapsed().as_millis() >= 150, "and no faster than the rate: three after the first");
}

#[test]
fn an_allowed_source_has_no_limit() {
    let rules = [("10.0.0.0/8", GuardAction::Deny), ("10.7.0.0/16", GuardAction::Allow)];
    let Some(mut bench) = Bench::new("guard-allow", &rules, SynLimit::every(HOUR_NS, 1)) else { return };
    for _ in 0..20 {
        assert!(!bench.drops(&syn("10.7.0.1")));
    }
    assert_eq!(bench.counts().passed_allow_rule, 20);
}

#[test]
fn addresses_of_one_ipv6_network_share_a_bucket() {
    let Some(mut bench) = Bench::new("guard-64", &[], SynLimit::every(HOUR_NS, 2)) else { return };
    assert!(!bench.drops(&syn("2001:db8:0:1::1")) && !bench.drops(&syn("2001:db8:0:1:ffff::2")));
    assert!(bench.drops(&syn("2001:db8:0:1::3")));
    assert!(!bench.drops(&syn("2001:db8:0:2::3")), "the next /64");
    let maps = PinnedMaps::open(Path::new(DEFAULT_ROOT), Some(&instance("guard-64"))).expect("pinned");
    let sources = maps.guard_sources().expect("readable");
    assert_eq!(sources[0].source.to_string(), "2001:db8:0:1::/64");
}

#[test]
fn tags_options_and_extension_headers_hide_nothing() {
    let rules = [("10.0.0.0/8", GuardAction::Deny), ("2001:db8::/32", GuardAction::Deny)];
    let Some(mut bench) = Bench::new("guard-headers", &rules, SynLimit::NONE) else { return };
    let v4 = Frame::new("10.0.0.1", SYN);
    let v6 = Frame::new("2001:db8::1", SYN);
    let destination = |bytes: usize| {
        let mut header = vec![0; bytes];
        header[1] = (bytes / 8 - 1) as u8;
        (60, header)
    };
    let authentication = (51, [vec![0, 4], vec![0; 22]].concat()); // (4 + 2) * 4 bytes
    let first_fragment = (44, vec![0, 0, 0, 1, 0, 0, 0, 9]);
    let hidden = [
        Frame { vlans: vec![0x8100], ..v4.clone() },
        Frame { vlans: vec![0x88a8, 0x8100], ..v4.clone() },
        Frame { vlans: vec![0x8100], ..v6.clone() },
        Frame { options: vec![1; 4], ..v4.clone() },
        Frame { options: vec![1; 40], ..v4.clone() },
        Frame { fragment: 0x2000, ..v4.clone() },
        Frame { extensions: vec![destination(8)], ..v6.clone() },
        Frame { extensions: vec![(0, vec![0; 8]), destination(264), (43, vec![0; 8])], ..v6.clone() },
        Frame { extensions: vec![first_fragment], ..v6.clone() },
        Frame { extensions: vec![authentication], ..v6.clone() },
        Frame { extensions: vec![destination(8); 6], ..v6.clone() },
    ];
    for (i, frame) in hidden.iter().enumerate() {
        assert!(bench.drops(&frame.bytes()), "{i}");
        assert!(!bench.drops(&frame.clone().to(PORT + 1).bytes()), "{i}: another port");
    }
    assert_eq!(bench.counts().dropped_deny_rule, hidden.len() as u64);
    assert_eq!(bench.counts().dropped_headers, 0);
    // One more, and the port is not looked for: such a packet would go past the guard, and no stack sends one.
    assert!(bench.drops(&Frame { extensions: vec![destination(8); 7], ..v6 }.bytes()));
    assert_eq!(bench.counts().dropped_headers, 1);
}

#[test]
fn fragments_cannot_hide_the_syn_flag() {
    let Some(mut bench) = Bench::new("guard-fragment", &[], SynLimit::every(HOUR_NS, 1)) else { return };
    // Eight bytes of TCP, which hold the ports but not the flags, padded to the shortest frame with zeros: "no SYN".
    let mut tiny = Frame { fragment: 0x2000, ..Frame::new("10.0.0.1", SYN) };
    tiny.tcp.truncate(8);
    let mut padded = tiny.bytes();
    padded.resize(60, 0);
    assert!(bench.drops(&padded) && bench.drops(&tiny.bytes()));
    assert_eq!(bench.counts().dropped_malformed, 2);
    // What is not the first fragment has no ports; alone it never becomes a packet.
    assert!(!bench.drops(&Frame { fragment: 0x2001, ..Frame::new("10.0.0.1", SYN) }.bytes()));
    let later = (44, vec![0, 0, 0, 9, 0, 0, 0, 9]);
    assert!(!bench.drops(&Frame { extensions: vec![later], ..Frame::new("2001:db8::1", SYN) }.bytes()));
    assert_eq!(bench.counts().passed_syn, 0, "neither was judged");
}

#[test]
fn frames_that_end_anywhere_are_judged_without_reading_past_their_end() {
    let Some(mut bench) = Bench::new("guard-cut", &[("10.0.0.0/8", GuardAction::Deny)], SynLimit::NONE)
    else {
        return;
    };
    let extension = vec![(60, vec![0; 8]), (44, vec![0; 8])];
    let v6 = Frame { extensions: extension, vlans: vec![0x8100], ..Frame::new("2001:db8::1", SYN) };
    for whole in [syn("10.0.0.1"), syn("11.0.0.1"), v6.bytes()] {
        for length in 14..whole.len() {
            let dropped = bench.drops(&whole[..length]);
            let has_ports = length >= whole.len() - 16;
            // For our port but without a whole TCP header: nobody can use it.
            assert_eq!(dropped, has_ports, "{length} of {} bytes", whole.len());
        }
    }
    let mut short_header = syn("11.0.0.1");
    short_header[14 + 20 + 12] = 4 << 4;
    assert!(bench.drops(&short_header), "a TCP header of 16 bytes");
    let wrong_version = [(14, 0x65), (14, 0x44)]; // IPv6 in a frame of IPv4; a header of 16 bytes
    for (at, value) in wrong_version {
        let mut frame = syn("10.0.0.1");
        frame[at] = value;
        assert!(!bench.drops(&frame), "the kernel's IP throws it away");
    }
}

#[test]
fn a_rule_set_is_replaced_whole_and_rules_that_stay_keep_their_counts() {
    let rules = [("10.0.0.0/8", GuardAction::Deny), ("11.0.0.0/8", GuardAction::Deny)];
    let Some(mut bench) = Bench::new("guard-replace", &rules, SynLimit::NONE) else { return };
    assert!(bench.drops(&syn("10.0.0.1")) && bench.drops(&syn("11.0.0.1")));
    bench
        .guard
        .replace(&[rule("10.0.0.0/8", GuardAction::Deny), rule("12.0.0.0/8", GuardAction::Deny)])
        .expect("set");
    assert!(bench.drops(&syn("10.0.0.1")) && !bench.drops(&syn("11.0.0.1")) && bench.drops(&syn("12.0.0.1")));
    assert_eq!((bench.packets("10.0.0.0/8"), bench.packets("12.0.0.0/8")), (2, 1));

    assert_eq!(bench.guard.add(rule("11.0.0.0/8", GuardAction::Deny)).expect("added"), None);
    assert!(bench.drops(&syn("11.0.0.1")));
    assert_eq!(bench.packets("11.0.0.0/8"), 1, "counted from its addition");
    let before = bench.guard.add(rule("10.0.0.0/8", GuardAction::Allow)).expect("changed");
    assert_eq!(before, Some(GuardAction::Deny));
    assert!(!bench.drops(&syn("10.0.0.1")));
    let range = "11.0.0.0/8".parse().expect("a range");
    assert!(bench.guard.remove(range).expect("removed") && !bench.guard.remove(range).expect("gone"));
    assert!(!bench.drops(&syn("11.0.0.1")));

    let maps = PinnedMaps::open(Path::new(DEFAULT_ROOT), Some(&instance("guard-replace"))).expect("pinned");
    let pinned: Vec<String> =
        maps.guard_rules().expect("readable").iter().map(|count| count.rule.cidr.to_string()).collect();
    assert_eq!(pinned, ["10.0.0.0/8", "12.0.0.0/8"], "the set in use, and only that");
}

#[test]
fn no_packet_meets_an_empty_set_while_rules_are_replaced() {
    let rules = [("0.0.0.0/0", GuardAction::Deny)];
    let Some(mut bench) = Bench::new("guard-swap", &rules, SynLimit::NONE) else { return };
    let guard = bench.guard.clone();
    let writer = std::thread::spawn(move || {
        for round in 0..40_u8 {
            let mut rules = vec![rule("0.0.0.0/0", GuardAction::Deny)];
            rules.extend((0..round).map(|i| rule(&format!("10.{i}.0.0/16"), GuardAction::Deny)));
            guard.replace(&rules).expect("replaced");
        }
    });
    let mut sent = 0;
    while !writer.is_finished() || sent == 0 {
        bench.kernel.guard_verdict(&syn("10.0.0.1"), 1000).expect("the program runs");
        sent += 1000;
    }
    writer.join().expect("no panic");
    let counts = bench.counts();
    assert_eq!((counts.dropped_deny_rule, counts.passed_syn), (sent, 0));
}

#[test]
fn a_full_rule_set_is_replaced_by_another_and_one_rule_more_is_refused() {
    let Some(mut bench) = Bench::new("guard-full", &[], SynLimit::NONE) else { return };
    let set = |first: u8, count: u32| -> Vec<GuardRule> {
        (0..count).map(|i| rule(&format!("{first}.0.{}.{}", i / 256, i % 256), GuardAction::Deny)).collect()
    };
    bench.guard.replace(&set(10, GUARD_RULES_MAX)).expect("as many as there may be");
    bench.guard.replace(&set(11, GUARD_RULES_MAX)).expect("none of them the same");
    assert!(!bench.drops(&syn("10.0.0.9")) && bench.drops(&syn("11.0.0.9")));
    let error = bench.guard.replace(&set(12, GUARD_RULES_MAX + 1)).expect_err("too many").to_string();
    assert!(error.contains("4096"), "{error}");
    assert!(bench.guard.add(rule("12.0.0.0/8", GuardAction::Deny)).is_err());
    assert!(bench.drops(&syn("11.0.0.9")) && !bench.drops(&syn("12.0.0.9")), "the old rules stay");
}

#[test]
fn a_flood_of_drops_is_no_flood_of_lines() {
    let Some(mut bench) = Bench::new("guard-log", &[("10.0.0.0/8", GuardAction::Deny)], SynLimit::NONE)
    else {
        return;
    };
    let start = std::time::Instant::now();
    bench.kernel.guard_verdict(&syn("10.0.0.1"), 100_000).expect("the program runs");
    let counts = bench.counts();
    assert_eq!((counts.logged + counts.not_logged, counts.dropped_deny_rule), (100_000, 100_000));
    // A burst of ten, and ten a second: whatever time the run took.
    let earned = (start.elapsed().as_secs_f64() * 10.0).ceil() as u64;
    assert!((10..=10 + earned).contains(&counts.logged), "{} lines, {earned} earned", counts.logged);
}
