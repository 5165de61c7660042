//! How an invitation is written: `lsp1.` and base64url, with a checksum, so that one cut short in
//! a chat is told from one that is wrong.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use linkspan_api::v1;
use linkspan_core::{
    Address,
    join::{Invitation, InvitationId, Problem, Refusal, Seed},
};
use prost::Message as _;
use zeroize::Zeroizing;

use crate::convert::wire_address;

/// By which people and secret scanners know an invitation.
const PREFIX: &str = "lsp1.";
/// Longest one, with room: eight names of 253 characters and eight roots.
const MAX_TEXT: usize = 8 * 1024;
/// Bytes of the checksum.
const CHECKSUM: usize = 4;
/// Addresses in it; diallers take no more.
pub(crate) const MAX_ADDRESSES: usize = 8;
/// Root pins in it: as many roots as fit into the chain that is sent along.
pub(crate) const MAX_PINS: usize = 6;

/// Writes an invitation.
pub(crate) fn encode(invitation: &Invitation) -> Zeroizing<String> {
    let message = v1::Invitation {
        cluster: invitation.cluster.to_string(),
        clusterset: invitation.clusterset.clone(),
        trust_domain: invitation.trust_domain.to_string(),
        addresses: invitation.addresses.iter().map(wire_address).collect(),
        root_pins: invitation
            .pins
            .iter()
            .map(|pin| Bytes::copy_from_slice(pin))
            .collect(),
        id: Bytes::copy_from_slice(&invitation.id.0),
        seed: Bytes::copy_from_slice(invitation.seed.expose()),
        expires_unix: unix(invitation.expires),
        peer: invitation
            .peer
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        created_unix: unix(invitation.created),
    };
    let mut bytes = Zeroizing::new(message.encode_to_vec());
    let sum = checksum(&bytes);
    bytes.extend_from_slice(&sum);
    Zeroizing::new(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(&*bytes)))
}

/// Reads an invitation.
///
/// # Errors
/// [`Problem::Malformed`], saying whether it is none, or not all of one; [`Problem::Version`] for one
/// that is whole, and says more than is known here.
pub(crate) fn decode(text: &str) -> Result<Invitation, Refusal> {
    // Chats break lines and add quotes; neither can be part of it.
    let text: String = text
        .chars()
        .filter(|c| !c.is_whitespace() && !matches!(c, '"' | '\'' | '`'))
        .take(MAX_TEXT + 1)
        .collect();
    let text = Zeroizing::new(text);
    let Some(encoded) = text.strip_prefix(PREFIX) else {
        return Err(malformed(
            "this is no invitation: one begins with `lsp1.`; copy the whole line that \
             `linkspan link invite` printed",
        ));
    };
    if text.len() > MAX_TEXT {
        return Err(malformed(
            "this is longer than any invitation; copy that one line only",
        ));
    }
    let bytes = URL_SAFE_NO_PAD.decode(encoded).map(Zeroizing::new);
    let bytes = bytes.map_err(|_| cut_short())?;
    let Some((body, sum)) = bytes.split_last_chunk::<CHECKSUM>() else {
        return Err(cut_short());
    };
    if checksum(body) != *sum {
        return Err(cut_short());
    }
    let message = v1::Invitation::decode(body).map_err(|_| newer())?;
    typed(&message).ok_or_else(newer)
}

fn typed(message: &v1::Invitation) -> Option<Invitation> {
    let address = |of: &v1::GatewayAddress| {
        let port = u16::try_from(of.port).ok().filter(|port| *port > 0)?;
        let host = of.host.clone();
        (1..=253)
            .contains(&host.len())
            .then_some(Address { host, port })
    };
    let addresses: Option<Vec<_>> = message.addresses.iter().map(address).collect();
    let pins: Option<Vec<[u8; 32]>> = message
        .root_pins
        .iter()
        .map(|pin| pin.as_ref().try_into().ok())
        .collect();
    let peer = match message.peer.as_str() {
        "" => None,
        peer => Some(peer.parse().ok()?),
    };
    Some(Invitation {
        cluster: message.cluster.parse().ok()?,
        clusterset: message.clusterset.clone(),
        trust_domain: message.trust_domain.parse().ok()?,
        addresses: addresses.filter(|all| (1..=MAX_ADDRESSES).contains(&all.len()))?,
        pins: pins.filter(|all| (1..=MAX_PINS).contains(&all.len()))?,
        id: InvitationId(message.id.as_ref().try_into().ok()?),
        seed: Seed::new(message.seed.as_ref().try_into().ok()?),
        created: time(message.created_unix)?,
        expires: time(message.expires_unix)?,
        peer,
    })
}

fn checksum(body: &[u8]) -> [u8; CHECKSUM] {
    let mut sum = [0; CHECKSUM];
    sum.copy_from_slice(&digest(&SHA256, body).as_ref()[..CHECKSUM]);
    sum
}

fn malformed(message: &str) -> Refusal {
    Refusal::new(Problem::Malformed, message)
}

fn cut_short() -> Refusal {
    malformed(
        "the invitation was cut short or changed on its way; copy the whole line that \
         `linkspan link invite` printed, from `lsp1.` to its end",
    )
}

fn newer() -> Refusal {
    Refusal::new(
        Problem::Version,
        "the invitation is whole, but cannot be read here; was it made by a newer Linkspan? \
         upgrade this cluster",
    )
}

pub(crate) fn unix(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// Up to the year 9999: what people can be shown.
fn time(unix: i64) -> Option<SystemTime> {
    let seconds = u64::try_from(unix).ok().filter(|s| *s < 253_402_300_800)?;
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use linkspan_core::testing::secret::traces;
    use proptest::prelude::*;

    use super::*;

    fn invitation(seed: [u8; 32], port: u16, peer: bool) -> Invitation {
        Invitation {
            cluster: "west".parse().unwrap(),
            clusterset: "demo".into(),
            trust_domain: "west.demo.linkspan.internal".parse().unwrap(),
            addresses: vec![Address {
                host: "gw.west.example".into(),
                port,
            }],
            pins: vec![[3; 32]],
            id: InvitationId([4; 16]),
            seed: Seed::new(seed),
            created: UNIX_EPOCH + Duration::from_secs(1_800_000_000),
            expires: UNIX_EPOCH + Duration::from_secs(1_800_000_900),
            peer: peer.then(|| "east".parse().unwrap()),
        }
    }

    #[test]
    fn chats_may_break_lines_and_quote() {
        let one = invitation([9; 32], 15443, true);
        let text = encode(&one);
        let (left, right) = text.split_at(60);
        assert_eq!(decode(&format!(" `{left}\r\n  {right}`\n")).unwrap(), one);
    }

    #[test]
    fn each_mistake_is_told_by_its_kind() {
        let text = encode(&invitation([9; 32], 15443, false));
        let message = |text: &str| {
            let refused = decode(text).unwrap_err();
            assert_eq!(refused.problem, Problem::Malformed);
            refused.message
        };
        assert!(message("hello").contains("begins with `lsp1.`"));
        assert!(message(&text[..text.len() - 7]).contains("cut short"));
        assert!(message("lsp1.").contains("cut short"));
        assert!(message(&format!("lsp1.{}", "A".repeat(9_000))).contains("longer"));
        // Whole, but of a kind that we do not know.
        let mut body = v1::Invitation::default().encode_to_vec();
        let sum = checksum(&body);
        body.extend_from_slice(&sum);
        let other = format!("lsp1.{}", URL_SAFE_NO_PAD.encode(body));
        let refused = decode(&other).unwrap_err();
        assert_eq!(refused.problem, Problem::Version);
        assert!(refused.message.contains("newer"));
    }

    #[test]
    fn debug_output_has_no_seed() {
        let seed: [u8; 32] =
            std::array::from_fn(|at| 73_u8.wrapping_mul(at as u8).wrapping_add(200));
        let one = invitation(seed, 1, false);
        let text = encode(&one);
        let accept = v1::AcceptRequest {
            invitation: text.to_string(),
            ..Default::default()
        };
        let invited = v1::InviteResponse {
            invitation: text.to_string(),
            ..Default::default()
        };
        let encoded = text.strip_prefix(PREFIX).unwrap();
        let message = URL_SAFE_NO_PAD.decode(encoded).unwrap();
        let message = v1::Invitation::decode(&message[..message.len() - CHECKSUM]).unwrap();
        for shown in [
            format!("{one:?} {one:#?}"),
            format!("{message:?}"),
            format!("{accept:?} {invited:?}"),
        ] {
            assert!(!shown.contains("lsp1"), "{shown}");
            assert!(traces(&seed, shown.as_bytes()).is_empty(), "{shown}");
        }
        // It is found where it is.
        assert!(traces(&seed, text.as_bytes()).contains(&"base64url"));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(seed: [u8; 32], port in 1..=u16::MAX, peer: bool) {
            let one = invitation(seed, port, peer);
            prop_assert_eq!(decode(&encode(&one)).unwrap(), one);
        }

        #[test]
        fn no_part_of_one_passes_for_it(seed: [u8; 32], cut in 0..300_usize) {
            let text = encode(&invitation(seed, 15443, true));
            let cut = cut.min(text.len() - 1);
            prop_assert!(decode(&text[..cut]).is_err());
        }

        #[test]
        fn any_changed_character_is_noticed(at in 5..300_usize, to in "[A-Za-z0-9_-]") {
            let text = encode(&invitation([1; 32], 15443, true));
            let at = at.min(text.len() - 1);
            let mut changed = text.to_string();
            changed.replace_range(at..=at, &to);
            // The last character may carry bits that mean nothing, and no two spell one secret.
            prop_assert!(changed == *text || decode(&changed).is_err());
        }

        #[test]
        fn foreign_text_never_panics(text in ".{0,400}", bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = decode(&text);
            let _ = decode(&format!("lsp1.{text}"));
            let mut body = bytes;
            let sum = checksum(&body);
            body.extend_from_slice(&sum);
            let _ = decode(&format!("lsp1.{}", URL_SAFE_NO_PAD.encode(body)));
        }
    }
}
