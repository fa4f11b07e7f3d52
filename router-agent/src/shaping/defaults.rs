//! A tenant's defaults in a request body.

use crate::{
    config::BodyDefault,
    prompt::{ApiKind, Member, add_missing},
};

/// The bound on an answer's length, by the names that it has in the APIs. A client that uses any of them has said it.
const BOUNDS: [&str; 3] = ["max_tokens", "max_completion_tokens", "max_output_tokens"];

/// The body with those of `defaults` that it does not have. None if there is nothing to add, or it is no JSON object.
pub fn with_defaults(kind: ApiKind, body: &[u8], defaults: &[BodyDefault]) -> Option<Vec<u8>> {
    let members: Vec<_> = defaults.iter().map(|default| member(kind, default)).collect();
    add_missing(body, &members)
}

fn member(kind: ApiKind, BodyDefault { name, json }: &BodyDefault) -> Member<'_> {
    match &**name {
        "max_tokens" if kind == ApiKind::Responses => {
            Member { name: "max_output_tokens", json, synonyms: &BOUNDS }
        }
        "max_tokens" => Member { name, json, synonyms: &BOUNDS },
        _ => Member { name, json, synonyms: &[] },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_one_by_whatever_name() {
        let defaults = [
            BodyDefault { name: "max_tokens".into(), json: "5".into() },
            BodyDefault { name: "temperature".into(), json: "0".into() },
        ];
        let add = |kind, body: &str| {
            with_defaults(kind, body.as_bytes(), &defaults).map(|body| String::from_utf8(body).unwrap())
        };
        assert_eq!(add(ApiKind::Chat, "{}").unwrap(), r#"{"max_tokens":5,"temperature":0}"#);
        assert_eq!(add(ApiKind::Responses, "{}").unwrap(), r#"{"max_output_tokens":5,"temperature":0}"#);
        let said = r#"{"max_completion_tokens":9,"temperature":1}"#;
        assert_eq!(add(ApiKind::Chat, said), None);
        assert_eq!(add(ApiKind::Chat, "not json"), None);
    }
}
