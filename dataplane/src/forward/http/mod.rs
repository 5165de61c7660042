//! Carrying HTTP requests between two connections.
//!
//! One file for each concern, used by a sidecar in this order:
//!
//! | file | concern |
//! |---|---|
//! | [`serve`](mod@serve) | HTTP/1.1 or HTTP/2 from whoever calls, until drained |
//! | [`headers`] | what belongs to one hop, and what changes between HTTP/1.1 and HTTP/2 |
//! | [`upload`] | a request body that is never mistaken for complete |
//! | [`replay`] | a request body that can be sent again, up to a bound |
//! | [`send`](mod@send) | one try over one HTTP/2 connection, and what its failure proves |
//! | [`retry`] | whether there may be another try |
//! | [`grpc`] | what a gRPC answer says of the call |
//! | [`trace`] | the trace that a request belongs to |
//! | [`body`] | what is known when a body ends |
//! | [`moved`] | whether anything of a request and its answer moves |
//!
//! Bodies stream with backpressure at each hop; nothing is collected beyond the replay bound.
//! A body that breaks off is an error on the other side, too, never a clean end.

pub mod body;
pub mod grpc;
pub mod headers;
pub mod moved;
pub mod replay;
pub mod retry;
pub mod send;
pub mod serve;
pub mod trace;
pub mod upload;

pub use body::{BodyError, Observer, Watched};
pub use moved::Moved;
pub use replay::{Replay, ReplayBody};
pub use retry::RetryBudget;
pub use send::{ReceivedBody, SendError, send};
pub use serve::{Incoming, serve};
pub use upload::Upload;
