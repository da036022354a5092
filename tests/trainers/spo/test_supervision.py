"""Excerpts and figures; that processes end is seen in test_sandbox.py."""

import doctest
import os
import subprocess
import sys
import tracemalloc

import pytest
from mmbert_hf.trainers.spo import supervision
from mmbert_hf.trainers.spo.supervision import MARKER, Excerpt, Process, resident_bytes

TALKER = "import sys; sys.stdout.buffer.write({marker!r}); sys.stdout.flush(); {rest}"


def talker(rest: str, marker: bytes = MARKER) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", TALKER.format(marker=marker, rest=rest)]


def test_docstring_examples():
    result = doctest.testmod(supervision)
    assert result.attempted >= 6
    assert result.failed == 0


@pytest.mark.parametrize("size", [1, 2, 5, 6, 7, 100])
@pytest.mark.parametrize("step", [1, 3, 100])
def test_an_excerpt_does_not_depend_on_the_pieces(size, step):
    text = "äbcdef\U0001f40dhi\njklmno"
    data = text.encode()
    excerpt = Excerpt(size)
    for start in range(0, len(data), step):
        excerpt.add(data[start : start + step])
    head, tail = (size + 1) // 2, size // 2
    left_out = len(text) - size
    short = f"{text[:head]}\n[... {left_out} characters left out ...]\n{text[len(text) - tail :]}"
    assert excerpt.text() == (text if left_out <= 0 else short)
    assert excerpt.num_bytes == len(data)


def test_an_excerpt_of_what_is_no_text():
    excerpt = Excerpt(10)
    excerpt.add(b"a\xff\xf0\x9f")
    assert excerpt.text() == "a\ufffd\ufffd"


def test_an_excerpt_takes_little_memory():
    excerpt, piece = Excerpt(1000), b"x" * 2**16
    tracemalloc.start()
    for _ in range(200):
        excerpt.add(piece)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20
    assert excerpt.text().count("x") == 1000


def test_memory_of_descendants_counts_and_what_they_share_counts_once():
    # 64 MiB that a fork and its fork share, and 64 MiB more in the last
    script = """if True:
        import os, sys
        shared = bytearray(os.urandom(2**20)) * 64
        if os.fork() == 0:
            if os.fork() == 0:
                own = bytearray(os.urandom(2**20)) * 64
                print("ready", flush=True)
            sys.stdin.read()
            os._exit(0)
        sys.stdin.read()
    """
    command = [sys.executable, "-I", "-S", "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        found, plain = resident_bytes(process.pid), resident_bytes(process.pid, shared_once=False)
        process.communicate()
    assert 128 * 2**20 <= found < 180 * 2**20
    assert plain >= 256 * 2**20


def test_memory_of_nobody():
    assert resident_bytes(2**22 + 1) == 0


def test_a_process_without_the_marker_is_an_error_with_its_output():
    command = talker("print('no room on the ark'); sys.exit(3)", marker=b"")
    with (
        pytest.raises(RuntimeError, match="did not start: no room on the ark"),
        Process(command, bubblewrap=False) as process,
    ):
        process.talk(b"", Excerpt(100), 10.0, 2**30)


def test_a_process_that_never_says_the_marker(monkeypatch):
    monkeypatch.setattr(supervision, "START_SECONDS", 0.3)
    with (
        pytest.raises(RuntimeError, match="did not start"),
        Process(talker("import time; time.sleep(60)", marker=b"hm"), bubblewrap=False) as process,
    ):
        process.talk(b"", Excerpt(100), 10.0, 2**30)
    assert process.exit_status == 137


def test_a_large_program_and_a_large_output_pass_each_other():
    # more than both pipes hold: who only writes first, or only reads first, waits for ever
    echo = talker("[sys.stdout.buffer.write(part) for part in iter(lambda: sys.stdin.buffer.read(4096), b'')]")
    excerpt = Excerpt(10)
    with Process(echo, bubblewrap=False) as process:
        assert process.talk(b"y" * 2**21, excerpt, 30.0, 2**30) is None
    assert excerpt.num_bytes == 2**21
    assert process.exit_status == 0


def test_nobody_reads_the_program():
    with Process(talker("import os; os.close(0)"), bubblewrap=False) as process:
        assert process.talk(b"y" * 2**21, Excerpt(10), 30.0, 2**30) is None


def test_output_after_the_first_process_has_ended_is_bounded(monkeypatch):
    # without bubblewrap a child may go on printing
    monkeypatch.setattr(supervision, "FLOOD_BYTES", 2**17)
    flood = "import os, signal; signal.alarm(20)\nif os.fork() == 0:\n  while True: os.write(1, b'z' * 4096)"
    excerpt = Excerpt(10)
    with Process(talker(f"exec({flood!r})"), bubblewrap=False) as process:
        assert process.talk(b"", excerpt, 10.0, 2**30) in ("output", None)
        assert excerpt.num_bytes <= 2**17 + 2**16
    assert os.path.exists("/proc/self")
