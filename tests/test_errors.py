"""What is said of another library's error."""

from __future__ import annotations

from deepres.errors import first_line, lacks_memory


def test_the_first_line_of_an_error() -> None:
    assert first_line(ValueError("\n  bad\nmore")) == "bad" and first_line(ValueError("abcdef"), 3) == "abc"
    assert first_line(ValueError()) == first_line(ValueError(" \n")) == "ValueError"


def test_errors_for_want_of_memory() -> None:
    lacking = (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"))
    assert all(map(lacks_memory, lacking))
    assert not lacks_memory(RuntimeError("sizes differ")) and not lacks_memory(ValueError("can't allocate memory"))
