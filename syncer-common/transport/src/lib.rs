//! How our processes reach one another: TCP, or TLS with a certificate on both sides.
//!
//! ```text
//! files.rs      PEM files, read anew when they change       identity.rs  who a certificate names
//! client.rs     the connecting end (agents, bulrushctl)     server.rs    the accepting end (typha)
//! certs.rs      a CA and certificates for a lab (feature `certs`)
//! ```
//!
//! As with Calico's typha: the chain is verified, host names are not; a peer passes if its common name or one of its
//! URI SANs is the one that was configured. TLS 1.2 is the minimum, 1.3 is preferred. Certificates are read again
//! for every connection that is made and, by a server, whenever the files have changed: open streams stay.

#[cfg(feature = "certs")]
pub mod certs;
mod client;
mod files;
mod identity;
mod io;
mod server;

pub use client::{ClientTls, channel};
pub use files::{Files, TlsError};
pub use identity::{Expected, Identity};
pub use io::Io;
pub use server::{Admitted, ServerTls};

/// gRPC is HTTP/2.
const ALPN: &[u8] = b"h2";
