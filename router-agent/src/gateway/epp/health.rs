//! `grpc.health.v1.Health`, with the services of the endpoint picker protocol: `liveness`, `readiness`, and the external
//! processor itself. Ready is who takes requests: not one that drains, or whose successor does.

use http::{Request, Response};
use hyper::body::Incoming;
use tokio::sync::watch;
use tonic::{body::Body, codegen::Service as _};
use tonic_health::{
    ServingStatus,
    pb::health_server::HealthServer,
    server::{HealthReporter, HealthService},
};

use crate::gateway::{Phase, Shared};

const LIVENESS: &str = "liveness";
/// Both by the same measure; and the one without a name, for who asks for nothing in particular.
const READINESS: [&str; 3] = ["readiness", "envoy.service.ext_proc.v3.ExternalProcessor", ""];

/// The health service, and what it says.
pub(crate) struct Health {
    reporter: HealthReporter,
    service: HealthServer<HealthService>,
}

impl Default for Health {
    fn default() -> Self {
        let reporter = HealthReporter::new();
        let service = HealthServer::new(HealthService::from_health_reporter(reporter.clone()));
        Self { reporter, service }
    }
}

/// Whether a call is for this service.
pub(super) fn serves(path: &str) -> bool {
    path.starts_with("/grpc.health.v1.Health/")
}

impl Health {
    pub(super) async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let answered = self.service.clone().call(request).await;
        answered.unwrap_or_else(|never| match never {})
    }
}

/// Says how this process does, for as long as it runs.
pub async fn report(shared: std::sync::Arc<Shared>, mut phase: watch::Receiver<Phase>) {
    let reporter = &shared.picker_health.reporter;
    reporter.set_service_status(LIVENESS, ServingStatus::Serving).await;
    loop {
        let is_ready = *phase.borrow_and_update() == Phase::Serve;
        let status = if is_ready { ServingStatus::Serving } else { ServingStatus::NotServing };
        for name in READINESS {
            reporter.set_service_status(name, status).await;
        }
        if phase.changed().await.is_err() {
            return;
        }
    }
}
