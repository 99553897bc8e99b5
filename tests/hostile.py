"""Hostile files: damaged at random, and read with little memory."""

import hashlib
import json
import tracemalloc
from contextlib import contextmanager

import torch
from safetensors.torch import save

MEGABYTE = 1 << 20


class TooLongError(BaseException):
    """Something takes too long; a BaseException, so that no reader catches it."""


def too_long(*_):
    """A handler of SIGALRM."""
    raise TooLongError


@contextmanager
def memory_limit():
    """Fails if the block takes more than 64 MB of Python's and NumPy's memory at its peak."""
    tracemalloc.start()
    try:
        yield
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 64 * MEGABYTE


def mutate(content, dice):
    """Change, cut, remove or insert bytes of a bytearray."""
    kind = dice.randrange(4)
    place = dice.randrange(len(content))
    if kind == 0:
        content[place] ^= 1 << dice.randrange(8)
    elif kind == 1:
        del content[place:]
    elif kind == 2:
        del content[place : place + dice.randrange(1, 9)]
    else:
        content[place:place] = dice.randbytes(dice.randrange(1, 9))
    return content


def digest_of(tensors, header):
    """As the format says, written a second time."""
    found = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name]
        found.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def forged(tensors, header):
    """A file of these tensors and this header, with a matching digest."""
    tensors = {name: torch.as_tensor(value).clone() for name, value in tensors.items()}
    text = json.dumps(header | {"digest": digest_of(tensors, header)})
    return save(tensors, metadata={"weight_loss": text})


def altered(tensors, text, dice, in_header):
    """The file with its header or a tensor mutated and the digest computed again, if it can be."""
    if in_header:
        text = mutate(bytearray(text.encode()), dice).decode("latin-1")
    else:
        name = dice.choice(sorted(tensors))
        kind = tensors[name].dtype
        content = mutate(bytearray(tensors[name].numpy().tobytes()), dice)
        content = content[: len(content) // kind.itemsize * kind.itemsize]
        empty = torch.zeros(0, dtype=kind)
        tensors[name] = torch.frombuffer(content, dtype=kind) if content else empty
    try:
        changed = json.loads(text)
        changed.pop("digest")
    except (ValueError, AttributeError, KeyError):
        return save(tensors, metadata={"weight_loss": text})
    return forged(tensors, changed)
