"""One answer on its way from a replica to a client: where its head ends, where its body ends, what the client gets.

Bytes in, bytes out. It knows HTTP's answers, and must not know connections, replicas or when a request is repeated.
"""

from __future__ import annotations

from skyserve.load_balancer.framing import (
    Body,
    ChunkedBody,
    RequestHead,
    ResponseHead,
    UntilCloseBody,
    head_end,
    parse_response_head,
    response_body,
)
from skyserve.load_balancer.headers import response_bytes


def is_whole(head: ResponseHead, request: RequestHead, size: int, rest: int) -> bool:
    """Whether `size` bytes from a replica, `rest` of them behind this head, are nothing but the whole answer, which can
    be passed on as it came."""
    if head.plain is None or not 200 <= head.status < 300 or not request.minor or request.method == b"HEAD":
        return False
    return rest == head.length and size == len(head.plain) + rest


class Answer:
    """The answer to one request. First `read_head` until `head` is there, then `begin` once, then `relay`.

    `exact`: no byte has come beyond its end.
    """

    __slots__ = ("_body", "_decoding", "_partial", "_request", "exact", "head")

    def __init__(self, request: RequestHead) -> None:
        self._request = request
        self._partial = b""
        self._body: Body | None = None
        self._decoding: ChunkedBody | None = None
        self.head: ResponseHead | None = None
        self.exact = True

    def read_head(self, data: bytes) -> tuple[bytes, bytes]:
        """Take in bytes before the body: interim answers for the client, and, with the head, what follows it.

        Raises BadMessage.
        """
        data, self._partial = self._partial + data, b""
        interim: list[bytes] = []
        start = 0
        while self.head is None:
            end = head_end(data, start=start)
            if end < 0:
                self._partial = data[start:]
                return b"".join(interim), b""
            head = parse_response_head(data[start:end])
            start = end
            if head.status >= 200 or head.status == 101:
                self.head = head
            elif self._request.minor:
                interim.append(response_bytes(head, connection=b"", coding=None))
        return b"".join(interim), data[start:]

    def begin(self, head: ResponseHead) -> None:
        """Make ready for the body. A client that speaks HTTP/1.0 gets it without its chunks."""
        old_client = self._request.minor == 0
        self._body = response_body(head, self._request.method, decode=old_client)
        if old_client and isinstance(self._body, ChunkedBody):
            self._decoding = self._body

    def head_bytes(self, head: ResponseHead, connection: bytes) -> bytes:
        """The head for the client; `connection` is our own word on it."""
        if self._decoding is not None and head.plain is not None:
            return self._old_head_bytes(head.plain, connection)
        coding = None if head.status == 204 or self._decoding is not None else head.coding
        return response_bytes(head, connection=connection, coding=coding)

    def _old_head_bytes(self, plain: bytes, connection: bytes) -> bytes:
        """A plain head of chunks, for a client that gets the body without them."""
        line, *lines = plain[:-4].split(b"\r\n")
        lines = [one for one in lines if one.partition(b":")[0].lower() != b"transfer-encoding"]
        return b"\r\n".join([line, *lines, b"Connection: %b" % connection, b"", b""])

    def relay(self, data: bytes) -> bytes:
        """Take in bytes of the body: what the client gets. Raises BadMessage."""
        body = self._body
        if body is None or not data:
            return b""
        end = body.feed(data, 0)
        self.exact = end == len(data)
        if self._decoding is not None:
            return self._decoding.take()
        return data if self.exact else data[:end]

    @property
    def chunks(self) -> ChunkedBody | None:
        """The body of one that is passed on in the chunks that it comes in."""
        return self._body if isinstance(self._body, ChunkedBody) and self._decoding is None else None

    @property
    def done(self) -> bool:
        """It is complete."""
        return self._body is not None and self._body.done

    @property
    def ends_with_connection(self) -> bool:
        """Only the end of the connection tells the replica's end of it."""
        return isinstance(self._body, UntilCloseBody)

    @property
    def ends_clients_connection(self) -> bool:
        """Only the end of the connection tells the client the end of it."""
        return self._decoding is not None or self.ends_with_connection
