"""Messages: lines from processes of which any may be killed at any moment.

A `multiprocessing.SimpleQueue` has a lock; a process that is killed while it holds the lock keeps
it for ever, and all others wait. The messages here need none: the system writes up to `PIPE_BUF`
bytes to a pipe at once, or not at all.
"""

import os
from collections import deque
from multiprocessing.connection import Connection
from select import PIPE_BUF

from experiments.processes.tasks import Message

_HEADER = 3  # bytes before a part of a message: its length, then the flags
_FIRST = 1  # of a message
_LAST = 2


def send(writer: Connection, message: Message) -> None:
    """Send a message; a long one in parts.

    Args:
        writer: The end of a pipe for writing.
    """
    name, line = (text.encode(errors="replace") for text in message)
    room = PIPE_BUF - _HEADER - len(name) - 1
    parts = [line[start : start + room] for start in range(0, len(line), room)] or [b""]
    for number, part in enumerate(parts, start=1):
        content = name + b"\0" + part
        flags = (number == 1) * _FIRST | (number == len(parts)) * _LAST
        header = len(content).to_bytes(2, "little") + bytes([flags])
        os.write(writer.fileno(), header + content)


class Inbox:
    """The messages that have come through a pipe.

    Args:
        reader: The end of the pipe for reading.
    """

    def __init__(self, reader: Connection) -> None:
        self.reader = reader
        self._received = bytearray()
        self._parts: dict[str, bytes] = {}  # of messages whose end is missing
        self._whole: deque[Message] = deque()

    def empty(self) -> bool:
        """Whether there is no message."""
        while self.reader.poll():
            self._received += os.read(self.reader.fileno(), 1 << 16)
        while len(self._received) >= _HEADER:
            end = _HEADER + int.from_bytes(self._received[:2], "little")
            if len(self._received) < end:
                break
            name, _, part = bytes(self._received[_HEADER:end]).partition(b"\0")
            flags = self._received[2]
            # A process that was killed may have left the beginning of another message.
            before = b"" if flags & _FIRST else self._parts[name.decode()]
            self._parts[name.decode()] = before + part
            if flags & _LAST:
                line = self._parts.pop(name.decode()).decode(errors="replace")
                self._whole.append((name.decode(), line))
            del self._received[:end]
        return not self._whole

    def get(self) -> Message:
        """The oldest message.

        Raises:
            IndexError: If there is none.
        """
        return self._whole.popleft()
