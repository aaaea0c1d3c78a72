//! TLS. The certificate in `tests/tls` is for `localhost`, and its key is no secret.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

mod common;

use common::Running;
use loam_serve::{Settings, Tls};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, Stream};

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls").join(name)
}

/// A client that trusts the certificate, or nobody.
fn ask(server: &Running, trusts: bool) -> std::io::Result<String> {
    let mut roots = RootCertStore::empty();
    if trusts {
        roots.add(CertificateDer::from_pem_file(file("cert.pem")).unwrap()).unwrap();
    }
    let config = ClientConfig::builder_with_provider(Arc::new(rustls_graviola::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut client = ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
    let mut socket = TcpStream::connect(server.address)?;
    socket.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut stream = Stream::new(&mut client, &mut socket);
    let body = r#"{"prompt": "the fox", "max_tokens": 3, "temperature": 0}"#;
    let length = body.len();
    write!(
        stream,
        "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    )?;
    let mut text = String::new();
    // The server may close without saying so.
    match stream.read_to_string(&mut text) {
        Err(error) if text.is_empty() => Err(error),
        _ => Ok(text),
    }
}

#[test]
fn requests_come_and_go_encrypted_and_a_stalled_handshake_keeps_nobody_waiting() {
    let tls = Some(Tls::open(&file("cert.pem"), &file("key.pem")).unwrap());
    let mut server = Running::start(Settings { tls, ..Settings::default() });
    let stalled = TcpStream::connect(server.address).unwrap();
    let text = ask(&server, true).unwrap();
    assert!(text.starts_with("HTTP/1.1 200") && text.contains("text_completion"), "{text}");
    let refused = ask(&server, false).unwrap_err();
    assert!(refused.to_string().contains("certificate"), "{refused}");
    // Plain HTTP gets no answer in it.
    let mut plain = TcpStream::connect(server.address).unwrap();
    plain.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    plain.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    let mut bytes = Vec::new();
    let _ = plain.read_to_end(&mut bytes);
    assert!(!bytes.starts_with(b"HTTP"), "{}", String::from_utf8_lossy(&bytes));
    drop(stalled);
    server.stop();
}

#[test]
fn files_that_are_no_certificate_or_key_are_refused_by_name() {
    for (certificate, key, named) in
        [("key.pem", "key.pem", "key.pem"), ("cert.pem", "cert.pem", "cert.pem"), ("none.pem", "key.pem", "none.pem")]
    {
        let error = Tls::open(&file(certificate), &file(key)).unwrap_err();
        assert!(error.to_string().contains(named) && error.hint().is_some(), "{error}");
    }
}
