"""What every test of the benchmarks leaves as it was."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _threads():
    """A study sets its own number of threads; left to later tests it would slow them by far."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
