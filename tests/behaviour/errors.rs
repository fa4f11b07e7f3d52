//! What a client is told when something is wrong, and whose fault it is.

use serde_json::json;
use warmpath_tests::{Gateway, get, request, sims, urls};

#[tokio::test]
async fn a_body_that_is_not_json_is_refused_in_openais_shape_and_no_worker_sees_it() {
    let sims = sims(1).await;
    let gateway = Gateway::start(&urls(&sims), &[]).await;
    for body in [
        "",
        "{",
        "nonsense",
        "{\"messages\": [}",
        "{\"a\":1} trailing",
        "\"text\"",
        "[1]",
        "{\"a\":\"\u{1}\"}",
    ] {
        let reply = request(gateway.address, "POST", "/v1/chat/completions", &[], body.to_owned()).await;
        assert_eq!(reply.status, 400, "{body:?}");
        let error = &reply.json()["error"];
        assert_eq!(error["type"], "invalid_request_error", "{body:?}");
        assert_eq!(error["code"], "invalid_request_body", "{body:?}");
        assert!(error["message"].as_str().unwrap().len() > 10 && error.get("param").is_some(), "{error}");
        assert!(!reply.header("x-request-id").is_empty());
    }
    let client_errors = "warmpath_errors_total{kind=\"invalid_request_body\",source=\"client\"}";
    assert!((gateway.metric(client_errors).await - 8.0).abs() < f64::EPSILON);
    let stats = sims[0].stats();
    assert_eq!(stats.prompt_tokens, 0, "no worker got any of them");
}

#[tokio::test]
async fn a_workers_own_errors_are_passed_on_as_they_are() {
    let sims = sims(2).await;
    let gateway = Gateway::start(&urls(&sims), &[]).await;
    let wrong = json!({"messages": [{"role": "user", "content": "x"}], "max_tokens": "many"});
    let direct = request(
        sims[0].addr(),
        "POST",
        "/v1/chat/completions",
        &[("content-type", "application/json")],
        wrong.to_string(),
    )
    .await;
    let reply = gateway.post("/v1/chat/completions", &wrong).await;
    assert_eq!((reply.status, direct.status), (400, 400));
    assert_eq!(reply.json(), direct.json());
    // The client's faults are no faults of the worker.
    for worker in gateway.workers().await {
        assert_eq!((&worker["requests_failed"], &worker["breaker"]), (&json!(0), &json!("closed")));
    }
}

#[tokio::test]
async fn with_no_worker_left_the_answer_is_503_and_when_to_come_back() {
    let sims = sims(1).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "timeouts: {queue: 100ms}\n").unwrap();
    let gateway = Gateway::start(&urls(&sims), &["--config", file.path().to_str().unwrap()]).await;
    sims[0].kill().await;
    let reply = warmpath_tests::eventually("503", || async {
        let reply = gateway.chat("x").await;
        assert!(matches!(reply.status, 502 | 503), "{}", reply.text());
        (reply.status == 503).then_some(reply)
    })
    .await;
    assert_eq!(reply.json()["error"]["code"], "no_worker_available");
    assert_eq!(reply.header("retry-after"), "1");
    assert_eq!(get(gateway.admin, "/ready").await.status, 503);
    assert_eq!(get(gateway.admin, "/health").await.status, 200);
}
