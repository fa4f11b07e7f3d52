//! One HTTP request of Envoy's: the messages of its call, in the order in which they may come.
//!
//! ```text
//! request head → (request body …) → (trailers) → told where to go, and the body back
//! response head → response body …→ (trailers)    the account ends with them
//! ```
//!
//! A call that ends before its response has is a client that left: everything is counted in guards that go with this.

use std::{net::SocketAddr, rc::Rc};

use bytes::{Bytes, BytesMut};
use envoy_types::pb::envoy::{
    extensions::filters::http::ext_proc::v3::processing_mode::BodySendMode,
    service::ext_proc::v3::{
        HttpBody, HttpHeaders, ProcessingRequest, processing_request::Request as Message,
    },
};
use http::Response;
use http_body_util::BodyExt as _;
use tonic::Streaming;

use super::{
    answers::{Answers, Gone, HeadEdit},
    asked::{self, Modes},
    picking::{Asking, Picked},
};
use crate::{
    fleet::Flight,
    gateway::{
        GatewayError,
        account::Attempt,
        bodies::{Collected, Held},
        ending::Ending,
        identify::set_standings,
        request,
        route::Route,
        snapshot::Snapshot,
        thread::ThreadContext,
    },
    upstream,
};

/// Follows one call to its end.
pub(super) async fn run(
    context: &Rc<ThreadContext>,
    peer: SocketAddr,
    is_tls: bool,
    mut inbound: Streaming<ProcessingRequest>,
    answers: Answers,
) {
    let mut exchange = Exchange {
        context,
        config: context.config(),
        peer,
        is_tls,
        modes: Modes::of(None),
        among: None,
        state: State::Begins,
    };
    loop {
        let message = tokio::select! {
            biased;
            () = answers.gone() => return,
            message = inbound.message() => message,
        };
        let message = match message {
            Ok(Some(message)) => message,
            Ok(None) => return exchange.call_ended(),
            Err(status) => return tracing::debug!(%status, "a call of Envoy's broke off"),
        };
        let went_on = tokio::select! {
            biased;
            () = answers.gone() => return,
            went_on = exchange.take(message, &answers) => went_on,
        };
        if went_on.is_err() {
            return;
        }
    }
}

struct Exchange<'a> {
    context: &'a Rc<ThreadContext>,
    config: Rc<Snapshot>,
    peer: SocketAddr,
    is_tls: bool,
    modes: Modes,
    among: Option<Vec<SocketAddr>>,
    state: State,
}

enum State {
    /// Nothing has come.
    Begins,
    /// The body comes.
    Asks { asking: Box<Asking>, body: BytesMut, held: Held },
    /// It was told where to go.
    Goes(Box<Picked>),
    /// The response has ended, or Envoy was told one.
    Over,
}

/// What may follow a request's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Follows {
    Nothing,
    Trailers,
    /// There is no body either.
    NotEvenABody,
}

impl Exchange<'_> {
    async fn take(&mut self, message: ProcessingRequest, answers: &Answers) -> Result<(), Gone> {
        if matches!(self.state, State::Begins) {
            self.modes = Modes::of(message.protocol_config.as_ref());
            self.among = asked::subset(&message);
        }
        let served = asked::served(&message);
        match message.request {
            Some(Message::RequestHeaders(head)) => self.request_head(&head, answers).await,
            Some(Message::RequestBody(piece)) => self.request_body(piece, answers).await,
            Some(Message::RequestTrailers(_)) => match self.state {
                State::Asks { .. } => self.pick(Follows::Trailers, answers).await,
                _ => answers.request_trailers().await,
            },
            Some(Message::ResponseHeaders(head)) => self.response_head(&head, served, answers).await,
            Some(Message::ResponseBody(piece)) => self.response_body(piece, answers).await,
            Some(Message::ResponseTrailers(_)) => {
                self.response_ended();
                answers.response_trailers().await
            }
            None => Ok(()),
        }
    }

    async fn request_head(&mut self, head: &HttpHeaders, answers: &Answers) -> Result<(), Gone> {
        let Some(parts) = asked::head(head) else {
            self.state = State::Over;
            let error = GatewayError::Malformed("Envoy's head of the request has no method or path");
            return answers.instead(whole(&error, Route::Other), error.kind()).await;
        };
        let whom = (self.peer, self.is_tls);
        let (asking, admitted) =
            Asking::begin(self.context, &self.config, whom, parts, self.among.as_deref());
        if let Err(error) = admitted {
            return self.refuse(asking, &error, answers).await;
        }
        if !head.end_of_stream && !self.modes.reads_requests() {
            let error = GatewayError::BodyMode;
            return self.refuse(asking, &error, answers).await;
        }
        let held = Held::new(&self.context.shared.bodies);
        self.state = State::Asks { asking: Box::new(asking), body: BytesMut::new(), held };
        if head.end_of_stream {
            return self.pick(Follows::NotEvenABody, answers).await;
        }
        if self.modes.request == BodySendMode::Buffered {
            return answers.request_head().await; // the body comes after that
        }
        Ok(())
    }

    async fn request_body(&mut self, piece: HttpBody, answers: &Answers) -> Result<(), Gone> {
        let State::Asks { body, held, .. } = &mut self.state else { return Ok(()) };
        let limits = &self.config.limits;
        let bytes = body.len() + piece.body.len();
        let error = if bytes > limits.body_bytes {
            Some(GatewayError::BodyTooLarge { limit: limits.body_bytes })
        } else if held.grow_to(bytes, limits.bodies_bytes) {
            None
        } else {
            Some(GatewayError::BodiesTooLarge { limit: limits.bodies_bytes })
        };
        if let Some(error) = error {
            let State::Asks { asking, .. } = std::mem::replace(&mut self.state, State::Over) else {
                return Ok(());
            };
            return self.refuse(*asking, &error, answers).await;
        }
        body.extend_from_slice(&piece.body);
        if piece.end_of_stream {
            return self.pick(Follows::Nothing, answers).await;
        }
        Ok(())
    }

    /// All of the request is here.
    async fn pick(&mut self, follows: Follows, answers: &Answers) -> Result<(), Gone> {
        let State::Asks { asking, body, held } = std::mem::replace(&mut self.state, State::Over) else {
            return Ok(());
        };
        let body = Collected { bytes: body.freeze(), held };
        let mut picked = match asking.pick(self.context, &self.config, body).await {
            Ok(picked) => picked,
            Err((asking, error)) => return self.refuse(asking, &error, answers).await,
        };
        let (head, body) = (picked.head.take().unwrap_or_default(), std::mem::take(&mut picked.body));
        let (endpoints, is_edited) = (picked.endpoints.clone(), picked.is_edited);
        self.state = State::Goes(Box::new(picked));
        if self.modes.request == BodySendMode::Buffered && follows == Follows::Nothing {
            return answers.destination_with_body(&endpoints, head, is_edited.then_some(body)).await;
        }
        answers.destination(&endpoints, head).await?;
        if follows == Follows::NotEvenABody {
            return Ok(());
        }
        answers.request_body(&body, follows == Follows::Nothing).await?;
        if follows == Follows::Trailers { answers.request_trailers().await } else { Ok(()) }
    }

    async fn refuse(
        &mut self,
        mut asking: Asking,
        error: &GatewayError,
        answers: &Answers,
    ) -> Result<(), Gone> {
        self.state = State::Over;
        request::not_served(self.context, error, &asking.request_id, &mut asking.account);
        answers.instead(whole(error, asking.route), error.kind()).await
    }

    async fn response_head(
        &mut self,
        head: &HttpHeaders,
        served: Option<SocketAddr>,
        answers: &Answers,
    ) -> Result<(), Gone> {
        let State::Goes(picked) = &mut self.state else {
            return answers.response_head(HeadEdit::default()).await;
        };
        if let Some(served) = served {
            picked.was_served_by(self.context, served);
        }
        let (status, fields) = asked::response_head(head);
        let Picked { attempt, account, .. } = &mut **picked;
        attempt.responded(status);
        let is_event_stream = upstream::is_event_stream(&fields);
        attempt.follow(self.peer, 0, is_event_stream);
        let flow = attempt.flow().filter(|_| is_event_stream).cloned();
        account.responding(status, flow, attempt.is_recorded());
        picked.status = Some(status);
        picked.ending =
            (is_event_stream && status.is_success()).then(|| Ending::of(picked.account.route())).flatten();
        let mut edit = HeadEdit::default();
        edit.set.extend(picked.told());
        set_standings(&mut edit.set, picked.tenant.standings(std::time::Instant::now()));
        std::mem::take(&mut picked.shaped).tell(&mut edit.set);
        if head.end_of_stream {
            self.response_ended();
        }
        answers.response_head(edit).await
    }

    async fn response_body(&mut self, piece: HttpBody, answers: &Answers) -> Result<(), Gone> {
        let HttpBody { body, end_of_stream, .. } = piece;
        if let State::Goes(picked) = &mut self.state
            && !body.is_empty()
        {
            picked.attempt.body_data(&body);
            picked.account.body_data(&body);
            if let Some(ending) = &mut picked.ending {
                ending.push(&body);
                if ending.has_failed() {
                    picked.attempt.fail("error_event");
                }
            }
        }
        if end_of_stream {
            self.response_ended();
        }
        answers.response_body(self.modes.response, body, end_of_stream).await
    }

    /// The whole response has been seen.
    fn response_ended(&mut self) {
        let State::Goes(picked) = &mut self.state else { return };
        let Some(status) = picked.status else { return };
        if picked.ending.as_ref().is_some_and(Ending::is_unfinished) {
            picked.attempt.fail("unfinished_stream");
        }
        picked.attempt.complete(status);
        picked.attempt.used(picked.account.usage());
        picked.account.answered(status);
        self.state = State::Over;
    }

    /// Envoy has no more to say. Where it does not show bodies, that is the response's end, as far as this process sees it.
    fn call_ended(&mut self) {
        if self.modes.response == BodySendMode::None {
            self.response_ended();
        }
    }
}

impl Picked {
    /// Envoy has gone down the list: the first one could not be had, and another one has answered.
    fn was_served_by(&mut self, context: &Rc<ThreadContext>, served: SocketAddr) {
        if self.attempt.worker().address() == Some(served) {
            return;
        }
        let shared = &context.shared;
        let workers = shared.fleet.workers();
        let Some(worker) = workers.iter().find(|worker| worker.address() == Some(served)) else { return };
        self.attempt.fail("unreachable");
        let flight = Flight::begin(worker.clone(), u64::from(self.decision.new_tokens));
        self.attempt =
            Attempt::new(shared.clone(), flight, None, self.model.clone(), None, None, &context.cuts);
    }
}

/// An error in the form of the API, as a body.
fn whole(error: &GatewayError, route: Route) -> Response<Bytes> {
    let (parts, body) = error.response(route).into_parts();
    let bytes = futures_util::FutureExt::now_or_never(body.collect());
    let bytes = bytes.and_then(Result::ok).map(http_body_util::Collected::to_bytes).unwrap_or_default();
    Response::from_parts(parts, bytes)
}
