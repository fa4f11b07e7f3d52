//! The endpoint picker: Envoy's external processing (`ext_proc`), as the Gateway API inference extension's endpoint picker
//! protocol 1.0 asks for it (`docs/epp.md`).
//!
//! Envoy has the request and the response; this process says where the former goes ([`picking`], by the same routing core,
//! prompts, tokens, index and records as the gateway), and sees the latter pass, so that what is in flight, times to the
//! first token and usage are known ([`exchange`]). One gRPC stream is one HTTP request. It is served on the data thread of
//! its connection, beside a health service ([`health`]).

mod answers;
mod asked;
mod exchange;
mod health;
mod picking;

use std::{convert::Infallible, future::Future, net::SocketAddr, rc::Rc};

use envoy_types::pb::envoy::service::ext_proc::v3::{ProcessingRequest, ProcessingResponse};
use futures_util::{future, stream};
use http::{Request, Response};
use hyper::{
    body::Incoming,
    service::{Service, service_fn},
};
use tokio::sync::{mpsc, oneshot};
use tonic::{Status, Streaming, body::Body, codec::EnabledCompressionEncodings, server::Grpc};
use tonic_prost::ProstCodec;

pub(crate) use health::Health;
pub use health::report;

use self::answers::Answers;
use super::{
    phases::Phases,
    thread::{Stay, ThreadContext},
};
use crate::limits;

/// The method that Envoy calls.
const PROCESS: &str = "/envoy.service.ext_proc.v3.ExternalProcessor/Process";

/// Serves the streams of one connection of Envoy's.
pub(super) fn service(
    context: &Rc<ThreadContext>,
    peer: SocketAddr,
    is_tls: bool,
    phases: &Rc<Phases>,
) -> impl Service<
    Request<Incoming>,
    Response = Response<Body>,
    Error = Infallible,
    Future = impl Future<Output = Result<Response<Body>, Infallible>> + use<>,
> + use<> {
    let (context, phases) = (context.clone(), phases.clone());
    service_fn(move |request: Request<Incoming>| {
        let serving = phases.serve();
        let context = context.clone();
        Box::pin(async move {
            match request.uri().path() {
                PROCESS => {
                    let (response, call) = accept(&context, request).await;
                    if let Some((inbound, answers)) = call {
                        let stay = Stay::on(&context);
                        tokio::task::spawn_local(async move {
                            let _alive = (serving, stay);
                            exchange::run(&context, peer, is_tls, inbound, answers).await;
                        });
                    }
                    Ok(response)
                }
                path if health::serves(path) => Ok(context.shared.picker_health.answer(request).await),
                path => {
                    Ok(Status::unimplemented(format!("{path}: this is an Envoy external processor"))
                        .into_http())
                }
            }
        })
    })
}

type Call = (Streaming<ProcessingRequest>, Answers);

/// Takes a call of [`PROCESS`]: its response, and the streams of it if it is one.
async fn accept(context: &ThreadContext, request: Request<Incoming>) -> (Response<Body>, Option<Call>) {
    let (give, taken) = oneshot::channel();
    let (answers, outbound) = mpsc::channel(limits::EPP_ANSWERS_WAITING);
    let codec = ProstCodec::<ProcessingResponse, ProcessingRequest>::default();
    // A buffered body comes in one message.
    let bytes_max = context.config().limits.body_bytes.saturating_add(limits::HEAD_BYTES_MAX);
    let mut grpc = Grpc::new(codec)
        .apply_compression_config(
            EnabledCompressionEncodings::default(),
            EnabledCompressionEncodings::default(),
        )
        .apply_max_message_size_config(Some(bytes_max), None);
    let response = grpc.streaming(Taker { give: Some(give), outbound: Some(outbound) }, request).await;
    let call = taken.await.ok().map(|inbound| (inbound, Answers::new(answers)));
    (response, call)
}

/// Takes the streams of a call away from tonic, whose handlers may move between threads and this one's may not.
struct Taker {
    give: Option<oneshot::Sender<Streaming<ProcessingRequest>>>,
    outbound: Option<mpsc::Receiver<Result<ProcessingResponse, Status>>>,
}

type Outbound = stream::BoxStream<'static, Result<ProcessingResponse, Status>>;

impl tonic::server::StreamingService<ProcessingRequest> for Taker {
    type Response = ProcessingResponse;
    type ResponseStream = Outbound;
    type Future = future::Ready<Result<tonic::Response<Outbound>, Status>>;

    fn call(&mut self, request: tonic::Request<Streaming<ProcessingRequest>>) -> Self::Future {
        let (Some(give), Some(mut outbound)) = (self.give.take(), self.outbound.take()) else {
            return future::ready(Err(Status::internal("a call is taken once")));
        };
        let _ = give.send(request.into_inner()); // who waits for it has called this
        let outbound: Outbound = Box::pin(stream::poll_fn(move |cx| outbound.poll_recv(cx)));
        future::ready(Ok(tonic::Response::new(outbound)))
    }
}
