"""The server's own certificate authority: who it is, and who its workers are.

Times in certificates are the server's. A worker, whose clock may be wrong, does not look at them: it knows the server
by the authority's fingerprint, and the server looks at the worker's.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from farcall import errors
from farcall.content.disk import disk_error, sync_one, write_file

SERVER_NAME = "farcall-server"  # in its certificate: it has no other name that matters
YEARS = 20
WORKER_YEARS = 5
_NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME, for which the ssl module has no name


class Authority:
    """Keys and certificates in one directory, whose private files only this user can read (0600)."""

    def __init__(self, directory: Path) -> None:
        """Opens it; makes keys where there are none."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory = directory
        self._ca = directory / "ca.pem"
        self._certificate = directory / "server.pem"
        if not self._certificate.exists():
            self._make()
        self._key = _load_key(directory / "ca.key")
        self.certificate = self._ca.read_bytes()
        self._issuer = x509.load_pem_x509_certificate(self.certificate)

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the authority's certificate, in hex."""
        return fingerprint(self.certificate)

    def _make(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "farcall authority")])
        authority = (
            _builder(name, name, key.public_key(), YEARS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(key, hashes.SHA256())
        )
        server_key = ec.generate_private_key(ec.SECP256R1())
        server = (
            _builder(_named(SERVER_NAME), name, server_key.public_key(), YEARS)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(SERVER_NAME)]), critical=False)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .sign(key, hashes.SHA256())
        )
        write_private(self._directory / "ca.key", _pem_of(key))
        write_private(self._ca, authority.public_bytes(serialization.Encoding.PEM))
        write_private(self._directory / "server.key", _pem_of(server_key))
        # The last one: where it is, all are.
        write_private(self._certificate, server.public_bytes(serialization.Encoding.PEM))

    def issue(self, request: bytes, worker_id: str) -> bytes:
        """A certificate for a worker's key, in PEM. Raises InvalidError where the request is none."""
        try:
            asked = x509.load_pem_x509_csr(request)
            valid = asked.is_signature_valid
        except (ValueError, UnsupportedAlgorithm) as error:
            raise errors.InvalidError(f"that is no request for a certificate: {error}") from None
        if not valid:
            raise errors.InvalidError("the request for a certificate is not signed with its own key")
        certificate = (
            _builder(_named(worker_id), self._issuer.subject, asked.public_key(), WORKER_YEARS)
            # Workers serve each other content, too. Nobody takes one for the server, whose name its certificate lacks.
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM)

    def context(self) -> ssl.SSLContext:
        """How the server listens: TLS 1.3, and a certificate of ours from whoever has one."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(self._certificate, self._directory / "server.key")
        context.load_verify_locations(cadata=self.certificate.decode())
        context.verify_mode = ssl.CERT_OPTIONAL
        context.num_tickets = 0  # connections last, and a certificate is to be looked at each time
        return context


def fingerprint(certificate: bytes) -> str:
    """The SHA-256 of a certificate in PEM, in hex."""
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate.decode())).hexdigest()


def new_key(path: Path) -> bytes:
    """Makes a key in this file; returns a certificate signing request for it, in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    write_private(path, _pem_of(key))
    request = x509.CertificateSigningRequestBuilder().subject_name(_named("worker")).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)


def worker_context(authority: bytes, certificate: Path | None = None, key: Path | None = None) -> ssl.SSLContext:
    """How a worker connects: to a server of that authority (in PEM) only, with its certificate where it has one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=authority.decode())
    context.verify_flags |= ssl.VerifyFlags(_NO_CHECK_TIME)
    if certificate is not None:
        context.load_cert_chain(certificate, key)
    return context


def peers_context(authority: bytes, certificate: Path, key: Path) -> ssl.SSLContext:
    """How a worker listens for others: TLS 1.3, and a certificate of that authority (in PEM) from everybody."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(cadata=authority.decode())
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VerifyFlags(_NO_CHECK_TIME)
    context.num_tickets = 0
    return context


def unverified_context() -> ssl.SSLContext:
    """How the authority's certificate is fetched, which is then known by its fingerprint."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def name_in(certificate: bytes) -> str:
    """The worker's id that a certificate, in DER, was issued to."""
    found = x509.load_der_x509_certificate(certificate).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if found else ""


def write_private(path: Path, data: bytes) -> None:
    """Writes a file that only this user can read: all of it, on disk, or nothing. Raises what `disk_error` says."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.unlink(missing_ok=True)  # of a process of that number that was killed
        write_file(os.fspath(temporary), data, 0o600, synced=True)
        try:
            os.replace(temporary, path)
        except OSError:
            temporary.unlink()
            raise
        sync_one(path.parent)  # or, after a power cut, one that was removed could be back
    except OSError as error:
        raise disk_error(error, "writing", path) from error


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey | object, years: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)  # pyright: ignore[reportArgumentType]
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=365 * years))
    )


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _pem_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise errors.InvalidError(f"{path} is not the authority's key")
    return key
