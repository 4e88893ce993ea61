"""The definition of the equivariant maps: dense tensors, one subgraph at a time."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from gsym.nn import EquivariantTensorLinear

# Letters of the nodes of an output and of an input entry.
OUT, IN = {0: "", 1: "i", 2: "ij"}, {1: "k", 2: "kl"}


def set_partitions(items: str) -> list[list[str]]:
    """All ways to say which letters are the same node."""
    if not items:
        return [[]]
    first, rest = items[0], items[1:]
    found = []
    for smaller in set_partitions(rest):
        for k, block in enumerate(smaller):
            found.append([*smaller[:k], first + block, *smaller[k + 1 :]])
        found.append([first, *smaller])
    return found


def operations(
    in_order: int, out_order: int, colour: Tensor, num_colours: int
) -> list[tuple[dict[str, int], set[tuple[str, str]], Tensor]]:
    """All maps of one subgraph: the colour of every letter, equal letters, ``[m]*out + [m]*in``.

    Each is divided by the number of nodes once for every letter that is summed over.
    """
    m = colour.numel()
    out, into = OUT[out_order], IN[in_order]
    every = []
    for blocks in set_partitions(out + into):
        summed = sum(all(letter in into for letter in block) for block in blocks)
        equal = {pair for block in blocks for pair in itertools.product(block, repeat=2)}
        for shades in itertools.product(range(num_colours), repeat=len(blocks)):
            dense = torch.zeros((m,) * (out_order + in_order), dtype=torch.float64)
            for nodes in itertools.product(range(m), repeat=len(blocks)):
                if all(int(colour[v]) == a for v, a in zip(nodes, shades, strict=True)):
                    at = {x: v for block, v in zip(blocks, nodes, strict=True) for x in block}
                    dense[tuple(at[x] for x in out + into)] = 1 / max(m, 1) ** summed
            shade = {x: a for block, a in zip(blocks, shades, strict=True) for x in block}
            every.append((shade, equal, dense))
    return every


def weight_of(
    layer: EquivariantTensorLinear, shade: dict[str, int], equal: set[tuple[str, str]], kind: int
) -> Tensor:
    """The matrix ``[in, out]`` that the layer gives to one operation."""
    q, c, s = layer.num_colours, layer.in_channels, layer.out_channels
    out, into = OUT[layer.out_order], IN[layer.in_order]
    apart = len(out) == 2 and ("i", "j") not in equal
    if apart and len(into) == 2:
        place = (kind * q + shade["i"]) * q + shade["j"]
        if {("i", "k"), ("j", "l")} <= equal:
            return layer.pair_weight[place]
        if {("i", "l"), ("j", "k")} <= equal:
            return layer.swap_weight[place]
    tied = [(a, b) for a in out for b in into if (a, b) in equal]
    same = len(into) == 1 or ("k", "l") in equal
    if not tied:
        feature = shade["k"] if same else q + shade["k"] * q + shade["l"]
        if not out:
            column = 0
        elif len(out) == 1:
            column = shade["i"]
        else:
            column = shade["i"] * (q + 1) + (shade["j"] if apart else q)
        blocks = layer.graph_weight[kind].view(-1, c, layer.graph_weight.size(2) // s, s)
        return blocks[feature, :, column]
    anchor, read = tied[0]
    if same:
        feature = 0
    else:
        feature = 1 + shade["l"] if read == "k" else 1 + q + shade["k"]
    if len(out) == 1:
        column = 0
    elif apart:
        column = shade["j"] if anchor == "i" else q + shade["i"]
    else:
        column = 2 * q
    weight = layer.node_weight[kind * q + shade[anchor]]
    return weight.view(-1, c, weight.size(1) // s, s)[feature, :, column]


def dense_map(
    layer: EquivariantTensorLinear, x: Tensor, sizes: list[int], colour: Tensor, kind: list[int]
) -> Tensor:
    """The layer on all pairs of every subgraph, from the dense operations; ``x`` in one sample."""
    q, out = layer.num_colours, OUT[layer.out_order]
    results, row, node = [], 0, 0
    for m, sort in zip(sizes, kind, strict=True):
        shades = colour[node : node + m]
        count = m**layer.in_order
        signal = x[row : row + count]
        y = torch.zeros(m ** len(out), layer.out_channels, dtype=torch.float64)
        for shade, equal, dense in operations(layer.in_order, layer.out_order, shades, q):
            weight = weight_of(layer, shade, equal, sort)
            y = y + dense.reshape(m ** len(out), count) @ signal @ weight
        if layer.bias is not None:
            if len(out) == 2:
                place = (sort * q + shades[:, None]) * q + shades
                y = y + layer.bias[place.flatten()]
                loops = torch.eye(m, dtype=torch.float64).flatten()[:, None]
                y = y + loops * layer.loop_bias[sort * q + shades].repeat_interleave(m, 0)
            else:
                y = y + layer.bias[sort * q + shades if out else sort]
        results.append(y)
        row, node = row + count, node + m
    return torch.cat(results)
