"""TLS contexts that are made from files, tried between a client and a server in this process."""

import asyncio
import ssl
import time
from datetime import UTC, datetime, timedelta
from math import isnan
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from task_activity_log.cli.check.certificates import findings, judge
from task_activity_log.libpq import Target, read, trust
from task_activity_log.rabbitmq.link import LOST, LinkOptions, Outage, OutageKind, connect, describe
from task_activity_log.settings import load
from task_activity_log.status import _expires
from task_activity_log.tls import Tls, expires
from task_activity_log.wiring import link_of
from tests.tls.authority import Authority


def write(directory: Path, name: str, text: str) -> Path:
    path = directory / name
    path.write_text(text)
    return path


def issued(authority: Authority, directory: Path, name: str, *, common: str = "worker") -> Tls:
    """The files of a client that trusts this authority and has a certificate from it."""
    certificate, key = authority.issue(common)
    return Tls(
        write(directory, f"{name}-ca.pem", authority.certificate),
        write(directory, f"{name}.pem", certificate),
        write(directory, f"{name}-key.pem", key),
    )


async def shake_hands(client: ssl.SSLContext, directory: Path, authority: Authority) -> str:
    """Connect to a server that requires certificates of this authority; return the name in the client's."""
    files = issued(authority, directory, "server", common="localhost")
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=files.ca)
    server_side.verify_mode = ssl.CERT_REQUIRED
    assert files.certificate is not None
    server_side.load_cert_chain(files.certificate, files.key)

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peercert")
        writer.write(str(peer["subject"][0][0][1]).encode())
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=server_side)
    async with server:
        port = server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client, server_hostname="localhost")
        said = await reader.read()
        writer.close()
        return said.decode()


async def test_both_sides_verify_each_other(tmp_path: Path) -> None:
    """The server gets our certificate, and we trust the server's."""
    authority = Authority("ours")
    assert await shake_hands(issued(authority, tmp_path, "ours").context(), tmp_path, authority) == "worker"


async def test_a_server_of_another_authority_is_not_trusted(tmp_path: Path) -> None:
    """The server's authority is not in our CA file."""
    files = issued(Authority("ours"), tmp_path, "ours")
    with pytest.raises(ssl.SSLCertVerificationError):
        await shake_hands(files.context(), tmp_path, Authority("a stranger's"))


async def test_a_file_that_is_no_certificate_any_more_is_named(tmp_path: Path) -> None:
    """While the worker runs. At start it is refused."""
    files = issued(Authority("ours"), tmp_path, "ours")
    assert files.unusable() == ""
    assert files.certificate is not None
    files.certificate.write_text("nonsense")
    said = f"not PEM, or the key is not that of the certificate: {files.certificate} and {files.key}"
    assert files.unusable() == said
    link = LinkOptions("amqps://127.0.0.1:1/", tls=files)
    with pytest.raises(LOST) as lost:
        async with connect(link, "test"):
            pass
    assert describe(lost.value) == Outage(OutageKind.NO_FILE, f"a file for TLS cannot be used: {said[:200]}")
    assert files.ca is not None
    files.ca.unlink()
    assert files.unusable() == f"No such file or directory: {files.ca}"


async def test_a_renewed_certificate_is_used_from_the_next_connection_on(tmp_path: Path) -> None:
    """The files are read again for each connection, so that a worker need not be restarted."""
    authority = Authority("ours")
    files = issued(authority, tmp_path, "ours")
    assert await shake_hands(files.context(), tmp_path, authority) == "worker"
    issued(authority, tmp_path, "ours", common="renewed")
    assert await shake_hands(files.context(), tmp_path, authority) == "renewed"


async def test_a_list_of_revoked_certificates_counts_with_files_of_the_settings_too(tmp_path: Path) -> None:
    """OpenSSL then wants a list of each authority, so that of a stranger proves that it is looked at."""
    authority = Authority("ours")
    files, list_of = issued(authority, tmp_path, "ours"), tmp_path / "revoked.pem"
    target = read(f"postgresql://u@localhost/d?sslcrl={list_of}", {})
    list_of.write_text(authority.revocations())
    assert await shake_hands(_context(target, files), tmp_path, authority) == "worker"
    list_of.write_text(Authority("a stranger's").revocations())
    with pytest.raises(ssl.SSLCertVerificationError, match="unable to get certificate CRL"):
        await shake_hands(_context(target, files), tmp_path, authority)


def _context(target: Target, files: Tls) -> ssl.SSLContext:
    context = trust.context(target, target.hosts[0], files)
    assert context is not None
    context.set_alpn_protocols([])
    return context


def test_an_encrypted_key_is_refused_without_asking(tmp_path: Path) -> None:
    """OpenSSL would ask for the password on the terminal and wait."""
    files = issued(Authority("ours"), tmp_path, "ours")
    assert files.key is not None
    key = serialization.load_pem_private_key(files.key.read_bytes(), None)
    locked = serialization.BestAvailableEncryption(b"password")
    files.key.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked))
    with pytest.raises(ssl.SSLError):
        files.context()


def test_the_settings_name_the_files_for_each_service(tmp_path: Path) -> None:
    """Each service has its own files; `make test-tls` shows that they reach the drivers."""
    authority = Authority("ours")
    broker, database = issued(authority, tmp_path, "broker"), issued(authority, tmp_path, "database")
    settings = load(
        {
            "AMQP_URL": "amqps://broker",
            "DATABASE_URL": "postgresql://database",
            "WORKER_AMQP_CA_FILE": str(broker.ca),
            "WORKER_AMQP_CERTIFICATE_FILE": str(broker.certificate),
            "WORKER_AMQP_KEY_FILE": str(broker.key),
            "WORKER_DATABASE_CA_FILE": str(database.ca),
        }
    )
    assert link_of(settings).tls == broker
    assert settings.database_tls == Tls(database.ca)


@pytest.mark.parametrize("year", [1951, 1999, 2000, 2026, 2049, 2050, 2150, 9999])
def test_the_end_of_a_certificate_is_read(year: int) -> None:
    """As `cryptography` has written it, in both forms of a time. Of several certificates the first that ends counts."""
    until = datetime(year, 12, 31, 23, 59, 58, tzinfo=UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "x" * 60)])
    built = x509.CertificateBuilder(name, name, key.public_key(), 2**100).not_valid_before(
        datetime(1950, 1, 1, tzinfo=UTC)
    )
    signed = built.not_valid_after(until).sign(key, hashes.SHA256())
    pem = signed.public_bytes(serialization.Encoding.PEM).decode()
    assert expires(pem) == until
    later = signed_until(built, key, datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC))
    assert expires(f"text\n{later}{pem}") == until
    assert expires("") is None


def signed_until(built: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey, until: datetime) -> str:
    signed = built.not_valid_after(until).sign(key, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM).decode()


@pytest.mark.parametrize("content", ["AAAA", "", "MAA=", "MIIB" + "A" * 40])
def test_what_is_no_certificate_is_an_error(content: str) -> None:
    """Not a crash of /metrics."""
    with pytest.raises(ValueError, match="cannot be read"):
        expires(f"-----BEGIN CERTIFICATE-----\n{content}\n-----END CERTIFICATE-----")


@pytest.mark.parametrize(
    ("days", "verdict", "words"),
    [
        (31, "fine", "a certificate is valid until 2026-02-01 00:00 UTC"),
        (29, "warning", "a certificate is valid until"),
        (0, "broken", "a certificate expired at"),
    ],
)
def test_check_judges_the_end_of_a_certificate(days: int, verdict: str, words: str) -> None:
    """A month before it ends, and when it has ended."""
    now = datetime(2026, 1, 1, tzinfo=UTC)
    finding = judge("WORKER_AMQP_CA_FILE", now + timedelta(days=days), now)
    assert (finding.verdict, finding.found.startswith(words)) == (verdict, True)


def test_check_looks_at_each_file_that_is_set(tmp_path: Path) -> None:
    """By the name of its setting."""
    files = issued(Authority("ours"), tmp_path, "client")
    variables = {"AMQP_URL": "amqps://broker/", "DATABASE_URL": "postgresql://db/app"}
    settings = load(
        variables
        | {f"WORKER_AMQP_{kind}_FILE": str(getattr(files, kind.lower())) for kind in ("CA", "CERTIFICATE", "KEY")}
    )
    found = findings(settings)
    assert [(one.verdict, one.what) for one in found] == [
        ("warning", "WORKER_AMQP_CA_FILE"), ("warning", "WORKER_AMQP_CERTIFICATE_FILE")
    ]  # fmt: skip
    assert _expires(tmp_path / "client.pem") > time.time()
    assert isnan(_expires(tmp_path / "none.pem"))
