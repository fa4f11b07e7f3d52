//! The part of canonical CBOR (RFC 8949) that block hashes need.

/// The head of a CBOR item (RFC 8949, 3.1) in its shortest form.
pub(crate) fn cbor_head(out: &mut Vec<u8>, major: u8, value: u64) {
    let major = major << 5;
    match value {
        0..=23 => out.push(major + value as u8),
        24..=0xff => out.extend_from_slice(&[major + 24, value as u8]),
        0x100..=0xffff => {
            out.push(major + 25);
            out.extend_from_slice(&(value as u16).to_be_bytes());
        }
        0x1_0000..=0xffff_ffff => {
            out.push(major + 26);
            out.extend_from_slice(&(value as u32).to_be_bytes());
        }
        _ => {
            out.push(major + 27);
            out.extend_from_slice(&value.to_be_bytes());
        }
    }
}
