//! A name in the DNS: SRV records (RFC 2782), or A and AAAA records with a port that is configured.
//!
//! Of SRV records, those with the lowest priority are taken, and weights are left alone: how much a worker gets, its load
//! decides. Records are asked for again when their time to live is over, at most after `interval`. "No such name" and "no
//! such records" are an answer, without workers; anything else that goes wrong is none, even if it goes wrong for one of many
//! targets only.

use std::{net::IpAddr, time::Duration};

use futures_util::{StreamExt, TryStreamExt, stream};
use hickory_resolver::{
    TokioResolver,
    config::{LookupIpStrategy, NameServerConfig, ResolverConfig},
    net::{NetError, runtime::TokioRuntimeProvider},
    proto::rr::{Name, RData, Record, RecordType},
};
use tokio::time::sleep;

use super::{Found, Readiness, teller::Teller};
use crate::{
    config::DnsSource,
    limits::{DISCOVERED_MAX, DISCOVERY_DNS_INTERVAL_MIN},
};

/// Targets of SRV records that are asked for at the same time.
const AT_ONCE: usize = 16;
/// For one question, and for each of two further tries.
const TIMEOUT: Duration = Duration::from_secs(2);

/// A worker's place.
type Place = (IpAddr, u16);

/// Tells which workers the name has, for ever.
pub(super) async fn follow(source: DnsSource, teller: Teller) {
    loop {
        let pause = match ask(&source).await {
            Ok((places, time_to_live)) => {
                // That there is nobody has no time to live here: it is rarely meant.
                let time_to_live = if places.is_empty() { Duration::ZERO } else { time_to_live };
                teller.answer(found(&source, places)).await;
                time_to_live.clamp(DISCOVERY_DNS_INTERVAL_MIN, source.interval)
            }
            Err(error) => {
                teller.fail(error).await;
                DISCOVERY_DNS_INTERVAL_MIN
            }
        };
        sleep(pause).await;
    }
}

fn found(source: &DnsSource, places: Vec<Place>) -> Vec<Found> {
    let worker = |(address, port): Place| source.worker.at(&address.to_string(), port, None, None);
    places.into_iter().map(|place| Found { worker: worker(place), readiness: Readiness::Ready }).collect()
}

/// One question, and those that follow from it: the places, and how long they hold. A resolver of its own reads
/// `/etc/resolv.conf` anew, and keeps no answers.
async fn ask(source: &DnsSource) -> Result<(Vec<Place>, Duration), NetError> {
    let resolver = resolver(source)?;
    match source.port {
        Some(port) => {
            let (addresses, time_to_live) = addresses(&resolver, &source.name).await?;
            Ok((addresses.into_iter().map(|address| (address, port)).collect(), time_to_live))
        }
        None => targets(&resolver, &source.name).await,
    }
}

fn resolver(source: &DnsSource) -> Result<TokioResolver, NetError> {
    let mut builder = if source.servers.is_empty() {
        TokioResolver::builder_tokio()?
    } else {
        let server = |address: &std::net::SocketAddr| {
            let mut server = NameServerConfig::udp_and_tcp(address.ip());
            for connection in &mut server.connections {
                connection.port = address.port();
            }
            server
        };
        let servers = source.servers.iter().map(server).collect();
        let config = ResolverConfig::from_parts(None, Vec::new(), servers);
        TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
    };
    let options = builder.options_mut();
    options.cache_size = 0;
    options.timeout = TIMEOUT;
    options.ip_strategy = LookupIpStrategy::Ipv4thenIpv6; // a host that has both is one worker
    builder.build()
}

async fn targets(resolver: &TokioResolver, name: &str) -> Result<(Vec<Place>, Duration), NetError> {
    let Some(lookup) = unless_none(resolver.lookup(name, RecordType::SRV).await)? else {
        return Ok((Vec::new(), Duration::MAX));
    };
    let service = |record: &Record| match &record.data {
        RData::SRV(service) => Some((service.priority, service.port, service.target.clone())),
        _ => None,
    };
    let services: Vec<(u16, u16, Name)> = lookup.answers().iter().filter_map(service).collect();
    let first = services.iter().map(|(priority, ..)| *priority).min();
    let services =
        services.into_iter().filter(|(priority, ..)| Some(*priority) == first).take(DISCOVERED_MAX);
    let places = stream::iter(services).map(|(_, port, target)| async move {
        let (addresses, time_to_live) = addresses(resolver, &target.to_utf8()).await?;
        let places: Vec<Place> = addresses.into_iter().map(|address| (address, port)).collect();
        Ok::<_, NetError>((places, time_to_live))
    });
    let answers: Vec<_> = places.buffer_unordered(AT_ONCE).try_collect().await?;
    let shortest = answers.iter().map(|(_, time_to_live)| *time_to_live).min();
    let time_to_live = time_to_live(lookup.answers()).min(shortest.unwrap_or(Duration::MAX));
    Ok((answers.into_iter().flat_map(|(places, _)| places).collect(), time_to_live))
}

async fn addresses(resolver: &TokioResolver, name: &str) -> Result<(Vec<IpAddr>, Duration), NetError> {
    let Some(lookup) = unless_none(resolver.lookup_ip(name).await)? else {
        return Ok((Vec::new(), Duration::MAX));
    };
    Ok((lookup.iter().collect(), time_to_live(lookup.as_lookup().answers())))
}

fn time_to_live(records: &[Record]) -> Duration {
    records.iter().map(|record| Duration::from_secs(record.ttl.into())).min().unwrap_or(Duration::MAX)
}

/// That there is nothing is an answer.
fn unless_none<T>(answer: Result<T, NetError>) -> Result<Option<T>, NetError> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if error.is_no_records_found() => Ok(None),
        Err(error) => Err(error),
    }
}
