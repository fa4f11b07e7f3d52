//! What the repository promises of its own files.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Every tracked kind of source file, without what is built or installed.
fn sources() -> Vec<(PathBuf, String)> {
    fn walk(directory: &Path, files: &mut Vec<(PathBuf, String)>) {
        for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
            let (path, name) = (entry.path(), entry.file_name().into_string().unwrap());
            if path.is_dir() {
                if !name.starts_with('.') && !["target", "tools", "venv"].contains(&name.as_str()) {
                    walk(&path, files);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push((path.clone(), fs::read_to_string(&path).unwrap()));
            }
        }
    }
    let mut files = Vec::new();
    walk(&root(), &mut files);
    assert!(files.len() > 50, "the sources are found");
    files
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

#[test]
fn unsafe_code_is_in_the_kernel_programs_and_in_one_folder_only() {
    for (path, text) in sources() {
        let allowed = path.starts_with(root().join("router-ebpf"))
            || path.starts_with(root().join("router-agent/src/kernel"));
        let has_unsafe = text.lines().any(|line| {
            let code = line.split("//").next().unwrap();
            ["unsafe {", "unsafe fn", "unsafe impl", "unsafe(", "unsafe extern"]
                .iter()
                .any(|form| code.contains(form))
        });
        let is_this_file = path.ends_with("tidy.rs");
        assert!(allowed || is_this_file || !has_unsafe, "{} has unsafe code", path.display());
        let is_root = path.ends_with("src/lib.rs") || path.ends_with("src/main.rs");
        if is_root && !allowed && !path.ends_with("router-agent/src/lib.rs") {
            assert!(
                text.contains("#![forbid(unsafe_code)]"),
                "{} does not forbid unsafe code",
                path.display()
            );
        }
    }
    let lib = fs::read_to_string(root().join("router-agent/src/lib.rs")).unwrap();
    let modules = lib.lines().filter(|line| line.starts_with("pub mod")).count();
    let forbidding = lib.lines().filter(|line| *line == "#[forbid(unsafe_code)]").count();
    assert_eq!(forbidding, modules - 1, "every module of the agent but `kernel` forbids unsafe code");
}

#[test]
fn no_test_is_ignored_and_nothing_is_left_to_do() {
    for (path, text) in sources() {
        if path.ends_with("tidy.rs") {
            continue;
        }
        for mark in ["#[ignore", "todo!(", "unimplemented!(", "TODO", "FIXME"] {
            assert!(!text.contains(mark), "{}: {mark}", path.display());
        }
    }
}

#[test]
fn every_file_says_what_it_is_for() {
    for (path, text) in sources() {
        let is_generated = path.components().any(|part| part.as_os_str() == "generated");
        assert!(
            is_generated || text.trim_start().starts_with("//!"),
            "{} has no module documentation",
            path.display()
        );
    }
}

/// `module::name…` in backticks, the dots standing for the rest of the name.
#[test]
fn the_tests_that_the_threat_model_names_are_there() {
    let page = fs::read_to_string(root().join("docs/security.md")).unwrap();
    let mut module = String::new();
    let mut found = 0;
    for quoted in
        page.lines().filter(|line| line.starts_with('|')).flat_map(|line| line.split('`').skip(1).step_by(2))
    {
        let name = match quoted.split_once("::") {
            Some((of, name)) => {
                of.clone_into(&mut module);
                name
            }
            // Another one of the module that was named last.
            None if quoted.ends_with('…') => quoted,
            None => continue,
        };
        let path = root().join(format!("tests/behaviour/{module}.rs"));
        let tests = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let start = name.trim_start_matches('…').trim_end_matches(['…', '*']);
        let is_named = |line: &str| line.split_once("fn ").is_some_and(|(_, test)| test.contains(start));
        assert!(tests.lines().any(is_named), "{quoted}: no such test in {module}.rs");
        found += 1;
    }
    assert!(found > 15, "{found}");
}
