//! Places for what others want of us: so many in all, and a share of them for one holder at most,
//! so that none of them shuts out the others.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The places, shared by all who hand them out to holders that `K` tells apart.
#[derive(Clone, Debug)]
pub struct Places<K> {
    most: usize,
    /// Of one holder.
    share: usize,
    taken: Arc<Mutex<Taken<K>>>,
}

#[derive(Debug)]
struct Taken<K> {
    total: usize,
    /// Those that hold none are not in it.
    by_holder: BTreeMap<K, usize>,
}

/// One place; free again when it is dropped.
#[derive(Debug)]
pub struct Place<K: Ord> {
    of: K,
    taken: Arc<Mutex<Taken<K>>>,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// Everything is taken.
    #[error("there is no room for more of anybody")]
    All,
    /// This holder has all that one may have.
    #[error("this one has its share of all that there is room for")]
    Share,
}

impl<K: Ord + Clone> Places<K> {
    /// So many in all, and half of them for one holder.
    #[must_use]
    pub fn halves(most: usize) -> Self {
        Self::new(most, (most / 2).max(1))
    }

    /// So many in all, and `share` of them for one holder.
    #[must_use]
    pub fn new(most: usize, share: usize) -> Self {
        let taken = Taken {
            total: 0,
            by_holder: BTreeMap::new(),
        };
        Self {
            most,
            share,
            taken: Arc::new(Mutex::new(taken)),
        }
    }

    /// One place for `holder`.
    ///
    /// # Errors
    /// [`Full`], saying of whom there are too many.
    pub fn take(&self, holder: &K) -> Result<Place<K>, Full> {
        let mut taken = lock(&self.taken);
        if taken.total >= self.most {
            return Err(Full::All);
        }
        let held = taken.by_holder.get(holder).copied().unwrap_or(0);
        if held >= self.share {
            return Err(Full::Share);
        }
        taken.total += 1;
        taken.by_holder.insert(holder.clone(), held + 1);
        Ok(Place {
            of: holder.clone(),
            taken: Arc::clone(&self.taken),
        })
    }
}

impl<K: Ord> Drop for Place<K> {
    fn drop(&mut self) {
        let mut taken = lock(&self.taken);
        taken.total -= 1;
        if let Some(held) = taken.by_holder.get_mut(&self.of) {
            *held -= 1;
            if *held == 0 {
                taken.by_holder.remove(&self.of);
            }
        }
    }
}

/// Whose address this is, as far as one can tell: of IPv6 the network of 64 bits, all of which one
/// machine commonly has (RFC 4291 §2.5.4).
#[must_use]
pub fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 => v4,
    }
}

/// The network that an address is of, as far as one can tell: what one customer of a provider
/// commonly has, or one data centre. Of IPv6 the first 48 bits (RFC 6177 §2), of IPv4 the first 24.
#[must_use]
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0).into()
        }
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            Ipv4Addr::new(a, b, c, 0).into()
        }
    }
}

fn lock<K>(taken: &Mutex<Taken<K>>) -> MutexGuard<'_, Taken<K>> {
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_peer_has_half_and_gets_back_what_it_gave_back() {
        let places = Places::halves(4);
        let [east, north, south] = ["east", "north", "south"];
        let mut of_east = vec![places.take(&east).unwrap(), places.take(&east).unwrap()];
        assert_eq!(places.take(&east).unwrap_err(), Full::Share);
        let of_north = places.take(&north).unwrap();
        of_east.pop();
        of_east.push(places.take(&east).unwrap());
        let _of_south = places.take(&south).unwrap();
        assert_eq!(places.take(&north).unwrap_err(), Full::All);
        drop((of_east, of_north));
        let left = lock(&places.taken);
        assert_eq!((left.total, left.by_holder.len()), (1, 1));
    }

    #[test]
    fn one_machine_is_one_source_however_many_addresses_it_has() {
        let of = |address: &str| source(address.parse().unwrap());
        assert_eq!(of("2001:db8:1:2::3"), of("2001:db8:1:2:ffff::9"));
        assert_ne!(of("2001:db8:1:2::3"), of("2001:db8:1:3::3"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
    }

    #[test]
    fn a_network_is_wider_than_a_source() {
        let of = |address: &str| network(address.parse().unwrap());
        assert_eq!(of("2001:db8:1:2::3"), of("2001:db8:1:ffff::9"));
        assert_ne!(of("2001:db8:1:2::3"), of("2001:db8:2:2::3"));
        assert_eq!(of("192.0.2.1"), of("::ffff:192.0.2.200"));
        assert_ne!(of("192.0.2.1"), of("192.0.3.1"));
    }
}
