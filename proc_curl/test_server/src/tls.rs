//! Certificates: an authority of one's own and what it signs, good and bad, made anew for each server.

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rcgen::{KeyUsagePurpose, date_time_ymd};
use std::sync::Arc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig, crypto};

/// Who proves to be whom.
pub(crate) struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: KeyPair,
    pem: String,
}

/// An authority, and what it signed.
pub(crate) struct Authority {
    pub(crate) pem: String,
    pub(crate) good: Identity,
    pub(crate) expired: Identity,
    pub(crate) wrong_host: Identity,
    pub(crate) self_signed: Identity,
    pub(crate) client: Identity,
    der: CertificateDer<'static>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().expect("entropy");
        let mut own = named("strait test authority", &[]);
        own.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        own.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let cert = own.self_signed(&key).expect("certificate");
        let issuer = Issuer::new(own, key);
        let hosts = ["localhost", "127.0.0.1", "::1", "test.example"];
        let mut expired = named("expired", &hosts);
        expired.not_before = date_time_ymd(2020, 1, 1);
        expired.not_after = date_time_ymd(2021, 1, 1);
        let mut client = named("client", &[]);
        client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        Self {
            pem: cert.pem(),
            good: Identity::signed(named("localhost", &hosts), Some(&issuer)),
            expired: Identity::signed(expired, Some(&issuer)),
            wrong_host: Identity::signed(named("elsewhere", &["elsewhere.example"]), Some(&issuer)),
            self_signed: Identity::signed(named("localhost", &hosts), None),
            client: Identity::signed(client, Some(&issuer)),
            der: cert.der().clone(),
        }
    }

    /// Speaks TLS as `identity`; offers HTTP/2 unless told not to; lets only the authority's clients in if told so.
    pub(crate) fn acceptor(&self, identity: &Identity, http2: bool, clients_only: bool) -> TlsAcceptor {
        let provider = Arc::new(crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider.clone());
        let config = config.with_safe_default_protocol_versions().expect("versions");
        let config = if clients_only {
            let mut roots = RootCertStore::empty();
            roots.add(self.der.clone()).expect("authority");
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            config.with_client_cert_verifier(verifier.expect("verifier"))
        } else {
            config.with_no_client_auth()
        };
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(identity.key.serialize_der()));
        let mut config = config.with_single_cert(identity.chain.clone(), key).expect("certificate");
        if http2 {
            config.alpn_protocols.push(b"h2".to_vec());
        }
        config.alpn_protocols.push(b"http/1.1".to_vec());
        TlsAcceptor::from(Arc::new(config))
    }
}

impl Identity {
    fn signed(params: CertificateParams, by: Option<&Issuer<'_, KeyPair>>) -> Self {
        let key = KeyPair::generate().expect("entropy");
        let cert = match by {
            Some(issuer) => params.signed_by(&key, issuer),
            None => params.self_signed(&key),
        };
        let cert = cert.expect("certificate");
        Self { chain: vec![cert.der().clone()], pem: cert.pem(), key }
    }

    /// The certificate and its key, in PEM.
    pub(crate) fn pem(&self) -> (String, String) {
        (self.pem.clone(), self.key.serialize_pem())
    }
}

fn named(name: &str, hosts: &[&str]) -> CertificateParams {
    let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
    let mut params = CertificateParams::new(hosts).expect("names");
    params.distinguished_name.push(DnType::CommonName, name);
    params
}
