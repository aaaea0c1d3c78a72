//! TLS in front of HTTP.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::serve::Listener;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::CryptoProvider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::server::TlsStream;

use crate::error::Error;

/// Time that a client has to shake hands.
const TIME_TO_SHAKE: Duration = Duration::from_secs(10);
/// Clients that may be shaking hands; further ones wait in the system's queue.
const MOST_SHAKING: usize = 256;

/// The cryptography, on the processors that it is written for.
fn provider() -> Option<CryptoProvider> {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    return Some(rustls_graviola::default_provider());
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    None
}

/// A certificate and its key.
#[derive(Clone)]
pub struct Tls(Arc<ServerConfig>);

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

impl Tls {
    /// Reads a certificate, with the chain that leads up from it, and its private key, both PEM. TLS 1.2 and 1.3 are
    /// spoken.
    pub fn open(certificate: &Path, key: &Path) -> Result<Self, Error> {
        let fail = |path: &Path, reason: String| Error::Tls { path: path.into(), reason };
        let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(certificate).and_then(|all| all.collect());
        let chain = chain.map_err(|error| fail(certificate, format!("no certificate can be read: {error}")))?;
        if chain.is_empty() {
            return Err(fail(certificate, "there is no certificate in it".into()));
        }
        let private = PrivateKeyDer::from_pem_file(key)
            .map_err(|error| fail(key, format!("no private key can be read: {error}")))?;
        let provider = provider()
            .ok_or_else(|| fail(certificate, "this processor's build has no TLS: put a proxy in front".into()))?;
        let config = ServerConfig::builder_with_provider(Arc::new(provider))
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, private))
            .map_err(|error| fail(certificate, format!("certificate and key cannot be used: {error}")))?;
        Ok(Self(Arc::new(config)))
    }

    /// Speaks TLS with whoever comes to `listener`.
    pub(crate) fn listen(self, listener: TcpListener) -> TlsListener {
        let address = listener.local_addr();
        let (sender, ready) = mpsc::channel(MOST_SHAKING);
        tokio::spawn(shake_hands(listener, TlsAcceptor::from(self.0), sender));
        TlsListener { ready, address }
    }
}

/// Gives connections whose handshake is over: one that stalls keeps nobody else waiting.
pub(crate) struct TlsListener {
    ready: mpsc::Receiver<Connection>,
    address: std::io::Result<SocketAddr>,
}

type Connection = (TlsStream<TcpStream>, SocketAddr);

async fn shake_hands(mut listener: TcpListener, acceptor: TlsAcceptor, ready: mpsc::Sender<Connection>) {
    let places = Arc::new(Semaphore::new(MOST_SHAKING));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let (stream, address) = tokio::select! {
            accepted = Listener::accept(&mut listener) => accepted,
            // Nobody takes connections any more.
            () = ready.closed() => return,
        };
        let (acceptor, ready) = (acceptor.clone(), ready.clone());
        tokio::spawn(async move {
            match tokio::time::timeout(TIME_TO_SHAKE, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => drop(ready.send((stream, address)).await),
                Ok(Err(error)) => tracing::debug!(%address, %error, "no TLS"),
                Err(_) => tracing::debug!(%address, "no TLS in time"),
            }
            drop(place);
        });
    }
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> Connection {
        match self.ready.recv().await {
            Some(connection) => connection,
            // Only at the end.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.address.as_ref().copied().map_err(|error| std::io::Error::from(error.kind()))
    }
}
