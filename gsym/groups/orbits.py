"""Orbits: which nodes, pairs or edges a group cannot tell apart, so which weights are equal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gsym.errors import GroupError
from gsym.groups._host import lives_on_cpu


@lives_on_cpu
@dataclass(frozen=True, eq=False, repr=False)
class Orbits:
    """A labelling of points by orbit: the weight-tying table.

    Orbits are numbered in the order in which ``index`` first meets them, so two groups with the
    same orbits give equal tables.

    Attributes:
        index: Orbit of every point, int64; ``[n]`` over nodes, ``[n, n]`` over ordered pairs,
            ``[e]`` over edges.
        num_orbits: Number of orbits.
        sizes: Points per orbit, int64 ``[num_orbits]``.
        signs: Where the group also changes signs, the sign of every point relative to the first
            of its orbit, int8 as ``index``; 0, with index -1, where an element takes the point to
            its own negative, so that what lies there must be 0. ``None`` without signs.

    Raises:
        GroupError: Attributes that do not agree.

    Example:
        >>> Orbits.from_keys(torch.tensor([7, 7, 3]))
        Orbits(2 orbits of 3 points)
    """

    index: Tensor
    num_orbits: int
    sizes: Tensor
    signs: Tensor | None = None

    def __post_init__(self) -> None:
        index, sizes = self.index, self.sizes
        for name, tensor in (("index", index), ("sizes", sizes)):
            if not isinstance(tensor, Tensor) or tensor.dtype != torch.int64 or not tensor.is_cpu:
                raise GroupError(f"{name} of orbits must be an int64 tensor on the CPU")
        flat = index.reshape(-1)
        if self.signs is not None:
            self._check_signs(flat, self.signs)
            flat = flat[flat >= 0]
        # Each orbit is met after those of smaller number: none, or one more than the highest yet.
        highest = torch.cummax(torch.cat([flat.new_full((1,), -1), flat]), 0).values[:-1]
        if bool(((flat < 0) | (flat > highest + 1)).any()):
            raise GroupError(
                "orbits must be numbered from 0 in the order in which index first meets them; make "
                "them with Orbits.from_keys(keys)"
            )
        counts = torch.bincount(flat)
        if self.num_orbits != counts.numel() or not torch.equal(counts, sizes):
            raise GroupError(
                f"index holds {counts.numel()} orbits; got num_orbits={self.num_orbits} and sizes "
                "that must count its points; make orbits with Orbits.from_keys(keys)"
            )

    def _check_signs(self, flat: Tensor, signs: Tensor) -> None:
        if signs.shape != self.index.shape or signs.dtype != torch.int8 or not signs.is_cpu:
            raise GroupError("signs of orbits must be an int8 tensor on the CPU, shaped as index")
        agree = (signs.reshape(-1) == 0) == (flat == -1)
        if bool((signs.abs() > 1).any()) or not bool(agree.all()):
            raise GroupError("signs of orbits must be 1 and -1, and 0 just where index is -1")

    @classmethod
    def from_keys(cls, keys: Tensor, signs: Tensor | None = None) -> Orbits:
        """Number equal ``keys`` (int64, any shape) alike, by first occurrence.

        Args:
            keys: What tells orbits apart; with signs, -1 where the sign is 0.
            signs: Sign of every point, int8, shaped as the keys; the result has them relative to
                the first point of each orbit.
        """
        if signs is not None:
            free = signs != 0
            kept = cls.from_keys(keys[free])
            _, first = np.unique(kept.index.numpy(), return_index=True)
            index, relative = torch.full_like(keys, -1), torch.zeros_like(signs)
            index[free] = kept.index
            relative[free] = signs[free] * signs[free][torch.from_numpy(first)][kept.index]
            return cls(index, kept.num_orbits, kept.sizes, relative)
        flat = keys.reshape(-1).numpy()
        _, first, inverse = np.unique(flat, return_index=True, return_inverse=True)
        rank = np.empty_like(first)
        rank[np.argsort(first)] = np.arange(first.size)
        index = torch.from_numpy(rank[inverse.reshape(-1)]).view(keys.shape)
        return cls(index, int(first.size), torch.bincount(index.view(-1), minlength=first.size))

    @classmethod
    def of_maps(cls, images: Tensor) -> Orbits:
        """Orbits of points ``0..p-1`` under maps; ``images`` is ``[m, p]``, row i being map i."""
        count, points = images.shape
        source = np.tile(np.arange(points), count)
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        links = coo_array(
            (np.ones(source.size, dtype=bool), (source, images.reshape(-1).numpy())),
            shape=(points, points),
        )
        _, keys = connected_components(links, directed=False)
        return cls.from_keys(torch.from_numpy(keys.astype(np.int64)))

    @classmethod
    def of_signed_maps(cls, images: Tensor, signs: Tensor) -> Orbits:
        """Orbits of points under maps that send point ``p`` to ``signs[i, p]`` times its image.

        Args:
            images: Images of the points, int64 ``[m, p]``, row i being map i.
            signs: 1 or -1, ``[m, p]``.

        Example:
            >>> images, signs = torch.tensor([[1, 0, 2]]), torch.tensor([[-1, -1, -1]])
            >>> flip = Orbits.of_signed_maps(images, signs)
            >>> flip.index.tolist(), flip.signs.tolist()
            ([0, 0, -1], [1, -1, 0])
        """
        points = images.size(1)
        # Points p + points stand for the negatives.
        negative = (signs < 0).long() * points
        doubled = torch.cat([images + negative, images + (points - negative)], dim=1)
        plus, minus = cls.of_maps(doubled).index.view(2, points)
        # Orbits are numbered as they are met, so the first point of each has the smaller label.
        sign = torch.where(plus < minus, 1, -1).masked_fill(plus == minus, 0).to(torch.int8)
        return cls.from_keys(torch.minimum(plus, minus), sign)

    def view(self, *shape: int) -> Orbits:
        """The same orbits with ``index`` and ``signs`` in another shape."""
        signs = None if self.signs is None else self.signs.view(shape)
        return Orbits(self.index.view(shape), self.num_orbits, self.sizes, signs)

    def __repr__(self) -> str:
        return f"Orbits({self.num_orbits} orbits of {self.index.numel()} points)"
