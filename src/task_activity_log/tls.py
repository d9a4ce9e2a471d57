"""TLS with files: trusted authorities, and our own certificate."""

import ssl
from dataclasses import dataclass
from pathlib import Path


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
