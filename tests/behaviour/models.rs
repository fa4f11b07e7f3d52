//! Workers that serve different models.

use serde_json::json;
use vllm_sim::Lora;
use warmpath_tests::{Gateway, SimConfig, SimHandle, eventually, get, sim, urls};

async fn serving(model: &str, adapters: &[&str]) -> SimHandle {
    let lora = |name: &&str| Lora { name: (*name).to_owned(), path: format!("/adapters/{name}") };
    sim(SimConfig {
        model: model.to_owned(),
        loras: adapters.iter().map(lora).collect(),
        ..SimConfig::default()
    })
    .await
}

#[tokio::test]
async fn requests_go_to_workers_that_serve_the_model() {
    let sims = [serving("small", &[]).await, serving("large", &["sql"]).await, serving("large", &[]).await];
    let gateway = Gateway::start(&urls(&sims), &[]).await;
    let worker = |reply: &warmpath_tests::Reply| reply.header("x-warmpath-worker").to_owned();
    for i in 0..6 {
        for (path, body) in [
            ("/v1/chat/completions", json!({"messages": [{"role": "user", "content": format!("{i}")}]})),
            ("/v1/completions", json!({"prompt": format!("{i}")})),
            ("/tokenize", json!({"prompt": format!("{i}")})),
        ] {
            let ask = async |model: &str| {
                let mut body = body.clone();
                body["model"] = json!(model);
                body["max_tokens"] = json!(2);
                let reply = gateway.post(path, &body).await;
                assert_eq!(reply.status, 200, "{path} {model}: {}", reply.text());
                worker(&reply)
            };
            assert_eq!(ask("small").await, sims[0].addr().to_string(), "{path}");
            assert_eq!(ask("sql").await, sims[1].addr().to_string(), "{path}: an adapter is a model");
            assert_ne!(ask("large").await, sims[0].addr().to_string(), "{path}");
        }
    }
}

#[tokio::test]
async fn a_model_that_nobody_serves_is_openai_s_404() {
    let sims = [serving("small", &[]).await];
    let gateway = Gateway::start(&urls(&sims), &[]).await;
    let body = json!({"model": "gpt-5", "messages": [{"role": "user", "content": "x"}]});
    let reply = gateway.post("/v1/chat/completions", &body).await;
    let error = &reply.json()["error"];
    assert_eq!((reply.status, error["type"].as_str()), (404, Some("invalid_request_error")));
    assert_eq!((error["code"].as_str(), error["param"].as_str()), (Some("model_not_found"), Some("model")));
    assert!(error["message"].as_str().is_some_and(|message| message.contains("`gpt-5` does not exist")));
    assert_eq!(sims[0].stats().generated_tokens, 0, "no worker was asked");
}

#[tokio::test]
async fn a_model_whose_workers_are_down_is_no_404() {
    let sims = [serving("small", &[]).await, serving("large", &[]).await];
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "timeouts: {queue: 100ms}\n").unwrap();
    let gateway = Gateway::start(&urls(&sims), &["--config", file.path().to_str().unwrap()]).await;
    sims[1].kill().await;
    eventually("the worker is out", || async {
        (gateway.workers().await[1]["health"] == "unhealthy").then_some(())
    })
    .await;
    let body = json!({"model": "large", "messages": [{"role": "user", "content": "x"}]});
    let reply = gateway.post("/v1/chat/completions", &body).await;
    assert_eq!((reply.status, reply.json()["error"]["code"].as_str()), (503, Some("no_worker_available")));
}

#[tokio::test]
async fn the_list_of_models_is_what_all_workers_serve() {
    let sims = [serving("small", &[]).await, serving("large", &["sql"]).await, serving("large", &[]).await];
    let gateway = Gateway::start(&urls(&sims), &[]).await;
    let list = get(gateway.address, "/v1/models").await;
    assert_eq!((list.status, list.json()["object"].as_str()), (200, Some("list")));
    let models = list.json()["data"].clone();
    let ids: Vec<&str> =
        models.as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["large", "small", "sql"]);
    assert_eq!(models[2]["parent"], "large", "entries are the workers' own");
    assert!(!list.header("x-request-id").is_empty());
}

#[tokio::test]
async fn a_worker_that_keeps_its_list_to_itself_is_asked_for_anything() {
    let sims = [sim(SimConfig { api_key: Some("secret".to_owned()), ..SimConfig::default() }).await];
    let gateway = Gateway::start(&urls(&sims), &[]).await;
    let list = get(gateway.address, "/v1/models").await;
    assert_eq!(list.status, 401, "the worker's own answer: it wants a key");
    let body = json!({"model": "whatever", "messages": [{"role": "user", "content": "x"}]});
    assert_eq!(gateway.post("/v1/chat/completions", &body).await.status, 401);
}

#[tokio::test]
async fn a_model_that_is_new_on_a_worker_is_found() {
    let before = serving("small", &[]).await;
    let address = before.addr();
    let gateway = Gateway::start(&urls(std::slice::from_ref(&before)), &[]).await;
    let body = json!({"model": "large", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2});
    assert_eq!(gateway.post("/v1/chat/completions", &body).await.status, 404);
    before.kill().await;
    let _after = sim(SimConfig { listen: address, model: "large".to_owned(), ..SimConfig::default() }).await;
    eventually("the new model is served", || async {
        (gateway.post("/v1/chat/completions", &body).await.status == 200).then_some(())
    })
    .await;
}
