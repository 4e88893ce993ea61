"""Orbits: numbering, and attributes that must agree."""

import pytest
import torch

from gsym import Orbits
from gsym.errors import GroupError


def test_keys_are_numbered_by_first_occurrence():
    orbits = Orbits.from_keys(torch.tensor([[7, -3], [7, 2]]))
    assert orbits.index.tolist() == [[0, 1], [0, 2]]
    assert (orbits.num_orbits, orbits.sizes.tolist()) == (3, [2, 1, 1])
    empty = Orbits.from_keys(torch.empty(0, dtype=torch.int64))
    assert (empty.num_orbits, empty.sizes.tolist()) == (0, [])


@pytest.mark.parametrize(
    ("index", "count", "sizes", "message"),
    [
        ([0, 0, 1], 3, [2, 1], "holds 2 orbits; got num_orbits=3"),
        ([0, 0, 1], 2, [1, 2], "sizes that must count"),
        ([0, 0, 1], 2, [2, 1, 0], "sizes that must count"),
        ([1, 0, 0], 2, [2, 1], "in the order in which index first meets them"),
        ([0, 2, 1], 3, [1, 1, 1], "in the order in which index first meets them"),
        ([0, -1], 1, [1], "numbered from 0"),
        ([0.0, 1.0], 2, [1, 1], "index of orbits must be an int64 tensor"),
        ([0, 1], 2, [1.0, 1.0], "sizes of orbits must be an int64 tensor"),
    ],
)
def test_attributes_that_do_not_agree_are_refused(index, count, sizes, message):
    with pytest.raises(GroupError, match=message):
        Orbits(torch.tensor(index), count, torch.tensor(sizes))
