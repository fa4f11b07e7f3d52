//! `guard:`, and what `--guard` takes.

use std::str::FromStr;

use super::{Cidr, ConfigError};
use crate::limits;

/// How the guard's program is attached to an interface.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize, serde::Serialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum GuardMode {
    /// Native where the driver can, else generic.
    #[default]
    Auto,
    /// In the driver, before the kernel makes a packet of the frame.
    Native,
    /// In the network stack: every driver can, at a higher price.
    Generic,
}

/// An interface to guard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuardInterface {
    /// As `ip link` shows it.
    pub name: String,
    /// How to attach there; `None`: as `guard.mode` says.
    pub mode: Option<GuardMode>,
}

/// The XDP guard; without an interface it is off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    /// Where packets are looked at.
    pub interfaces: Vec<GuardInterface>,
    /// How it is attached where the interface does not say.
    pub mode: GuardMode,
    /// Sources whose packets to the listening port are dropped.
    pub deny: Vec<Cidr>,
    /// Sources whose packets pass, without a limit on connections.
    pub allow: Vec<Cidr>,
    /// New connections per second and source; 0: no limit.
    pub syn_rate: u32,
    /// New connections that a source may open at once after a pause.
    pub syn_burst: u32,
}

impl Default for Guard {
    fn default() -> Self {
        Self {
            interfaces: Vec::new(),
            mode: GuardMode::default(),
            deny: Vec::new(),
            allow: Vec::new(),
            syn_rate: limits::GUARD_SYN_RATE,
            syn_burst: limits::GUARD_SYN_BURST,
        }
    }
}

impl FromStr for GuardInterface {
    type Err = ConfigError;

    /// `IFACE` or `IFACE:MODE`.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let wrong = |message: String| ConfigError::Value { key: "guard.interfaces", message };
        let (name, mode) = match text.rsplit_once(':') {
            None => (text, None),
            Some((name, mode)) => {
                let mode = match mode {
                    "auto" => GuardMode::Auto,
                    "native" => GuardMode::Native,
                    "generic" => GuardMode::Generic,
                    _ => return Err(wrong(format!("{text:?}: the mode is native, generic or auto"))),
                };
                (name, Some(mode))
            }
        };
        // The kernel's own rule (dev_valid_name), IFNAMSIZ being 16 with its NUL.
        let is_valid = (1..=15).contains(&name.len())
            && name != "."
            && name != ".."
            && !name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control());
        if !is_valid {
            return Err(wrong(format!("{text:?} names no interface: IFACE or IFACE:MODE, e.g. eth0:native")));
        }
        Ok(Self { name: name.to_owned(), mode })
    }
}

impl Guard {
    /// Checks what the types cannot say.
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let wrong = |key, message: String| Err(ConfigError::Value { key, message });
        for (i, interface) in self.interfaces.iter().enumerate() {
            if self.interfaces[..i].iter().any(|other| other.name == interface.name) {
                return wrong("guard.interfaces", format!("{} is listed twice", interface.name));
            }
        }
        if let Some(twice) = twice(&self.deny) {
            return wrong("guard.deny", format!("{twice} is listed twice"));
        }
        if let Some(twice) = twice(&self.allow) {
            return wrong("guard.allow", format!("{twice} is listed twice"));
        }
        if let Some(both) = self.allow.iter().find(|cidr| self.deny.contains(cidr)) {
            return wrong("guard.allow", format!("{both} is in guard.deny as well: it is one or the other"));
        }
        let (rules, max) = (self.deny.len() + self.allow.len(), limits::GUARD_RULES_MAX);
        if rules > max {
            return wrong("guard", format!("{rules} rules in deny and allow, at most {max} are possible"));
        }
        if self.syn_burst == 0 && self.syn_rate > 0 {
            return wrong(
                "guard.syn_burst",
                "0 would refuse every connection: at least 1 (syn_rate: 0 is no limit)".to_owned(),
            );
        }
        Ok(())
    }
}

fn twice(ranges: &[Cidr]) -> Option<Cidr> {
    let mut sorted = ranges.to_vec();
    sorted.sort_unstable();
    sorted.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0])
}
