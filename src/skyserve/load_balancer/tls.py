"""The endpoint's certificate: loaded, and loaded again when its files change, without a restart.

It knows files and SSL contexts. It must not know connections.
"""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

from skyserve.model.service import Tls

LOOK_S = 1.0
"""How often the files are looked at."""

NO_PASSPHRASE = ""
"""Nobody is there to be asked for one."""

logger = logging.getLogger("skyserve.load_balancer")


class Certificate:
    """A context that handshakes use; those that come after a change of the files see the new certificate.

    Raises OSError (ssl.SSLError is one) when the files cannot be used.
    """

    def __init__(self, files: Tls) -> None:
        self.files = files
        self._seen = self._state()
        self._looked_at = 0.0
        self.context = _loaded(files)

    def refresh(self, now: float) -> None:
        """Look at the files, if the last look was long enough ago. What cannot be used changes nothing."""
        if now - self._looked_at < LOOK_S:
            return
        self._looked_at = now
        try:
            state = self._state()
            if state == self._seen:
                return
            self._seen = state
            _loaded(self.files)  # apart first: a context with a key that does not fit would refuse everybody
            self.context.load_cert_chain(self.files.certfile, self.files.keyfile, NO_PASSPHRASE)
        except OSError as error:
            logger.warning("the new TLS key and certificate cannot be used, the old ones stay: %s", error)
        else:
            logger.info("the TLS certificate was loaded anew")

    def _state(self) -> tuple[tuple[int, int], ...]:
        found = (Path(name).stat() for name in (self.files.keyfile, self.files.certfile))
        return tuple((one.st_mtime_ns, one.st_ino) for one in found)


def _loaded(files: Tls) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    context.load_cert_chain(files.certfile, files.keyfile, NO_PASSPHRASE)
    return context
