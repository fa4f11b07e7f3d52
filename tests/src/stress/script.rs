//! One response, all of it decided by its seed: length, framing, how it is cut into writes, and whether the worker
//! dies in the middle. The worker plays it, the client knows what to expect.

use std::{fmt::Write, time::Duration};

use super::content::{Random, digest, fill};

/// Lengths where something changes: in framing, in buffers, in the kernel's segments.
const EDGES: [u64; 20] = [
    0, 1, 2, 15, 16, 17, 255, 256, 4_095, 4_096, 4_097, 16_383, 16_384, 16_385, 65_483, 65_535, 65_536,
    65_537, 262_144, 1_048_576,
];

/// Bodies of one-byte chunks are no longer than this: each byte costs six on the wire.
const TINY_CHUNKS_BYTES_MAX: u64 = 8 * 1024;
/// Writes of one response at most, about: a system call each.
const WRITES_MAX: usize = 2_000;
/// Chunks of one response at most, about.
const CHUNKS_MAX: u64 = 20_000;
/// Chunk extensions of one body together: hyper gives up at 16 KiB of them.
const EXTENSIONS_BYTES_MAX: usize = 8 * 1024;
/// All pauses of one response together, at most.
const PAUSES_MAX: Duration = Duration::from_millis(40);

/// What a run may draw from. Part of each request, so that the worker needs to know nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Profile {
    /// Longest content, bytes.
    pub size_max: u64,
    /// Whether workers die.
    pub deaths: bool,
    /// Whether some of them die by a reset. Not where packets are lost: a lost reset is not sent again, and nobody
    /// hears of the death.
    pub resets: bool,
}

impl Profile {
    /// As the query of a request's target.
    pub fn query(&self, seed: u64) -> String {
        let Self { size_max, deaths, resets } = self;
        format!("seed={seed}&size_max={size_max}&deaths={}&resets={}", u8::from(*deaths), u8::from(*resets))
    }

    /// Reads [`Profile::query`]; `None` if it is something else.
    pub fn parse(query: &str) -> Option<(u64, Self)> {
        let value = |key: &str| {
            let pair = query.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='))?;
            pair.parse::<u64>().ok()
        };
        let (deaths, resets) = (value("deaths")? != 0, value("resets")? != 0);
        Some((value("seed")?, Self { size_max: value("size_max")?, deaths, resets }))
    }
}

/// How the body's end is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// Content-Length.
    Length,
    /// Transfer-Encoding: chunked.
    Chunked,
}

/// When the worker dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    /// Before the head is complete.
    InHead,
    /// Behind the head, before the last byte of the body.
    InBody,
}

/// A response before its bytes are made.
#[derive(Debug, Clone)]
pub struct Script {
    /// Everything follows from it and the profile.
    pub seed: u64,
    /// Of the content, bytes.
    pub length: u64,
    /// Of the body.
    pub framing: Framing,
    /// Its type: an event stream can tell of an error in order.
    pub is_event_stream: bool,
    /// `connection: close`, and the worker does.
    pub closes: bool,
    /// If the worker dies.
    pub death: Option<Death>,
    /// It dies by a reset, not by a FIN.
    pub by_reset: bool,
    random: Random,
}

impl Script {
    /// The response of `seed`.
    pub fn of(seed: u64, profile: Profile) -> Self {
        let mut random = Random::new(seed);
        let length = if random.one_in(8) {
            EDGES[random.below(EDGES.len() as u64) as usize].min(profile.size_max)
        } else {
            random.log_uniform(profile.size_max)
        };
        let framing = if random.one_in(3) { Framing::Length } else { Framing::Chunked };
        let is_event_stream = random.one_in(2);
        let closes = random.one_in(25);
        let dies = random.one_in(10);
        let in_head = random.one_in(5) || (framing == Framing::Length && length == 0);
        let by_reset = random.one_in(2) && profile.resets;
        let death = (profile.deaths && dies).then_some(if in_head { Death::InHead } else { Death::InBody });
        Self { seed, length, framing, is_event_stream, closes, death, by_reset, random }
    }

    /// Its media type.
    pub fn media_type(&self) -> &'static str {
        if self.is_event_stream { "text/event-stream" } else { "application/octet-stream" }
    }

    /// All its bytes, and how they are written.
    pub fn wire(&self) -> Wire {
        let mut random = self.random.clone();
        let mut bytes = self.head().into_bytes();
        let head = bytes.len();
        let mut chunk_ends = Vec::new();
        match self.framing {
            Framing::Length => {
                bytes.resize(head + self.length as usize, 0);
                fill(self.seed, 0, &mut bytes[head..]);
            }
            Framing::Chunked => self.chunks(&mut random, &mut bytes, &mut chunk_ends),
        }
        let dies_at = self.death.map(|death| match death {
            Death::InHead => random.below(head as u64) as usize,
            Death::InBody => head + random.below((bytes.len() - head) as u64) as usize,
        });
        let writes = cuts(&mut random, bytes.len(), &chunk_ends);
        Wire { bytes, writes, dies_at }
    }

    /// Whether the worker dies before the first byte of the body.
    pub fn dies_behind_its_head(&self) -> bool {
        self.wire().dies_at == Some(self.head().len())
    }

    fn head(&self) -> String {
        let mut head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: {}\r\nx-content-xxh3: {:016x}\r\n",
            self.media_type(),
            digest(self.seed, self.length)
        );
        if self.closes {
            head.push_str("connection: close\r\n");
        }
        match self.framing {
            Framing::Length => write!(head, "content-length: {}\r\n\r\n", self.length),
            Framing::Chunked => write!(head, "transfer-encoding: chunked\r\n\r\n"),
        }
        .expect("a String takes everything");
        head
    }

    fn chunks(&self, random: &mut Random, bytes: &mut Vec<u8>, ends: &mut Vec<usize>) {
        let smallest = 1 + self.length / CHUNKS_MAX;
        let size_max = match random.below(4) {
            0 if self.length <= TINY_CHUNKS_BYTES_MAX => 1,
            0 | 1 => 300.max(smallest),
            2 => smallest + random.log_uniform(self.length),
            _ => self.length.max(1),
        };
        let is_one_size = random.one_in(2);
        let mut extensions = 0;
        let mut at = 0;
        while at < self.length {
            let size = if is_one_size { size_max } else { 1 + random.below(size_max) };
            let size = size.max(smallest).min(self.length - at);
            let extension = match random.below(16) {
                0 if extensions < EXTENSIONS_BYTES_MAX => ";name=\"value\"",
                1 if extensions < EXTENSIONS_BYTES_MAX => ";a;b=c",
                _ => "",
            };
            extensions += extension.len();
            let zeros = if random.one_in(16) { "000" } else { "" };
            let line = if random.one_in(2) {
                format!("{zeros}{size:x}{extension}\r\n")
            } else {
                format!("{zeros}{size:X}{extension}\r\n")
            };
            bytes.extend(line.as_bytes());
            let start = bytes.len();
            bytes.resize(start + size as usize, 0);
            fill(self.seed, at, &mut bytes[start..]);
            bytes.extend(b"\r\n");
            ends.push(bytes.len());
            at += size;
        }
        bytes.extend(match random.below(8) {
            0 => &b"0\r\nx-trailer: 1\r\n\r\n"[..],
            1 => b"0\r\nx-first: a b c\r\nx-second: \r\n\r\n",
            2 => b"000;last\r\n\r\n",
            _ => b"0\r\n\r\n",
        });
    }
}

/// A response as it goes over the wire.
#[derive(Debug)]
pub struct Wire {
    /// Head and body.
    pub bytes: Vec<u8>,
    /// How many bytes each write has, and the pause before it. Together as many as there are.
    pub writes: Vec<(usize, Duration)>,
    /// The worker dies having written so many, fewer than there are.
    pub dies_at: Option<usize>,
}

/// Cuts `length` bytes into writes: at once, in small pieces, in large ones, or a chunk at a time as vLLM does.
fn cuts(random: &mut Random, length: usize, chunk_ends: &[usize]) -> Vec<(usize, Duration)> {
    let smallest = 1 + length / WRITES_MAX;
    let style = random.below(5);
    let has_pauses = random.one_in(2);
    let mut chunk_ends = chunk_ends.iter();
    let mut pauses = Duration::ZERO;
    let mut writes = Vec::new();
    let mut at = 0;
    while at < length {
        let size = match style {
            0 => length,
            1 => smallest + random.below(64) as usize,
            2 => smallest + random.below(4096) as usize,
            3 => smallest + random.log_uniform(128 * 1024) as usize,
            _ => chunk_ends.find(|end| **end > at).map_or(length, |end| end - at),
        };
        let size = size.min(length - at);
        let mut pause = Duration::ZERO;
        if has_pauses && pauses < PAUSES_MAX && random.one_in(8) {
            pause = Duration::from_micros(random.below(3_000));
            pauses += pause;
        }
        writes.push((size, pause));
        at += size;
    }
    writes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stress::decode::Decoder;

    const PROFILE: Profile = Profile { size_max: 200_000, deaths: true, resets: true };

    #[test]
    fn a_script_is_a_function_of_seed_and_profile() {
        for seed in 0..50 {
            let (a, b) = (Script::of(seed, PROFILE), Script::of(seed, PROFILE));
            let (a, b) = (a.wire(), b.wire());
            assert_eq!((a.bytes, a.writes, a.dies_at), (b.bytes, b.writes, b.dies_at));
            assert_eq!(Profile::parse(&PROFILE.query(seed)), Some((seed, PROFILE)));
        }
    }

    #[test]
    fn the_writes_are_the_bytes_and_the_body_is_the_content() {
        let (mut deaths, mut events, mut lengths) = (0, 0, 0);
        for seed in 0..400 {
            let script = Script::of(seed, PROFILE);
            let wire = script.wire();
            assert_eq!(wire.writes.iter().map(|(size, _)| size).sum::<usize>(), wire.bytes.len());
            assert!(wire.writes.iter().all(|(size, _)| *size > 0));
            assert!(wire.dies_at.is_none_or(|at| at < wire.bytes.len()));
            let head = wire.bytes.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
            let mut decoder = match script.framing {
                Framing::Length => Decoder::length(script.length),
                Framing::Chunked => Decoder::chunked(),
            };
            let mut content: Vec<u8> = Vec::new();
            let used = decoder.feed(&wire.bytes[head..], |data| content.extend(data)).unwrap();
            assert!(decoder.is_done() && used == wire.bytes.len() - head, "seed {seed}");
            assert_eq!(content.len() as u64, script.length);
            assert_eq!(crate::stress::content::first_difference(seed, 0, &content), None);
            deaths += u32::from(script.death.is_some());
            events += u32::from(script.is_event_stream);
            lengths += u32::from(script.framing == Framing::Length);
        }
        assert!(deaths > 20 && events > 100 && lengths > 80, "{deaths} {events} {lengths}");
    }
}
