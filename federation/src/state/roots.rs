//! The roots that peers announced, on disk: a restart must neither trust again what a peer has
//! replaced, nor forget what it has put in its place.

use linkspan_core::{announced::Announced, delta::RecordHash};
use linkspan_trust::Bundle;
use serde::{Deserialize, Serialize};

use super::{StateError, store::Slot};

/// One peer's, as written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Kept {
    cluster: String,
    /// Of the declaration upon which they were announced.
    declaration: [u8; 16],
    sequence: u64,
    roots: String,
}

impl From<&Announced> for Kept {
    fn from(announced: &Announced) -> Self {
        Self {
            cluster: announced.cluster.to_string(),
            declaration: announced.on.0,
            sequence: announced.bundle.sequence,
            roots: announced.bundle.to_pem(),
        }
    }
}

impl Kept {
    fn announced(&self) -> Result<Announced, String> {
        Ok(Announced {
            cluster: self.cluster.parse().map_err(|error| format!("{error}"))?,
            on: RecordHash(self.declaration),
            bundle: Bundle::from_pem(self.sequence, self.roots.as_bytes())
                .map_err(|error| error.to_string())?,
        })
    }
}

/// What was announced before the restart; nothing at the first start.
pub(crate) fn load(slot: &Slot) -> Result<Vec<Announced>, StateError> {
    let kept: Vec<Kept> = super::kept::load(slot)?;
    let read = |one: &Kept| one.announced().map_err(|reason| slot.damaged(reason));
    kept.iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{cluster, domain};

    #[test]
    fn what_was_announced_is_read_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = Slot::from(&directory.path().join("roots.json"));
        let authority = linkspan_trust::CertificateAuthority::create(
            &domain("west"),
            std::time::SystemTime::now(),
        )
        .unwrap();
        let announced = Announced {
            cluster: cluster("west"),
            on: RecordHash::of(b"declared"),
            bundle: Bundle {
                sequence: 7,
                ..authority.bundle()
            },
        };
        let bytes = serde_json::to_vec(&[Kept::from(&announced)]).unwrap();
        path.write(&bytes).unwrap();
        assert_eq!(load(&path).unwrap(), [announced]);
        path.write(b"[{}]").unwrap();
        assert!(matches!(load(&path), Err(StateError::Damaged { .. })));
    }
}
