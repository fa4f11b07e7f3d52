//! SHA-256 digests of secrets: all that is kept of a key that a client may show.

use std::{fmt, str::FromStr};

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// SHA-256 of an API key or of the admin token. Equality takes the same time wherever two digests differ.
#[derive(Clone, Copy, Eq)]
pub struct SecretDigest([u8; 32]);

/// What is wrong with a digest as written.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{0} characters that are no SHA-256 digest: 64 hexadecimal digits (`warmpath key NAME` makes a key and prints them)"
)]
pub struct SecretDigestError(usize);

impl SecretDigest {
    /// Of a secret in clear text.
    pub fn of(secret: &[u8]) -> Self {
        Self(Sha256::digest(secret).into())
    }

    /// All of it, to tell who has shown what apart without keeping what was shown.
    pub(crate) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Its first eight bytes, to find it by. They tell nothing that helps to find the secret, and nobody can choose them
    /// without 2^64 tries.
    pub fn prefix(&self) -> u64 {
        let (prefix, _) = self.0.split_first_chunk().expect("a digest has 32 bytes");
        u64::from_be_bytes(*prefix)
    }
}

impl PartialEq for SecretDigest {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl FromStr for SecretDigest {
    type Err = SecretDigestError;

    /// What was written is not repeated in the error: it may be the key itself.
    fn from_str(text: &str) -> Result<Self, SecretDigestError> {
        let wrong = || SecretDigestError(text.chars().count());
        if text.len() != 64 || !text.is_ascii() {
            return Err(wrong());
        }
        let mut bytes = [0; 32];
        for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let digit = |digit: u8| char::from(digit).to_digit(16).ok_or_else(wrong);
            *byte = (digit(digits[0])? << 4 | digit(digits[1])?) as u8;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for SecretDigest {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(out, "{byte:02x}"))
    }
}

/// Not the digest itself: a short key could be guessed from it.
impl fmt::Debug for SecretDigest {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("SecretDigest(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_that_of_sha256sum_and_reads_as_it_is_written() {
        let digest = SecretDigest::of(b"abc");
        let text = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest.to_string(), text);
        assert_eq!(text.to_uppercase().parse(), Ok(digest));
        assert_eq!(digest.prefix(), 0xba78_16bf_8f01_cfea);
        assert_ne!(digest, SecretDigest::of(b"abd"));
    }

    #[test]
    fn what_is_no_digest_is_not_repeated() {
        let last_differs = format!("{}g", "0".repeat(63));
        for wrong in ["", "sk-very-secret", &last_differs, &"é".repeat(32)] {
            let error = wrong.parse::<SecretDigest>().unwrap_err().to_string();
            assert!(error.contains("64 hexadecimal digits"), "{error}");
            assert!(wrong.is_empty() || !error.contains(wrong), "{error}");
        }
        assert!(!format!("{:?}", SecretDigest::of(b"abc")).contains("ba78"));
    }
}
