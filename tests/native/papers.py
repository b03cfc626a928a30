"""Certificates for tests."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization


class Papers:
    """A CA, and what it signed, as files."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.ca, self.directory = trustme.CA(), directory
        self.ca_file = self._write("ca.pem", self.ca.cert_pem)
        self.certificate, self.key = self.issue("127.0.0.1", name="server")

    def _write(self, name: str, *blobs: trustme.Blob) -> str:
        path = self.directory / name
        path.write_bytes(b"".join(blob.bytes() for blob in blobs))
        return str(path)

    def issue(self, *identities: str, name: str) -> tuple[str, str]:
        """Files of a certificate chain and its key."""
        leaf = self.ca.issue_cert(*identities, common_name=name)
        return self._write(f"{name}.pem", *leaf.cert_chain_pems), self._write(f"{name}.key", leaf.private_key_pem)

    def revoke(self, certificate: str) -> str:
        """A file of a CRL that names it."""
        signer = x509.load_pem_x509_certificate(Path(self.ca_file).read_bytes())
        key = serialization.load_pem_private_key(self.ca.private_key_pem.bytes(), None)
        now = datetime.now(UTC)
        serial = x509.load_pem_x509_certificate(Path(certificate).read_bytes()).serial_number
        revoked = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
        builder = x509.CertificateRevocationListBuilder().issuer_name(signer.subject)
        builder = builder.last_update(now - timedelta(1)).next_update(now + timedelta(1))
        crl = builder.add_revoked_certificate(revoked).sign(key, hashes.SHA256())  # type: ignore[arg-type]
        path = self.directory / "crl.pem"
        path.write_bytes(crl.public_bytes(serialization.Encoding.PEM))
        return str(path)
