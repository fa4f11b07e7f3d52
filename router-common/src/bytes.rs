//! Map values as bytes, without `unsafe`: each field is written at and read from its own offset.
//!
//! The two macros here define the structs and enums of the maps. They exist so that one declaration gives the
//! layout (kernel and BTF), the padding check, the codec and the list of fields that `warmpath maps` prints.

/// A struct of a BPF map that can be written to and read from plain bytes.
#[cfg(not(target_arch = "bpf"))]
pub trait MapValue: Copy + 'static {
    /// `[u8; size_of::<Self>()]`.
    type Bytes: Copy + AsRef<[u8]> + AsMut<[u8]> + 'static;

    /// The bytes as the kernel stores them (native byte order).
    fn to_bytes(&self) -> Self::Bytes;

    /// `None` if an enum field holds a number that has no name in this version.
    fn from_bytes(bytes: &Self::Bytes) -> Option<Self>;

    /// Calls `visit` with every field's name and content, in declaration order; `padding` is left out.
    fn visit(&self, visit: &mut dyn FnMut(&'static str, Cell<'_>));
}

/// One field's content, for printing.
#[cfg(not(target_arch = "bpf"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell<'a> {
    Number(u64),
    /// The name of an enum's variant.
    Name(&'static str),
    Bytes(&'a [u8]),
    /// A set of numbers: bit `n % 64` of word `n / 64`.
    Set(&'a [u64]),
}

/// A field type of a [`MapValue`].
#[cfg(not(target_arch = "bpf"))]
pub trait Field: Copy {
    /// Writes exactly `size_of::<Self>()` bytes.
    fn write(&self, out: &mut [u8]);
    /// Reads exactly `size_of::<Self>()` bytes.
    fn read(bytes: &[u8]) -> Option<Self>;
    fn cell(&self) -> Cell<'_>;
}

#[cfg(not(target_arch = "bpf"))]
macro_rules! number_field {
    ($($number:ty),+) => {
        $(impl Field for $number {
            fn write(&self, out: &mut [u8]) {
                out.copy_from_slice(&self.to_ne_bytes());
            }
            fn read(bytes: &[u8]) -> Option<Self> {
                Some(Self::from_ne_bytes(bytes.try_into().ok()?))
            }
            fn cell(&self) -> Cell<'_> {
                Cell::Number(u64::from(*self))
            }
        })+
    };
}
#[cfg(not(target_arch = "bpf"))]
number_field!(u16, u32, u64);

#[cfg(not(target_arch = "bpf"))]
impl<const N: usize> Field for [u8; N] {
    fn write(&self, out: &mut [u8]) {
        out.copy_from_slice(self);
    }
    fn read(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok()
    }
    fn cell(&self) -> Cell<'_> {
        Cell::Bytes(self)
    }
}

#[cfg(not(target_arch = "bpf"))]
impl<const N: usize> Field for [u64; N] {
    fn write(&self, out: &mut [u8]) {
        for (word, out) in self.iter().zip(out.chunks_exact_mut(8)) {
            out.copy_from_slice(&word.to_ne_bytes());
        }
    }
    fn read(bytes: &[u8]) -> Option<Self> {
        let mut words = [0; N];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::read(bytes)?;
        }
        Some(words)
    }
    fn cell(&self) -> Cell<'_> {
        Cell::Set(self)
    }
}

/// Defines a map value: `#[repr(C)]`, no implicit padding, [`MapValue`].
macro_rules! map_value {
    ($(#[$meta:meta])* pub struct $name:ident {
        $($(#[$field_meta:meta])* pub $field:ident: $ty:ty,)+
    }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name {
            $($(#[$field_meta])* pub $field: $ty,)+
        }

        // The kernel compares and prints all bytes: every one of them must belong to a field.
        const _: () = assert!(size_of::<$name>() == 0 $(+ size_of::<$ty>())+);

        #[cfg(not(target_arch = "bpf"))]
        impl $crate::MapValue for $name {
            type Bytes = [u8; size_of::<$name>()];

            fn to_bytes(&self) -> Self::Bytes {
                let mut bytes = [0; size_of::<$name>()];
                $({
                    let at = core::mem::offset_of!($name, $field);
                    $crate::Field::write(&self.$field, &mut bytes[at..at + size_of::<$ty>()]);
                })+
                bytes
            }

            fn from_bytes(bytes: &Self::Bytes) -> Option<Self> {
                Some(Self {
                    $($field: {
                        let at = core::mem::offset_of!($name, $field);
                        $crate::Field::read(&bytes[at..at + size_of::<$ty>()])?
                    },)+
                })
            }

            fn visit(&self, visit: &mut dyn FnMut(&'static str, $crate::Cell<'_>)) {
                $(if stringify!($field) != "padding" {
                    visit(stringify!($field), $crate::Field::cell(&self.$field));
                })+
            }
        }
    };
}

/// Defines an enum of a map value: fieldless and `#[repr(u32)]`, so that bpftool prints the variant's name.
macro_rules! map_enum {
    ($(#[$meta:meta])* pub enum $name:ident {
        $($(#[$variant_meta:meta])* $variant:ident = $number:literal,)+
    }) => {
        $(#[$meta])*
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $($(#[$variant_meta])* $variant = $number,)+
        }

        #[cfg(not(target_arch = "bpf"))]
        impl $name {
            /// The variant's name, as bpftool prints it.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => stringify!($variant),)+
                }
            }
        }

        #[cfg(not(target_arch = "bpf"))]
        impl $crate::Field for $name {
            fn write(&self, out: &mut [u8]) {
                (*self as u32).write(out);
            }
            fn read(bytes: &[u8]) -> Option<Self> {
                match u32::read(bytes)? {
                    $($number => Some(Self::$variant),)+
                    _ => None,
                }
            }
            fn cell(&self) -> $crate::Cell<'_> {
                $crate::Cell::Name(self.name())
            }
        }
    };
}

pub(crate) use {map_enum, map_value};
