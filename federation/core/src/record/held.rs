//! The records that are held, one by one: as they came, to be kept and taken in again.

use std::sync::Arc;

use super::{PeerRecords, Place, ReceivedRecord, RecordBody};

impl PeerRecords {
    /// Every record, in the order of the keys, as it would arrive.
    pub fn received(&self) -> impl Iterator<Item = ReceivedRecord> {
        self.index.iter().filter_map(|(key, held)| {
            Some(ReceivedRecord {
                key: key.clone(),
                hash: held.hash,
                size: held.size,
                body: self.body(&held.place)?,
            })
        })
    }

    fn body(&self, place: &Place) -> Option<RecordBody> {
        Some(match place {
            Place::Export(service) => {
                RecordBody::Export(Arc::unwrap_or_clone(Arc::clone(self.exports.get(service)?)))
            }
            Place::Endpoint(service, id) => {
                let endpoint = self.endpoints.get(service)?.get(id)?;
                RecordBody::Endpoint(Arc::unwrap_or_clone(Arc::clone(endpoint)))
            }
            Place::Bundle => RecordBody::Bundle(self.bundle.clone()?),
            Place::Gateways => RecordBody::Gateways(self.addresses.clone()),
        })
    }
}
