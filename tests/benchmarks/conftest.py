"""What every test of the benchmarks leaves as it was."""

import pytest
import torch
from threadpoolctl import threadpool_limits

from gsym_bench.suite import cores


@pytest.fixture(autouse=True)
def _threads():
    """A study sets its own number of threads; left to later tests it would slow them by far."""
    before = torch.get_num_threads()
    with threadpool_limits(before):
        yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _one_core(monkeypatch):
    """Where a command is not told how many processes run its cells, none has to be started."""
    monkeypatch.setattr(cores, "usable_cores", lambda: 1)
