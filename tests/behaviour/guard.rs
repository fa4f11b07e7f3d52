//! The XDP guard in front of a gateway, in network namespaces of the test's own.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    process::Command,
};

use serde_json::{Value, json};
use tokio::{net::TcpStream, task::JoinHandle};
use warmpath_tests::{
    Gateway, Reply, Signal, SimHandle, eventually, get,
    network::{CLIENT, CLIENT_V6, GATEWAY_V6, Network, OTHER_CLIENT},
    request, sims, urls,
};

/// A gateway on one end of a cable.
struct Site {
    network: Network,
    gateway: Gateway,
    sim: SimHandle,
}

/// The network, or a line that says why there is none here.
fn network() -> Option<Network> {
    match Network::create() {
        Ok(network) => Some(network),
        Err(why) => {
            println!("skipped: {why}");
            None
        }
    }
}

impl Site {
    /// `None`, having said why, where there can be no guard.
    async fn start(args: &[&str]) -> Option<Self> {
        let network = network()?;
        let sim = network.sim();
        let gateway = Gateway::spawn(network.gateway(&sim, args)).await;
        let site = Self { network, gateway, sim };
        if let Some(why) = site.gateway.output().lines().find(|line| line.contains("needs root")) {
            println!("skipped: {why}");
            return None;
        }
        Some(site)
    }

    /// A request on the admin port.
    async fn admin(&self, method: &str, path: &str, body: &str) -> Reply {
        self.network.gateway.request("127.0.0.1", self.gateway.admin, method, path, body).await
    }

    async fn guard(&self) -> Value {
        self.admin("GET", "/guard", "").await.json()
    }

    /// Packets dropped so far for `reason`.
    async fn drops(&self, reason: &str) -> u64 {
        self.guard().await["packets"]["drop"][reason].as_u64().unwrap()
    }

    /// The status of a chat from `source`.
    async fn chat_from(&self, source: &str) -> u16 {
        let body = json!({"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}).to_string();
        let clients = &self.network.clients;
        clients.request(source, self.address(source), "POST", "/v1/chat/completions", &body).await.status
    }

    /// The gateway's address of the same family as `source`.
    fn address(&self, source: &str) -> SocketAddr {
        match source.parse().unwrap() {
            IpAddr::V4(_) => self.gateway.address,
            IpAddr::V6(_) => SocketAddr::new(GATEWAY_V6.parse().unwrap(), self.gateway.address.port()),
        }
    }

    /// Begins to connect from `source`; the client's TCP goes on trying.
    fn connect_from(&self, source: &str) -> JoinHandle<std::io::Result<TcpStream>> {
        let (socket, address) = (self.network.clients.socket(source), self.address(source));
        tokio::spawn(socket.connect(address))
    }

    async fn set(&self, cidr: &str, action: &str) -> u16 {
        let rule = json!({"cidr": cidr, "action": action}).to_string();
        self.admin("POST", "/guard/rules", &rule).await.status
    }

    /// Waits until the guard has dropped more packets for `reason` than `before`.
    async fn dropped_more(&self, reason: &str, before: u64) {
        eventually(reason, || async { (self.drops(reason).await > before).then_some(()) }).await;
    }
}

/// A configuration file that can be written anew.
struct File(tempfile::NamedTempFile);

impl File {
    fn new(text: &str) -> Self {
        let file = Self(tempfile::Builder::new().suffix(".yaml").tempfile().unwrap());
        file.write(text);
        file
    }

    fn write(&self, text: &str) {
        std::fs::write(self.0.path(), text).unwrap();
    }

    fn path(&self) -> &str {
        self.0.path().to_str().unwrap()
    }
}

#[tokio::test]
async fn a_flood_from_one_source_is_dropped_and_another_source_is_served() {
    let file = File::new("guard: {syn_rate: 1, syn_burst: 40}\n");
    let Some(site) = Site::start(&["--guard", "g0", "--config", file.path()]).await else { return };
    let flood: Vec<_> = (0..400).map(|_| site.connect_from(OTHER_CLIENT)).collect();
    for _ in 0..20 {
        assert_eq!(site.chat_from(CLIENT).await, 200);
    }
    site.dropped_more("syn_rate", 300).await;
    flood.iter().for_each(JoinHandle::abort);
    let line = format!("dropped a packet of {OTHER_CLIENT}, port ");
    eventually("a line about it", || async { site.gateway.output().contains(&line).then_some(()) }).await;
    let output = site.gateway.output();
    assert!(!output.contains(&format!("packet of {CLIENT},")), "{output}");

    let text = site.admin("GET", "/metrics", "").await.text();
    for series in [
        "warmpath_guard_packets_total{action=\"drop\",reason=\"syn_rate\"} ",
        "warmpath_guard_interfaces{state=\"native\"} 1\n",
        "warmpath_kernel_available{capability=\"guard\"} 1\n",
        "warmpath_guard_log_lines_total{result=\"suppressed\"} ",
    ] {
        assert!(text.contains(series), "{series} is not in {text}");
    }
}

#[tokio::test]
async fn rules_are_changed_by_the_admin_api() {
    let Some(site) = Site::start(&["--guard", "g0"]).await else { return };
    assert_eq!(site.chat_from(OTHER_CLIENT).await, 200);
    assert_eq!(site.set(&format!("{OTHER_CLIENT}/32"), "deny").await, 201);
    let refused = site.connect_from(OTHER_CLIENT);
    site.dropped_more("deny_rule", 0).await;
    assert!(!refused.is_finished());
    assert_eq!(site.chat_from(CLIENT).await, 200, "another source");

    let guard = site.guard().await;
    let rule = &guard["rules"][0];
    assert_eq!((&rule["cidr"], &rule["action"]), (&json!("10.99.0.66/32"), &json!("deny")), "{guard}");
    assert!(rule["packets"].as_u64().unwrap() > 0, "{guard}");
    assert_eq!(guard["interfaces"][0]["state"], "native", "{guard}");
    assert_eq!(guard["port"], site.gateway.address.port());
    let metrics = site.admin("GET", "/metrics", "").await.text();
    assert!(metrics.contains("warmpath_guard_rule_packets_total{action=\"deny\",cidr=\"10.99.0.66/32\"}"));

    // The client's TCP tries again, and now it is let in.
    let path = format!("/guard/rules?cidr={OTHER_CLIENT}");
    assert_eq!(site.admin("DELETE", &path, "").await.status, 204);
    refused.await.unwrap().unwrap();
    assert_eq!(site.admin("DELETE", &path, "").await.status, 404);

    assert_eq!(site.set("10.99.0.0/24", "deny").await, 201);
    assert_eq!(site.set(CLIENT, "allow").await, 201);
    assert_eq!(site.chat_from(CLIENT).await, 200, "the longest prefix decides");
    assert_eq!(site.set("10.99.0.0/24", "allow").await, 200, "the same range, another action");
    assert_eq!(site.chat_from(OTHER_CLIENT).await, 200);
}

#[tokio::test]
async fn wrong_changes_are_refused_with_what_would_be_right() {
    let Some(site) = Site::start(&["--guard", "g0"]).await else { return };
    for (body, word) in [
        ("{\"cidr\": \"10.0.0.1/8\", \"action\": \"deny\"}", "10.0.0.0/8"),
        ("{\"cidr\": \"nobody\", \"action\": \"deny\"}", "192.0.2.0/24"),
        ("{\"cidr\": \"10.0.0.0/8\", \"action\": \"drop\"}", "allow"),
        ("{\"cidr\": \"10.0.0.0/8\"}", "action"),
        ("{\"cidr\": \"10.0.0.0/8\", \"action\": \"deny\", \"comment\": \"\"}", "comment"),
        ("deny 10.0.0.0/8", "wanted"),
    ] {
        let reply = site.admin("POST", "/guard/rules", body).await;
        let error = reply.json()["error"].as_str().unwrap().to_owned();
        assert!(reply.status == 400 && error.contains(word), "{body}: {} {error}", reply.status);
    }
    for path in ["/guard/rules", "/guard/rules?cidr=ten"] {
        let reply = site.admin("DELETE", path, "").await;
        assert!(reply.status == 400 && reply.text().contains("192.0.2.0/24"), "{}", reply.text());
    }
    assert_eq!(site.guard().await["rules"], json!([]));
}

#[tokio::test]
async fn ipv6_sources_are_guarded_as_well() {
    let Some(network) = network() else { return };
    if !network.has_v6() {
        return println!("skipped: no IPv6 here");
    }
    let sim = network.sim();
    let mut command = network.gateway(&sim, &["--guard", "g0:generic"]);
    command.args(["--listen", "[::]:0"]);
    let gateway = Gateway::spawn(command).await;
    let site = Site { network, gateway, sim };
    let state = site.guard().await;
    if state["enabled"] == false {
        return println!("skipped: {state}");
    }
    assert_eq!(site.chat_from(CLIENT_V6).await, 200);
    assert_eq!(site.set("fd99::/64", "deny").await, 201);
    let refused = site.connect_from(CLIENT_V6);
    site.dropped_more("deny_rule", 0).await;
    assert!(!refused.is_finished());
    assert_eq!(site.set(CLIENT_V6, "allow").await, 201);
    refused.await.unwrap().unwrap();
}

#[tokio::test]
async fn rules_are_reloaded_by_sighup_and_a_wrong_file_changes_nothing() {
    let file = File::new("guard: {interfaces: [g0]}\n");
    let Some(site) = Site::start(&["--config", file.path()]).await else { return };
    let said = |what: &'static str| {
        let site = &site;
        async move {
            eventually(what, || async { site.gateway.output().contains(what).then_some(()) }).await;
        }
    };
    // A change by the API lasts until the file speaks again.
    assert_eq!(site.set("192.0.2.0/24", "deny").await, 201);
    file.write("guard: {interfaces: [g0], deny: [10.99.0.66]}\n");
    site.gateway.signal(Signal::HUP);
    said("reload: changed: guard").await;
    let rules = site.guard().await["rules"].clone();
    assert_eq!(rules, json!([{"cidr": "10.99.0.66/32", "action": "deny", "packets": 0}]));
    let refused = site.connect_from(OTHER_CLIENT);
    site.dropped_more("deny_rule", 0).await;

    file.write("guard: {interfaces: [g0], deny: [10.99.0.66/8]}\n");
    site.gateway.signal(Signal::HUP);
    said("nothing changed").await;
    assert!(site.gateway.output().contains("10.0.0.0/8 is the range"));
    assert_eq!(site.guard().await["rules"][0]["cidr"], "10.99.0.66/32");
    assert!(!refused.is_finished());

    file.write("routing: {policy: random}\nguard: {interfaces: [lo]}\n");
    site.gateway.signal(Signal::HUP);
    said("take a restart: guard.interfaces").await;
    refused.await.unwrap().unwrap();
    assert_eq!(site.chat_from(OTHER_CLIENT).await, 200);
}

#[tokio::test]
async fn somebody_elses_program_is_left_alone_and_named_and_the_gateway_serves() {
    let Some(site) = Site::start(&["--guard", "g0:generic"]).await else { return };
    let shown = site.network.gateway.ip("link show dev g0").unwrap();
    let id = shown.split("prog/xdp id ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap().to_owned();
    for mode in ["auto", "native", "generic"] {
        let guard = format!("g0:{mode}");
        let second = Gateway::spawn(site.network.gateway(&site.sim, &["--guard", &guard])).await;
        let output = second.output();
        let line = output.lines().find(|line| line.contains("not on g0")).unwrap_or_default();
        assert!(line.contains(&format!("XDP program {id}")) && line.contains("left alone"), "{output}");
        assert!(output.contains("guard        no (g0: XDP program"), "{output}");
        let models = site.network.clients.request(CLIENT, second.address, "GET", "/v1/models", "").await;
        assert_eq!(models.status, 200);
    }
    assert!(site.network.gateway.ip("link show dev g0").unwrap().contains(&format!("prog/xdp id {id} ")));
    assert_eq!(site.chat_from(CLIENT).await, 200);
}

#[tokio::test]
async fn the_guard_goes_with_the_gateway_however_it_ends() {
    for (mode, flag, end) in [
        ("native", "g0:auto", Signal::KILL),
        ("generic", "g0:generic", Signal::KILL),
        ("native", "g0", Signal::TERM),
    ] {
        let Some(mut site) = Site::start(&["--guard", flag]).await else { return };
        assert_eq!(site.guard().await["interfaces"][0]["state"], mode);
        let is_there =
            |site: &Site| site.network.gateway.ip("link show dev g0").unwrap().contains("prog/xdp");
        assert!(is_there(&site));
        site.gateway.signal(end);
        site.gateway.ended().await;
        // The kernel closes a killed process's files before it can be waited for, but frees links a little later.
        eventually("no program on the interface", || async { (!is_there(&site)).then_some(()) }).await;
    }
}

#[tokio::test]
async fn auto_falls_back_to_generic_and_says_so() {
    let Some(site) = Site::start(&["--guard", "lo,g0"]).await else { return };
    let guard = site.guard().await;
    assert_eq!(guard["interfaces"][0]["state"], "generic", "{guard}");
    assert_eq!(guard["interfaces"][1]["state"], "native", "{guard}");
    let output = site.gateway.output();
    assert!(output.contains("on lo, generic (native: its driver knows no XDP"), "{output}");
    assert!(output.contains("on g0, native"), "{output}");
    assert_eq!(site.chat_from(CLIENT).await, 200);
}

#[tokio::test]
async fn warmpath_maps_prints_the_guard() {
    let instance = format!("test-guard-{}", std::process::id());
    let Some(site) = Site::start(&["--guard", "g0", "--instance", &instance]).await else { return };
    if !Path::new("/sys/fs/bpf").join(format!("warmpath-{instance}")).exists() {
        return println!("skipped: no pins here");
    }
    assert_eq!(site.set("10.99.0.0/24", "allow").await, 201);
    assert_eq!(site.set(OTHER_CLIENT, "deny").await, 201);
    assert_eq!(site.chat_from(CLIENT).await, 200);
    let maps = |name: &str| {
        let output =
            Command::new(warmpath_tests::binary()).args(["maps", name, "--instance", &instance]).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let rules = maps("guard_rules");
    assert!(rules.contains("10.99.0.0/24   Allow") && rules.contains("10.99.0.66/32  Deny "), "{rules}");
    assert!(maps("guard_stats").contains("passed_allow_rule"));
    assert!(maps("guard_src").contains("is empty"), "an allowed source needs no bucket");
    match Command::new("bpftool")
        .args(["map", "dump", "pinned"])
        .arg(format!("/sys/fs/bpf/warmpath-{instance}/guard_rules"))
        .output()
    {
        Ok(dump) => {
            let text = String::from_utf8_lossy(&dump.stdout);
            for field in ["\"prefix_len\": 88", "\"family\": \"Ipv4\"", "\"action\": \"Allow\""] {
                assert!(text.contains(field), "{field} is not in {text}");
            }
        }
        Err(error) => println!("skipped: bpftool: {error}"),
    }
}

#[tokio::test]
async fn without_a_guard_the_admin_port_says_how_to_get_one() {
    let sims = sims(1).await;
    let gateway = Gateway::start(&urls(&sims), &[]).await;
    let guard = get(gateway.admin, "/guard").await;
    assert_eq!((guard.status, &guard.json()["enabled"]), (200, &json!(false)));
    let rule = json!({"cidr": "10.0.0.0/8", "action": "deny"}).to_string();
    let reply = request(gateway.admin, "POST", "/guard/rules", &[], rule).await;
    assert!(reply.status == 409 && reply.text().contains("no guard"), "{} {}", reply.status, reply.text());
    gateway.signal(Signal::HUP);
    eventually("a word about the reload", || async {
        gateway.output().contains("changed: nothing").then_some(())
    })
    .await;
    assert_eq!(gateway.chat("hello").await.status, 200, "SIGHUP does not end it");
}
