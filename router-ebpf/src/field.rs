//! Fields of map values: each is read and written where the code says so and nowhere else, because the other side looks
//! at them too, and because the verifier must not be asked to follow what they hold.

/// Reads a field.
macro_rules! get {
    ($pointer:expr, $($field:tt)+) => {
        (&raw const (*$pointer).$($field)+).read_volatile()
    };
}

/// Writes a field.
macro_rules! set {
    ($pointer:expr, $($field:ident).+ = $value:expr) => {
        (&raw mut (*$pointer).$($field).+).write_volatile($value)
    };
}

/// Reads where a scanner stands.
macro_rules! get_framing {
    ($pointer:expr, $field:ident) => {
        router_common::framing::Framing {
            remaining: get!($pointer, $field.remaining),
            state: get!($pointer, $field.state),
            overhead: get!($pointer, $field.overhead),
        }
    };
}

/// Writes where a scanner stands.
macro_rules! set_framing {
    ($pointer:expr, $field:ident = $framing:expr) => {
        set!($pointer, $field.remaining = $framing.remaining);
        set!($pointer, $field.state = $framing.state);
        set!($pointer, $field.overhead = $framing.overhead);
    };
}

pub(crate) use {get, get_framing, set, set_framing};
