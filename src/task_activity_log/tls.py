"""TLS with files: trusted authorities, and our own certificate."""

import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

CERTIFICATE_SETTINGS = ("amqp_ca_file", "amqp_certificate_file", "database_ca_file", "database_certificate_file")
"""The settings that name files with certificates."""


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files. They are read for each connection, so that renewed certificates need no restart."""

    ca: Path | None = None
    """The authorities that may sign the server's certificate; the system's authorities if it is None."""
    certificate: Path | None = None
    """Our certificate with its chain, for servers that ask for one."""
    key: Path | None = None
    """The private key, not encrypted; None if the file of the certificate contains it."""

    def context(self) -> ssl.SSLContext:
        """The context for opening a connection. The server's certificate and name are always checked.

        Raises:
            OSError: a file cannot be read, or (`ssl.SSLError`) does not contain what it should.
        """
        context = ssl.create_default_context(cafile=self.ca)
        self._identify(context)
        return context

    def unusable(self) -> str:
        """Which of the files cannot be used, and why; empty if all can."""
        ours = " and ".join(str(file) for file in (self.certificate, self.key) if file)
        for files, use in (
            (str(self.ca), lambda: ssl.create_default_context(cafile=self.ca)),
            (ours, lambda: self._identify(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))),
        ):
            try:
                use()
            except ssl.SSLError:
                return f"not PEM, or the key is not that of the certificate: {files}"
            except OSError as error:
                return f"{error.strerror}: {files}"
        return ""

    def fill(self, context: ssl.SSLContext) -> None:
        """Put the files into a client's context, which then checks the server's certificate and name.

        Raises:
            OSError: as `context`.
        """
        context.verify_mode = ssl.CERT_REQUIRED
        context.check_hostname = True
        if self.ca is None:
            context.load_default_certs()
        else:
            context.load_verify_locations(cafile=self.ca)
        self._identify(context)

    def _identify(self, context: ssl.SSLContext) -> None:
        if self.certificate is not None:
            # With a password argument OpenSSL does not prompt for one on the terminal.
            context.load_cert_chain(self.certificate, self.key, password="")


def expires(pem: str) -> datetime | None:
    """When the first of the certificates in a PEM file expires; None if there is none. `ValueError` if one cannot be read."""
    return min(map(_not_after, _CERTIFICATE.findall(pem)), default=None)


_CERTIFICATE = re.compile("-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
_VERSION, _GENERALIZED_TIME = 0xA0, 0x18


def _not_after(pem: str) -> datetime:
    """`notAfter` of a certificate (RFC 5280, section 4.1). The standard library shows it of a server's certificate only."""
    try:
        certificate = next(_items(ssl.PEM_cert_to_DER_cert(pem)))[1]
        fields = [item for item in _items(next(_items(certificate))[1]) if item[0] != _VERSION]
        _, (tag, text) = _items(fields[3][1])  # behind serial number, signature algorithm and issuer
        form = "%Y%m%d%H%M%SZ" if tag == _GENERALIZED_TIME else "%y%m%d%H%M%SZ"
        found = datetime.strptime(text.decode(), form).replace(tzinfo=UTC)
    except (IndexError, StopIteration, ValueError):
        raise ValueError("a certificate cannot be read") from None
    # Two digits mean 1950 to 2049; `strptime` takes 69 to 99 for the last century.
    return found.replace(year=found.year - 100) if tag != _GENERALIZED_TIME and found.year > _LAST_SHORT_YEAR else found


_LAST_SHORT_YEAR = 2049


def _items(der: bytes) -> Iterator[tuple[int, bytes]]:
    """The tag and the content of each item in DER."""
    while der:
        length, start = der[1], 2
        if length & 0x80:
            start += length & 0x7F
            length = int.from_bytes(der[2:start], "big")
        yield der[0], der[start : start + length]
        der = der[start + length :]
