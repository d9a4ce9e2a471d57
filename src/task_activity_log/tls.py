"""TLS by files: who is trusted, and who we are."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files. They are read again for each connection, so that renewed certificates need no restart."""

    ca: Path | None = None
    """Who may sign the server's certificate; the system's authorities where it is None."""
    certificate: Path | None = None
    """Ours, with its chain, for servers that ask for one."""
    key: Path | None = None
    """Its private key, not encrypted; None: it is in the file of the certificate."""

    def context(self) -> ssl.SSLContext:
        """What a connection is opened with: the server's certificate and name are always checked.

        Raises:
            OSError: a file cannot be read; also as `ssl.SSLError`: it does not hold what it should.
        """
        context = ssl.create_default_context(cafile=self.ca)
        if self.certificate is not None:
            # A password is named so that OpenSSL does not ask for one on the terminal.
            context.load_cert_chain(self.certificate, self.key, password="")
        return context
