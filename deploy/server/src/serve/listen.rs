//! Listening on an address.

use std::io;
use std::net::SocketAddr;

use tokio::net::TcpListener;

/// An address that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen for {interface} on {address} ({option}): {source}{advice}")]
pub(crate) struct ListenError {
    interface: &'static str,
    option: &'static str,
    address: String,
    source: io::Error,
    advice: String,
}

/// Listens on `address`, which the option `option` gave, and says which address that is.
pub(super) async fn bind(
    interface: &'static str,
    option: &'static str,
    address: &str,
) -> Result<(TcpListener, SocketAddr), ListenError> {
    let failed = |source: io::Error| {
        let advice = match source.kind() {
            io::ErrorKind::AddrInUse => format!("; another server runs there, choose another port with {option}"),
            io::ErrorKind::InvalidInput => "; expected HOST:PORT, such as 127.0.0.1:8080".to_owned(),
            _ => String::new(),
        };
        ListenError { interface, option, address: address.to_owned(), source, advice }
    };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_in_use_is_named() {
        let (_listener, taken) = bind("HTTP", "--http", "127.0.0.1:0").await.unwrap();
        let error = bind("gRPC", "--grpc", &taken.to_string()).await.unwrap_err().to_string();
        assert!(error.contains(&taken.to_string()) && error.contains("choose another port with --grpc"), "{error}");
    }

    #[tokio::test]
    async fn what_is_no_address_is_refused() {
        let error = bind("gRPC", "--grpc", "nowhere").await.unwrap_err().to_string();
        assert!(error.contains("nowhere (--grpc)") && error.contains("HOST:PORT"), "{error}");
    }
}
