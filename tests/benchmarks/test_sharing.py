"""Batches that processes share; that their norms are those of one process, tests of lives say."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from gsym_bench.suite.errors import BenchmarkError
from gsym_bench.suite.sharing import Sharing


class Flat(nn.Module):
    """Normalises nodes as if they were samples."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2)

    def forward(self, x):
        return self.norm(x.flatten(0, 1)).view(x.shape)


def sharing(model, world_size):
    alike = SimpleNamespace(
        world_size=world_size, global_rank=0, all_gather=lambda x: torch.stack([x] * world_size)
    )
    return Sharing(alike, model)


def test_a_norm_over_rows_that_are_no_samples_is_refused():
    model, x = Flat(), torch.randn(6, 3, 2)
    both = sharing(model, 2)
    message = r"a BatchNorm1d of the model normalises 9 rows that are not its 3 samples; leave out"
    with pytest.raises(BenchmarkError, match=message):
        both.of(model)(x)
    model.eval()
    assert both.of(model)(x).shape == x.shape
    both.end()
    model.train()
    assert torch.equal(model(x), Flat()(x))


def test_one_process_uses_the_model_as_it_is():
    model = Flat()
    assert sharing(model, 1).of(model) is model and "forward" not in vars(model.norm)
