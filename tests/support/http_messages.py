"""HTTP/1.1 messages on a stream, as far as a proxy has to understand them."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

HEAD_LIMIT = 256 * 1024
_PIECE = 64 * 1024


@dataclass(slots=True)
class Message:
    """First line and headers, up to the empty line; the body waits in ``source``."""

    head: bytes
    source: asyncio.StreamReader
    has_body: bool = True
    fields: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        lines = self.head.decode("latin-1").split("\r\n")[1:-2]
        self.fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}

    @property
    def is_head(self) -> bool:
        return self.head.startswith(b"HEAD ")

    @property
    def status(self) -> int:
        return int(self.head.split(b" ", 2)[1])

    @property
    def is_chunked(self) -> bool:
        return self.fields.get("transfer-encoding", "").lower() == "chunked"

    @property
    def length(self) -> int | None:
        """What Content-Length says."""
        return int(self.fields["content-length"]) if "content-length" in self.fields else None

    @property
    def ends_itself(self) -> bool:
        """Whether its end can be told without the end of the connection."""
        return not self.has_body or self.is_chunked or self.length is not None or not self.head.startswith(b"HTTP/")

    def head_without(self, *names: str) -> bytes:
        lines = self.head[:-4].split(b"\r\n")
        kept = [line for line in lines if line.partition(b":")[0].decode("latin-1").lower() not in names]
        return b"\r\n".join(kept) + b"\r\n\r\n"

    async def body(self) -> AsyncIterator[bytes]:
        """The body in pieces, as it is on the wire: with the frames of its chunks."""
        if not self.has_body:
            return
        if self.is_chunked:
            async for frame, piece in self._chunks():
                yield frame + piece
            return
        left = (self.length or 0) if self.ends_itself else None
        while left is None or left:
            piece = await self.source.read(_PIECE if left is None else min(left, _PIECE))
            if not piece and left is None:
                return
            if not piece:
                raise ConnectionResetError("the body ended early")
            left = None if left is None else left - len(piece)
            yield piece

    async def content(self) -> bytes:
        """The whole body, without frames."""
        if self.has_body and self.is_chunked:
            return b"".join([piece.removesuffix(b"\r\n") async for _, piece in self._chunks()])
        return b"".join([piece async for piece in self.body()])

    async def _chunks(self) -> AsyncIterator[tuple[bytes, bytes]]:
        while True:
            frame = await self.source.readuntil(b"\r\n")
            size = int(frame.split(b";")[0], 16)
            if size == 0:
                break
            yield frame, await self.source.readexactly(size + 2)
        while (line := await self.source.readuntil(b"\r\n")) != b"\r\n":  # trailers, checksums for instance
            frame += line
        yield frame, b"\r\n"


async def receive(source: asyncio.StreamReader, *, body: bool = True) -> Message | None:
    """The next message, after interim ones; None if the connection ended before it."""
    try:
        while True:
            message = Message(await source.readuntil(b"\r\n\r\n"), source, body)
            if not message.head.startswith(b"HTTP/1.1 1"):
                return message
    except asyncio.IncompleteReadError:
        return None


async def forward(pieces: AsyncIterator[bytes], writer: asyncio.StreamWriter, *, flip_at: int | None = None) -> None:
    """Writes pieces as they come, no faster than the other side reads; one bit of byte ``flip_at`` is changed."""
    done = 0
    async for piece in pieces:
        if flip_at is not None and done <= flip_at < done + len(piece):
            writer.write(with_flipped_bit(piece, flip_at - done))
        else:
            writer.write(piece)
        done += len(piece)
        await writer.drain()


def with_flipped_bit(data: bytes, place: int) -> bytes:
    """The same bytes with the lowest bit of one of them changed."""
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
