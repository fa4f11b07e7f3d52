//! What the kernel programs and user space share: map keys, values, names and limits.
#![no_std]
#![forbid(unsafe_code)]
