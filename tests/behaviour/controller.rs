//! A stand-in for the LMCache controller: `POST /lookup` and `GET /controller/workers`, in the JSON that it documents.

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};

#[derive(Default)]
struct State {
    listed: Vec<(String, u64)>,
    /// None: 500.
    layout: Option<Vec<(String, u32)>>,
    hangs: bool,
    last_lookup: Vec<u32>,
    connections: usize,
}

/// The controller; it answers for as long as it is held.
pub(crate) struct Controller {
    address: std::net::SocketAddr,
    state: Arc<Mutex<State>>,
    task: tokio::task::JoinHandle<()>,
}

impl Controller {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::<Mutex<State>>::default();
        let shared = state.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                shared.lock().unwrap().connections += 1;
                tokio::spawn(serve(stream, shared.clone()));
            }
        });
        Self { address, state, task }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The instances and their chunks.
    pub(crate) fn list(&self, instances: &[(&str, u64)]) {
        self.state.lock().unwrap().listed =
            instances.iter().map(|(id, keys)| ((*id).to_owned(), *keys)).collect();
    }

    /// What every lookup finds; none: it fails.
    pub(crate) fn answer(&self, layout: Option<&[(&str, u32)]>) {
        self.state.lock().unwrap().layout =
            layout.map(|layout| layout.iter().map(|(id, tokens)| ((*id).to_owned(), *tokens)).collect());
    }

    /// Lookups get no answer from now on.
    pub(crate) fn hang(&self) {
        self.state.lock().unwrap().hangs = true;
    }

    /// Connections that it was asked over so far.
    pub(crate) fn connections(&self) -> usize {
        self.state.lock().unwrap().connections
    }

    /// The token ids that were asked for last.
    pub(crate) fn last_lookup(&self) -> Vec<u32> {
        self.state.lock().unwrap().last_lookup.clone()
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(stream: TcpStream, state: Arc<Mutex<State>>) {
    let mut stream = BufReader::new(stream);
    loop {
        let (mut path, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
                return;
            }
            let line = line.trim_end().to_ascii_lowercase();
            if path.is_empty() {
                line.split(' ').nth(1).unwrap_or_default().clone_into(&mut path);
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.unwrap();
        if path == "/lookup" && state.lock().unwrap().hangs {
            return std::future::pending().await;
        }
        let (status, answer) = answer(&path, &body, &state);
        let text = answer.to_string();
        let head = format!(
            "HTTP/1.1 {status} x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            text.len()
        );
        if stream.write_all((head + &text).as_bytes()).await.is_err() {
            return;
        }
    }
}

fn answer(path: &str, body: &[u8], state: &Mutex<State>) -> (u16, Value) {
    let mut state = state.lock().unwrap();
    if path == "/controller/workers" {
        let worker = |(id, keys): &(String, u64)| {
            json!({"instance_id": id, "worker_id": 0, "ip": "192.0.2.1", "port": 8001, "key_count": keys,
                "last_heartbeat_time": 1.0})
        };
        let workers: Vec<Value> = state.listed.iter().map(worker).collect();
        return (200, json!({"workers": workers, "total_count": workers.len()}));
    }
    let lookup: Value = serde_json::from_slice(body).unwrap();
    state.last_lookup = serde_json::from_value(lookup["tokens"].clone()).unwrap();
    let Some(layout) = &state.layout else { return (500, json!({"detail": "broken"})) };
    let layout: serde_json::Map<String, Value> =
        layout.iter().map(|(id, tokens)| (id.clone(), json!(["LocalCPUBackend", tokens]))).collect();
    (200, json!({"event_id": "e1", "layout_info": layout}))
}
