"""The certificates of the metrics port, without the port: what is read, what is refused, and for whom one is."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from cluster.tls import Tls
from cluster.webtls import Unfit, is_for, load
from tests.native.papers import Papers

SAN = {"subjectAltName": (("DNS", "Web.host.example"), ("DNS", "*.many.example"), ("IP Address", "FD00:0:0:0:0:0:0:1"))}


def tls(papers: Papers, ca: str = "", crl: str = "", **more: object) -> Tls:
    return Tls(papers.certificate, papers.key, ca, crl, "", "", 12, 0, 0)._replace(**more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("host", "found"),
    [
        ("web.host.example", True),
        ("x.many.example", True),
        ("fd00::1", True),
        ("nobody.example,web.host.example", True),
        ("other.host.example", False),
        ("many.example", False),
        ("x.y.many.example", False),
        ("fd00::2", False),
        ("127.0.0.1", False),
    ],
)
def test_whom_a_certificate_is_for(host: str, found: bool) -> None:
    assert is_for(SAN, host) == found


def test_a_star_needs_two_labels_behind_it_and_a_subject_is_no_name() -> None:
    assert not is_for({"subjectAltName": (("DNS", "*.example"),)}, "a.example")
    assert not is_for({"subject": ((("commonName", "a.host.example"),),)}, "a.host.example")


def test_a_crl_file_makes_nobody_a_ca(tmp_path: Path) -> None:
    """OpenSSL would trust the certificates that it finds beside the lists."""
    papers, stranger = Papers(tmp_path / "papers"), Papers(tmp_path / "stranger")
    crl = Path(papers.revoke(papers.issue("client", name="revoked")[0]))
    crl.write_bytes(Path(stranger.ca_file).read_bytes() + crl.read_bytes())
    made = load(tls(papers, papers.ca_file, str(crl)))
    assert made.cert_store_stats() == {"x509": 1, "crl": 1, "x509_ca": 1}
    assert made.verify_flags & ssl.VERIFY_CRL_CHECK_LEAF


def test_versions_and_suites(tmp_path: Path) -> None:
    papers = Papers(tmp_path / "papers")
    made = load(tls(papers, version_min=13))
    assert made.minimum_version == ssl.TLSVersion.TLSv1_3
    made = load(tls(papers, version_max=12, ciphers="ECDHE-RSA-AES128-GCM-SHA256"))
    assert (made.minimum_version, made.maximum_version) == (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2)
    assert "ECDHE-RSA-AES128-GCM-SHA256" in {cipher["name"] for cipher in made.get_ciphers()}
    assert "ECDHE-RSA-AES256-GCM-SHA384" not in {cipher["name"] for cipher in made.get_ciphers()}


def test_files_that_are_of_no_use(tmp_path: Path) -> None:
    papers = Papers(tmp_path / "papers")
    other = papers.issue("x", name="other")[1]
    for wrong, said in (
        (tls(papers, key=other), f"certificate {papers.certificate}, key {other}: key values mismatch"),
        (tls(papers, key="/nowhere"), f"certificate {papers.certificate}, key /nowhere: No such file or directory"),
        (tls(papers, papers.key), f"CA {papers.key}: "),
        (tls(papers, papers.ca_file, papers.ca_file), f"CRL {papers.ca_file}: no start line"),
    ):
        with pytest.raises(Unfit) as found:
            load(wrong)
        assert str(found.value).startswith(said)
