//! Secrets in the configuration: in a file of their own, in the environment, or written out.

use std::{fs, path::PathBuf};

use http::HeaderValue;

use super::{ConfigError, SecretDigest};

/// Where a secret is, as written: `KEY: …` or `KEY_file: …`.
#[derive(Debug)]
pub(super) struct Place {
    /// The key of the configuration, for errors.
    pub(super) key: &'static str,
    /// The secret, or `${NAME}` of an environment variable.
    pub(super) value: Option<Hidden>,
    /// A file that has it, and nothing else but a line end.
    pub(super) file: Option<PathBuf>,
}

/// A string that `Debug` does not show.
#[derive(Clone, PartialEq, Eq, serde::Deserialize, schemars::JsonSchema)]
#[serde(transparent)]
pub struct Hidden(pub(super) String);

impl std::fmt::Debug for Hidden {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("…")
    }
}

impl Place {
    /// The secret; none where nothing is written. Errors do not repeat it.
    pub(super) fn read(self) -> Result<Option<Hidden>, ConfigError> {
        let wrong = |message: String| Err(ConfigError::Value { key: self.key, message });
        let secret = match (self.value, self.file) {
            (None, None) => return Ok(None),
            (Some(_), Some(_)) => return wrong("is given twice: by itself and by a file".to_owned()),
            (Some(Hidden(written)), None) => match variable(&written) {
                None => written,
                Some(name) => match std::env::var(name) {
                    Ok(value) => value,
                    Err(_) => return wrong(format!("the environment has no variable {name}")),
                },
            },
            (None, Some(path)) => match fs::read_to_string(&path) {
                Ok(text) => text.trim_end_matches(['\r', '\n']).to_owned(),
                Err(error) => return wrong(format!("cannot read {}: {error}", path.display())),
            },
        };
        if secret.is_empty() || !secret.bytes().all(|byte| byte.is_ascii_graphic()) {
            return wrong("must be printable ASCII characters without spaces, at least one".to_owned());
        }
        Ok(Some(Hidden(secret)))
    }
}

/// The name in `${NAME}`.
fn variable(written: &str) -> Option<&str> {
    written.strip_prefix("${")?.strip_suffix('}')
}

impl Hidden {
    /// Whether this names a place and is no secret itself.
    pub(super) fn is_elsewhere(&self) -> bool {
        variable(&self.0).is_some()
    }

    /// The secret itself.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }

    /// All that is kept of one that is to be shown to us.
    pub(super) fn digest(&self) -> SecretDigest {
        SecretDigest::of(self.0.as_bytes())
    }

    /// As a header's value that no log shows.
    pub(super) fn header(&self) -> HeaderValue {
        let mut value = HeaderValue::from_str(&self.0).expect("checked to be printable");
        value.set_sensitive(true);
        value
    }

    /// As a bearer credential that no log shows.
    pub(super) fn bearer(&self) -> HeaderValue {
        let mut value =
            HeaderValue::from_str(&format!("Bearer {}", self.0)).expect("checked to be printable");
        value.set_sensitive(true);
        value
    }
}

/// The admin token of the environment, `WARMPATH_ADMIN_TOKEN`. No flag: everyone on a host sees each other's.
pub(crate) fn admin_token_of_environment() -> Result<Option<SecretDigest>, ConfigError> {
    let value = std::env::var("WARMPATH_ADMIN_TOKEN").ok().map(Hidden);
    let token = Place { key: "WARMPATH_ADMIN_TOKEN", value, file: None }.read()?;
    Ok(token.map(|token| token.digest()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: Option<&str>, file: Option<PathBuf>) -> Result<Option<String>, String> {
        let place = Place { key: "api_key", value: value.map(|text| Hidden(text.to_owned())), file };
        place.read().map(|secret| secret.map(|Hidden(text)| text)).map_err(|error| error.to_string())
    }

    #[test]
    fn a_secret_is_written_in_the_environment_or_in_a_file() {
        assert_eq!(read(None, None), Ok(None));
        assert_eq!(read(Some("s3cret"), None), Ok(Some("s3cret".into())));
        // A variable that every process of a test has.
        assert_eq!(read(Some("${CARGO_PKG_NAME}"), None), Ok(Some(env!("CARGO_PKG_NAME").into())));
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "in-a-file\n").unwrap();
        assert_eq!(read(None, Some(file.path().into())), Ok(Some("in-a-file".into())));
    }

    #[test]
    fn errors_name_the_place_and_not_the_secret() {
        for (value, file, word) in [
            (Some("s3cret"), Some("/x"), "twice"),
            (Some("${NO_SUCH_VARIABLE_HERE}"), None, "NO_SUCH_VARIABLE_HERE"),
            (None, Some("/no/such/file"), "/no/such/file"),
            (Some(""), None, "printable"),
            (Some("s3cret with spaces"), None, "printable"),
        ] {
            let error = read(value, file.map(PathBuf::from)).unwrap_err();
            assert!(error.contains("api_key") && error.contains(word), "{error}");
            assert!(!error.contains("s3cret"), "{error}");
        }
        assert!(!format!("{:?}", Hidden("s3cret".into()).bearer()).contains("s3cret"));
    }
}
