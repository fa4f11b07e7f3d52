//! Where fields lie in the running kernel's structs, from its own BTF (`/sys/kernel/btf/vmlinux`, Linux 5.4 with
//! `CONFIG_DEBUG_INFO_BTF`): what CO-RE relocations do for C programs. Reading takes a few milliseconds, once.
//!
//! Format: Documentation/bpf/btf.rst.

use std::{fs, path::Path};

use super::error::KernelError;

const PATH: &str = "/sys/kernel/btf/vmlinux";
const MAGIC: u16 = 0xeb9f;
const KIND_STRUCT: u32 = 4;

/// The BTF of the kernel, unparsed.
pub(super) struct Vmlinux {
    types: Vec<u8>,
    strings: Vec<u8>,
}

impl Vmlinux {
    pub(super) fn read() -> Result<Self, KernelError> {
        let bytes =
            fs::read(PATH).map_err(|source| KernelError::Io { path: Path::new(PATH).to_owned(), source })?;
        Self::parse(&bytes).ok_or(KernelError::KernelTypes)
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        if u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?) != MAGIC {
            return None;
        }
        let header_length = word(bytes, 4)? as usize;
        let section = |at| {
            let start = header_length.checked_add(word(bytes, at)? as usize)?;
            bytes.get(start..start.checked_add(word(bytes, at + 4)? as usize)?).map(<[u8]>::to_vec)
        };
        Some(Self { types: section(8)?, strings: section(16)? })
    }

    /// The offset of `field` in `struct name`, in bytes; fields of structs inside are not looked at.
    pub(super) fn offset(&self, name: &str, field: &str) -> Result<u32, KernelError> {
        self.find(name, field).ok_or(KernelError::KernelTypes)
    }

    fn find(&self, name: &str, field: &str) -> Option<u32> {
        let types = &self.types;
        let mut at = 0;
        while at < types.len() {
            let info = word(types, at + 4)?;
            let (kind, count) = ((info >> 24) & 0x1f, (info & 0xffff) as usize);
            let (members, has_bitfields) = (at + 12, info >> 31 != 0);
            if kind == KIND_STRUCT && self.is_named(word(types, at)?, name) {
                for member in (0..count).map(|i| members + 12 * i) {
                    if self.is_named(word(types, member)?, field) {
                        let bits = word(types, member + 8)?;
                        let bits = if has_bitfields { bits & 0x00ff_ffff } else { bits };
                        return bits.is_multiple_of(8).then_some(bits / 8);
                    }
                }
            }
            at = members
                + match kind {
                    1 | 14 | 17 => 4,                        // INT, VAR, DECL_TAG
                    3 => 12,                                 // ARRAY
                    KIND_STRUCT | 5 | 15 | 19 => 12 * count, // UNION, DATASEC, ENUM64
                    6 | 13 => 8 * count,                     // ENUM, FUNC_PROTO
                    _ => 0,
                };
        }
        None
    }

    fn is_named(&self, offset: u32, name: &str) -> bool {
        let rest = self.strings.get(offset as usize..).unwrap_or_default();
        rest.starts_with(name.as_bytes()) && rest.get(name.len()) == Some(&0)
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_sockets_are_found_in_this_kernel() {
        let vmlinux = match Vmlinux::read() {
            Ok(vmlinux) => vmlinux,
            Err(error) => return println!("skipped: {error}"),
        };
        assert_eq!(vmlinux.offset("sock", "__sk_common").unwrap(), 0);
        assert!(
            vmlinux.offset("tcp_sock", "write_seq").unwrap() > vmlinux.offset("sock", "sk_sndbuf").unwrap()
        );
        assert!(vmlinux.offset("sock_common", "skc_cookie").is_ok());
        assert!(vmlinux.offset("tcp_sock", "no such field").is_err());
        assert!(vmlinux.offset("no such struct", "write_seq").is_err());
    }

    #[test]
    fn what_is_no_btf_is_refused() {
        for bytes in [
            &b""[..],
            b"\x9f\xeb",
            b"\x9f\xeb\x01\x00\x18\x00\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff",
            &[0; 64],
        ] {
            assert!(Vmlinux::parse(bytes).is_none());
        }
    }
}
