//! Reaching the other side: plain TCP, and mutual TLS directly or through a gateway.

pub mod grpc;
mod inbound;
pub mod leg;
pub mod mtls;
pub mod pool;
pub mod tcp;

/// Application protocols as TLS names them (ALPN).
pub mod alpn {
    /// HTTP/2: inside of the mesh, and for federation's gRPC.
    pub const H2: &[u8] = b"h2";
    /// HTTP/1.1 inside of the mesh.
    pub const HTTP_1_1: &[u8] = b"http/1.1";
    /// Opaque bytes inside of the mesh.
    pub const TCP: &[u8] = b"linkspan-tcp/1";
    /// Tunnel between gateways.
    pub const TUNNEL: &[u8] = b"linkspan-tunnel/1";
    /// From federation to its own gateway.
    pub const CONTROL: &[u8] = b"linkspan-control/1";
}
