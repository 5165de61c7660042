//! A source's and a destination's sidecar in one process, over real TLS on loopback.

mod capture;
mod gateway;
mod grpc;
mod http;
mod inbound;
mod loss;
mod tcp;
mod world;
