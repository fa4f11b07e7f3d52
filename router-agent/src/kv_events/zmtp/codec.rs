//! Frames of ZMTP 3.0: flags, a length of one byte or of eight, the body.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::limits::{KV_EVENT_FRAMES_MAX, KV_EVENT_MESSAGE_BYTES_MAX};

const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

/// What a peer sends after the greeting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A command: READY, ERROR, PING …
    Command(Bytes),
    /// A whole message, all its frames.
    Message(Vec<Bytes>),
}

/// The peer does not speak ZMTP, or says too much at once.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FrameError {
    /// Reserved bits are set.
    #[error("not ZMTP: frame flags {0:#04x}")]
    Flags(u8),
    /// A command inside a message.
    #[error("not ZMTP: a command between the frames of a message")]
    Interrupted,
    /// Longer than [`KV_EVENT_MESSAGE_BYTES_MAX`].
    #[error("a message of more than {KV_EVENT_MESSAGE_BYTES_MAX} bytes")]
    TooLong,
    /// More frames than [`KV_EVENT_FRAMES_MAX`].
    #[error("a message of more than {KV_EVENT_FRAMES_MAX} frames")]
    TooManyFrames,
}

/// Puts messages together out of what has been read.
#[derive(Debug, Default)]
pub struct Decoder {
    /// The message under way.
    frames: Vec<Bytes>,
    bytes: usize,
}

impl Decoder {
    /// Takes the next frame out of `buffer`; none if it is not all there.
    pub fn next(&mut self, buffer: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        while let Some(&flags) = buffer.first() {
            if flags & !(MORE | LONG | COMMAND) != 0 || flags & (COMMAND | MORE) == COMMAND | MORE {
                return Err(FrameError::Flags(flags));
            }
            let head = if flags & LONG == 0 { 2 } else { 9 };
            let Some(length) = buffer.get(1..head) else { return Ok(None) };
            let length = length.iter().fold(0, |length, byte| length << 8 | u64::from(*byte));
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            if length > KV_EVENT_MESSAGE_BYTES_MAX - self.bytes {
                return Err(FrameError::TooLong);
            }
            if buffer.len() - head < length {
                buffer.reserve(head + length - buffer.len()); // bounded just above
                return Ok(None);
            }
            buffer.advance(head);
            let body = buffer.split_to(length).freeze();
            if flags & COMMAND != 0 {
                return if self.frames.is_empty() {
                    Ok(Some(Frame::Command(body)))
                } else {
                    Err(FrameError::Interrupted)
                };
            }
            if self.frames.len() == KV_EVENT_FRAMES_MAX {
                return Err(FrameError::TooManyFrames);
            }
            self.bytes += length;
            self.frames.push(body);
            if flags & MORE == 0 {
                self.bytes = 0;
                return Ok(Some(Frame::Message(std::mem::take(&mut self.frames))));
            }
        }
        Ok(None)
    }
}

/// Writes a message.
pub(super) fn put_message(frames: &[&[u8]], out: &mut BytesMut) {
    for (number, body) in frames.iter().enumerate() {
        put(if number + 1 < frames.len() { MORE } else { 0 }, body, out);
    }
}

/// Writes a command.
pub(super) fn put_command(body: &[u8], out: &mut BytesMut) {
    put(COMMAND, body, out);
}

fn put(flags: u8, body: &[u8], out: &mut BytesMut) {
    if let Ok(length) = u8::try_from(body.len()) {
        out.put_slice(&[flags, length]);
    } else {
        out.put_u8(flags | LONG);
        out.put_u64(body.len() as u64);
    }
    out.put_slice(body);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(decoder: &mut Decoder, wire: &[u8], cut: usize) -> Result<Vec<Frame>, FrameError> {
        let (mut buffer, mut frames) = (BytesMut::new(), Vec::new());
        for piece in wire.chunks(cut) {
            buffer.extend_from_slice(piece);
            while let Some(frame) = decoder.next(&mut buffer)? {
                frames.push(frame);
            }
        }
        Ok(frames)
    }

    #[test]
    fn what_is_written_is_read_however_it_is_cut() {
        let mut wire = BytesMut::new();
        let long = vec![7; 300];
        put_message(&[b"topic", b"", &long], &mut wire);
        put_command(b"\x04PING\0\0", &mut wire);
        put_message(&[b""], &mut wire);
        let bytes = |body: &[u8]| Bytes::copy_from_slice(body);
        let expected = [
            Frame::Message(vec![bytes(b"topic"), bytes(b""), bytes(&long)]),
            Frame::Command(bytes(b"\x04PING\0\0")),
            Frame::Message(vec![bytes(b"")]),
        ];
        for cut in [1, 2, 3, 10, 1000] {
            assert_eq!(all(&mut Decoder::default(), &wire, cut).unwrap(), expected, "cut every {cut}");
        }
    }

    #[test]
    fn lengths_are_refused_before_there_is_memory_for_them() {
        for length in [KV_EVENT_MESSAGE_BYTES_MAX as u64 + 1, 1 << 62, u64::MAX] {
            let wire = [&[LONG][..], &length.to_be_bytes()].concat();
            assert_eq!(all(&mut Decoder::default(), &wire, 100), Err(FrameError::TooLong), "{length}");
        }
        // Over several frames, too.
        let half = vec![0; KV_EVENT_MESSAGE_BYTES_MAX / 2 + 1];
        let mut wire = BytesMut::new();
        put_message(&[&half, &half], &mut wire);
        assert_eq!(all(&mut Decoder::default(), &wire, wire.len()), Err(FrameError::TooLong));
        let many = [&[MORE, 0][..]; KV_EVENT_FRAMES_MAX + 1].concat();
        assert_eq!(all(&mut Decoder::default(), &many, 100), Err(FrameError::TooManyFrames));
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        assert_eq!(all(&mut Decoder::default(), b"HTTP/1.1", 8), Err(FrameError::Flags(b'H')));
        assert_eq!(all(&mut Decoder::default(), &[COMMAND | MORE, 0], 2), Err(FrameError::Flags(5)));
        assert_eq!(all(&mut Decoder::default(), &[MORE, 0, COMMAND, 0], 4), Err(FrameError::Interrupted));
    }
}
