"""Messages: whole and in order, whatever their length, whichever process is killed."""

import os
import signal
import threading
import time
from multiprocessing import Pipe, get_context

import pytest

from experiments.processes.messages import Inbox, send


@pytest.fixture
def pipe():
    reader, writer = Pipe(duplex=False)
    yield Inbox(reader), writer
    reader.close()
    writer.close()


def received(inbox):
    messages = []
    while not inbox.empty():
        messages.append(inbox.get())
    return messages


@pytest.mark.parametrize(
    "line", ["", "round 1", "two\nlines", "é" * 5000, "x" * 40_000, "nothing\0special", "\udcff"]
)
def test_a_line_arrives_as_it_was_sent(pipe, line):
    inbox, writer = pipe
    assert received(inbox) == []
    send(writer, ("a", line))
    assert received(inbox) == [("a", line.replace("\udcff", "?"))]


def test_parts_of_long_lines_may_come_in_turns(pipe):
    inbox, writer = pipe
    lines = {name: [f"{name} {number} " * 3000 for number in range(20)] for name in "abc"}
    threads = [
        threading.Thread(
            target=lambda name=name: [send(writer, (name, x)) for x in lines[name]], daemon=True
        )
        for name in lines
    ]
    for thread in threads:
        thread.start()
    found = []
    while any(thread.is_alive() for thread in threads) or not inbox.empty():
        found += received(inbox)
    for name in lines:
        assert [line for other, line in found if other == name] == lines[name]


def test_a_message_without_an_end_is_dropped(pipe, monkeypatch):
    inbox, writer = pipe
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda *args: (write(*args), os.close(-1)))  # the first part
        with pytest.raises(OSError, match="Bad file descriptor"):
            send(writer, ("a", "x" * 10_000))
    assert received(inbox) == []
    send(writer, ("a", "round 1"))
    assert received(inbox) == [("a", "round 1")]


LINE = "x" * 10_000  # in three parts


def send_for_ever(writer):
    while True:
        send(writer, ("killed", LINE))


def test_a_process_that_is_killed_while_it_sends_stops_nobody(pipe):
    inbox, writer = pipe
    for number in range(5):
        process = get_context("spawn").Process(target=send_for_ever, args=(writer,))
        process.start()
        while inbox.empty():
            time.sleep(0.01)
        time.sleep(0.01 * number)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert set(received(inbox)) == {("killed", LINE)}
        send(writer, ("alive", "line"))
        assert received(inbox) == [("alive", "line")]
