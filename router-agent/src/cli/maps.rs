#[derive(Debug, clap::Args)]
pub struct MapsArgs {}
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct MapsError;
pub(super) fn run(_: &MapsArgs) -> Result<(), MapsError> {
    Err(MapsError)
}
