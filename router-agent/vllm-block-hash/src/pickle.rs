//! The part of Python's pickle (protocol 5) that block hashes need.

/// The part of pickle protocol 5 that a tuple of bytes, ints, strings and None needs: one frame, memoised.
pub(crate) struct Pickle<'a> {
    out: &'a mut Vec<u8>,
}

impl<'a> Pickle<'a> {
    const HEAD_LEN: usize = 11;
    const MEMOIZE: u8 = 0x94;

    pub(crate) fn new(out: &'a mut Vec<u8>) -> Self {
        out.extend_from_slice(&[0x80, 5, 0x95, 0, 0, 0, 0, 0, 0, 0, 0]);
        Self { out }
    }

    pub(crate) fn finish(self) {
        self.out.push(b'.');
        let frame_len = (self.out.len() - Self::HEAD_LEN) as u64;
        self.out[3..Self::HEAD_LEN].copy_from_slice(&frame_len.to_le_bytes());
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(&[b'C', bytes.len() as u8]);
        self.out.extend_from_slice(bytes);
        self.out.push(Self::MEMOIZE);
    }

    pub(crate) fn text(&mut self, text: &str) {
        if let Ok(len) = u8::try_from(text.len()) {
            self.out.extend_from_slice(&[0x8c, len]);
        } else {
            self.out.push(b'X');
            self.out.extend_from_slice(&(text.len() as u32).to_le_bytes());
        }
        self.out.extend_from_slice(text.as_bytes());
        self.out.push(Self::MEMOIZE);
    }

    fn int(&mut self, value: u32) {
        match value {
            0..=0xff => self.out.extend_from_slice(&[b'K', value as u8]),
            0x100..=0xffff => {
                self.out.push(b'M');
                self.out.extend_from_slice(&(value as u16).to_le_bytes());
            }
            0x1_0000..=0x7fff_ffff => {
                self.out.push(b'J');
                self.out.extend_from_slice(&value.to_le_bytes());
            }
            _ => {
                self.out.extend_from_slice(&[0x8a, 5]);
                self.out.extend_from_slice(&value.to_le_bytes());
                self.out.push(0);
            }
        }
    }

    pub(crate) fn none(&mut self) {
        self.out.push(b'N');
    }

    /// A tuple of ints. One of up to three has its own opcode and no mark.
    pub(crate) fn ints(&mut self, values: &[u32]) {
        let marked = values.len() > 3;
        if marked {
            self.out.push(b'(');
        }
        for value in values {
            self.int(*value);
        }
        match values.len() {
            0 => self.out.push(b')'), // the empty tuple is not memoised
            1..=3 => self.small_tuple(values.len()),
            _ => self.out.extend_from_slice(&[b't', Self::MEMOIZE]),
        }
    }

    /// Ends a tuple of one, two or three elements.
    pub(crate) fn small_tuple(&mut self, arity: usize) {
        let opcode = match arity {
            1 => 0x85,
            2 => 0x86,
            _ => 0x87,
        };
        self.out.extend_from_slice(&[opcode, Self::MEMOIZE]);
    }
}
