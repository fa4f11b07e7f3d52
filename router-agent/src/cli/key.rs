//! `warmpath key`: makes an API key, and the line of the configuration that lets it in.

use std::io::{self, Read as _, Write as _};

use clap::Args;

use crate::config::SecretDigest;

/// Flags of `warmpath key`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    warmpath key team-a\n  \
    printf %s \"$KEY\" | warmpath key team-a --stdin     # the line for a key that is there already")]
pub struct KeyArgs {
    /// What the client is called in metrics and logs.
    name: String,
    /// Read the key from standard input instead of making one.
    #[arg(long)]
    stdin: bool,
}

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Standard input or output is broken.
    #[error("key: {0}")]
    Io(#[from] io::Error),
    /// The system has no random bytes.
    #[error("key: no random bytes: {0}")]
    Random(getrandom::Error),
    /// Such a key could not be sent.
    #[error("key: standard input must have one key: printable characters without spaces")]
    NoKey,
    /// Such a name could not be configured.
    #[error(
        "key: {0:?} is no name: 1 to 64 printable ASCII characters without spaces, quotes and backslashes"
    )]
    NoName(String),
}

/// What keys begin with, so that a scanner of leaked secrets can know them.
const PREFIX: &str = "sk-warmpath-";
/// As many as an attacker would have to guess.
const RANDOM_BYTES: usize = 32;

/// The key goes to standard output once and is kept nowhere.
pub(super) fn run(args: &KeyArgs) -> Result<(), KeyError> {
    if !crate::config::is_key_name(&args.name) {
        return Err(KeyError::NoName(args.name.clone()));
    }
    let key = if args.stdin { read()? } else { make()? };
    let mut out = io::stdout().lock();
    if !args.stdin {
        writeln!(out, "# The key, for the client. It is shown once and kept nowhere:\n{key}\n")?;
    }
    writeln!(out, "# Under `keys:` in warmpath.yaml, or in its keys_file:")?;
    writeln!(out, "- {{ name: \"{}\", sha256: \"{}\" }}", args.name, SecretDigest::of(key.as_bytes()))?;
    Ok(())
}

fn make() -> Result<String, KeyError> {
    let mut random = [0; RANDOM_BYTES];
    getrandom::fill(&mut random).map_err(KeyError::Random)?;
    let digits = random.iter().map(|byte| format!("{byte:02x}"));
    Ok(std::iter::once(PREFIX.to_owned()).chain(digits).collect())
}

fn read() -> Result<String, KeyError> {
    let mut text = String::new();
    io::stdin().read_to_string(&mut text)?;
    let key = text.trim_end_matches(['\r', '\n']);
    if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(KeyError::NoKey);
    }
    Ok(key.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_keys_are_the_same() {
        let (one, two) = (make().unwrap(), make().unwrap());
        assert_eq!(one.len(), PREFIX.len() + 2 * RANDOM_BYTES);
        assert_ne!(one, two);
    }
}
