//! The interfaces of this network namespace and the XDP programs on them, by rtnetlink: a dump of `RTM_GETLINK`
//! (rtnetlink(7), `IFLA_XDP` since Linux 4.8).

use std::io::{self, Read as _};

use socket2::{Domain, Protocol, Socket, Type};

const HEADER_BYTES: usize = 16;
/// `struct ifinfomsg`.
const LINK_BYTES: usize = 16;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
const DUMP: u16 = 0x301;

const IFLA_IFNAME: u16 = 3;
const IFLA_XDP: u16 = 43;
const IFLA_XDP_PROG_ID: u16 = 4;
const IFLA_XDP_DRV_PROG_ID: u16 = 5;
const IFLA_XDP_SKB_PROG_ID: u16 = 6;
const IFLA_XDP_HW_PROG_ID: u16 = 7;

/// Longer than the longest message that the kernel puts together for a dump.
const BUFFER_BYTES: usize = 64 * 1024;

/// An interface.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) name: String,
    /// The id of an XDP program on it, in whatever mode.
    pub(super) program: Option<u32>,
}

/// The names of the interfaces there are.
pub fn names() -> io::Result<Vec<String>> {
    Ok(list()?.into_iter().map(|found| found.name).collect())
}

/// All interfaces of this process's network namespace.
pub(super) fn list() -> io::Result<Vec<Found>> {
    let route = Protocol::from(libc::NETLINK_ROUTE);
    let mut socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(route))?;
    let mut request = [0_u8; HEADER_BYTES + LINK_BYTES];
    request[..4].copy_from_slice(&((HEADER_BYTES + LINK_BYTES) as u32).to_ne_bytes());
    request[4..6].copy_from_slice(&RTM_GETLINK.to_ne_bytes());
    request[6..8].copy_from_slice(&DUMP.to_ne_bytes());
    socket.send(&request)?;

    let mut found = Vec::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let length = socket.read(&mut buffer)?;
        if read_messages(&buffer[..length], &mut found)? {
            return Ok(found);
        }
    }
}

/// Reads the messages of one datagram; whether the dump is complete.
fn read_messages(mut bytes: &[u8], found: &mut Vec<Found>) -> io::Result<bool> {
    let broken = || io::Error::from(io::ErrorKind::InvalidData);
    while let (Some(length), Some(kind)) = (u32_at(bytes, 0), u16_at(bytes, 4)) {
        let message = bytes.get(HEADER_BYTES..length as usize).ok_or_else(broken)?;
        match kind {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let code = u32_at(message, 0).ok_or_else(broken)?.cast_signed();
                return Err(io::Error::from_raw_os_error(-code));
            }
            RTM_NEWLINK => found.extend(link(message.get(LINK_BYTES..).ok_or_else(broken)?)),
            _ => {}
        }
        bytes = bytes.get((length as usize).next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

fn link(bytes: &[u8]) -> Option<Found> {
    let name = attributes(bytes).find_map(|(kind, value)| (kind == IFLA_IFNAME).then_some(value))?;
    let name = String::from_utf8_lossy(name.split(|byte| *byte == 0).next()?).into_owned();
    let xdp = attributes(bytes).find_map(|(kind, value)| (kind == IFLA_XDP).then_some(value));
    let is_id = |kind| {
        matches!(kind, IFLA_XDP_PROG_ID | IFLA_XDP_DRV_PROG_ID | IFLA_XDP_SKB_PROG_ID | IFLA_XDP_HW_PROG_ID)
    };
    let mut ids = attributes(xdp.unwrap_or_default()).filter(|(kind, _)| is_id(*kind));
    let program = ids.find_map(|(_, value)| u32_at(value, 0).filter(|id| *id != 0));
    Some(Found { name, program })
}

/// The attributes in `bytes`: kind (without the nesting flags) and content.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & 0x3fff;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = (4 + value.len() as u16).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = ((HEADER_BYTES + body.len()) as u32).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.resize(HEADER_BYTES, 0);
        bytes.extend(body);
        bytes
    }

    #[test]
    fn names_and_programs_are_read_from_a_dump() {
        let mut link = vec![0; LINK_BYTES];
        link.extend(attribute(IFLA_IFNAME, b"eth0\0"));
        let id = attribute(IFLA_XDP_DRV_PROG_ID, &42_u32.to_ne_bytes());
        link.extend(attribute(IFLA_XDP, &[attribute(2, &[1]), id].concat()));
        let mut bytes = message(RTM_NEWLINK, &link);
        bytes.extend(message(NLMSG_DONE, &[0; 4]));
        let mut found = Vec::new();
        assert!(read_messages(&bytes, &mut found).unwrap());
        assert_eq!(found, [Found { name: "eth0".to_owned(), program: Some(42) }]);
    }

    #[test]
    fn what_is_cut_or_an_error_is_no_list() {
        let mut found = Vec::new();
        let refusal = message(NLMSG_ERROR, &(-libc::EPERM).to_ne_bytes());
        assert_eq!(read_messages(&refusal, &mut found).unwrap_err().raw_os_error(), Some(libc::EPERM));
        let cut = &message(RTM_NEWLINK, &[0; 64])[..40];
        assert!(read_messages(cut, &mut found).is_err());
        assert!(read_messages(&message(RTM_NEWLINK, &[0; 4]), &mut found).is_err());
        assert!(found.is_empty());
    }

    #[test]
    fn every_namespace_has_a_loopback_interface() {
        match names() {
            Ok(names) => assert!(names.contains(&"lo".to_owned()), "{names:?}"),
            Err(error) => println!("skipped: rtnetlink: {error}"),
        }
    }
}
