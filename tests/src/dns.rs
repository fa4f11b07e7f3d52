//! A DNS server on loopback that says what a test wants, over UDP.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata::SRV},
};
use tokio::{net::UdpSocket, task::AbortHandle};

/// Time to live of its records, seconds: the shortest that a gateway looks at.
const TIME_TO_LIVE_S: u32 = 1;

/// See the module. Ends when dropped.
#[derive(Debug)]
pub struct DnsServer {
    /// Where it listens.
    pub address: SocketAddr,
    zone: Arc<Mutex<Zone>>,
    task: AbortHandle,
}

#[derive(Debug, Default)]
struct Zone {
    records: BTreeMap<(String, RecordType), Vec<RData>>,
    /// What is answered instead.
    fails_with: Option<ResponseCode>,
    is_silent: bool,
}

impl DnsServer {
    /// Without a record.
    pub async fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("loopback has ports");
        let address = socket.local_addr().expect("it is bound");
        let zone = Arc::new(Mutex::new(Zone::default()));
        let task = tokio::spawn(serve(socket, zone.clone())).abort_handle();
        Self { address, zone, task }
    }

    /// The name has these addresses, and no others.
    pub fn set_addresses(&self, name: &str, addresses: &[IpAddr]) {
        let of = |is_ipv4: bool| addresses.iter().filter(move |address| address.is_ipv4() == is_ipv4);
        self.set(name, RecordType::A, of(true).map(|address| RData::from(*address)).collect());
        self.set(name, RecordType::AAAA, of(false).map(|address| RData::from(*address)).collect());
    }

    /// The name has these SRV records, and no others: priority, port, target.
    pub fn set_services(&self, name: &str, services: &[(u16, u16, &str)]) {
        let record = |(priority, port, target): &(u16, u16, &str)| {
            let target = Name::from_ascii(target).expect("a name");
            RData::SRV(SRV::new(*priority, 0, *port, target))
        };
        self.set(name, RecordType::SRV, services.iter().map(record).collect());
    }

    /// Every question is answered with SERVFAIL; or as it should be.
    pub fn fail(&self, fails: bool) {
        self.zone().fails_with = fails.then_some(ResponseCode::ServFail);
    }

    /// No question is answered; or each as it should be.
    pub fn be_silent(&self, is_silent: bool) {
        self.zone().is_silent = is_silent;
    }

    fn set(&self, name: &str, kind: RecordType, data: Vec<RData>) {
        self.zone().records.insert((name.to_ascii_lowercase(), kind), data);
    }

    fn zone(&self) -> std::sync::MutexGuard<'_, Zone> {
        self.zone.lock().expect("no test panics holding it")
    }
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(socket: UdpSocket, zone: Arc<Mutex<Zone>>) {
    let mut buffer = [0; 4096];
    loop {
        let Ok((length, asker)) = socket.recv_from(&mut buffer).await else { continue };
        let Ok(question) = Message::from_vec(&buffer[..length]) else { continue };
        let answer = zone.lock().expect("no test panics holding it").answer(question);
        if let Some(answer) = answer {
            let _ = socket.send_to(&answer.to_vec().expect("a small message"), asker).await;
        }
    }
}

impl Zone {
    /// None where it is silent.
    fn answer(&self, question: Message) -> Option<Message> {
        if self.is_silent {
            return None;
        }
        let mut answer = question.into_response();
        if let Some(code) = self.fails_with {
            answer.metadata.response_code = code;
            return Some(answer);
        }
        let query = answer.queries.first()?.clone();
        let name = query.name().to_ascii().trim_end_matches('.').to_ascii_lowercase();
        match self.records.get(&(name.clone(), query.query_type())) {
            Some(records) => {
                let record =
                    |data: &RData| Record::from_rdata(query.name().clone(), TIME_TO_LIVE_S, data.clone());
                answer.add_answers(records.iter().map(record));
            }
            None if self.records.keys().any(|(other, _)| *other == name) => {}
            None => answer.metadata.response_code = ResponseCode::NXDomain,
        }
        Some(answer)
    }
}
