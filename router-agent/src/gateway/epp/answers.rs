//! What Envoy is told: one message after the other, as it reads them.

use bytes::Bytes;
use envoy_types::pb::{
    envoy::{
        config::core::v3::{
            HeaderValue as EnvoyHeader, HeaderValueOption, header_value_option::HeaderAppendAction,
        },
        extensions::filters::http::ext_proc::v3::processing_mode::BodySendMode,
        service::ext_proc::v3::{
            BodyMutation, BodyResponse, CommonResponse, HeaderMutation, HeadersResponse, ImmediateResponse,
            ProcessingResponse, StreamedBodyResponse, TrailersResponse, body_mutation::Mutation,
            processing_response::Response as Answer,
        },
        r#type::v3::HttpStatus,
    },
    google::protobuf::{Struct, Value, value::Kind},
};
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use tokio::sync::mpsc;
use tonic::Status;

use crate::limits;

/// The header, and the name within the metadata, that name the endpoints.
pub(super) const DESTINATION: HeaderName = HeaderName::from_static("x-gateway-destination-endpoint");
/// The metadata's namespace.
const NAMESPACE: &str = "envoy.lb";

/// Envoy does not read any more.
#[derive(Debug)]
pub(super) struct Gone;

/// The way to Envoy.
pub(super) struct Answers(mpsc::Sender<Result<ProcessingResponse, Status>>);

/// Fields that a head gets, and those that it loses.
#[derive(Debug, Default)]
pub(super) struct HeadEdit {
    pub(super) set: HeaderMap,
    pub(super) removed: Vec<HeaderName>,
}

impl Answers {
    pub(super) fn new(messages: mpsc::Sender<Result<ProcessingResponse, Status>>) -> Self {
        Self(messages)
    }

    /// Completes when Envoy has ended the call.
    pub(super) async fn gone(&self) {
        self.0.closed().await;
    }

    async fn send(&self, answer: Answer, metadata: Option<Struct>) -> Result<(), Gone> {
        let message = ProcessingResponse {
            response: Some(answer),
            dynamic_metadata: metadata,
            ..ProcessingResponse::default()
        };
        self.0.send(Ok(message)).await.map_err(|_| Gone)
    }

    /// The request's head goes on as it is.
    pub(super) async fn request_head(&self) -> Result<(), Gone> {
        self.send(Answer::RequestHeaders(HeadersResponse::default()), None).await
    }

    /// The request's head goes to these endpoints.
    pub(super) async fn destination(&self, endpoints: &str, head: HeadEdit) -> Result<(), Gone> {
        let response = Some(CommonResponse {
            header_mutation: Some(head.into()),
            clear_route_cache: true,
            ..CommonResponse::default()
        });
        self.send(Answer::RequestHeaders(HeadersResponse { response }), Some(metadata(endpoints))).await
    }

    /// As [`Answers::destination`], with a body that was buffered; `body`: another one.
    pub(super) async fn destination_with_body(
        &self,
        endpoints: &str,
        head: HeadEdit,
        body: Option<Bytes>,
    ) -> Result<(), Gone> {
        let response = Some(CommonResponse {
            header_mutation: Some(head.into()),
            body_mutation: body.map(|body| BodyMutation { mutation: Some(Mutation::Body(body.into())) }),
            clear_route_cache: true,
            ..CommonResponse::default()
        });
        self.send(Answer::RequestBody(BodyResponse { response }), Some(metadata(endpoints))).await
    }

    /// The request's body in pieces; `is_end`: no trailers follow.
    pub(super) async fn request_body(&self, body: &Bytes, is_end: bool) -> Result<(), Gone> {
        let mut rest = body.clone();
        loop {
            let piece = rest.split_to(rest.len().min(limits::EPP_CHUNK_BYTES));
            let is_last = rest.is_empty();
            self.send(Answer::RequestBody(streamed(piece.into(), is_last && is_end)), None).await?;
            if is_last {
                return Ok(());
            }
        }
    }

    pub(super) async fn request_trailers(&self) -> Result<(), Gone> {
        self.send(Answer::RequestTrailers(TrailersResponse::default()), None).await
    }

    pub(super) async fn response_head(&self, head: HeadEdit) -> Result<(), Gone> {
        let response =
            Some(CommonResponse { header_mutation: Some(head.into()), ..CommonResponse::default() });
        self.send(Answer::ResponseHeaders(HeadersResponse { response }), None).await
    }

    /// A piece of the response's body goes on; where Envoy keeps none of it, it is sent back.
    pub(super) async fn response_body(
        &self,
        mode: BodySendMode,
        piece: Vec<u8>,
        is_end: bool,
    ) -> Result<(), Gone> {
        let response = match mode {
            BodySendMode::FullDuplexStreamed => streamed(piece, is_end),
            _ => BodyResponse::default(),
        };
        self.send(Answer::ResponseBody(response), None).await
    }

    pub(super) async fn response_trailers(&self) -> Result<(), Gone> {
        self.send(Answer::ResponseTrailers(TrailersResponse::default()), None).await
    }

    /// The client is answered at once.
    pub(super) async fn instead(&self, response: Response<Bytes>, details: &str) -> Result<(), Gone> {
        let (parts, body) = response.into_parts();
        let headers = HeadEdit { set: parts.headers, removed: Vec::new() };
        let immediate = ImmediateResponse {
            status: Some(HttpStatus { code: parts.status.as_u16().into() }),
            headers: Some(headers.into()),
            body: body.into(),
            details: details.to_owned(),
            ..ImmediateResponse::default()
        };
        self.send(Answer::ImmediateResponse(immediate), None).await
    }
}

fn streamed(body: Vec<u8>, end_of_stream: bool) -> BodyResponse {
    let streamed = StreamedBodyResponse { body, end_of_stream, ..StreamedBodyResponse::default() };
    let body_mutation = Some(BodyMutation { mutation: Some(Mutation::StreamedResponse(streamed)) });
    BodyResponse { response: Some(CommonResponse { body_mutation, ..CommonResponse::default() }) }
}

/// The endpoints where Envoy's load balancers look for them.
fn metadata(endpoints: &str) -> Struct {
    let value = |kind| Value { kind: Some(kind) };
    let inner =
        Struct { fields: [(DESTINATION.to_string(), value(Kind::StringValue(endpoints.to_owned())))].into() };
    Struct { fields: [(NAMESPACE.to_owned(), value(Kind::StructValue(inner)))].into() }
}

impl From<HeadEdit> for HeaderMutation {
    fn from(HeadEdit { set, removed }: HeadEdit) -> Self {
        let option = |(name, value): (&HeaderName, &HeaderValue)| HeaderValueOption {
            header: Some(EnvoyHeader {
                key: name.to_string(),
                raw_value: value.as_bytes().to_vec(),
                ..EnvoyHeader::default()
            }),
            append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
            ..HeaderValueOption::default()
        };
        Self {
            set_headers: set.iter().map(option).collect(),
            remove_headers: removed.iter().map(HeaderName::to_string).collect(),
        }
    }
}
