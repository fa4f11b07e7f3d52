//! One call of Envoy's to an external processor, message by message.

use std::collections::BTreeMap;

use envoy_types::pb::{
    envoy::{
        config::core::v3::{HeaderMap, HeaderValue, Metadata},
        extensions::filters::http::ext_proc::v3::processing_mode::BodySendMode,
        service::ext_proc::v3::{
            HeaderMutation, HttpBody, HttpHeaders, ProcessingRequest, ProcessingResponse,
            ProtocolConfiguration, body_mutation::Mutation,
            external_processor_client::ExternalProcessorClient, processing_request::Request,
            processing_response::Response,
        },
    },
    google::protobuf::{ListValue, Struct, Value as ProtoValue, value::Kind},
};
use futures_util::stream;
use serde_json::Value;
use tokio::sync::mpsc;
use tonic::{Streaming, transport::Channel};
use warmpath_tests::{Gateway, PATIENCE};

/// Modes of bodies.
pub(super) mod mode {
    use super::BodySendMode;

    pub(crate) const FULL_DUPLEX: BodySendMode = BodySendMode::FullDuplexStreamed;
    pub(crate) const BUFFERED: BodySendMode = BodySendMode::Buffered;
    pub(crate) const NONE: BodySendMode = BodySendMode::None;
}

/// Fields by their names.
pub(super) type Fields = BTreeMap<String, String>;

/// Where a request is told to go.
#[derive(Debug)]
pub(super) struct Destination {
    pub(super) endpoints: String,
    pub(super) metadata: String,
    pub(super) head: Fields,
}

/// What becomes of a request.
#[derive(Debug)]
pub(super) enum Told {
    Destination(Destination),
    /// Its client is answered at once.
    Instead {
        status: i32,
        body: Value,
    },
}

/// See the module.
pub(super) struct Call {
    send: mpsc::UnboundedSender<ProcessingRequest>,
    answers: Streaming<ProcessingResponse>,
    /// Of the first message.
    mode: Option<BodySendMode>,
    subset: Option<Vec<String>>,
}

/// A connection to a picker.
pub(super) async fn channel(picker: &Gateway) -> Channel {
    let endpoint = Channel::from_shared(format!("http://{}", picker.address)).unwrap();
    endpoint.connect().await.unwrap()
}

/// A head with these fields.
pub(super) fn head(fields: &[(&str, &str)], end_of_stream: bool) -> HttpHeaders {
    let field = |(key, value): &(&str, &str)| HeaderValue {
        key: (*key).to_owned(),
        raw_value: value.as_bytes().to_vec(),
        ..HeaderValue::default()
    };
    let headers = Some(HeaderMap { headers: fields.iter().map(field).collect() });
    HttpHeaders { headers, end_of_stream, ..HttpHeaders::default() }
}

fn text(text: &str) -> ProtoValue {
    ProtoValue { kind: Some(Kind::StringValue(text.to_owned())) }
}

fn metadata(namespace: &str, name: &str, value: ProtoValue) -> Metadata {
    let inner = Struct { fields: [(name.to_owned(), value)].into() };
    Metadata { filter_metadata: [(namespace.to_owned(), inner)].into(), ..Metadata::default() }
}

fn fields(mutation: Option<HeaderMutation>) -> Fields {
    let set = mutation.unwrap_or_default().set_headers.into_iter().filter_map(|option| option.header);
    set.map(|field| (field.key, String::from_utf8(field.raw_value).unwrap())).collect()
}

impl Call {
    pub(super) async fn begin(picker: &Gateway, mode: BodySendMode) -> Self {
        Self::over(channel(picker).await, mode).await
    }

    pub(super) async fn over(channel: Channel, mode: BodySendMode) -> Self {
        let (send, mut messages) = mpsc::unbounded_channel();
        let outbound = stream::poll_fn(move |cx| messages.poll_recv(cx));
        let answers = ExternalProcessorClient::new(channel).process(outbound).await.unwrap().into_inner();
        Self { send, answers, mode: Some(mode), subset: None }
    }

    /// Workers that the request may go to.
    pub(super) fn subset(&mut self, addresses: &[&str]) {
        self.subset = Some(addresses.iter().map(|address| (*address).to_owned()).collect());
    }

    fn message(&mut self, request: Request, metadata_context: Option<Metadata>) {
        let protocol_config = self.mode.take().map(|mode| ProtocolConfiguration {
            request_body_mode: mode.into(),
            response_body_mode: mode.into(),
            ..ProtocolConfiguration::default()
        });
        let message = ProcessingRequest {
            request: Some(request),
            metadata_context,
            protocol_config,
            ..ProcessingRequest::default()
        };
        self.send.send(message).unwrap();
    }

    pub(super) fn request_head(&mut self, method: &str, path: &str, more: &[(&str, &str)], is_end: bool) {
        let pseudo =
            [(":method", method), (":path", path), (":authority", "model.example"), (":scheme", "http")];
        let subset = self.subset.take().map(|addresses| {
            let values = addresses.iter().map(|address| text(address)).collect();
            let list = ProtoValue { kind: Some(Kind::ListValue(ListValue { values })) };
            metadata("envoy.lb.subset_hint", "x-gateway-destination-endpoint-subset", list)
        });
        self.message(Request::RequestHeaders(head(&[&pseudo, more].concat(), is_end)), subset);
    }

    pub(super) fn request_body(&mut self, piece: &[u8], end_of_stream: bool) {
        let body = HttpBody { body: piece.to_vec(), end_of_stream, ..HttpBody::default() };
        self.message(Request::RequestBody(body), None);
    }

    /// A chat, whole.
    pub(super) fn request(&mut self, body: &str) {
        self.request_head("POST", "/v1/chat/completions", &[("content-type", "application/json")], false);
        self.request_body(body.as_bytes(), true);
    }

    async fn answer(&mut self) -> ProcessingResponse {
        let answer = tokio::time::timeout(PATIENCE, self.answers.message()).await.expect("it answers");
        answer.expect("the call goes on").expect("there is more")
    }

    /// The head goes on, and nothing is said of where to.
    pub(super) async fn goes_on(&mut self) {
        let answer = self.answer().await;
        let Some(Response::RequestHeaders(head)) = answer.response else { panic!("{answer:?}") };
        assert!(head.response.is_none() && answer.dynamic_metadata.is_none());
    }

    pub(super) async fn told(&mut self) -> Told {
        let answer = self.answer().await;
        let common = match answer.response {
            Some(Response::RequestHeaders(head)) => head.response,
            Some(Response::RequestBody(body)) => body.response,
            Some(Response::ImmediateResponse(instead)) => {
                let body = serde_json::from_slice(&instead.body).unwrap();
                return Told::Instead { status: instead.status.unwrap().code, body };
            }
            other => panic!("{other:?}"),
        };
        let head = fields(common.unwrap().header_mutation);
        let namespace = answer.dynamic_metadata.unwrap().fields.remove("envoy.lb").unwrap();
        let Some(Kind::StructValue(mut inner)) = namespace.kind else { panic!("no struct") };
        let Some(Kind::StringValue(metadata)) =
            inner.fields.remove("x-gateway-destination-endpoint").unwrap().kind
        else {
            panic!("no text")
        };
        let endpoints = head["x-gateway-destination-endpoint"].clone();
        Told::Destination(Destination { endpoints, metadata, head })
    }

    pub(super) async fn destination(&mut self) -> Destination {
        match self.told().await {
            Told::Destination(destination) => destination,
            told @ Told::Instead { .. } => panic!("{told:?}"),
        }
    }

    /// The request's body as it goes to the worker.
    pub(super) async fn request_body_back(&mut self) -> Vec<u8> {
        let mut whole = Vec::new();
        loop {
            let answer = self.answer().await;
            let Some(Response::RequestBody(body)) = answer.response else { panic!("{answer:?}") };
            let Some(Mutation::StreamedResponse(piece)) =
                body.response.unwrap().body_mutation.unwrap().mutation
            else {
                panic!("it is to be streamed")
            };
            assert!(piece.body.len() <= 64 * 1024, "Envoy takes no more at once");
            whole.extend(piece.body);
            if piece.end_of_stream {
                return whole;
            }
        }
    }

    /// The response's head, and what is set in it.
    pub(super) async fn response_head(
        &mut self,
        status: &str,
        more: &[(&str, &str)],
        served: Option<&str>,
        is_end: bool,
    ) -> Fields {
        let head = head(&[&[(":status", status)], more].concat(), is_end);
        let served =
            served.map(|served| metadata("envoy.lb", "x-gateway-destination-endpoint-served", text(served)));
        self.message(Request::ResponseHeaders(head), served);
        let answer = self.answer().await;
        let Some(Response::ResponseHeaders(head)) = answer.response else { panic!("{answer:?}") };
        fields(head.response.unwrap().header_mutation)
    }

    /// A piece of the response's body, as the client gets it.
    pub(super) async fn response_body(&mut self, piece: &[u8], end_of_stream: bool) -> Vec<u8> {
        let body = HttpBody { body: piece.to_vec(), end_of_stream, ..HttpBody::default() };
        self.message(Request::ResponseBody(body), None);
        let answer = self.answer().await;
        let Some(Response::ResponseBody(body)) = answer.response else { panic!("{answer:?}") };
        let Some(Mutation::StreamedResponse(piece)) = body.response.unwrap().body_mutation.unwrap().mutation
        else {
            panic!("it is to be streamed")
        };
        assert_eq!(piece.end_of_stream, end_of_stream);
        piece.body
    }

    /// Envoy has nothing more to say.
    pub(super) async fn end(mut self) {
        drop(self.send);
        let end = tokio::time::timeout(PATIENCE, self.answers.message()).await.expect("it ends");
        assert!(end.expect("well").is_none());
    }
}
