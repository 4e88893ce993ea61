"""What a user writes, held to all flags of ``mypy --strict`` where the gate runs mypy.

``assert_type`` fails where a type is ``Any``, and each line of :func:`wrong` has to be an error:
mypy reports a ``type: ignore`` that nothing needs.
"""

from __future__ import annotations

from typing import assert_type

import torch
from torch import Tensor

import gsym
from gsym.check import CheckReport, Profile
from gsym.groups import PermutationGroup
from gsym.transforms import AddOrbits, AddPartition

EDGES = torch.tensor([[0, 1, 2], [1, 2, 0]])


def right() -> gsym.GroupChoice:
    """Groups, layers, a choice and checks."""
    partition = gsym.Partition.from_labels([0, 0, 1])
    group: PermutationGroup = gsym.ClusterGroup(partition)
    assert_type(group.order(), int)
    assert_type(group.node_orbits(), gsym.Orbits)
    assert_type(partition.labels, Tensor)
    mirror = PermutationGroup.from_cycles(3, [(0, 1)])
    pose = gsym.Representation.from_signs(mirror, [[-1, 1]])

    x, pos = torch.randn(4, 3, 2), torch.randn(4, 3, 3)
    linear = gsym.nn.OrbitLinear(2, 2, mirror, in_rep=pose, out_rep=pose)
    assert_type(linear(x), Tensor)
    net = gsym.nn.GNet([2, 8, 1], group)
    assert_type(net(x, EDGES), Tensor)
    conv = gsym.nn.EGNNConv(2, 2, 8, act="gelu", update_pos=False)
    assert_type(conv(x, pos, EDGES), tuple[Tensor, Tensor])
    assert_type(gsym.nn.Penguin(2, None, 8)(x, pos, EDGES), tuple[Tensor, Tensor])
    assert_type(gsym.nn.OrbitEmbedding(4, group)(), Tensor)

    hierarchy = gsym.coarsen(EDGES, num_nodes=3)
    assert_type(hierarchy.cut(2), gsym.Coarsening)
    choice = gsym.choose_group([gsym.Partition.single(3), group], torch.randn(9, 3))
    assert_type(choice, gsym.GroupChoice)
    assert_type((choice.answer, choice.scores), tuple[str, dict[str, float]])
    assert_type(choice.group, PermutationGroup)
    assert_type(gsym.check.equivariance_error(net, group, x, EDGES), float)
    assert_type(gsym.check.profile(linear, [group], x), Profile)
    assert_type(AddPartition(partition).partition, gsym.Partition | None)
    assert_type(AddOrbits(group).group, PermutationGroup)
    return choice


def report(group: PermutationGroup) -> CheckReport:
    """The conformance kit of a layer."""
    return gsym.check.check_layer(lambda g: gsym.nn.OrbitLinear(2, 2, g), group)


def wrong(group: PermutationGroup, x: Tensor, choice: gsym.GroupChoice) -> int:
    """Never called."""
    gsym.nn.OrbitLinear(2, 2, "S_3")  # type: ignore[arg-type]
    gsym.nn.OrbitLinear(2, 2, group)(x, EDGES)  # type: ignore[call-arg]
    gsym.nn.GNetConv(2, 2, group)([1.0])  # type: ignore[arg-type]
    gsym.nn.EGNNConv(2, 2, act=3)  # type: ignore[arg-type]
    gsym.nn.EGNNConv(2, 2, update_pos="no")  # type: ignore[arg-type]
    gsym.nn.GNet([2, 1], group, propagat="none")  # type: ignore[call-arg]
    gsym.Partition.from_labels(0.5)  # type: ignore[arg-type]
    gsym.ClusterGroup(gsym.Partition.single(3)).size()  # type: ignore[attr-defined]
    gsym.choose_group(3, x)  # type: ignore[arg-type]
    gsym.check.equivariance_error(group, group, x)  # type: ignore[arg-type]
    AddOrbits(gsym.Partition.single(3))  # type: ignore[arg-type]
    return choice.answer  # type: ignore[return-value]
