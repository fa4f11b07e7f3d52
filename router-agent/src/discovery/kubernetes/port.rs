//! Which of an object's ports is a worker's.

use crate::config::KubernetesPort;

/// The port that is meant where several are named and nobody says which.
const HTTP: &str = "http";

/// The ports that an object names; a nameless one has an empty name.
pub(super) struct Ports<'a>(pub(super) Vec<(&'a str, u16)>);

impl Ports<'_> {
    /// What is configured, or the only one, or the one that is called `http`.
    pub(super) fn choose(&self, configured: Option<&KubernetesPort>) -> Option<u16> {
        match (configured, self.0.as_slice()) {
            (Some(KubernetesPort::Number(port)), _) | (None, [(_, port)]) => Some(*port),
            (Some(KubernetesPort::Name(name)), _) => self.named(name),
            (None, _) => self.named(HTTP),
        }
    }

    /// The one of this name.
    pub(super) fn named(&self, wanted: &str) -> Option<u16> {
        self.0.iter().find(|(name, _)| *name == wanted).map(|(_, port)| *port)
    }
}
