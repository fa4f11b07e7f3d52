//! The web page: its files, in this binary, and the headers that keep strange content out of it.
//!
//! No file says anything of this gateway: what the page shows it asks of the API, with the token where there is one. Its
//! policy (Content-Security-Policy level 3) allows scripts, styles and requests of this port only, and none that stand in the
//! document itself.

use axum::{
    Router,
    http::{HeaderName, HeaderValue, header},
    response::{IntoResponse, Response},
    routing::get,
};

use super::Admin;

struct File {
    path: &'static str,
    content_type: &'static str,
    text: &'static str,
}

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

const FILES: [File; 9] = [
    File { path: "/", content_type: HTML, text: include_str!("index.html") },
    File { path: "/page/page.css", content_type: CSS, text: include_str!("page.css") },
    File { path: "/page/icon.svg", content_type: SVG, text: include_str!("icon.svg") },
    File { path: "/page/main.js", content_type: SCRIPT, text: include_str!("main.js") },
    File { path: "/page/api.js", content_type: SCRIPT, text: include_str!("api.js") },
    File { path: "/page/dom.js", content_type: SCRIPT, text: include_str!("dom.js") },
    File { path: "/page/charts.js", content_type: SCRIPT, text: include_str!("charts.js") },
    File { path: "/page/fleet.js", content_type: SCRIPT, text: include_str!("fleet.js") },
    File { path: "/page/decisions.js", content_type: SCRIPT, text: include_str!("decisions.js") },
];

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'";

/// Of every answer with one of the files.
const HEADERS: [(HeaderName, &str); 5] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-cache"),
];

/// The files.
pub(super) fn router() -> Router<Admin> {
    FILES.iter().fold(Router::new(), |router, file| router.route(file.path, get(async || serve(file))))
}

/// Whether this is the path of one of them.
pub(super) fn is_file(path: &str) -> bool {
    FILES.iter().any(|file| file.path == path)
}

fn serve(file: &'static File) -> Response {
    let mut response = file.text.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(file.content_type));
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the policy would keep a browser from loading.
    #[test]
    fn the_page_needs_nothing_from_elsewhere_and_has_no_script_or_style_inside() {
        for file in &FILES {
            let text = file.text.replace("http://www.w3.org/2000/svg", "");
            assert!(
                !text.contains("http://") && !text.contains("https://"),
                "{} refers elsewhere",
                file.path
            );
            for injected in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
                assert!(!text.contains(injected), "{}: {injected}", file.path);
            }
        }
        let html = FILES[0].text;
        assert!(!html.contains("style=") && !html.contains("<style") && !html.contains(" onclick"));
        assert_eq!(html.matches("<script").count(), html.matches("<script type=\"module\" src=").count());
    }

    #[test]
    fn whatever_a_file_refers_to_is_there() {
        for file in &FILES {
            let quoted = file.text.split(['"', '\'']);
            for path in quoted.filter(|part| part.starts_with("/page/") || part.starts_with("./")) {
                let path = path.replace("./", "/page/");
                assert!(is_file(&path), "{} refers to {path}", file.path);
            }
        }
    }
}
