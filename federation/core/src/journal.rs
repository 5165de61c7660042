//! What a peer told last, as bytes that outlive a restart.
//!
//! A federation that restarts while a link is cut would otherwise know nothing of the peer, and
//! would withdraw imports that are as good as before. The bytes are compressed and carry a
//! checksum: whatever backend keeps them, what is torn or damaged is noticed here, and then only
//! that one peer is unknown until it is heard again.
//!
//! ```text
//! "lsj1" · SHA-256 of what follows · zlib(JSON)
//! ```

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{SHA256, digest};
use flate2::Compression;
use flate2::read::ZlibDecoder;
use flate2::write::ZlibEncoder;
use serde::{Deserialize, Serialize};

use crate::announced::declaration;
use crate::delta::RecordHash;
use crate::model::{Link, TrustDomain};
use crate::record::{PeerRecords, Quotas};

mod shapes;
#[cfg(test)]
mod tests;

use shapes::Line;

/// Names the format; another one would begin otherwise.
const MAGIC: &[u8; 4] = b"lsj1";
const CHECKSUM: usize = 32;
/// Most bytes of a journal when it is unpacked: a full quota of records with the names of their
/// fields. What claims to be more is damaged.
const MAX_UNPACKED: u64 = 128 * 1024 * 1024;

/// What is kept of a peer.
#[derive(Clone, Debug, PartialEq)]
pub struct Kept {
    /// The peer's trust domain; of another one nothing is taken over.
    pub trust_domain: TrustDomain,
    /// The highest epoch seen.
    pub epoch: u64,
    /// When the records were last known to be right.
    pub confirmed: SystemTime,
    /// The records in force.
    pub records: Arc<PeerRecords>,
}

/// What is to become of a peer's journal.
#[derive(Clone, Debug, PartialEq)]
pub enum Keep {
    /// It is to say this.
    This(Kept),
    /// The peer exports nothing: there is nothing to keep.
    Nothing,
    /// The peer has not been heard: what is there stays, also where it cannot be read.
    AsItIs,
}

/// Why a journal cannot be used. Damage, not an attack: whoever may write it may do more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DamagedJournal {
    /// It is not complete, or bits have changed.
    #[error("its checksum does not fit: it was cut off or changed")]
    Checksum,
    /// The checksum fits, but this version cannot read it.
    #[error("it was written by another version: {0}")]
    Format(String),
}

/// Who writes. What another version wrote may lack what this one reads, under the same hash; so
/// it stands only until the peer has sent it again.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The hash of no record: under it the peer is asked to send the record again.
const STALE_HASH: RecordHash = RecordHash([0; 16]);

#[derive(Serialize, Deserialize)]
struct Document {
    version: String,
    trust_domain: TrustDomain,
    epoch: u64,
    confirmed_unix: u64,
    /// Of what was declared: once other roots are declared, announced ones count no more.
    declared: [u8; 16],
    records: Vec<Line>,
}

/// The bytes to keep. `link` is the peer's link as it is declared.
pub fn encode(kept: &Kept, link: &Link) -> Vec<u8> {
    let document = Document {
        version: VERSION.to_owned(),
        trust_domain: kept.trust_domain.clone(),
        epoch: kept.epoch,
        confirmed_unix: seconds(kept.confirmed),
        declared: declaration(link).0,
        records: kept.records.received().map(Line::from).collect(),
    };
    pack(&document)
}

fn pack(document: &Document) -> Vec<u8> {
    let json = serde_json::to_vec(document).expect("no map has other keys than text");
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
    let packed = encoder
        .write_all(&json)
        .and_then(|()| encoder.finish())
        .expect("memory takes every byte");
    let mut bytes = Vec::with_capacity(MAGIC.len() + CHECKSUM + packed.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(digest(&SHA256, &packed).as_ref());
    bytes.extend_from_slice(&packed);
    bytes
}

/// Reads what [`encode`] wrote. Each record is checked again by the rules of the link as it is
/// declared now; what it no longer allows is left out.
///
/// # Errors
/// If the bytes are not whole, or not of this format. `Ok(None)`: they are of a peer that is not
/// this link's any more.
pub fn decode(bytes: &[u8], link: &Link, quotas: &Quotas) -> Result<Option<Kept>, DamagedJournal> {
    let document = read(bytes)?;
    if document.trust_domain != link.trust_domain {
        return Ok(None);
    }
    let confirmed = UNIX_EPOCH
        .checked_add(Duration::from_secs(document.confirmed_unix))
        .ok_or_else(|| DamagedJournal::Format("its time is out of range".into()))?;
    let same_roots = document.declared == declaration(link).0;
    let mut records = PeerRecords::default();
    for line in document.records {
        let hash = match document.version == VERSION {
            true => RecordHash(line.hash),
            false => STALE_HASH,
        };
        let (key, size, body) = line.read().map_err(DamagedJournal::Format)?;
        if key == crate::record::BUNDLE_KEY && !same_roots {
            continue;
        }
        let record = crate::record::ReceivedRecord {
            key,
            hash,
            size,
            body,
        };
        // Refused only where the link has become narrower.
        let _ = records.accept(link, quotas, record, confirmed);
    }
    Ok(Some(Kept {
        trust_domain: document.trust_domain,
        epoch: document.epoch,
        confirmed,
        records: Arc::new(records),
    }))
}

fn read(bytes: &[u8]) -> Result<Document, DamagedJournal> {
    let rest = bytes.strip_prefix(MAGIC).ok_or(DamagedJournal::Checksum)?;
    let (checksum, packed) = rest
        .split_at_checked(CHECKSUM)
        .ok_or(DamagedJournal::Checksum)?;
    if digest(&SHA256, packed).as_ref() != checksum {
        return Err(DamagedJournal::Checksum);
    }
    let mut json = Vec::new();
    ZlibDecoder::new(packed)
        .take(MAX_UNPACKED)
        .read_to_end(&mut json)
        .map_err(|error| DamagedJournal::Format(error.to_string()))?;
    serde_json::from_slice(&json).map_err(|error| DamagedJournal::Format(error.to_string()))
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

impl Kept {
    /// Whether `other` holds the same records of the same peer, however long ago confirmed.
    pub fn same_records(&self, other: &Self) -> bool {
        self.trust_domain == other.trust_domain
            && self.epoch == other.epoch
            && Arc::ptr_eq(&self.records, &other.records)
    }
}
