//! Finds the TCP header of a received frame: Ethernet, up to two VLAN tags, IPv4 with options or IPv6 with extension
//! headers.
//!
//! Nothing is judged here beyond what finding the header takes. A frame that the kernel's own IP would throw away is
//! no TCP segment to this module, nor is a fragment that is not the first of its packet: without the first one it is
//! never put together.

use router_common::guard::{EXTENSION_HEADERS_MAX, Family, VLAN_TAGS_MAX};

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_SERVICE_VLAN: u16 = 0x88a8;

const PROTOCOL_TCP: u8 = 6;
const NEXT_HOP_BY_HOP: u8 = 0;
const NEXT_ROUTING: u8 = 43;
const NEXT_FRAGMENT: u8 = 44;
const NEXT_AUTHENTICATION: u8 = 51;
const NEXT_DESTINATION: u8 = 60;

/// A TCP header without options.
const TCP_HEADER: usize = 20;

/// The fragment offset of an IPv4 header, in units of eight bytes, without the three flags before it.
const FRAGMENT_OFFSET: u16 = 0x1fff;

/// A received frame, as the verifier knows it.
#[derive(Clone, Copy)]
pub(crate) struct Packet {
    pub(crate) start: usize,
    pub(crate) end: usize,
}

impl Packet {
    /// The bytes at `offset`, if they are within the frame.
    #[inline(always)]
    fn at<const N: usize>(self, offset: usize) -> Option<&'static [u8; N]> {
        let address = self.start + offset;
        if address + N > self.end {
            return None;
        }
        // SAFETY: within the frame, which outlives the program's run; bytes have no alignment.
        Some(unsafe { &*(address as *const [u8; N]) })
    }

    #[inline(always)]
    fn u16(self, offset: usize) -> Option<u16> {
        self.at::<2>(offset).map(|bytes| u16::from_be_bytes(*bytes))
    }
}

/// A TCP segment, or the first fragment of one.
pub(crate) struct Segment {
    pub(crate) family: Family,
    /// The sender; an IPv4 address in the first four bytes, the others zero.
    pub(crate) source: [u8; 16],
    /// Of the TCP header in the frame.
    offset: usize,
    /// What IP says is the segment's end; a short frame is padded behind it.
    end: usize,
}

/// What a frame is.
pub(crate) enum Found {
    Tcp(Segment),
    Other,
    /// IPv6, and the header that could be TCP's lies behind more extension headers than are followed.
    TooManyHeaders,
}

/// The part of a TCP header that is judged.
pub(crate) struct TcpHeader {
    pub(crate) flags: u8,
}

/// Why there is none.
pub(crate) struct Malformed;

impl Segment {
    /// Source and destination port, which are in every first fragment; `None` if even these are cut off.
    #[inline(always)]
    pub(crate) fn ports(&self, packet: Packet) -> Option<(u16, u16)> {
        let ports = packet.at::<4>(self.offset)?;
        Some((u16::from_be_bytes([ports[0], ports[1]]), u16::from_be_bytes([ports[2], ports[3]])))
    }

    /// The flags, if the whole header is in the frame.
    #[inline(always)]
    pub(crate) fn header(&self, packet: Packet) -> Result<TcpHeader, Malformed> {
        if self.offset + TCP_HEADER > self.end {
            return Err(Malformed);
        }
        let header = packet.at::<TCP_HEADER>(self.offset).ok_or(Malformed)?;
        // In units of four bytes.
        if header[12] >> 4 < 5 { Err(Malformed) } else { Ok(TcpHeader { flags: header[13] }) }
    }
}

/// Looks for TCP.
#[inline(always)]
pub(crate) fn find(packet: Packet) -> Found {
    match ethernet(packet) {
        Some((ETHERTYPE_IPV4, offset)) => ipv4(packet, offset).map_or(Found::Other, Found::Tcp),
        Some((ETHERTYPE_IPV6, offset)) => ipv6(packet, offset),
        _ => Found::Other,
    }
}

/// The type and the offset of what the frame carries.
#[inline(always)]
fn ethernet(packet: Packet) -> Option<(u16, usize)> {
    let mut offset = 12;
    let mut kind = packet.u16(offset)?;
    for _ in 0..VLAN_TAGS_MAX {
        if kind != ETHERTYPE_VLAN && kind != ETHERTYPE_SERVICE_VLAN {
            break;
        }
        offset += 4;
        kind = packet.u16(offset)?;
    }
    Some((kind, offset + 2))
}

#[inline(always)]
fn ipv4(packet: Packet, offset: usize) -> Option<Segment> {
    let header = packet.at::<20>(offset)?;
    let length = usize::from(header[0] & 0x0f) * 4;
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let fragment = u16::from_be_bytes([header[6], header[7]]) & FRAGMENT_OFFSET;
    if header[0] >> 4 != 4 || length < 20 || total < length || fragment != 0 || header[9] != PROTOCOL_TCP {
        return None;
    }
    let mut source = [0; 16];
    source[..4].copy_from_slice(&header[12..16]);
    Some(Segment { family: Family::Ipv4, source, offset: offset + length, end: offset + total })
}

#[inline(always)]
fn ipv6(packet: Packet, offset: usize) -> Found {
    let Some(header) = packet.at::<40>(offset) else { return Found::Other };
    if header[0] >> 4 != 6 {
        return Found::Other;
    }
    let payload = usize::from(u16::from_be_bytes([header[4], header[5]]));
    let mut source = [0; 16];
    source.copy_from_slice(&header[8..24]);
    let end = offset + 40 + payload;
    let mut offset = offset + 40;
    let mut next = header[6];
    for _ in 0..=EXTENSION_HEADERS_MAX {
        if next == PROTOCOL_TCP {
            return Found::Tcp(Segment { family: Family::Ipv6, source, offset, end });
        }
        let in_eights = matches!(next, NEXT_HOP_BY_HOP | NEXT_ROUTING | NEXT_DESTINATION | NEXT_FRAGMENT);
        if !in_eights && next != NEXT_AUTHENTICATION {
            return Found::Other;
        }
        let Some(extension) = packet.at::<4>(offset) else { return Found::Other };
        let mut length = (usize::from(extension[1]) + 1) * 8;
        if next == NEXT_FRAGMENT {
            // The lowest three bits are flags.
            if u16::from_be_bytes([extension[2], extension[3]]) >> 3 != 0 {
                return Found::Other;
            }
            length = 8;
        } else if next == NEXT_AUTHENTICATION {
            length = (usize::from(extension[1]) + 2) * 4;
        }
        next = extension[0];
        offset += length;
    }
    Found::TooManyHeaders
}
