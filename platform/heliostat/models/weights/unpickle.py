"""The child process of ``foreign.py``: reads a pickle of tensors that nobody vouches for, and writes safetensors.

Run by path with ``python -I``: it sees neither the caller's folder, nor its environment, nor anything of Heliostat.
Arguments: the pickle, the file to write, the limit of the address space in bytes. What went wrong is the last line of
standard error.
"""

import pickle
import re
import resource
import sys
from collections.abc import Iterator, Mapping

import torch
from safetensors.torch import save_file
from torch import Tensor


def tensors_in(value: object, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Tensors of nested dictionaries, names joined by dots; an optimizer's state is left out."""
    if isinstance(value, Tensor):
        yield prefix, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if isinstance(key, str) and key != "optimizer":
                yield from tensors_in(inner, f"{prefix}.{key}" if prefix else key)


def without_student(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Half of a training checkpoint is enough: the teacher's."""
    if not any("teacher" in name.split(".") for name in tensors):
        return tensors
    return {name: tensor for name, tensor in tensors.items() if "student" not in name.split(".")}


def explain(error: Exception) -> str:
    """One line; torch's own message fills a screen, and begins with how to run the file after all."""
    wanted = re.search(r"GLOBAL (\S+)", str(error))
    if wanted:
        return f"it asks to run {wanted[1]}, which no file of tensors needs"
    if isinstance(error, pickle.UnpicklingError):
        operand = re.search(r"Unsupported operand (\d+)", str(error))
        return (
            f"its pickle holds {f'operation {operand[1]}' if operand else 'operations'} that no file of tensors needs"
        )
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"


def main(source: str, target: str, limit_bytes: int) -> None:
    """Read ``source``, write ``target``."""
    resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))
    loaded = torch.load(source, map_location="cpu", weights_only=True)
    found = without_student(dict(tensors_in(loaded)))
    if not found:
        raise ValueError("it holds no tensors")
    # Clones: tensors that share memory, or are views of more than they show, cannot be written.
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in found.items()}, target)


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    except Exception as error:
        print(explain(error), file=sys.stderr)  # noqa: T201 -- how the child speaks
        sys.exit(1)
