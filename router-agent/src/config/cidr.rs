//! Address ranges in CIDR notation (RFC 4632, RFC 4291 section 2.3).

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// An address range: the addresses whose first `prefix` bits are those of `address`. No bit of it is set behind them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
}

/// What is wrong with a range, and what would be right.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CidrError {
    /// No address, or no number behind the slash.
    #[error("{0:?} is no address range: write 192.0.2.7, 192.0.2.0/24 or 2001:db8::/32")]
    Form(String),
    /// More bits than the family has.
    #[error("{text:?}: a prefix of this family has at most {max} bits")]
    Prefix {
        /// As it was given.
        text: String,
        /// Of an address of this family.
        max: u8,
    },
    /// It names a host and a range at once.
    #[error("{text:?} has bits set behind its prefix: {right} is the range, and the address alone the host")]
    HostBits {
        /// As it was given.
        text: String,
        /// The range.
        right: Cidr,
    },
    /// Packets never carry such a source.
    #[error("{0:?} is an IPv4-mapped address, which no packet comes from: write the IPv4 range")]
    Mapped(String),
}

impl Cidr {
    /// The first address of the range.
    pub const fn address(&self) -> IpAddr {
        self.address
    }

    /// How many leading bits are fixed.
    pub const fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether an address lies in it. An IPv4-mapped IPv6 address is the IPv4 address.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.address.is_ipv4() && Self::of(address, self.prefix).address == self.address
    }

    /// The range of `prefix` bits that `address` lies in. Panics beyond the family's bits.
    pub fn of(address: IpAddr, prefix: u8) -> Self {
        let address = match address {
            IpAddr::V4(ip) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from_bits(ip.to_bits() & mask))
            }
            IpAddr::V6(ip) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & mask))
            }
        };
        Self { address, prefix }
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let form = || CidrError::Form(text.to_owned());
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| form())?;
        let max = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => max,
            // No sign, no leading zero: what u8 takes beyond what people write.
            Some(digits) if digits.starts_with('+') || (digits.len() > 1 && digits.starts_with('0')) => {
                return Err(form());
            }
            Some(digits) => match digits.parse::<u32>() {
                Ok(bits) if bits <= u32::from(max) => bits as u8,
                Ok(_) => return Err(CidrError::Prefix { text: text.to_owned(), max }),
                Err(_) => return Err(form()),
            },
        };
        if let IpAddr::V6(ip) = address
            && prefix >= 96
            && ip.to_ipv4_mapped().is_some()
        {
            return Err(CidrError::Mapped(text.to_owned()));
        }
        let cidr = Self::of(address, prefix);
        if cidr.address == address {
            Ok(cidr)
        } else {
            Err(CidrError::HostBits { text: text.to_owned(), right: cidr })
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.address, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_hosts_of_both_families_are_read() {
        for (text, shown) in [
            ("192.0.2.7", "192.0.2.7/32"),
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("2001:DB8:0::1", "2001:db8::1/128"),
            ("::/0", "::/0"),
        ] {
            assert_eq!(text.parse::<Cidr>().unwrap().to_string(), shown);
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_what_is_right() {
        let says = |text: &str, word: &str| {
            let error = text.parse::<Cidr>().unwrap_err().to_string();
            assert!(error.contains(word) && error.contains(text), "{text}: {error}");
        };
        for text in [
            "",
            "ten",
            "10.0.0.0/",
            "10.0.0.0/x",
            "10.0.0/8",
            "1.2.3.4/+8",
            "1.2.3.4/08",
            "fe80::1%eth0",
            " ::1",
        ] {
            says(text, "192.0.2.0/24");
        }
        says("10.0.0.0/33", "at most 32");
        says("::/129", "at most 128");
        says("10.0.0.1/8", "10.0.0.0/8 is the range");
        says("2001:db8::1/64", "2001:db8::/64 is the range");
        says("::ffff:10.0.0.0/104", "IPv4-mapped");
    }

    #[test]
    fn an_address_lies_in_the_ranges_of_its_family() {
        let lies =
            |address: &str, range: &str| range.parse::<Cidr>().unwrap().contains(address.parse().unwrap());
        assert!(lies("10.255.0.1", "10.0.0.0/8") && lies("::ffff:10.0.0.1", "10.0.0.0/8"));
        assert!(lies("2001:db8::1", "2001:db8::/32") && lies("1.2.3.4", "0.0.0.0/0"));
        assert!(!lies("11.0.0.1", "10.0.0.0/8") && !lies("1.2.3.4", "::/0") && !lies("::1", "0.0.0.0/0"));
    }
}
