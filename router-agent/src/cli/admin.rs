//! A client of a gateway's admin port, for the commands that ask one: where it is, the token, TLS, and errors that say what
//! to do.

use std::{io, path::PathBuf, time::Duration};

use bytes::Bytes;
use clap::Args;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    runtime::Runtime,
};

use crate::{
    config::{WorkerUrl, WorkerUrlError},
    tls::{TlsError, WorkerTls},
};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of an answer; more is none.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Where the gateway is, and how to be let in.
#[derive(Debug, Clone, Args)]
pub struct AdminArgs {
    /// The gateway's admin port: ADDR:PORT, http://… or https://…
    #[arg(long, global = true, value_name = "URL", env = "WARMPATH_ADMIN", default_value = "127.0.0.1:9090")]
    admin: String,
    /// A file with the admin token [default: WARMPATH_ADMIN_TOKEN, if it is set].
    #[arg(long, global = true, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// With https://, the authority of the port's certificate (PEM) [default: the system's].
    #[arg(long, global = true, value_name = "FILE")]
    ca: Option<PathBuf>,
}

/// Why a gateway did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// Not an address.
    #[error("--admin {url}: {source}")]
    Url {
        /// As given.
        url: String,
        /// What is wrong.
        source: WorkerUrlError,
    },
    /// No token where one was to be.
    #[error("cannot read the token file {}: {source}", path.display())]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// Not a token.
    #[error(
        "the admin token has characters that no header can carry: it must be one line of printable ASCII"
    )]
    Token,
    /// Its authority cannot be read.
    #[error("{0}")]
    Tls(#[from] TlsError),
    /// Nobody there.
    #[error(
        "no gateway answers at {url}: {source} (is it running? --admin URL or WARMPATH_ADMIN says where)"
    )]
    Connect {
        /// Where it was looked for.
        url: String,
        /// The system's word.
        source: io::Error,
    },
    /// Somebody there who does not speak HTTP.
    #[error("what answers at {url} is no admin port: {source} (https:// or http://?)")]
    Http {
        /// Where.
        url: String,
        /// hyper's word.
        source: hyper::Error,
    },
    /// Its answer broke off.
    #[error("the answer of {url} broke off: {source}")]
    Body {
        /// Where.
        url: String,
        /// What went wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It takes too long.
    #[error("no answer from {url} within {PATIENCE:?}")]
    Timeout {
        /// Where.
        url: String,
    },
    /// It wants a token.
    #[error("the gateway wants {}admin token: --token-file FILE or WARMPATH_ADMIN_TOKEN", if *shown { "another " } else { "its " })]
    Unauthorized {
        /// One was shown.
        shown: bool,
    },
    /// It says no.
    #[error("{message}")]
    Refused {
        /// HTTP status.
        status: StatusCode,
        /// Its own words.
        message: String,
    },
    /// It says something else than expected.
    #[error("{url} answers {path} with something else than this version of warmpath expects: {source}")]
    Unexpected {
        /// Where.
        url: String,
        /// What was asked.
        path: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// No thread, no sockets.
    #[error("cannot start: {0}")]
    Runtime(io::Error),
}

/// See the module.
pub(super) struct AdminClient {
    url: WorkerUrl,
    tls: Option<WorkerTls>,
    token: Option<String>,
    runtime: Runtime,
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

impl AdminClient {
    pub(super) fn new(args: &AdminArgs) -> Result<Self, AdminError> {
        let text =
            if args.admin.contains("://") { args.admin.clone() } else { format!("http://{}", args.admin) };
        let url: WorkerUrl =
            text.parse().map_err(|source| AdminError::Url { url: args.admin.clone(), source })?;
        let token = match &args.token_file {
            None => std::env::var("WARMPATH_ADMIN_TOKEN").ok().filter(|token| !token.is_empty()),
            Some(path) => {
                let read = std::fs::read_to_string(path);
                Some(read.map_err(|source| AdminError::TokenFile { path: path.clone(), source })?)
            }
        };
        let token = token.map(|token| token.trim_end_matches(['\r', '\n']).to_owned());
        if token.as_ref().is_some_and(|token| !token.bytes().all(|byte| byte.is_ascii_graphic())) {
            return Err(AdminError::Token);
        }
        let tls = url.is_tls.then(|| WorkerTls::load(&url.host, args.ca.as_deref())).transpose()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(AdminError::Runtime)?;
        Ok(Self { url, tls, token, runtime })
    }

    /// Where it asks.
    pub(super) fn url(&self) -> String {
        self.url.to_string()
    }

    /// Asks, and gives the JSON of the answer; `null` where it has no body.
    pub(super) fn ask(&self, method: Method, path: &str, body: Bytes) -> Result<Value, AdminError> {
        let answer = async { tokio::time::timeout(PATIENCE, self.exchange(method, path, body)).await };
        let (status, body) =
            self.runtime.block_on(answer).map_err(|_| AdminError::Timeout { url: self.url() })??;
        if status == StatusCode::UNAUTHORIZED {
            return Err(AdminError::Unauthorized { shown: self.token.is_some() });
        }
        let json = if body.is_empty() { Ok(Value::Null) } else { serde_json::from_slice::<Value>(&body) };
        if status.is_success() {
            let unexpected =
                |source| AdminError::Unexpected { url: self.url(), path: path.to_owned(), source };
            return json.map_err(unexpected);
        }
        let said = json.ok().and_then(|json| json["error"].as_str().map(str::to_owned));
        let message = said.unwrap_or_else(|| format!("{} answers {path} with {status}", self.url()));
        Err(AdminError::Refused { status, message })
    }

    /// `GET path`, as this type.
    pub(super) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, AdminError> {
        let value = self.ask(Method::GET, path, Bytes::new())?;
        serde_json::from_value(value).map_err(|source| AdminError::Unexpected {
            url: self.url(),
            path: path.to_owned(),
            source,
        })
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), AdminError> {
        let connect = |source| AdminError::Connect { url: self.url(), source };
        let http = |source| AdminError::Http { url: self.url(), source };
        let address = (self.url.host.as_str(), self.url.port);
        let stream = TcpStream::connect(address).await.map_err(connect)?;
        let stream: Box<dyn Stream> = match &self.tls {
            None => Box::new(stream),
            Some(tls) => Box::new(tls.connect(stream).await.map_err(connect)?),
        };
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(http)?;
        let connection = tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, self.url.authority())
            .header(header::USER_AGENT, concat!("warmpath/", env!("CARGO_PKG_VERSION")));
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(Full::new(body)).expect("an encoded path and checked headers");
        let response = sender.send_request(request).await.map_err(http)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        connection.abort();
        let body = body.map_err(|source| AdminError::Body { url: self.url(), source })?;
        Ok((status, body.to_bytes()))
    }
}

/// Text as one segment of a path, or as a value in a query.
pub(super) fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}
