"""Memory of large results: the same numbers, on huge pages, and tensors like any other."""

import copy
import ctypes
import io
import re
import threading
from pathlib import Path

import pytest
import torch

from gsym import kernels
from gsym.kernels.native import memory

SMAPS = Path("/proc/self/smaps")
SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def why_not():
    """Why the system gives no huge pages to who asks, or the empty string."""
    if not (SMAPS.is_file() and SWITCH.is_file()):
        return "the system knows no huge pages"
    return "the system gives no huge pages" if "[never]" in SWITCH.read_text() else ""


def huge_bytes(start, end):
    """How much lies on huge pages in the areas that this memory touches."""
    total, touches = 0, False
    for line in SMAPS.read_text().splitlines():
        head = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
        if head:
            touches = int(head[1], 16) < end and start < int(head[2], 16)
        elif touches and line.startswith("AnonHugePages:"):
            total += 1024 * int(line.split()[1])
    return total


def owns_its_memory(y):
    """Whether a tensor is no part of another, and its memory holds no more than its numbers."""
    return not y._is_view() and y.untyped_storage().nbytes() == y.nbytes


class TestValues:
    @pytest.mark.parametrize("size", [0, 1, 2**19, 2**22 + 3])
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
    def test_of_zeros(self, size, dtype):
        like = torch.ones(3, dtype=dtype)
        zeros = memory.new_zeros(like, size, 1)
        assert (zeros.shape, zeros.dtype, zeros.is_contiguous()) == ((size, 1), dtype, True)
        assert not zeros.any()
        empty = memory.new_empty(like, 1, size).fill_(3)
        assert (empty.shape, empty.dtype, empty.is_contiguous()) == ((1, size), dtype, True)
        assert (empty == 3).all()

    @pytest.mark.parametrize("channels", [2, 64])
    @pytest.mark.parametrize("turned", [False, True])
    def test_of_rows(self, channels, turned):
        rng = torch.Generator().manual_seed(0)
        x = torch.randn(2, 3, 500, channels, generator=rng)
        x = x.mT.contiguous().mT if turned else x
        index = torch.randint(500, (20_000,), generator=rng)
        y = memory.take_rows(x, index)
        assert y.is_contiguous()
        assert torch.equal(y, x[:, :, index])
        assert (y.nbytes >= 2**22) == (channels == 64)

    def test_of_a_view_with_a_gradient(self):
        x = torch.ones(2, 2**20, requires_grad=True)[:, ::2]
        y = memory.new_empty(x, 2**21)
        assert not y.requires_grad
        assert y.nbytes == 2**23


class TestLargeResults:
    @pytest.mark.skipif(bool(why_not()), reason=why_not())
    def test_lie_on_huge_pages(self):
        # Pages that the C library has kept from earlier tests would be taken as they are.
        getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)
        y = memory.new_zeros(torch.ones(1), 2**24)
        # A system that is short of memory may refuse some.
        assert huge_bytes(y.data_ptr(), y.data_ptr() + y.nbytes) >= y.nbytes // 2

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("size", [2**19 - 1, 2**22 + 1])
    def test_own_their_memory(self, size, dtype):
        y = memory.new_empty(torch.ones(1, dtype=dtype), 1, size, 1)
        assert owns_its_memory(y)
        assert y.data_ptr() % 64 == 0

    def test_of_other_devices_are_torch_s(self):
        y = memory.new_empty(torch.ones(1, device="meta"), 2**30)
        assert (y.device.type, y.nbytes) == ("meta", 2**32)

    @pytest.mark.parametrize("backend", ["native", "cpp"])
    def test_of_primitives(self, backend):
        order = torch.randperm(2**15)
        x = torch.randn(2**15, 64, requires_grad=True)
        segments = kernels.Segments.from_index(order, 2**15)
        maps = [(torch.zeros(1, 64, 64), torch.zeros(1, 64))] * 2
        results = [
            kernels.segment_gather(x, segments, backend=backend),
            kernels.permute_rows(x, order, order.argsort(), backend=backend),
            kernels.row_mlp(x, *maps, backend=backend),
        ]
        for y in results:
            assert y.nbytes == 2**23
            y.add_(1)  # of a part of another tensor a gradient would refuse that
            (grad,) = torch.autograd.grad(y.sum(), x)
            assert grad.shape == x.shape

    def test_can_be_copied_saved_and_shared(self):
        y = memory.new_empty(torch.ones(1), 2**20 + 5).fill_(2)
        assert torch.equal(copy.deepcopy(y), y)
        file = io.BytesIO()
        torch.save(y, file)
        assert len(file.getvalue()) < y.nbytes + 2**14
        file.seek(0)
        assert torch.equal(torch.load(file, weights_only=True), y)
        assert torch.equal(torch.from_numpy(y.numpy()), y)
        y.share_memory_()
        assert y.is_shared()
        assert (y == 2).all()
        with torch.inference_mode():
            assert memory.new_zeros(y, 2**20).is_inference()

    def test_may_end_in_another_thread(self):
        held = [memory.new_zeros(torch.ones(1), 2**20) for _ in range(4)]
        thread = threading.Thread(target=held.clear)
        thread.start()
        thread.join()
        assert held == []
