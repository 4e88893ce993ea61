"""Partitions and groups are values: equal, hashable, the same after every way to save them."""

import copy
import json
import math
import pickle

import pytest
import torch

from gsym import ClusterGroup, Partition, PermutationGroup
from gsym.errors import GroupError, PartitionError

TURN = PermutationGroup.from_cycles(3, [(0, 1, 2)])


def make_values():
    """Fresh values, no two of them equal."""
    pairs = Partition.from_labels([0, 1, 0, 1, 2, 2])
    return [
        Partition.from_labels([0, 0, 1]),
        Partition.from_labels([1, 1, 0]),
        Partition.single(3),
        PermutationGroup.from_cycles(3, [(0, 1, 2)]),
        PermutationGroup.from_cycles(3, [(0, 2, 1)]),
        PermutationGroup.from_cycles(4, [(0, 1, 2)]),
        PermutationGroup(3),
        PermutationGroup(4),
        ClusterGroup(Partition.from_labels([0, 0, 1])),
        ClusterGroup(Partition.from_labels([1, 1, 0])),
        ClusterGroup(Partition.from_labels([0, 0, 1]), exact=False),
        ClusterGroup(pairs),
        ClusterGroup(pairs, swaps=TURN),
        ClusterGroup(pairs, swaps=ClusterGroup(Partition.single(3))),
    ]


def used(value):
    """The value after whatever it remembers has been asked for."""
    if isinstance(value, Partition):
        assert value.sizes and value.order.numel()
    else:
        value.order(), value.contains(list(range(value.num_nodes))), value.generators
    return value


def test_values_are_equal_where_they_are_written_alike():
    values, again = make_values(), make_values()
    for i, value in enumerate(values):
        assert [value == other for other in again] == [i == j for j in range(len(again))]
        assert hash(used(value)) == hash(again[i])
    assert len({*values, *again}) == len(values)
    assert TURN != "turn"


@pytest.mark.parametrize(
    "through",
    [
        lambda value: pickle.loads(pickle.dumps(value)),
        copy.copy,
        copy.deepcopy,
        lambda value: type(value).from_dict(json.loads(json.dumps(value.to_dict()))),
    ],
    ids=["pickle", "copy", "deepcopy", "json"],
)
def test_values_outlive_being_saved(through):
    for value in make_values():
        twin = through(used(value))
        assert twin == value and hash(twin) == hash(value) and repr(twin) == repr(value)
        assert twin.fingerprint() == value.fingerprint()
        if isinstance(value, PermutationGroup):
            assert twin.order() == value.order() and twin.exact == value.exact


def test_a_pickle_holds_no_tables():
    group = ClusterGroup(Partition(torch.arange(2000) // 2))
    size = len(pickle.dumps(group))
    assert len(pickle.dumps(used(group))) == size


def test_an_order_of_many_digits_is_kept():
    n, order = 1600, math.factorial(1600)
    swaps = torch.arange(n).repeat(n - 1, 1)
    swaps[:, 0], swaps[torch.arange(n - 1), torch.arange(1, n)] = torch.arange(1, n), 0
    group = PermutationGroup(n, swaps, order=order)
    twin = PermutationGroup.from_dict(json.loads(json.dumps(group.to_dict())))
    assert twin.order() == order


def test_a_group_of_either_class_is_read_by_the_base():
    group = ClusterGroup(Partition.from_labels([0, 0, 1]))
    assert PermutationGroup.from_dict(group.to_dict()) == group
    with pytest.raises(GroupError, match="of a ClusterGroup; got one of type 'PermutationGroup'"):
        ClusterGroup.from_dict(TURN.to_dict())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda d: d | {"type": "Sofa"}, GroupError, "got one of type 'Sofa'"),
        (lambda d: d | {"format": 2}, GroupError, "has format 2, but 1 is the one"),
        (lambda d: {"type": d["type"]}, GroupError, "has format None"),
        (lambda d: {k: v for k, v in d.items() if k != "swaps"}, GroupError, "no field swaps"),
        (
            lambda d: d | {"partition": d["partition"] | {"labels": [0, 2]}},
            PartitionError,
            "no node has label 1",
        ),
        (lambda d: d["partition"], GroupError, "got one of type 'Partition'"),
        (lambda d: [d], TypeError, "got list"),
    ],
)
def test_other_dictionaries_are_refused(change, error, message):
    record = ClusterGroup(Partition.from_labels([0, 0, 1])).to_dict()
    with pytest.raises(error, match=message):
        PermutationGroup.from_dict(change(record))


def test_what_a_group_gives_away_is_a_copy():
    for group in (ClusterGroup(Partition.single(3)), PermutationGroup.from_cycles(3, [(0, 1, 2)])):
        group.generators.zero_()
        assert group.contains([1, 2, 0]) and group.generators.unique().numel() == 3
