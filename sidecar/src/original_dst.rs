//! Where a connection was meant to go that the packet filter led to us.

use std::{
    io,
    net::{SocketAddr, SocketAddrV6},
};

use socket2::SockRef;
use tokio::net::TcpStream;

/// The destination that the caller chose (`SO_ORIGINAL_DST`). A connection that was made to us directly
/// has none: either the kernel says so, or it names our own address.
///
/// # Errors
/// As the kernel says.
pub(crate) fn original_dst(socket: &TcpStream) -> io::Result<SocketAddr> {
    let reference = SockRef::from(socket);
    let address = match socket.local_addr()? {
        // The kernel asks by the family of the connection, which may be IPv4 on a socket of IPv6.
        SocketAddr::V6(own) if own.ip().to_ipv4_mapped().is_none() => reference.original_dst_v6(),
        _ => reference.original_dst_v4(),
    };
    let address = address?.as_socket();
    let address = address.ok_or_else(|| io::Error::other("the kernel named no IP address"))?;
    Ok(plain(address))
}

/// Without what differs although the destination is the same.
fn plain(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V6(of) => match of.ip().to_ipv4_mapped() {
            Some(ip) => (ip, of.port()).into(),
            // The scope says by which interface a link-local address is reached.
            None => SocketAddrV6::new(*of.ip(), of.port(), 0, of.scope_id()).into(),
        },
        SocketAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// What the kernel says without a packet filter depends on whether it tracks connections.
    #[tokio::test]
    async fn who_connects_directly_meant_nobody_else() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = listener.local_addr().unwrap();
        let (_client, accepted) = tokio::join!(TcpStream::connect(own), listener.accept());
        match original_dst(&accepted.unwrap().0) {
            Ok(meant) => assert_eq!(meant, own),
            Err(error) => assert_ne!(error.kind(), io::ErrorKind::Other, "{error}"),
        }
    }

    #[test]
    fn one_destination_is_written_in_one_way() {
        let mapped: SocketAddr = "[::ffff:10.0.0.1]:80".parse().unwrap();
        assert_eq!(plain(mapped), "10.0.0.1:80".parse().unwrap());
        let six: SocketAddr = "[fd00::1]:80".parse().unwrap();
        assert_eq!(plain(six), six);
    }
}
