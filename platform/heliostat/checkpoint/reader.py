"""Reading any slice of a checkpoint, however many ranks wrote it, and nothing else of it."""

import threading
from collections import OrderedDict, defaultdict
from functools import partial

import torch

from heliostat.checkpoint.dtypes import TORCH_DTYPES
from heliostat.checkpoint.format import CheckpointManifest, ShardRecord, SliceRecord, tensor_name
from heliostat.checkpoint.places import ShardSource
from heliostat.checkpoint.verify import read_chunk
from heliostat.errors import CorruptCheckpointError, IncompatibleCheckpointError
from heliostat.storage.in_flight import map_in_flight

_CACHED_CHUNKS = 8
"""Neighbouring small parameters share chunks, and a rank reads about four kinds of state side by side: 128 MiB."""
_READERS = 2
"""Threads that read and hash the chunks of a large slice."""


class CheckpointReader:
    """Slices of one committed checkpoint; each byte is verified by the hash of its chunk. Threads may share it."""

    def __init__(self, store: ShardSource, manifest: CheckpointManifest) -> None:
        self._store = store
        self._manifest = manifest
        self._found: defaultdict[str, list[tuple[SliceRecord, ShardRecord]]] = defaultdict(list)
        for shard in manifest.shards:
            for record in shard.slices:
                self._found[record.tensor].append((record, shard))
        for slices in self._found.values():
            slices.sort(key=lambda pair: pair[0].offset)
        self._chunks: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._lock = threading.Lock()

    def numel(self, kind: str, parameter: str) -> int:
        """Number of elements of a tensor.

        Raises:
            IncompatibleCheckpointError: The checkpoint has no such tensor.
        """
        name = tensor_name(kind, parameter)
        if name not in self._manifest.tensors:
            raise IncompatibleCheckpointError(
                f"the checkpoint {self._store.url}/{self._manifest.folder} holds no {name}",
                "Resume with the configuration that wrote it",
            )
        return self._manifest.tensors[name]

    def read_full(self, kind: str, parameter: str) -> torch.Tensor:
        """A whole tensor, shape (numel,). Raises as ``read`` does."""
        return self.read(kind, parameter, 0, self.numel(kind, parameter))

    def read(self, kind: str, parameter: str, start: int, stop: int) -> torch.Tensor:
        """Elements [start, stop) of a tensor, shape (stop - start,), in the type in which they were written.

        Raises:
            IncompatibleCheckpointError: No such tensor, or it has fewer elements.
            CorruptCheckpointError: Bytes are missing or are not those that were committed.
        """
        name = tensor_name(kind, parameter)
        numel = self.numel(kind, parameter)
        if not 0 <= start <= stop <= numel:
            raise IncompatibleCheckpointError(
                f"{name} has {numel} elements in the checkpoint {self._store.url}/{self._manifest.folder}; "
                f"[{start}, {stop}) was asked for",
                "Resume with the configuration that wrote it",
            )
        out = torch.empty(stop - start, dtype=self._dtype(name))
        target, width = out.view(torch.uint8).numpy().data, out.element_size()
        done = start
        for record, shard in self._found[name]:
            if record.offset > done or done >= stop:
                break
            upto = min(record.end, stop)
            if upto > done:
                first_byte = record.start_byte + (done - record.offset) * width
                self._copy(shard, first_byte, target[(done - start) * width : (upto - start) * width])
                done = upto
        if done < stop:
            raise self._corrupt(f"elements [{done}, {stop}) of {name} are in no shard")
        return out

    def _dtype(self, name: str) -> torch.dtype:
        names = {record.dtype for record, _ in self._found[name]}
        if len(names) != 1 or not names <= TORCH_DTYPES.keys():
            raise self._corrupt(f"{name} is stored as {', '.join(sorted(names)) or 'nothing'}, not as one known type")
        return TORCH_DTYPES[names.pop()]

    def _corrupt(self, fault: str) -> CorruptCheckpointError:
        return CorruptCheckpointError(
            f"the checkpoint {self._store.url}/{self._manifest.folder} is not whole: {fault}",
            "Continue from an older checkpoint",
        )

    def _copy(self, shard: ShardRecord, start: int, target: memoryview) -> None:
        """Fill ``target`` with the bytes of the shard's file from ``start`` on."""
        if not len(target):
            return
        wanted = range(start // shard.chunk_bytes, (start + len(target) - 1) // shard.chunk_bytes + 1)
        bring = partial(self._chunk, shard)
        found = map_in_flight(bring, wanted, _READERS) if len(wanted) > 1 else map(bring, wanted)
        done = 0
        for data in found:
            skip = (start + done) % shard.chunk_bytes
            piece = memoryview(data)[skip : skip + len(target) - done]
            target[done : done + len(piece)] = piece
            done += len(piece)

    def _chunk(self, shard: ShardRecord, index: int) -> bytes:
        place = (shard.key, index)
        with self._lock:
            if place in self._chunks:
                self._chunks.move_to_end(place)
                return self._chunks[place]
        data = read_chunk(self._store, shard, index)
        with self._lock:
            self._chunks[place] = data
            while len(self._chunks) > _CACHED_CHUNKS:
                self._chunks.popitem(last=False)
        return data
