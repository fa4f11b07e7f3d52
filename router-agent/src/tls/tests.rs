//! Files that change, and what is said of wrong ones. The rest is told by `tests/behaviour/tls.rs`.

use std::{fs, path::PathBuf};

use super::*;
use crate::config;

struct Files {
    directory: tempfile::TempDir,
    config: config::ServerTls,
}

impl Files {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let config = config::ServerTls {
            certificate: path("certificate"),
            key: path("key"),
            client_ca: None,
            min_version: config::TlsVersion::V1_2,
        };
        let files = Self { directory, config };
        files.renew();
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A new pair, each file in one step.
    fn renew(&self) {
        let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        for (text, path) in [
            (pair.signing_key.serialize_pem(), &self.config.key),
            (pair.cert.pem(), &self.config.certificate),
        ] {
            fs::write(self.path("new"), text).unwrap();
            fs::rename(self.path("new"), path).unwrap();
        }
    }
}

#[test]
fn files_are_read_again_when_they_have_changed_and_only_then() {
    let files = Files::new();
    let tls = ServerTls::load(&files.config, &[]).unwrap();
    assert!(!tls.refresh().unwrap());
    files.renew();
    assert!(tls.refresh().unwrap());
    assert!(!tls.refresh().unwrap());
    fs::remove_file(&files.config.key).unwrap();
    let error = tls.refresh().unwrap_err().to_string();
    assert!(error.contains("cannot read") && error.contains(files.config.key.to_str().unwrap()), "{error}");
    assert!(!tls.refresh().unwrap(), "said once");
    files.renew();
    assert!(tls.refresh().unwrap());
}

#[test]
fn a_certificate_that_is_a_link_is_read_again_when_the_link_is_turned() {
    let files = Files::new();
    let (one, two) = (files.path("one"), files.path("two"));
    fs::rename(&files.config.certificate, &one).unwrap();
    fs::copy(&one, &two).unwrap();
    std::os::unix::fs::symlink(&one, &files.config.certificate).unwrap();
    let tls = ServerTls::load(&files.config, &[]).unwrap();
    assert!(!tls.refresh().unwrap());
    std::os::unix::fs::symlink(&two, files.path("link")).unwrap();
    fs::rename(files.path("link"), &files.config.certificate).unwrap();
    assert!(tls.refresh().unwrap(), "as a mounted secret of Kubernetes changes");
}

#[test]
fn workers_are_judged_alike_where_name_and_authorities_are_the_same() {
    let files = Files::new();
    let ca = files.config.certificate.as_path();
    let load = |name: &str| WorkerTls::load(name, Some(ca)).unwrap();
    let one = load("gpu1.example");
    assert_eq!(one, load("gpu1.example"));
    assert_ne!(one, load("gpu2.example"));
    files.renew();
    assert_ne!(one, load("gpu1.example"), "another authority in the same file");
    let error = WorkerTls::load("no name", Some(ca)).unwrap_err().to_string();
    assert!(error.contains("\"no name\""), "{error}");
}
