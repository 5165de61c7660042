//! One message in, one message out.

use hickory_proto::{
    op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{A, AAAA, HINFO, SOA, SRV, TXT},
    },
};
use linkspan_core::dns::{Answer, Asked, Data, ORIGIN, Want, Zone};

/// How long what is said may be kept, seconds: as Kubernetes has it for `cluster.local`, short enough
/// that nobody calls for long what is gone.
const TTL: u32 = 5;
/// Largest answer over UDP: it fits into one packet on any path that carries IPv6.
const MAX_UDP: u16 = 1232;
/// Largest answer over UDP to who does not say more (RFC 1035 section 4.2.1).
const PLAIN_UDP: u16 = 512;
/// Bytes of a header.
const HEADER: usize = 12;

/// How a question came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

/// An answer, encoded, and its code.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) bytes: Vec<u8>,
    pub(super) code: ResponseCode,
}

/// The answer to a message; `None` where there is none to be given: to what is itself an answer (or
/// two servers could go on for ever), or is no message at all.
pub(super) fn answer(question: &[u8], zone: Option<&Zone>, transport: Transport) -> Option<Reply> {
    match read(question)? {
        Ok(asked) => encode(respond(&asked, zone), asked.room(transport)),
        Err(refusal) => encode(refusal, PLAIN_UDP),
    }
}

/// An answer that says no more than: ask by TCP. For who asks too often over UDP: it is hardly larger
/// than the question, and who did not ask, but was named as the asker, is not hurt.
pub(super) fn ask_by_tcp(question: &[u8]) -> Option<Reply> {
    let asked = read(question)?.ok()?;
    let mut message = asked.response(ResponseCode::NoError);
    message.metadata.truncation = true;
    encode(message, PLAIN_UDP)
}

/// What was asked.
struct Question {
    metadata: Metadata,
    query: Query,
    edns: Option<Edns>,
}

/// The question, or what is to be said to what is none.
fn read(bytes: &[u8]) -> Option<Result<Question, Message>> {
    // The bit that says whether it is an answer.
    if bytes.len() < HEADER || bytes[2] & 0x80 != 0 {
        return None;
    }
    let Ok(mut message) = Message::from_vec(bytes) else {
        let id = u16::from_be_bytes([bytes[0], bytes[1]]);
        let refusal = Message::error_msg(id, OpCode::Query, ResponseCode::FormErr);
        return Some(Err(refusal));
    };
    let metadata = message.metadata;
    let code = match (metadata.op_code, message.queries.len()) {
        (OpCode::Query, 1) => {
            let query = message.queries.swap_remove(0);
            let edns = message.edns.take();
            return Some(Ok(Question {
                metadata,
                query,
                edns,
            }));
        }
        (OpCode::Query, _) => ResponseCode::FormErr,
        _ => ResponseCode::NotImp,
    };
    Some(Err(response(&metadata, code)))
}

/// An empty answer to what has this header.
fn response(asked: &Metadata, code: ResponseCode) -> Message {
    let mut message = Message::new(asked.id, MessageType::Response, asked.op_code);
    message.metadata = Metadata::response_from_request(asked);
    message.metadata.response_code = code;
    message
}

impl Question {
    /// An answer without records. The question comes back as it was written, in its own case: by that
    /// resolvers tell an answer to them from a forged one.
    fn response(&self, code: ResponseCode) -> Message {
        let mut message = response(&self.metadata, code);
        message.add_query(self.query.clone());
        if self.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(MAX_UDP).set_version(0);
            message.set_edns(edns);
        }
        message
    }

    /// Bytes that the asker takes.
    fn room(&self, transport: Transport) -> u16 {
        match (transport, &self.edns) {
            (Transport::Tcp, _) => u16::MAX,
            (Transport::Udp, None) => PLAIN_UDP,
            (Transport::Udp, Some(edns)) => edns.max_payload().clamp(PLAIN_UDP, MAX_UDP),
        }
    }
}

fn respond(asked: &Question, zone: Option<&Zone>) -> Message {
    if asked.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
        return asked.response(ResponseCode::BADVERS);
    }
    let query = &asked.query;
    let transfer = matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR);
    if query.query_class() != DNSClass::IN || transfer {
        return asked.response(ResponseCode::Refused);
    }
    let meant = Asked::parse(query.name().iter());
    if meant == Asked::Elsewhere {
        return asked.response(ResponseCode::Refused);
    }
    // Nothing is known yet, which is not that nothing is there.
    let Some(zone) = zone else {
        return asked.response(ResponseCode::ServFail);
    };
    let answer = zone.answer(&meant, want(query.query_type()));
    let code = match answer {
        Answer::Records(_) | Answer::NoData => ResponseCode::NoError,
        Answer::NoName => ResponseCode::NXDomain,
        Answer::Refused => ResponseCode::Refused,
    };
    let mut message = asked.response(code);
    message.metadata.authoritative = true;
    match answer {
        Answer::Records(records) => {
            let records = records.into_iter().filter_map(data);
            let name = query.name();
            message.add_answers(records.map(|data| Record::from_rdata(name.clone(), TTL, data)));
        }
        // The least that may be said to who wants anything (RFC 8482).
        Answer::NoData if query.query_type() == RecordType::ANY => {
            let data = RData::HINFO(HINFO::new("RFC8482".into(), String::new()));
            message.add_answer(Record::from_rdata(query.name().clone(), TTL, data));
        }
        // By its last field it says for how long nothing may be asked again.
        Answer::NoData | Answer::NoName => {
            message.add_authority(Record::from_rdata(origin(), TTL, authority()));
        }
        Answer::Refused => {}
    }
    message
}

fn want(of: RecordType) -> Want {
    match of {
        RecordType::A => Want::A,
        RecordType::AAAA => Want::Aaaa,
        RecordType::SRV => Want::Srv,
        RecordType::TXT => Want::Txt,
        RecordType::SOA => Want::Soa,
        _ => Want::Other,
    }
}

fn data(of: Data) -> Option<RData> {
    Some(match of {
        Data::Address(std::net::IpAddr::V4(ip)) => RData::A(A(ip)),
        Data::Address(std::net::IpAddr::V6(ip)) => RData::AAAA(AAAA(ip)),
        Data::Service { port, target } => {
            // Made of labels that are good, and not too long.
            let target = Name::from_ascii(format!("{target}.")).ok()?;
            RData::SRV(SRV::new(0, 100, port, target))
        }
        Data::Text(text) => RData::TXT(TXT::new(vec![text.to_owned()])),
        Data::Authority => authority(),
    })
}

fn origin() -> Name {
    Name::from_labels(ORIGIN.map(str::as_bytes)).expect("labels of ours are good")
}

/// Nobody transfers the zone, so its serial and the clocks of secondaries mean nothing.
fn authority() -> RData {
    let below = |label: &str| {
        let name = origin().prepend_label(label);
        name.expect("labels of ours are good")
    };
    let (primary, person) = (below("dns"), below("hostmaster"));
    RData::SOA(SOA::new(primary, person, 1, 7200, 1800, 86_400, TTL))
}

/// The message, or as much as says that it is larger than there is room for.
fn encode(message: Message, room: u16) -> Option<Reply> {
    let code = message.metadata.response_code;
    let bytes = message.to_vec().ok()?;
    let bytes = match bytes.len() > usize::from(room) {
        true => message.truncate().to_vec().ok()?,
        false => bytes,
    };
    Some(Reply { bytes, code })
}
