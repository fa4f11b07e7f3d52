//! The rules in the kernel, and their replacement.
//!
//! Two sets have room in the trie. A new one is written beside the one in use, complete; then its number is stored,
//! which is when it takes effect; then every packet that may have read the old number is waited for; then the old
//! set is removed. So no packet ever meets half a set, nor an empty one that should not be.

use std::{collections::VecDeque, mem::offset_of, net::IpAddr, sync::atomic::Ordering::SeqCst};

use aya::{
    maps::{
        Map, MapData, PerCpuArray, PerCpuValues,
        lpm_trie::{Key, LpmTrie},
    },
    util::nr_cpus,
};
use router_common::{
    MapValue,
    guard::{Action, Family, Hits, KEY_BITS, Rule, RuleKey, Settings},
    limits::GUARD_RULES_MAX,
    names,
};

use super::{ignore_missing, map_error};
use crate::{
    config::Cidr,
    kernel::{
        error::KernelError,
        sys::{self, SharedArray},
    },
};

pub(super) type KeyBytes = <RuleKey as MapValue>::Bytes;
pub(super) type RuleBytes = <Rule as MapValue>::Bytes;
pub(super) type HitsBytes = <Hits as MapValue>::Bytes;

/// One rule: what is done with packets from a range. Of several that hold a source, the longest prefix decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuardRule {
    pub cidr: Cidr,
    pub action: Action,
}

/// A rule, and the packets that it has decided on since it was added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuardRuleCount {
    pub rule: GuardRule,
    pub packets: u64,
}

/// The writer's end.
pub(super) struct Rules {
    trie: LpmTrie<MapData, KeyBytes, RuleBytes>,
    hits: PerCpuArray<MapData, HitsBytes>,
    set: u32,
    /// In use, with their entries in `hits`.
    current: Vec<(GuardRule, u32)>,
    /// Entries of `hits` that no rule has, the longest unused first.
    free: VecDeque<u32>,
    /// Of the other set: what could not be removed from it the last time.
    leftover: Vec<GuardRule>,
}

impl Rules {
    pub(super) fn new(rules: Map, hits: Map) -> Result<Self, KernelError> {
        Ok(Self {
            trie: rules.try_into().map_err(map_error(names::GUARD_RULES))?,
            hits: hits.try_into().map_err(map_error(names::GUARD_HITS))?,
            set: 0,
            current: Vec::new(),
            // While a set is being replaced, the rules of both have entries.
            free: (0..2 * GUARD_RULES_MAX).collect(),
            leftover: Vec::new(),
        })
    }

    pub(super) fn list(&self) -> Vec<GuardRule> {
        self.current.iter().map(|(rule, _)| *rule).collect()
    }

    pub(super) fn counts(&self) -> Result<Vec<GuardRuleCount>, KernelError> {
        let count = |(rule, id): &(GuardRule, u32)| {
            let cpus = self.hits.get(id, 0).map_err(map_error(names::GUARD_HITS))?;
            Ok(GuardRuleCount { rule: *rule, packets: packets(&cpus)? })
        };
        self.current.iter().map(count).collect()
    }

    pub(super) fn replace(&mut self, settings: &SharedArray, rules: &[GuardRule]) -> Result<(), KernelError> {
        if rules.len() > GUARD_RULES_MAX as usize {
            return Err(KernelError::TooManyRules { max: GUARD_RULES_MAX });
        }
        let other = 1 - self.set;
        let leftover = std::mem::take(&mut self.leftover);
        self.clear(other, leftover)?;
        let mut new = Vec::with_capacity(rules.len());
        if let Err(error) = self.write(other, rules, &mut new) {
            self.give_back(&new);
            let written = new.into_iter().map(|(rule, _)| rule).collect();
            self.clear(other, written)?;
            return Err(error);
        }

        settings.u32(offset_of!(Settings, set)).store(other, SeqCst);
        settings.u32(offset_of!(Settings, rules)).store(new.len() as u32, SeqCst);
        self.set = other;
        let old = std::mem::replace(&mut self.current, new);
        sys::wait_for_programs();
        let gone: Vec<_> = old.iter().copied().filter(|old| !self.current.contains(old)).collect();
        self.free.extend(gone.iter().map(|(_, id)| id));
        self.clear(1 - other, old.into_iter().map(|(rule, _)| rule).collect())
    }

    /// Writes `rules` into a set that is not in use, and what it has written into `written`.
    fn write(
        &mut self,
        set: u32,
        rules: &[GuardRule],
        written: &mut Vec<(GuardRule, u32)>,
    ) -> Result<(), KernelError> {
        let kept: std::collections::HashMap<Cidr, (GuardRule, u32)> =
            self.current.iter().map(|entry| (entry.0.cidr, *entry)).collect();
        for rule in rules {
            let id = match kept.get(&rule.cidr) {
                Some((old, id)) if old.action == rule.action => *id,
                _ => self.take_id()?,
            };
            written.push((*rule, id));
            let value = Rule { action: rule.action, id }.to_bytes();
            self.trie.insert(&key(set, rule.cidr), value, 0).map_err(map_error(names::GUARD_RULES))?;
        }
        Ok(())
    }

    /// An entry of `hits` that nobody has, zeroed.
    fn take_id(&mut self) -> Result<u32, KernelError> {
        let id = self.free.pop_front().ok_or(KernelError::TooManyRules { max: GUARD_RULES_MAX })?;
        let cpus = nr_cpus().map_err(|(path, source)| KernelError::Io { path: path.into(), source })?;
        let zero = PerCpuValues::try_from(vec![HitsBytes::default(); cpus])
            .map_err(|source| KernelError::Io { path: names::GUARD_HITS.into(), source })?;
        self.hits.set(id, zero, 0).map_err(map_error(names::GUARD_HITS))?;
        Ok(id)
    }

    /// The ids of `new` that the rules in use do not have.
    fn give_back(&mut self, new: &[(GuardRule, u32)]) {
        let unused = new.iter().filter(|entry| !self.current.contains(entry)).map(|(_, id)| *id);
        self.free.extend(unused);
    }

    /// Removes `rules` from a set that no packet looks at. What remains is remembered.
    fn clear(&mut self, set: u32, mut rules: Vec<GuardRule>) -> Result<(), KernelError> {
        while let Some(rule) = rules.last() {
            if let Err(source) = ignore_missing(self.trie.remove(&key(set, rule.cidr))) {
                self.leftover = rules;
                return Err(map_error(names::GUARD_RULES)(source));
            }
            rules.pop();
        }
        Ok(())
    }
}

fn key(set: u32, cidr: Cidr) -> Key<KeyBytes> {
    let mut address = [0; 16];
    let family = match cidr.address() {
        IpAddr::V4(ip) => {
            address[..4].copy_from_slice(&ip.octets());
            Family::Ipv4
        }
        IpAddr::V6(ip) => {
            address = ip.octets();
            Family::Ipv6
        }
    };
    Key::new(KEY_BITS + u32::from(cidr.prefix()), RuleKey { set, family, address }.to_bytes())
}

/// The sum over all CPUs.
pub(super) fn packets(cpus: &[HitsBytes]) -> Result<u64, KernelError> {
    let entry = || KernelError::Entry { name: names::GUARD_HITS.to_owned() };
    cpus.iter().map(|bytes| Hits::from_bytes(bytes).map(|hits| hits.packets).ok_or_else(entry)).sum()
}
