//! The web page of the admin port: what is served, and the page itself in a headless browser.

use std::path::Path;

use serde_json::json;
use tokio::{process::Command, task::JoinSet};
use warmpath_tests::{Gateway, SimConfig, get, python_with, request, sim, sims, urls};

#[tokio::test]
async fn the_page_is_open_to_everyone_and_says_nothing_until_the_token_is_shown() {
    let sims = sims(1).await;
    let config = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    std::fs::write(config.path(), "admin_token: t0ken\n").unwrap();
    let gateway = Gateway::start(&urls(&sims), &["--config", config.path().to_str().unwrap()]).await;
    let page = get(gateway.admin, "/").await;
    assert_eq!((page.status, page.header("content-type")), (200, "text/html; charset=utf-8"));
    for field in ["content-security-policy", "x-content-type-options", "x-frame-options", "referrer-policy"] {
        assert!(!page.header(field).is_empty(), "{field}");
    }
    let policy = page.header("content-security-policy");
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    let html = page.text();
    let files: Vec<&str> = html.split('"').filter(|part| part.starts_with("/page/")).collect();
    assert!(files.len() >= 3, "{files:?}");
    for file in files {
        let reply = get(gateway.admin, file).await;
        assert_eq!(reply.status, 200, "{file}");
        assert!(!reply.header("content-security-policy").is_empty(), "{file}");
        let port = urls(&sims)[0].rsplit(':').next().unwrap().to_owned();
        assert!(!reply.text().contains(&port), "{file} knows a worker");
    }
    for path in ["/events", "/stats", "/page/", "/page/../workers"] {
        assert_eq!(get(gateway.admin, path).await.status, 401, "{path}");
    }
}

#[tokio::test]
async fn without_a_token_a_browser_needs_the_page_s_header_to_change_anything() {
    let sims = sims(1).await;
    let gateway = Gateway::start(&urls(&sims), &[]).await;
    let path = format!("/workers/{}/drain", gateway.workers().await[0]["name"].as_str().unwrap());
    let origin = format!("http://{}", gateway.admin);
    let drain =
        async |fields: &[(&str, &str)]| request(gateway.admin, "POST", &path, fields, "").await.status;
    assert_eq!(drain(&[("origin", &origin)]).await, 403, "a form that a strange page has sent would look so");
    assert_eq!(drain(&[("origin", "http://elsewhere.example"), ("x-warmpath-page", "1")]).await, 403);
    assert_eq!(gateway.workers().await[0]["standing"], "serving");
    assert_eq!(drain(&[("origin", &origin), ("x-warmpath-page", "1")]).await, 200);
}

/// Streams and short answers on some conversations, until it is dropped.
fn traffic(gateway: &Gateway) -> JoinSet<()> {
    let mut clients = JoinSet::new();
    for client in 0..4_u32 {
        let address = gateway.address;
        clients.spawn(async move {
            let manual = "Answer briefly and cite the manual of the pump. ".repeat(60);
            for number in 0_u32.. {
                let topic = format!("You are the assistant of team {}. {manual}", (client + number) % 5);
                let body = json!({
                    "messages": [{"role": "system", "content": topic},
                                 {"role": "user", "content": format!("question {number} of {client}")}],
                    "max_tokens": 20 + 10 * (number % 9), "ignore_eos": true, "stream": number % 4 != 0,
                });
                let fields = [("content-type", "application/json")];
                request(address, "POST", "/v1/chat/completions", &fields, body.to_string()).await;
                tokio::time::sleep(std::time::Duration::from_millis(60)).await;
            }
        });
    }
    clients
}

/// `tests/browser/page.py` says what is checked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_works_in_a_browser() {
    let browsers = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];
    let Some(browser) = browsers.iter().find(|path| Path::new(path).exists()) else {
        return println!("skipped: no Chromium (apt install chromium)");
    };
    let bin = match python_with("playwright", "playwright==1.65.2") {
        Ok(bin) => bin,
        Err(why) => return println!("skipped: no Playwright: {why}"),
    };
    let mut sims = Vec::new();
    for seed in 0..3 {
        sims.push(sim(SimConfig { seed, ..SimConfig::default() }).await);
    }
    let config = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    // Names are text, whatever is in them.
    let names = ["gpu-a", "<img/src=x/onerror=alert(1)>", "gpu-c"];
    let workers: Vec<_> =
        urls(&sims).iter().zip(names).map(|(url, name)| json!({"url": url, "name": name})).collect();
    std::fs::write(config.path(), json!({"admin_token": "t0ken", "workers": workers}).to_string()).unwrap();
    let gateway = Gateway::start(&[], &["--config", config.path().to_str().unwrap()]).await;
    let clients = traffic(&gateway);
    let output = Command::new(bin.join("python"))
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("browser/page.py"))
        .args([&format!("http://{}", gateway.admin), *browser, "t0ken"])
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    drop(clients);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{said}\n{}\n{}",
        String::from_utf8_lossy(&output.stderr),
        gateway.output()
    );
}
