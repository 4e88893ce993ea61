"""Huge pages for large results: the same numbers, on pages that were asked for, and no others."""

import ctypes
import mmap
import re
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from gsym import kernels
from gsym.kernels import _memory

SMAPS, PAGE = Path("/proc/self/smaps"), 2**21


def why_not():
    """Why the system gives no huge pages to who asks, or the empty string."""
    switch = _memory._SIZE.with_name("enabled")
    if not (SMAPS.is_file() and switch.is_file() and _memory._SIZE.is_file()):
        return "the system knows no huge pages"
    if "[never]" in switch.read_text():
        return "the system gives no huge pages"
    return "" if int(_memory._SIZE.read_text()) == PAGE else "its huge pages are not of 2 MiB"


needs_huge_pages = pytest.mark.skipif(bool(why_not()), reason=why_not())


def areas():
    """What the system says of every area of memory: first byte, end, and its notes by name."""
    found = []
    for line in SMAPS.read_text().splitlines():
        head = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
        if head:
            found.append((int(head[1], 16), int(head[2], 16), {}))
        else:
            name, _, value = line.partition(":")
            found[-1][2][name] = value.strip()
    return found


def advised(start, end):
    """The parts of some memory for which huge pages were asked."""
    return [
        (max(first, start), min(last, end))
        for first, last, notes in areas()
        if first < end and start < last and "hg" in notes.get("VmFlags", "").split()
    ]


def huge_bytes(start, end):
    """How much lies on huge pages in the areas that this memory touches."""
    around = [notes for first, last, notes in areas() if first < end and start < last]
    assert around
    return sum(1024 * int(notes["AnonHugePages"].split()[0]) for notes in around)


@contextmanager
def own_memory(size):
    """Address of memory that nobody else touches."""
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        numbers = np.frombuffer(memory, dtype=np.uint8)
        try:
            yield numbers.ctypes.data
        finally:
            del numbers


@pytest.fixture
def asked(monkeypatch):
    """What was asked for, with addresses and numbers of bytes."""
    calls = []
    monkeypatch.setattr(_memory, "_advice", lambda: lambda *call: calls.append(call))
    return calls


@pytest.fixture
def another_system(monkeypatch, tmp_path):
    """Puts a file in the place of the one that says how large huge pages are."""
    path = tmp_path / "hpage_pmd_size"
    monkeypatch.setattr(_memory, "_SIZE", path)
    _memory._advice.cache_clear()
    yield path
    _memory._advice.cache_clear()


class TestValues:
    @pytest.mark.parametrize("size", [0, 1, 2**19, 2**22 + 3])
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
    def test_of_zeros(self, size, dtype):
        like = torch.ones(3, dtype=dtype)
        zeros = _memory.new_zeros(like, size, 1)
        assert (zeros.shape, zeros.dtype, zeros.is_contiguous()) == ((size, 1), dtype, True)
        assert not zeros.any()
        empty = _memory.new_empty(like, 1, size).fill_(3)
        assert (empty.shape, empty.dtype, empty.is_contiguous()) == ((1, size), dtype, True)
        assert (empty == 3).all()

    @pytest.mark.parametrize("channels", [2, 64])
    @pytest.mark.parametrize("turned", [False, True])
    def test_of_rows(self, channels, turned):
        rng = torch.Generator().manual_seed(0)
        x = torch.randn(2, 3, 500, channels, generator=rng)
        x = x.mT.contiguous().mT if turned else x
        index = torch.randint(500, (20_000,), generator=rng)
        y = _memory.take_rows(x, index)
        assert y.is_contiguous()
        assert torch.equal(y, x[:, :, index])
        assert (y.nbytes >= 2**22) == (channels == 64)

    def test_of_a_view_with_a_gradient(self):
        x = torch.ones(2, 2**20, requires_grad=True)[:, ::2]
        y = _memory.new_empty(x, 2**21)
        assert not y.requires_grad
        assert y.nbytes == 2**23


class TestWhatIsAsked:
    def test_a_large_result_as_a_whole(self, asked):
        y = _memory.new_empty(torch.ones(1), 2**20)
        assert asked == [(y.data_ptr(), 2**22)]
        y = _memory.new_zeros(torch.ones(1, dtype=torch.float64), 2, 2**19)
        assert asked[1:] == [(y.data_ptr(), 2**23)]
        y = _memory.take_rows(torch.ones(3, 4), torch.zeros(2**18, dtype=torch.int64))
        assert asked[2:] == [(y.data_ptr(), 2**22)]

    def test_nothing_for_small_results(self, asked):
        _memory.new_empty(torch.ones(1), 2**20 - 1)
        _memory.new_zeros(torch.ones(1, dtype=torch.bfloat16), 2**21 - 1)
        _memory.take_rows(torch.ones(3, 4), torch.zeros(2**18 - 1, dtype=torch.int64))
        assert asked == []

    def test_nothing_on_other_devices(self, asked):
        y = _memory.new_empty(torch.ones(1, device="meta"), 2**30)
        assert (y.device.type, y.nbytes) == ("meta", 2**32)
        assert asked == []

    @pytest.mark.parametrize("backend", ["native", "cpp"])
    def test_for_the_results_of_primitives(self, asked, backend):
        order = torch.randperm(2**15)
        x = torch.randn(2**15, 64)
        segments = kernels.Segments.from_index(order, 2**15)
        y = kernels.segment_gather(x, segments, backend=backend)
        assert (y.data_ptr(), y.nbytes) in asked
        y = kernels.permute_rows(x, order, order.argsort(), backend=backend)
        assert (y.data_ptr(), y.nbytes) in asked
        if backend == "cpp":
            y = kernels.segment_max(x, segments, backend=backend)
            assert (y.data_ptr(), y.nbytes) in asked
            y = kernels.row_mlp(x, *[(torch.zeros(1, 64, 64), torch.zeros(1, 64))] * 2)
            assert (y.data_ptr(), y.nbytes) in asked


@needs_huge_pages
class TestPages:
    def test_a_large_result_lies_on_huge_pages(self):
        # Pages that the C library has kept from earlier tests would be taken as they are.
        getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)
        y = _memory.new_zeros(torch.ones(1), 2**24)
        start, end = y.data_ptr(), y.data_ptr() + y.nbytes
        # A system that is short of memory may refuse some.
        assert huge_bytes(start, end) >= y.nbytes // 2

    @pytest.mark.parametrize(
        ("first", "size", "expected"),
        [
            (0, 4 * PAGE, (0, 4)),
            (64, 4 * PAGE, (1, 4)),
            (PAGE - 64, 3 * PAGE + 128, (1, 4)),
            (PAGE + 64, 3 * PAGE - 65, (2, 3)),
            (PAGE, 3 * PAGE - 1, (1, 3)),
            (PAGE - 1, 2 * PAGE + 1, (1, 3)),
        ],
    )
    def test_nothing_outside_a_result_is_asked_for(self, first, size, expected):
        with own_memory(8 * PAGE) as memory:
            start = (memory // PAGE + 2) * PAGE
            assert advised(memory, memory + 8 * PAGE) == []
            _memory._advice()(start + first, size)
            found = advised(memory, memory + 8 * PAGE)
            assert found == [tuple(start + page * PAGE for page in expected)]

    @pytest.mark.parametrize(("first", "size"), [(64, PAGE), (64, 2 * PAGE - 65), (0, PAGE - 1)])
    def test_a_result_without_a_whole_page_is_left_alone(self, first, size):
        with own_memory(8 * PAGE) as memory:
            _memory._advice()((memory // PAGE + 2) * PAGE + first, size)
            assert advised(memory, memory + 8 * PAGE) == []


class TestWithoutHugePages:
    @pytest.mark.parametrize("content", [None, "", "nonsense", "0\n", "-1\n"])
    def test_it_works_all_the_same(self, another_system, content):
        if content is not None:
            another_system.write_text(content)
        assert _memory._advice() is None
        y = _memory.new_zeros(torch.ones(1), 2**21)
        assert y.shape == (2**21,)
        assert not y.any()
        x, index = torch.randn(5, 64), torch.randint(5, (2**15,))
        assert torch.equal(_memory.take_rows(x, index), x[index])

    def test_a_refusal_is_no_error(self, another_system):
        another_system.write_text("4096")
        _memory._advice()(2**62, PAGE)  # where no memory can be
        y = _memory.new_empty(torch.ones(1), 2**20).fill_(2)
        assert (y == 2).all()
