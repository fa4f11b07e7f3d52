//! The admin API against its own OpenAPI document, by schemathesis: what the document allows, and what it does not, is sent
//! to a running gateway, and every answer has to be one that the document describes.

use tokio::process::Command;
use warmpath_tests::{Gateway, python_with, sims, urls};

/// What is looked at in every answer.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,\
                      response_schema_conformance,unsupported_method,allow_header_conformance,ignored_auth";

#[tokio::test]
async fn every_answer_is_one_that_the_document_describes() {
    let bin = match python_with("schemathesis", "schemathesis==4.32.5") {
        Ok(bin) => bin,
        Err(why) => return println!("skipped: no schemathesis: {why}"),
    };
    let sims = sims(2).await;
    let config = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    std::fs::write(config.path(), "admin_token: t0ken\n").unwrap();
    let gateway = Gateway::start(&urls(&sims), &["--config", config.path().to_str().unwrap()]).await;
    for number in 0..5 {
        assert_eq!(gateway.chat(&format!("hello {number}")).await.status, 200);
    }
    let output = Command::new(bin.join("schemathesis"))
        .arg("run")
        .arg(format!("http://{}/openapi.json", gateway.admin))
        .args(["--header", "Authorization: Bearer t0ken", "--checks", CHECKS])
        .args(["--phases", "examples,coverage,fuzzing", "--max-examples", "15", "--seed", "1"])
        .args(["--generation-database", "none", "--no-color", "--request-timeout", "20"])
        // Adding a worker makes the gateway connect to whatever name was made up; streams have no end.
        .args([
            "--exclude-operation-id",
            "post_workers",
            "--exclude-path-regex",
            "^/(events|decisions/follow)$",
        ])
        .current_dir(config.path().parent().unwrap())
        .output()
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(gateway.metric_as("warmpath_panics_total", "t0ken").await < 1.0, "{}", gateway.output());
}
