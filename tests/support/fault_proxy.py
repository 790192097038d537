"""An HTTP/1.1 reverse proxy that harms what a test asks it to harm, in front of a real S3 server.

It runs in a thread, on a port of loopback that any process can reach. Faults come from explicit rules ("the third GET
of a key that holds ``shards/``") and from chances, drawn by a seed and the number of the request. Bodies stream through
it both ways; an answer that is to be harmed is read whole first. Headers pass unchanged, Host among them, so that
signatures stay valid; only ``Expect: 100-continue`` is answered here.
"""

import asyncio
import random
import socket
import threading
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from support.http_messages import HEAD_LIMIT, Message, forward, receive, with_flipped_bit

Kind = Literal[
    "500",  # InternalError; this and the next five are answered here, and nothing is passed on
    "503",  # ServiceUnavailable
    "slow_down",  # 503 SlowDown
    "expired",  # 403 ExpiredToken
    "denied",  # 403 AccessDenied
    "no_upload",  # 404 NoSuchUpload
    "latency",  # `amount` seconds pass before the request is passed on
    "lost_answer",  # the connection is closed in place of the answer
    "cut_body",  # the answer's body ends after `amount` bytes
    "long_length",  # Content-Length says `amount` bytes more than there are
    "short_length",  # Content-Length says `amount` bytes fewer than there are
    "flip",  # a bit of byte `amount` (modulo the length) of the answer's body is changed
    "flip_upload",  # a bit of byte `amount` (modulo the length) of the request's body is changed
    "bad_xml",  # an XML answer ends in its middle; its length is right
    "stale_list",  # the list that was answered to the same request before the last answer, if there was one
]
_REFUSALS: Mapping[Kind, tuple[str, str]] = {
    "500": ("500 Internal Server Error", "InternalError"),
    "503": ("503 Service Unavailable", "ServiceUnavailable"),
    "slow_down": ("503 Slow Down", "SlowDown"),
    "expired": ("403 Forbidden", "ExpiredToken"),
    "denied": ("403 Forbidden", "AccessDenied"),
    "no_upload": ("404 Not Found", "NoSuchUpload"),
}
_OF_BODIES: frozenset[Kind] = frozenset({"cut_body", "long_length", "short_length", "flip", "bad_xml", "stale_list"})
_LIST = "list-type=2"


@dataclass(frozen=True, slots=True)
class Rule:
    """Harm ``times`` requests (None: all) that match, after ``skip`` of them passed.

    ``contains`` is looked for in the unquoted request line and headers: part of a key, a query, a credential; of
    several, any will do.
    """

    kind: Kind
    method: str = ""
    contains: str | tuple[str, ...] = ""
    skip: int = 0
    times: int | None = 1
    amount: float = 1

    def covers(self, count: int) -> bool:
        """Whether the matching request after ``count`` others is one to harm."""
        return count >= self.skip and (self.times is None or count < self.skip + self.times)


@dataclass(frozen=True, slots=True)
class Chances:
    """Harm each request that matches with the probability of each kind; the same seed harms the same numbers."""

    seed: int
    of: Mapping[Kind, float]
    method: str = ""
    contains: str = ""
    amount: float = 1


@dataclass(slots=True)
class Seen:
    """One request: its line and headers, unquoted, and what was done to it."""

    number: int
    head: str
    fault: Kind | None = None

    @property
    def method(self) -> str:
        return self.head.partition(" ")[0]

    def matches(self, wanted: Rule | Chances) -> bool:
        parts = (wanted.contains,) if isinstance(wanted.contains, str) else wanted.contains
        return self.head.startswith(wanted.method) and any(part in self.head for part in parts)


def weather(seed: int, share: float) -> Chances:
    """Chances that harm this share of all requests, in every way that a store has to make up for without help.

    Left out: ``flip``, which only the hashes of whoever reads a range can tell, and ``stale_list``, which nobody can.
    """
    kinds: list[Kind] = ["500", "503", "slow_down", "expired", "latency", "lost_answer"]
    kinds += ["cut_body", "long_length", "short_length", "flip_upload", "bad_xml"]
    return Chances(seed, dict.fromkeys(kinds, share / len(kinds)), amount=0.01)


def drawn(seed: int, number: int, of: Mapping[Kind, float]) -> Kind | None:
    """The fault of the request with this number: a function of the arguments alone."""
    left = random.Random(f"{seed}/{number}").random()
    for kind, probability in of.items():
        left -= probability
        if left < 0:
            return kind
    return None


class FaultProxy:
    """See the module. ``requests`` tells what came, ``faults`` counts what was really done, by kind."""

    def __init__(self, upstream: str) -> None:
        address = urlsplit(upstream)
        self._upstream = (address.hostname, address.port)
        # Bound and never listening: it keeps the port ours while connections to it are refused.
        self._holder = _bound(0)
        self._port = int(self._holder.getsockname()[1])
        self.endpoint = f"http://127.0.0.1:{self._port}"
        self.requests: list[Seen] = []
        self.faults: Counter[Kind] = Counter()
        self._rules: list[Rule] = []
        self._matched: Counter[int] = Counter()
        self._chances: Chances | None = None
        self._lists: dict[str, list[bytes]] = {}
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy")

    def plan(self, *rules: Rule, chances: Chances | None = None) -> None:
        """Replaces what was planned before; the first rule that covers a request decides, then the chances."""
        self._rules, self._matched, self._chances = list(rules), Counter(), chances

    def refuse(self, seconds: float | None = None) -> None:
        """An outage: connections end and new ones are refused, for so long or until ``accept``. Returns at once."""
        self._do(self._close())
        if seconds is not None:
            self._loop.call_soon_threadsafe(self._loop.call_later, seconds, self._accept_soon)

    def accept(self) -> None:
        """The outage is over."""
        self._do(self._open())

    @contextmanager
    def running(self) -> Iterator["FaultProxy"]:
        """Listens inside, leaves no thread, task or socket behind."""
        self._thread.start()
        try:
            self.accept()
            yield self
        finally:
            self._do(self._close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()
            self._holder.close()

    def _do(self, action: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(action, self._loop).result(timeout=10)

    def _accept_soon(self) -> None:
        self._opening = self._loop.create_task(self._open())

    async def _open(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, sock=_bound(self._port), limit=HEAD_LIMIT)

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        tasks = list(self._connections)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            while (request := await receive(reader)) and await self._exchange(request, writer):
                await writer.drain()
            writer.close()
            await writer.wait_closed()
        except (OSError, EOFError, asyncio.CancelledError):
            pass  # the other side gave up, as is its right, or this proxy's outage or end came
        finally:
            self._connections.discard(task)
            writer.transport.abort()

    async def _exchange(self, request: Message, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; whether the connection goes on."""
        seen, kind, amount = self._judge(request)
        if "expect" in request.fields:
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if kind is not None and kind in _REFUSALS:
            async for _ in request.body():
                pass
            self._count(seen, kind)
            writer.write(_refusal(kind, with_body=not request.is_head))
            return True
        if kind == "latency":
            self._count(seen, kind)
            await asyncio.sleep(amount)
        flip_at = int(amount) % request.length if kind == "flip_upload" and request.length else None
        if flip_at is not None:
            self._count(seen, "flip_upload")
        async with self._answered(request, flip_at) as answer:
            if kind == "lost_answer":
                self._count(seen, kind)
            if answer is None or kind == "lost_answer":
                return False
            if kind in _OF_BODIES or _LIST in seen.head:
                return await self._answer_whole(answer, seen, kind, int(amount), writer)
            writer.write(answer.head)
            await forward(answer.body(), writer)
            return answer.ends_itself

    @asynccontextmanager
    async def _answered(self, request: Message, flip_at: int | None) -> AsyncIterator[Message | None]:
        """Passes the request on, over a connection of its own; the head of the answer, unless there is none."""
        reader, writer = await asyncio.open_connection(*self._upstream, limit=HEAD_LIMIT)
        try:
            writer.write(request.head_without("expect"))
            with suppress(ConnectionError):  # it may refuse a body before its end; its answer says why
                await forward(request.body(), writer, flip_at=flip_at)
            answer = await receive(reader)
            if answer is not None:
                answer.has_body = not request.is_head and answer.status not in (204, 304)
            yield answer
        finally:
            writer.transport.abort()

    async def _answer_whole(
        self, answer: Message, seen: Seen, kind: Kind | None, amount: int, writer: asyncio.StreamWriter
    ) -> bool:
        """Answers with what may have to be harmed or remembered, and is therefore read whole."""
        if not answer.has_body:
            writer.write(answer.head)
            return True
        body = await answer.content()
        earlier = self._remember(seen, body) if answer.status == 200 and _LIST in seen.head else None
        sent, announced = harmed(kind, amount, body, earlier)
        if kind is not None and (sent, announced) != (body, len(body)):
            self._count(seen, kind)
        head = answer.head_without("content-length", "transfer-encoding")
        writer.write(head[:-2] + b"Content-Length: %d\r\n\r\n" % announced + sent)
        return len(sent) == announced

    def _remember(self, seen: Seen, body: bytes) -> bytes | None:
        """Keeps this list's answer; the one before it."""
        answers = self._lists.setdefault(seen.head.split("\r\n")[0], [])
        answers.append(body)
        return answers[-2] if len(answers) > 1 else None

    def _judge(self, request: Message) -> tuple[Seen, Kind | None, float]:
        seen = Seen(len(self.requests), unquote(request.head.decode("latin-1")))
        self.requests.append(seen)
        matching = [rule for rule in self._rules if seen.matches(rule)]
        counts = {id(rule): self._matched[id(rule)] for rule in matching}
        self._matched.update(counts.keys())
        for rule in matching:
            if rule.covers(counts[id(rule)]):
                return seen, rule.kind, rule.amount
        chances = self._chances
        if chances and seen.matches(chances):
            return seen, drawn(chances.seed, seen.number, chances.of), chances.amount
        return seen, None, 0

    def _count(self, seen: Seen, kind: Kind) -> None:
        seen.fault = kind
        self.faults[kind] += 1


def harmed(kind: Kind | None, amount: int, body: bytes, earlier: bytes | None) -> tuple[bytes, int]:
    """The body to send in place of ``body``, and the length to announce. A pure function.

    Args:
        kind: A kind that harms bodies of answers; any other leaves it alone, as does one that cannot harm this body.
        amount: See ``Kind``.
        body: As the server sent it.
        earlier: What the server sent to the same request for a list the time before.
    """
    if kind == "stale_list" and earlier is not None:
        return earlier, len(earlier)
    if kind == "long_length":
        return body, len(body) + amount
    if kind == "bad_xml" and body.startswith(b"<?xml"):
        return body[: len(body) // 2], len(body) // 2
    if not body:
        return body, 0
    if kind == "cut_body":
        return body[: min(amount, len(body) - 1)], len(body)
    if kind == "short_length":
        return body, max(0, len(body) - amount)
    if kind == "flip":
        return with_flipped_bit(body, amount % len(body)), len(body)
    return body, len(body)


def _refusal(kind: Kind, *, with_body: bool) -> bytes:
    status, code = _REFUSALS[kind]
    body = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code></Error>' if with_body else ""
    return f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


def _bound(port: int) -> socket.socket:
    # With its protocol named, or asyncio would not switch Nagle's algorithm off, which delays every answer by 40 ms.
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind(("127.0.0.1", port))
    return bound
