//! Many things in few bytes, for a place that holds only so many.
//!
//! ```text
//! "lsz1" · zlib(JSON array)
//! ```
//! What does not fit is left out, and said. Beside that plain JSON is read, as files hold it.

use std::io::{Read as _, Write as _};

use flate2::{Compression, read::ZlibDecoder, write::ZlibEncoder};
use linkspan_core::{
    capacity::KeptMark,
    imports::KeptPort,
    workloads::{Owned, Registration},
};
use serde::{Serialize, de::DeserializeOwned};

use super::roots::Kept;

/// Names the format; plain JSON begins otherwise.
const MAGIC: &[u8; 4] = b"lsz1";
/// Most bytes when it is unpacked: as much as is read from a file. What claims to be more is damaged.
const MAX_UNPACKED: u64 = 128 * 1024 * 1024;
/// Where not all fit, so many hundredths of what would by the look of the last try.
const CLOSE: usize = 95;

/// What is kept in numbers.
pub(crate) trait Item: Serialize {
    /// Items of which this is the same have more in common, and pack better side by side.
    fn alike(&self) -> &str;
}

impl Item for Registration {
    fn alike(&self) -> &str {
        self.identity.as_str()
    }
}

impl Item for Owned {
    fn alike(&self) -> &str {
        self.identity.as_str()
    }
}

impl Item for Kept {
    fn alike(&self) -> &str {
        ""
    }
}

impl Item for KeptPort {
    fn alike(&self) -> &str {
        ""
    }
}

impl Item for KeptMark {
    fn alike(&self) -> &str {
        ""
    }
}

/// The last of `items`, as many as fit into `room` bytes, and how many those are.
pub(crate) fn pack<T: Item>(items: &[T], room: usize) -> Result<(Vec<u8>, usize), String> {
    let mut fit = items.len();
    loop {
        let mut last: Vec<&T> = items[items.len() - fit..].iter().collect();
        // Stable: what is in order stays so among its like.
        last.sort_by(|one, other| one.alike().cmp(other.alike()));
        let bytes = deflate(&last).map_err(|error| error.to_string())?;
        if bytes.len() <= room || fit == 0 {
            return Ok((bytes, fit));
        }
        let guess = fit as u128 * room as u128 * CLOSE as u128 / (bytes.len() as u128 * 100);
        fit = usize::try_from(guess).unwrap_or(0).min(fit - 1);
    }
}

fn deflate<T: Serialize>(items: &[T]) -> std::io::Result<Vec<u8>> {
    let mut encoder = ZlibEncoder::new(MAGIC.to_vec(), Compression::default());
    let json = serde_json::to_vec(items)?;
    encoder.write_all(&json)?;
    encoder.finish()
}

/// What [`pack`] packed, or plain JSON.
pub(crate) fn unpack<T: DeserializeOwned>(bytes: &[u8]) -> Result<Vec<T>, String> {
    let Some(packed) = bytes.strip_prefix(MAGIC) else {
        return serde_json::from_slice(bytes).map_err(|error| error.to_string());
    };
    let mut json = Vec::new();
    let mut reader = ZlibDecoder::new(packed).take(MAX_UNPACKED + 1);
    let read = reader.read_to_end(&mut json);
    read.map_err(|error| error.to_string())?;
    if json.len() as u64 > MAX_UNPACKED {
        return Err(format!("larger than {MAX_UNPACKED} bytes"));
    }
    serde_json::from_slice(&json).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use linkspan_core::testing::registration;
    use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

    use super::*;
    use crate::state::store::{OWNERS_ROOM, REGISTRATIONS_ROOM};

    fn uuid(random: &mut StdRng) -> String {
        let bytes: u128 = random.random();
        let hex = format!("{bytes:032x}");
        [
            &hex[..8],
            &hex[8..12],
            &hex[12..16],
            &hex[16..20],
            &hex[20..],
        ]
        .join("-")
    }

    /// A cluster of the size that is meant: 10,000 pods of 500 services.
    fn pods(random: &mut StdRng) -> Vec<Registration> {
        let pod = |n: u32| {
            let service = format!("service-{}", n % 500);
            let of: u32 = random.random();
            let [_, b, c, d] = of.to_be_bytes();
            Registration {
                uid: uuid(random),
                hostname: format!("{service}-7d4b9c6f5d-{:05x}", of % (1 << 20)),
                address: ([10, b, c, d], 15008).into(),
                incarnation: 1_760_000_000_000 + u64::from(of),
                ..registration("", "shop", &service)
            }
        };
        let mut pods: Vec<_> = (0..10_000).map(pod).collect();
        pods.sort_by(|one, other| one.uid.cmp(&other.uid));
        pods
    }

    #[test]
    fn a_full_cluster_fits_and_is_read_back() {
        let mut random = StdRng::seed_from_u64(1);
        let pods = pods(&mut random);
        let (bytes, fit) = pack(&pods, REGISTRATIONS_ROOM).unwrap();
        assert_eq!(fit, pods.len());
        let mut read: Vec<Registration> = unpack(&bytes).unwrap();
        read.sort_by(|one, other| one.uid.cmp(&other.uid));
        assert_eq!(read, pods);
        // And those whose pods ended in the last day.
        let owned = (0..4_000_u64).zip(&pods).map(|(n, of)| Owned {
            uid: uuid(&mut random),
            identity: of.identity.clone(),
            gone_unix: Some(1_760_000_000 + n / 28 * 600),
        });
        let owned: Vec<_> = owned.collect();
        let (bytes, fit) = pack(&owned, OWNERS_ROOM).unwrap();
        assert_eq!(fit, owned.len(), "{} bytes", bytes.len());
    }

    #[test]
    fn of_more_than_fits_the_last_ones_are_kept() {
        let mut random = StdRng::seed_from_u64(2);
        // As many, and each as large, as there may be; nothing in them repeats.
        let label = |random: &mut StdRng| {
            let value: String = uuid(random).chars().cycle().take(63).collect();
            (uuid(random), value)
        };
        let largest = |random: &mut StdRng| Registration {
            uid: uuid(random),
            labels: (0..20).map(|_| label(random)).collect(),
            ..registration("", "shop", "checkout")
        };
        let all: Vec<_> = (0..20_000).map(|_| largest(&mut random)).collect();
        all[0].check().unwrap();
        let (bytes, fit) = pack(&all, REGISTRATIONS_ROOM).unwrap();
        assert!(bytes.len() <= REGISTRATIONS_ROOM && bytes.len() > REGISTRATIONS_ROOM / 2);
        let read: Vec<Registration> = unpack(&bytes).unwrap();
        assert!(fit > 0 && read == all[all.len() - fit..], "{fit}");
        let (bytes, fit) = pack(&all, 3).unwrap();
        assert!(fit == 0 && unpack::<Registration>(&bytes).unwrap().is_empty());
    }

    #[test]
    fn what_is_torn_is_an_error() {
        let (bytes, _) = pack(&pods(&mut StdRng::seed_from_u64(3))[..3], 4_000).unwrap();
        for end in [MAGIC.len(), bytes.len() / 2, bytes.len() - 1] {
            assert!(unpack::<Registration>(&bytes[..end]).is_err(), "{end}");
        }
        assert!(unpack::<Registration>(b"[]").unwrap().is_empty());
    }
}
