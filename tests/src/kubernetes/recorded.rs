//! An API server for tests where no real one can be had: the protocol of lists and watches as Kubernetes documents it, over
//! plain HTTP, for objects of every kind that it is given.
//!
//! Lists with label and field selectors and a resource version; watches from a version on, in chunks, with bookmarks, a
//! timeout, and `410 Gone` as an event for a version that is forgotten; create, merge patch and delete with a time of grace;
//! bearer tokens, of which some may read nothing (403). No admission, no defaults, no validation.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use hyper::{
    Method, Request, Response, StatusCode, body::Frame, body::Incoming, server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::{mpsc, watch},
    task::JoinSet,
};

use super::store::{Change, Key, Store, merge};

type Body = BoxBody<Bytes, Infallible>;

/// How often a watch that has nothing to say says where it is.
const BOOKMARK_EVERY: Duration = Duration::from_millis(500);

/// See the module. Ends when dropped.
#[derive(Debug)]
pub(super) struct Recorded {
    pub(super) address: SocketAddr,
    state: Arc<State>,
    /// The listener and its connections; none while it is stopped.
    serving: Option<JoinSet<()>>,
}

#[derive(Debug)]
struct State {
    store: Mutex<Store>,
    /// Something has changed, or watches are to end.
    changed: watch::Sender<u64>,
    /// Every token, and the kinds that it may list and watch; none: whatever there is.
    tokens: BTreeMap<String, Option<BTreeSet<String>>>,
}

impl Recorded {
    /// With these tokens, and what each may read.
    pub(super) async fn start(tokens: BTreeMap<String, Option<BTreeSet<String>>>) -> Self {
        let state = State { store: Mutex::default(), changed: watch::Sender::new(0), tokens };
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut server = Self { address, state: Arc::new(state), serving: None };
        server.resume().await;
        server
    }

    /// Closes every connection and listens no more.
    pub(super) async fn stop(&mut self) {
        if let Some(mut serving) = self.serving.take() {
            serving.shutdown().await;
        }
    }

    /// Listens again, on the same port.
    pub(super) async fn resume(&mut self) {
        let socket = TcpSocket::new_v4().expect("sockets can be had");
        socket.set_reuseaddr(true).expect("an option that every socket has");
        socket.bind(self.address).expect("the port is free still");
        let listener = socket.listen(64).expect("it is bound");
        self.address = listener.local_addr().expect("it is bound");
        let mut serving = JoinSet::new();
        serving.spawn(accept(listener, self.state.clone()));
        self.serving = Some(serving);
        tokio::task::yield_now().await;
    }

    /// Forgets all changes so far, so that watches cannot go on, and ends those that are open.
    pub(super) fn expire(&self) {
        self.state.store().forget();
        self.state.changed.send_modify(|epoch| *epoch += 1);
    }
}

impl State {
    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().expect("no test panics holding it")
    }
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((socket, _)) = listener.accept().await else { continue };
        let state = state.clone();
        connections.spawn(async move {
            let service = service_fn(move |request| {
                let state = state.clone();
                async move { Ok::<_, Infallible>(state.answer(request).await) }
            });
            let _ = http1::Builder::new().serve_connection(TokioIo::new(socket), service).await;
        });
    }
}

/// What a request is about.
struct Asked {
    /// `pods`, or `endpointslices.discovery.k8s.io`.
    kind: String,
    namespace: Option<String>,
    name: Option<String>,
    query: BTreeMap<String, String>,
}

impl Asked {
    fn parse(request: &Request<Incoming>) -> Option<Self> {
        let parts: Vec<&str> = request.uri().path().trim_matches('/').split('/').collect();
        let (group, rest) = match parts.as_slice() {
            ["api", "v1", rest @ ..] => ("", rest),
            ["apis", group, _, rest @ ..] => (*group, rest),
            _ => return None,
        };
        let (namespace, rest) = match rest {
            ["namespaces", namespace, rest @ ..] => (Some((*namespace).to_owned()), rest),
            rest => (None, rest),
        };
        let (resource, name) = match rest {
            [resource] => (*resource, None),
            [resource, name] | [resource, name, "status"] => (*resource, Some((*name).to_owned())),
            _ => return None,
        };
        let kind = if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") };
        let pairs =
            request.uri().query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
        let decoded =
            |text: &str| text.replace("%3D", "=").replace("%2C", ",").replace("%2F", "/").replace('+', " ");
        let query = pairs.map(|(name, value)| (name.to_owned(), decoded(value))).collect();
        Some(Self { kind, namespace, name, query })
    }

    /// Whether the selectors of the question mean the object.
    fn selects(&self, object: &Value) -> bool {
        let terms = |selector: &str| -> Vec<(String, String)> {
            let term = |term: &str| {
                term.split_once('=').map(|(a, b)| (a.to_owned(), b.trim_start_matches('=').to_owned()))
            };
            self.query.get(selector).into_iter().flat_map(|text| text.split(',').filter_map(term)).collect()
        };
        let labels = &object["metadata"]["labels"];
        terms("labelSelector").iter().all(|(label, value)| labels[label] == *value)
            && terms("fieldSelector")
                .iter()
                .all(|(field, value)| field == "metadata.name" && object["metadata"]["name"] == *value)
    }

    fn is_about(&self, key: &Key) -> bool {
        key.0 == self.kind && self.namespace.as_ref().is_none_or(|namespace| *namespace == key.1)
    }
}

impl State {
    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        let header = request.headers().get("authorization").and_then(|value| value.to_str().ok());
        let token = header.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
        let Some(allowed) = self.tokens.get(token) else {
            return failure(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized");
        };
        let Some(asked) = Asked::parse(&request) else {
            return failure(
                StatusCode::NOT_FOUND,
                "NotFound",
                "the server could not find the requested resource",
            );
        };
        if allowed.as_ref().is_some_and(|kinds| !kinds.contains(&asked.kind)) {
            let (resource, group) = asked.kind.split_once('.').unwrap_or((&asked.kind, ""));
            let message = format!(
                "{resource} is forbidden: User \"{token}\" cannot list resource \"{resource}\" in API group \"{group}\" in \
                 the namespace \"{}\"",
                asked.namespace.as_deref().unwrap_or_default()
            );
            return failure(StatusCode::FORBIDDEN, "Forbidden", &message);
        }
        let is_watch = asked.query.get("watch").is_some_and(|value| value == "true" || value == "1");
        match *request.method() {
            Method::GET if is_watch => self.watch(asked),
            Method::GET if asked.name.is_some() => self.show(asked),
            Method::GET => self.list(&asked),
            _ => self.change(asked, request).await,
        }
    }

    fn show(&self, asked: Asked) -> Response<Body> {
        let key = (asked.kind, asked.namespace.unwrap_or_default(), asked.name.unwrap_or_default());
        match self.store().get(&key) {
            Some(object) => whole(StatusCode::OK, object),
            None => failure(StatusCode::NOT_FOUND, "NotFound", "there is no such object"),
        }
    }

    fn list(&self, asked: &Asked) -> Response<Body> {
        let store = self.store();
        let items: Vec<Value> = store
            .list(&asked.kind, asked.namespace.as_deref())
            .into_iter()
            .filter(|object| asked.selects(object))
            .collect();
        let metadata = json!({"resourceVersion": store.version.to_string()});
        whole(
            StatusCode::OK,
            &json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items}),
        )
    }

    fn watch(self: Arc<Self>, asked: Asked) -> Response<Body> {
        let (tell, told) = mpsc::channel(16);
        tokio::spawn(async move { self.tell(asked, tell).await });
        let frames = stream::unfold(told, |mut told| async { Some((told.recv().await?, told)) });
        let lines = frames.map(|event: Value| Ok(Frame::data(Bytes::from(format!("{event}\n")))));
        Response::new(BodyExt::boxed(StreamBody::new(lines)))
    }

    /// One watch, to its end.
    async fn tell(self: Arc<Self>, asked: Asked, tell: mpsc::Sender<Value>) {
        let number = |name: &str| asked.query.get(name).and_then(|value| value.parse::<u64>().ok());
        let mut version = number("resourceVersion").unwrap_or_default();
        let end = tokio::time::Instant::now() + Duration::from_secs(number("timeoutSeconds").unwrap_or(300));
        let mut changed = self.changed.subscribe();
        let epoch = *changed.borrow_and_update();
        loop {
            let (events, forgotten) = {
                let store = self.store();
                let events: Vec<Value> =
                    store.since(version).iter().filter_map(|change| event(&asked, change)).collect();
                let forgotten = version < store.forgotten;
                version = store.version;
                (events, forgotten)
            };
            if forgotten {
                let status = status(StatusCode::GONE, "Expired", "too old resource version");
                let _ = tell.send(json!({"type": "ERROR", "object": status})).await;
                return;
            }
            for event in events {
                if tell.send(event).await.is_err() {
                    return;
                }
            }
            tokio::select! {
                _ = changed.changed() => if *changed.borrow_and_update() != epoch {
                    return;
                },
                () = tokio::time::sleep(BOOKMARK_EVERY) => {
                    let object = json!({"metadata": {"resourceVersion": version.to_string()}});
                    if tell.send(json!({"type": "BOOKMARK", "object": object})).await.is_err() {
                        return;
                    }
                }
                () = tokio::time::sleep_until(end) => return,
                () = tell.closed() => return,
            }
        }
    }

    async fn change(&self, asked: Asked, request: Request<Incoming>) -> Response<Body> {
        let method = request.method().clone();
        let body =
            request.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let Some(namespace) = asked.namespace.clone() else {
            return failure(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", "which namespace?");
        };
        let name = asked.name.clone().or_else(|| body["metadata"]["name"].as_str().map(str::to_owned));
        let key = (asked.kind.clone(), namespace, name.unwrap_or_default());
        let answer = {
            let mut store = self.store();
            let before = store.get(&key).cloned();
            match (method, before) {
                (Method::POST, None) => store.put(key, Some(body)),
                (Method::PATCH, Some(mut object)) => {
                    merge(&mut object, &body);
                    store.put(key, Some(object))
                }
                (Method::DELETE, Some(mut object)) if body["gracePeriodSeconds"] != 0 => {
                    object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
                    store.put(key, Some(object))
                }
                (Method::DELETE, Some(object)) => {
                    store.put(key, None);
                    Some(object)
                }
                _ => None,
            }
        };
        self.changed.send_modify(|_| ());
        match answer {
            Some(object) => whole(StatusCode::OK, &object),
            None => failure(StatusCode::CONFLICT, "Conflict", "it is there already, or not yet"),
        }
    }
}

/// The change as the watch sees it: an object that its selectors do not mean any more is gone.
fn event(asked: &Asked, change: &Change) -> Option<Value> {
    if !asked.is_about(&change.key) {
        return None;
    }
    let was = change.before.as_ref().filter(|object| asked.selects(object));
    let is = change.after.as_ref().filter(|object| asked.selects(object));
    let (kind, object) = match (was, is) {
        (None, None) => return None,
        (None, Some(object)) => ("ADDED", object.clone()),
        (Some(_), Some(object)) => ("MODIFIED", object.clone()),
        (Some(object), None) => {
            let mut object = object.clone();
            object["metadata"]["resourceVersion"] = json!(change.version.to_string());
            ("DELETED", object)
        }
    };
    Some(json!({"type": kind, "object": object}))
}

fn status(code: StatusCode, reason: &str, message: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code.as_u16(),
    })
}

fn failure(code: StatusCode, reason: &str, message: &str) -> Response<Body> {
    whole(code, &status(code, reason, message))
}

fn whole(code: StatusCode, value: &Value) -> Response<Body> {
    let body = http_body_util::Full::new(Bytes::from(value.to_string()));
    let mut response = Response::new(BodyExt::boxed(body));
    *response.status_mut() = code;
    response.headers_mut().insert("content-type", "application/json".parse().expect("a header's value"));
    response
}
