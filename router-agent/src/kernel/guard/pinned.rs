//! The guard's maps as another process reads them, by their pins.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use aya::maps::{HashMap, Map, PerCpuArray, lpm_trie::LpmTrie};
use router_common::{
    MapValue,
    guard::{Family, KEY_BITS, Rule, RuleKey, Settings, Source, SourceKey},
    names,
};

use super::{
    map_error,
    rules::{GuardRule, GuardRuleCount, HitsBytes, KeyBytes, RuleBytes, packets},
};
use crate::{
    config::Cidr,
    kernel::{PinnedMaps, error::KernelError},
};

/// A rule in use.
pub type PinnedRule = GuardRuleCount;

/// A source of connections and its bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PinnedSource {
    /// A host (IPv4), or a /64.
    pub source: Cidr,
    pub value: Source,
}

impl PinnedMaps {
    /// The rules in use, by range.
    pub fn guard_rules(&self) -> Result<Vec<PinnedRule>, KernelError> {
        let settings = self.rows::<Settings>(names::GUARD_SETTINGS)?;
        let set = settings.first().map(|row| row.value.set);
        let trie: LpmTrie<_, KeyBytes, RuleBytes> = self.typed(names::GUARD_RULES)?;
        let hits: PerCpuArray<_, HitsBytes> = self.typed(names::GUARD_HITS)?;
        let entry = || KernelError::Entry { name: names::GUARD_RULES.to_owned() };
        let mut rules = Vec::new();
        for item in &trie {
            let (key, value) = item.map_err(map_error(names::GUARD_RULES))?;
            let (at, rule) =
                RuleKey::from_bytes(&key.data()).zip(Rule::from_bytes(&value)).ok_or_else(entry)?;
            if Some(at.set) != set {
                continue;
            }
            let [a, b, c, d, ..] = at.address;
            let address = match at.family {
                Family::Ipv4 => IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
                Family::Ipv6 => IpAddr::V6(Ipv6Addr::from(at.address)),
            };
            let prefix = key.prefix_len().checked_sub(KEY_BITS).and_then(|bits| u8::try_from(bits).ok());
            let max = if address.is_ipv4() { 32 } else { 128 };
            let prefix = prefix.filter(|bits| *bits <= max).ok_or_else(entry)?;
            let cpus = hits.get(&rule.id, 0).map_err(map_error(names::GUARD_HITS))?;
            let rule = GuardRule { cidr: Cidr::of(address, prefix), action: rule.action };
            rules.push(PinnedRule { rule, packets: packets(&cpus)? });
        }
        rules.sort_by_key(|rule| rule.rule.cidr);
        Ok(rules)
    }

    /// The sources whose rate is remembered, those with most drops first.
    pub fn guard_sources(&self) -> Result<Vec<PinnedSource>, KernelError> {
        let map: HashMap<_, <SourceKey as MapValue>::Bytes, <Source as MapValue>::Bytes> =
            self.typed(names::GUARD_SRC)?;
        let entry = || KernelError::Entry { name: names::GUARD_SRC.to_owned() };
        let mut sources = Vec::new();
        for item in &map {
            let (key, value) = item.map_err(map_error(names::GUARD_SRC))?;
            let (key, value) =
                SourceKey::from_bytes(&key).zip(Source::from_bytes(&value)).ok_or_else(entry)?;
            let address = Ipv6Addr::from(key.address);
            let source = match address.to_ipv4_mapped() {
                Some(ip) => Cidr::of(IpAddr::V4(ip), 32),
                None => Cidr::of(IpAddr::V6(address), 64),
            };
            sources.push(PinnedSource { source, value });
        }
        sources.sort_by_key(|source| (std::cmp::Reverse(source.value.dropped), source.source));
        Ok(sources)
    }

    fn typed<T: TryFrom<Map, Error = aya::maps::MapError>>(
        &self,
        name: &'static str,
    ) -> Result<T, KernelError> {
        Map::from_map_data(self.data(name)?).and_then(T::try_from).map_err(map_error(name))
    }
}
