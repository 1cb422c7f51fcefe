"""What connections to replicas that speak TLS rest on. It knows certificates' files and SSL contexts, and must not know
connections: the door and the readiness probe make theirs with what is made here."""

from __future__ import annotations

import ssl
from functools import lru_cache
from pathlib import Path

from skyserve.model.service import ReplicaTls

State = tuple[int, int] | None
"""What tells one state of a file from another."""

MOST_CONTEXTS = 64


def context_for(tls: ReplicaTls) -> ssl.SSLContext:
    """The context for handshakes with such replicas, made once and made anew when the file has changed.

    Raises OSError (ssl.SSLError is one) when the file cannot be used.
    """
    return _made(tls, _state(tls.ca_file))


@lru_cache(MOST_CONTEXTS)
def _made(tls: ReplicaTls, state: State) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=tls.ca_file)
    context.set_alpn_protocols(["http/1.1"])
    if tls.ca_file is not None:
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # a replica's own certificate will do, whoever signed it
    if not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _state(ca_file: str | None) -> State:
    if ca_file is None:
        return None
    found = Path(ca_file).stat()
    return found.st_mtime_ns, found.st_ino
