//! Whether an event stream has said that it is complete, or that its engine failed.
//!
//! Chunks may end well and the answer be half of one: a worker's task that is cancelled, a proxy in between that tidies up.
//! vLLM ends every stream of JSON events with a word of its API's own; one without it has not ended, it has stopped. What
//! the kernel moves nobody reads, so of such streams this is not known, nor of those that have no JSON event at all.

use memchr::memmem;

use super::route::Route;
use crate::prompt::ApiKind;

/// vLLM's word for an engine that died, as an event of its own. In JSON a line cannot begin within a string.
const ERROR: &[u8] = b"data: {\"error\":";
const JSON_EVENT: &[u8] = b"data: {";
/// As [`ERROR`], of the APIs whose events have names.
const NAMED_ERROR: &[u8] = b"event: error";
/// The longest of what is looked for, with the end of line before it.
const CARRIED_BYTES: usize = 32;

/// One stream so far.
#[derive(Debug)]
pub(super) struct Ending {
    /// Any of them, at the beginning of a line.
    words: &'static [&'static [u8]],
    is_of_json: bool,
    is_complete: bool,
    has_failed: bool,
    /// The last bytes, as a line may be cut in two; first an end of line that nobody sent.
    carried: Vec<u8>,
}

impl Ending {
    /// Of a stream that answers a request of this route; `None` where it is not known how that ends.
    pub(super) fn of(route: Route) -> Option<Self> {
        let Route::Inference(kind) = route else { return None };
        let words: &[&[u8]] = match kind {
            ApiKind::Chat | ApiKind::Completions => &[b"data: [DONE]"],
            ApiKind::Responses => &[
                b"event: response.completed",
                b"event: response.incomplete",
                b"event: response.failed",
                b"data: [DONE]",
            ],
            ApiKind::Messages => &[b"event: message_stop", b"data: [DONE]"],
        };
        Some(Self { words, is_of_json: false, is_complete: false, has_failed: false, carried: vec![b'\n'] })
    }

    /// More of the stream.
    pub(super) fn push(&mut self, data: &[u8]) {
        let seam = data.len().min(CARRIED_BYTES);
        self.carried.extend_from_slice(&data[..seam]);
        self.look_at_seam();
        if data.len() > seam {
            self.look(data);
        }
        let kept = data.len().saturating_sub(CARRIED_BYTES);
        if kept > 0 {
            self.carried.clear();
            self.carried.extend_from_slice(&data[kept..]);
        } else {
            let over = self.carried.len().saturating_sub(CARRIED_BYTES);
            self.carried.drain(..over);
        }
    }

    fn look_at_seam(&mut self) {
        let carried = std::mem::take(&mut self.carried);
        self.look(&carried);
        self.carried = carried;
    }

    fn look(&mut self, data: &[u8]) {
        self.is_of_json = self.is_of_json || has_line(data, JSON_EVENT);
        self.is_complete |= self.words.iter().any(|word| has_line(data, word));
        self.has_failed |= has_line(data, ERROR) || has_line(data, NAMED_ERROR);
    }

    /// If it ends here, it ends too soon.
    pub(super) fn is_unfinished(&self) -> bool {
        self.is_of_json && !self.is_complete && !self.has_failed
    }

    /// It has said that it is complete, and not that its engine failed.
    pub(super) fn is_good(&self) -> bool {
        self.is_complete && !self.has_failed
    }

    /// It has said that its engine failed.
    pub(super) fn has_failed(&self) -> bool {
        self.has_failed
    }
}

/// Whether a line of `data` other than its first begins with `word`.
fn has_line(data: &[u8], word: &[u8]) -> bool {
    memmem::find_iter(data, word).any(|at| at > 0 && data[at - 1] == b'\n')
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHAT: Route = Route::Inference(ApiKind::Chat);

    /// Whether it is unfinished, and whether it has failed.
    fn read<'a>(route: Route, pieces: impl IntoIterator<Item = &'a [u8]>) -> (bool, bool) {
        let mut ending = Ending::of(route).expect("it is known how it ends");
        pieces.into_iter().for_each(|piece| ending.push(piece));
        (ending.is_unfinished(), ending.has_failed())
    }

    #[test]
    fn the_last_word_is_found_however_the_stream_is_cut() {
        let stream = b"data: {\"choices\":[{\"text\":\"data: [DONE] \\ndata: [DONE]\"}]}\n\ndata: [DONE]\n\n";
        let words = stream.len() - b"data: [DONE]\n\n".len();
        for size in 1..stream.len() {
            assert_eq!(read(CHAT, stream.chunks(size)), (false, false), "{size}");
            assert_eq!(read(CHAT, stream[..words].chunks(size)), (true, false), "{size}: a word in a string");
        }
        assert_eq!(read(CHAT, [&b"data: [DONE]\n\n"[..]]), (false, false), "all there is");
    }

    #[test]
    fn an_error_event_is_found_wherever_it_stands() {
        let error = b"data: {\"choices\":[]}\n\ndata: {\"error\": {\"message\": \"EngineCore died\"}}\n\n";
        for size in 1..error.len() {
            assert_eq!(read(CHAT, error.chunks(size)), (false, true), "{size}");
        }
        let quoted = b"data: {\"choices\":[{\"text\":\"\\ndata: {\\\"error\\\": 1}\"}]}\n\n";
        assert_eq!(read(CHAT, [&quoted[..]]), (true, false));
        let messages = Route::Inference(ApiKind::Messages);
        assert_eq!(read(messages, [&b"event: error\ndata: {\"type\":\"error\"}\n\n"[..]]), (false, true));
    }

    #[test]
    fn every_api_has_its_own_last_word() {
        let ends = |kind, text: &'static [u8]| !read(Route::Inference(kind), [text]).0;
        assert!(ends(ApiKind::Responses, b"event: response.completed\ndata: {}\n\n"));
        assert!(ends(ApiKind::Responses, b"event: response.incomplete\ndata: {}\n\n"));
        assert!(!ends(ApiKind::Responses, b"event: response.output_text.done\ndata: {}\n\n"));
        assert!(ends(ApiKind::Messages, b"event: message_stop\ndata: {}\n\n"));
        assert!(!ends(ApiKind::Messages, b"event: message_delta\ndata: {}\n\n"));
        assert!(Ending::of(Route::Other).is_none());
    }
}
