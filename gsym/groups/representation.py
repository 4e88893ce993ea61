"""Representations: how a group moves the channels of a signal, not only its nodes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from gsym._validate import IntegerArray, check_permutation, check_whole, integer_tensor
from gsym.errors import GroupError, SignalError
from gsym.groups._host import lives_on_cpu
from gsym.groups._record import read_record, record
from gsym.groups.chain import StabiliserChain, Unfaithful
from gsym.groups.cluster import ClusterGroup
from gsym.groups.coordinates import ChannelMoves
from gsym.groups.elements import Algebra, broken_relation, list_elements
from gsym.groups.permutation import PermutationGroup

# The regular representation has a channel for each element of the group.
MAX_REGULAR = 1024

Rows = Tensor | np.ndarray | Iterable[IntegerArray]


@lives_on_cpu
class Representation:
    """How every element of a group moves the channels: a signed permutation of them, or a matrix.

    A group with a representation rho acts on signals by ``(g x)[g(i)] = rho(g) x[i]``: channels
    move and change signs along with the nodes. Without one, channels stay as they are.

    Made by :meth:`from_signs`, :meth:`from_permutation`, :meth:`from_matrices`, :meth:`trivial`,
    :meth:`regular`, as the direct sum ``first + second``, or as ``copies * representation``. Each
    takes one row per generator: of ``group.swaps`` for a :class:`~gsym.ClusterGroup`, because
    permutations within clusters leave channels alone; of the group itself for another one.

    Args:
        group: The group.
        images: Channel that each channel is sent to, int64 ``[m, c]``.
        signs: 1 or -1, by which each is multiplied, ``[m, c]``.

    Raises:
        GroupError: Rows that are no signed permutations, or of another number; rows that are not
            a homomorphism, because some product of generators keeps all nodes and moves
            channels. The message names that product where a short one is found.

    Cost:
        The order of the group and a stabiliser chain.

    Example:
        >>> mirror = PermutationGroup.from_cycles(3, [(0, 1)])
        >>> pose = Representation.from_signs(mirror, [[-1, 1]])
        >>> pose.act([1, 0, 2], torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])).tolist()
        [[-3.0, 4.0], [-1.0, 2.0], [-5.0, 6.0]]

    Reference:
        Serre, Linear Representations of Finite Groups, chapters 1 and 2 (from memory).
    """

    mixes_channels: ClassVar[bool] = False
    """Whether channels are mixed by matrices, not only moved and signed."""

    # What from_matrices makes; its module sets it, which imports this one.
    _matrix_form: ClassVar[type[Representation]]

    def __init__(self, group: PermutationGroup, images: Rows, signs: Rows) -> None:
        check_is_group(group)
        self.group = group
        self._moves = _read_rows(group, images, signs)
        self._confirm()

    @classmethod
    def _of(cls, group: PermutationGroup, moves: ChannelMoves) -> Representation:
        """Rows that are known to be a representation."""
        made = object.__new__(cls)
        made.group, made._moves = group, moves
        return made

    @classmethod
    def from_signs(cls, group: PermutationGroup, signs: Rows) -> Representation:
        """Channels that stay in place and change signs.

        Args:
            group: The group.
            signs: 1 or -1 per channel, one row per generator, ``[m, c]``.

        Example:
            >>> mirror = PermutationGroup.from_cycles(7, [(1, 4), (2, 5), (3, 6)])
            >>> Representation.from_signs(mirror, [[-1, 1, 1]])
            Representation(3 channels, 1 change sign, of <1 generator> on 7 nodes)
        """
        rows = _integer_rows(signs, "signs")
        return cls(group, [torch.arange(row.numel()) for row in rows], rows)

    @classmethod
    def from_permutation(cls, group: PermutationGroup, images: Rows) -> Representation:
        """Channels that change places and keep their signs.

        Args:
            group: The group.
            images: Channel that each channel is sent to, one row per generator, ``[m, c]``.

        Example:
            >>> mirror = PermutationGroup.from_cycles(3, [(0, 1)])
            >>> Representation.from_permutation(mirror, [[1, 0]])
            Representation(2 channels, 2 change places, of <1 generator> on 3 nodes)
        """
        rows = _integer_rows(images, "images")
        return cls(group, rows, [torch.ones_like(row) for row in rows])

    @classmethod
    def from_matrices(cls, group: PermutationGroup, matrices: object) -> Representation:
        """Channels that an orthogonal matrix mixes: any representation over the real numbers.

        Signed permutations given in this form are recognised, and are the same as if made by
        :meth:`from_signs` or :meth:`from_permutation`, which are faster and take large groups.
        Others are for `act`, `matrix`, `commutant_dim`, `project` and layers; what works on orbits
        with signs, such as ridge regression and covariances, refuses them.

        Args:
            group: The group; its swaps, for a cluster group, have 4,096 elements at most.
            matrices: One orthogonal matrix per generator, ``[m, c, c]``, kept in float64.

        Raises:
            GroupError: Matrices that are not orthogonal, or no homomorphism, to 1e-10; too large
                a group.

        Example:
            A third of a turn of three nodes that also turns the plane:

            >>> turn = PermutationGroup.from_cycles(3, [(0, 1, 2)])
            >>> c, s = math.cos(2 * math.pi / 3), math.sin(2 * math.pi / 3)
            >>> plane = Representation.from_matrices(turn, [[[c, -s], [s, c]]])
            >>> plane
            Representation(2 channels, mixed by matrices, of <1 generator> on 3 nodes)
            >>> turn.commutant_dim(plane, plane)
            12
        """
        return cls._matrix_form.from_matrices(group, matrices)

    @classmethod
    def trivial(cls, group: PermutationGroup, channels: int) -> Representation:
        """Channels that stay as they are."""
        channels = check_whole(channels, "channels", GroupError)
        if channels < 1:
            raise GroupError(f"a signal has at least one channel; got channels={channels}")
        check_is_group(group)
        return cls._of(group, ChannelMoves.still(acting_group(group).num_generators, channels))

    @classmethod
    def regular(cls, group: PermutationGroup, copies: int = 1) -> Representation:
        """One channel per element ``h`` of the group, which ``g`` sends to ``g h``.

        Every representation lies in it, so hidden channels of this kind lose nothing; and it is a
        permutation of channels, so every pointwise activation is legal. For a cluster group the
        elements are those of its ``swaps``. Channel ``h * copies + t`` is copy ``t`` of ``h``.

        Raises:
            GroupError: A group of more than 1024 elements.

        Example:
            >>> mirror = PermutationGroup.from_cycles(3, [(0, 1)])
            >>> Representation.regular(mirror, copies=16).num_channels
            32
        """
        check_is_group(group)
        acting = acting_group(group)
        order = acting.order()
        if order > MAX_REGULAR:
            raise GroupError(
                f"the regular representation has a channel for each of the {order:,} elements; "
                f"{MAX_REGULAR} is the most: use a subgroup, or direct sums of smaller "
                "representations, such as from_permutation"
            )
        listed = list_elements(acting.generators.numpy(), order)
        assert listed is not None and len(listed[0]) == order
        images = torch.from_numpy(listed[1])
        moves = ChannelMoves(images, torch.ones_like(images))
        return copies * cls._of(group, moves)

    @property
    def moves(self) -> ChannelMoves:
        """The rows: how each generator moves the channels."""
        return self._moves

    @property
    def num_channels(self) -> int:
        """Number of channels."""
        return self._moves.images.size(1)

    @property
    def images(self) -> Tensor:
        """Channel that each is sent to, by generator, int64 ``[m, c]``, a copy."""
        return self._moves.images.clone()

    @property
    def signs(self) -> Tensor:
        """Sign that each is multiplied by, by generator, int64 ``[m, c]``, a copy."""
        return self._moves.signs.clone()

    @property
    def matrices(self) -> Tensor:
        """Matrix of each generator, float64 ``[m, c, c]``, a copy."""
        return _as_matrices(self._moves)

    @property
    def is_trivial(self) -> bool:
        """Whether every channel stays as it is."""
        return self.is_permutation and not bool(self._moved().any())

    @property
    def is_permutation(self) -> bool:
        """Whether no channel changes its sign, so that every pointwise activation is legal."""
        return bool((self._moves.signs > 0).all())

    def moves_of_generators(self, group: PermutationGroup) -> ChannelMoves:
        """Moves for each row of ``group.generators``, those within clusters included.

        Raises:
            GroupError: The representation is of another group.
        """
        self.check_group(group)
        within = group.num_generators - acting_group(group).num_generators
        still = ChannelMoves.still(within, self.num_channels)
        return ChannelMoves(
            torch.cat([still.images, self._moves.images]),
            torch.cat([still.signs, self._moves.signs]),
        )

    def check_group(self, group: PermutationGroup) -> None:
        """Raise GroupError unless this is a representation of ``group``."""
        if self.group != group:
            raise GroupError(f"the representation is of {self.group!r}, not of {group!r}")

    def on_clusters(self, clusters: ClusterGroup) -> Representation:
        """The same moves for the group written as clusters whose swaps are its generators."""
        if self.group == clusters:
            return self
        if clusters.swaps is None:
            return self.trivial(clusters, self.num_channels)
        assert clusters.swaps == self.group
        return self._of(clusters, self._moves)

    def of(self, perm: IntegerArray) -> ChannelMoves:
        """How one element of the group moves the channels: one row.

        Raises:
            GroupError: ``perm`` is not in the group.
        """
        moved = self._acting(perm)
        if not self._moves.images.size(0):
            return ChannelMoves.still(1, self.num_channels)
        points = self._chain.extend(moved)[moved.numel() :][: self.num_channels] - moved.numel()
        c = self.num_channels
        return ChannelMoves((points % c)[None], torch.where(points < c, 1, -1)[None])

    def _acting(self, perm: IntegerArray) -> Tensor:
        """What an element does to the points on which representations depend: clusters, or nodes.

        Raises:
            GroupError: ``perm`` is not in the group. A general one is left to the caller to refuse.
        """
        images = check_permutation(perm, self.group.num_nodes)
        clustered, acting = isinstance(self.group, ClusterGroup), acting_group(self.group)
        # Elsewhere the search among elements refuses what is not in the group.
        if (clustered or not acting.num_generators) and not self.group.contains(images):
            raise GroupError(f"the permutation does not belong to {self.group!r}")
        if not isinstance(self.group, ClusterGroup):
            return images
        labels, order = self.group.partition.labels, self.group.partition.order
        sizes = torch.tensor(self.group.partition.sizes)
        return labels[images[order[torch.cumsum(sizes, 0) - sizes]]]

    def matrix(self, perm: IntegerArray) -> Tensor:
        """The matrix rho(g) of one element, float64 ``[c, c]``.

        Raises:
            GroupError: ``perm`` is not in the group.
        """
        return _as_matrices(self.of(perm))[0]

    def act(self, perm: IntegerArray, x: Tensor) -> Tensor:
        """``(g x)[g(i)] = rho(g) x[i]`` for a signal ``[..., n, c]``, floating point.

        Raises:
            GroupError: ``perm`` is not in the group.
            SignalError: A signal on other nodes or channels, or of integers.
        """
        nodes = self._check_signal(perm, x)
        moves = self.of(perm)
        channels = torch.argsort(moves.images[0])
        signs = moves.signs[0][channels].to(x)
        return x.index_select(-2, nodes).index_select(-1, channels.to(x.device)) * signs

    def _check_signal(self, perm: IntegerArray, x: Tensor) -> Tensor:
        """Which node every node receives from, once ``x`` is known to be a signal."""
        n, c = self.group.num_nodes, self.num_channels
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a tensor [..., {n}, {c}]; got {type(x).__name__}")
        if x.dim() < 2 or x.shape[-2:] != (n, c):
            raise SignalError(f"x must be [..., {n}, {c}]; got {list(x.shape)}")
        if not x.is_floating_point():
            raise SignalError(f"x must be floating point; got {x.dtype}; convert with x.double()")
        return torch.argsort(check_permutation(perm, n)).to(x.device)

    def __add__(self, other: Representation) -> Representation:
        """The direct sum: the channels of both, side by side."""
        if not isinstance(other, Representation):
            return NotImplemented
        other.check_group(self.group)
        images = torch.cat([self._moves.images, other._moves.images + self.num_channels], dim=1)
        return self._of(
            self.group, ChannelMoves(images, torch.cat([self._moves.signs, other._moves.signs], 1))
        )

    def __mul__(self, copies: int) -> Representation:
        """Several copies: channel ``a * copies + t`` is copy ``t`` of channel ``a``."""
        copies = check_whole(copies, "copies", GroupError)
        if copies < 1:
            raise GroupError(f"there is at least one copy; got copies={copies}")
        images = self._moves.images[:, :, None] * copies + torch.arange(copies)
        signs = self._moves.signs[:, :, None].expand_as(images)
        return self._of(self.group, ChannelMoves(images.flatten(1), signs.flatten(1)))

    __rmul__ = __mul__

    def without_copies(self) -> tuple[Representation, int]:
        """The smallest representation of which this is ``copies * smaller``, and the copies."""
        c, images, signs = self.num_channels, self._moves.images, self._moves.signs
        for copies in range(c, 1, -1):
            if c % copies:
                continue
            small, turned = images[:, ::copies] // copies, signs[:, ::copies]
            smaller = self._of(self.group, ChannelMoves(small, turned))
            if smaller * copies == self:
                return smaller, copies
        return self, 1

    def to_dict(self) -> dict[str, Any]:
        """The representation in numbers and strings, which JSON can hold.

        Example:
            >>> mirror = PermutationGroup.from_cycles(3, [(0, 1)])
            >>> pose = Representation.from_signs(mirror, [[-1, 1]])
            >>> Representation.from_dict(pose.to_dict()) == pose
            True
        """
        return record(
            "Representation",
            group=self.group.to_dict(),
            images=self._moves.images.tolist(),
            signs=self._moves.signs.tolist(),
            channels=self.num_channels,
        )

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Representation:
        """The representation that :meth:`to_dict` wrote.

        Raises:
            GroupError: The dictionary holds something else, or another format.
            TypeError: ``given`` is no dictionary.
        """
        fields = {
            "Representation": ("group", "images", "signs", "channels"),
            "MatrixRepresentation": ("group", "matrices"),
        }
        kind, (group, *rows) = read_record(given, fields, GroupError)
        read = PermutationGroup.from_dict(group)
        if kind == "MatrixRepresentation":
            return cls.from_matrices(read, rows[0])
        images, signs, channels = rows
        return cls(read, images, signs) if images else cls.trivial(read, channels)

    def fingerprint(self) -> bytes:
        """SHA-256 of the rows and of what the group ties."""
        images, signs = (v.numpy().tobytes() for v in (self._moves.images, self._moves.signs))
        count = str(self.num_channels).encode()
        parts = [count, self.group.fingerprint(), images, signs]
        return hashlib.sha256(b"|".join(parts)).digest()

    def _written(self) -> tuple[object, ...]:
        images, signs = self._moves.images.numpy(), self._moves.signs.numpy()
        return self.group, self.num_channels, images.tobytes(), signs.tobytes()

    def __eq__(self, other: object) -> bool:
        """The same rows for the same group, written alike."""
        if not isinstance(other, Representation):
            return NotImplemented
        return self is other or self._written() == other._written()

    def __hash__(self) -> int:
        return hash(self._written())

    def __repr__(self) -> str:
        turned, moved = int((self._moves.signs < 0).any(0).sum()), int(self._moved().any(0).sum())
        said = [f"{turned} change sign"] * (turned > 0) + [f"{moved} change places"] * (moved > 0)
        count = f"{self.num_channels} channel{'s' * (self.num_channels != 1)}"
        what = ", ".join([count, *(said or ["all stay"])])
        return f"Representation({what}, of {self.group} on {self.group.num_nodes} nodes)"

    def _moved(self) -> Tensor:
        return self._moves.images != torch.arange(self.num_channels)

    @cached_property
    def _chain(self) -> StabiliserChain:
        """The group on its points and, after them, on channels and their negatives."""
        acting = acting_group(self.group)
        images, negative = self._moves.images, (self._moves.signs < 0).long() * self.num_channels
        c, n = self.num_channels, acting.num_nodes
        moved = torch.cat(
            [acting.generators, n + images + negative, n + images + (c - negative)], dim=1
        )
        order = acting.order()
        chain = StabiliserChain(moved, math.log(order), faithful=n)
        chain.confirm(order)
        return chain

    def _confirm(self) -> None:
        """Refuse rows that are no homomorphism: then some channel move fixes every node."""
        try:
            _ = self._chain
        except (Unfaithful, GroupError):
            acting = acting_group(self.group).generators
            relation = _broken_relation(acting, self._moves)
            raise named_failure(self.group, relation) from None


def check_is_group(group: object) -> None:
    """Raise TypeError unless this is a group."""
    if not isinstance(group, PermutationGroup):
        raise TypeError(
            f"group must be a PermutationGroup or a ClusterGroup; got {type(group).__name__}"
        )


def acting_group(group: PermutationGroup) -> PermutationGroup:
    """The group that channels can feel: the swaps of a cluster group."""
    if not isinstance(group, ClusterGroup):
        return group
    return group.swaps or PermutationGroup(group.partition.num_clusters)


def listed_rows(rows: Rows, what: str) -> list[IntegerArray]:
    """The rows, one per generator."""
    if not isinstance(rows, Iterable) or isinstance(rows, str):
        raise TypeError(f"{what} must have one row per generator; got {type(rows).__name__}")
    return list(rows)


def _integer_rows(rows: Rows, what: str) -> list[Tensor]:
    return [
        integer_tensor(row, f"{what} of generator {i}", GroupError)
        for i, row in enumerate(listed_rows(rows, what))
    ]


def _read_rows(group: PermutationGroup, images: Rows, signs: Rows) -> ChannelMoves:
    """Rows of the acting generators, checked."""
    first, second = listed_rows(images, "images"), listed_rows(signs, "signs")
    if len(first) != len(second):
        raise GroupError(f"got {len(first)} rows of images and {len(second)} of signs")
    within = count_within(group, len(first))
    rows = []
    for i, (row, sign) in enumerate(zip(first, second, strict=True)):
        turned = integer_tensor(sign, f"signs of generator {i}", GroupError)
        if turned.dim() != 1 or not turned.numel() or not bool((turned.abs() == 1).all()):
            raise GroupError(
                f"signs of generator {i} must be 1 or -1, one per channel; got {turned.tolist()}"
            )
        rows.append((check_permutation(row, turned.numel(), f"images of generator {i}"), turned))
    if len({row.numel() for row, _ in rows}) > 1:
        sizes = [row.numel() for row, _ in rows]
        raise GroupError(f"every row must have the same channels; got rows of {sizes}")
    moves = ChannelMoves(*(torch.stack(part) for part in zip(*rows, strict=True)))
    still = ChannelMoves.still(within, moves.images.size(1))
    same = torch.equal(moves.images[:within], still.images)
    check_within(same and torch.equal(moves.signs[:within], still.signs))
    return ChannelMoves(moves.images[within:], moves.signs[within:])


def _broken_relation(generators: Tensor, moves: ChannelMoves) -> str | None:
    """A product of generators that keeps the nodes and moves channels, if a short one does."""
    c = moves.images.size(1)
    negative = (moves.signs < 0).long() * c
    channels = torch.cat([moves.images + negative, moves.images + (c - negative)], dim=1)
    algebra = Algebra[np.ndarray](lambda a, b: a[b], np.argsort, np.array_equal)
    return broken_relation(generators.numpy(), list(channels.numpy()), np.arange(2 * c), algebra)


def _as_matrices(moves: ChannelMoves) -> Tensor:
    """The matrices ``[m, c, c]`` of rows."""
    count, c = moves.images.shape
    matrices = torch.zeros(count, c, c, dtype=torch.float64)
    matrices[torch.arange(count)[:, None], moves.images, torch.arange(c)] = moves.signs.double()
    return matrices


def named_failure(group: PermutationGroup, relation: str | None) -> GroupError:
    """What to raise for rows that are no homomorphism, with a relation that they break."""
    named = f": {relation} keeps every node but moves channels" if relation else ""
    return GroupError(
        f"the rows are no representation of {group!r}, because they are not a homomorphism{named}"
    )


def count_within(group: PermutationGroup, rows: int) -> int:
    """How many of the rows are for permutations within clusters, which leave channels alone.

    Raises:
        GroupError: Another number of rows than the group has generators.
    """
    acting = acting_group(group).num_generators
    if not rows and not acting:
        raise GroupError(
            f"{group!r} has no generator that could move channels; its representations are "
            "Representation.trivial(group, channels)"
        )
    if rows not in (acting, group.num_generators):
        whose = "swaps" if isinstance(group, ClusterGroup) else "group"
        raise GroupError(
            f"expected one row for each of the {acting} generators of the {whose}; got {rows}"
        )
    return rows - acting


def check_within(still: bool) -> None:
    """Refuse rows that let permutations within clusters move channels."""
    if not still:
        raise GroupError(
            "permutations within the clusters of a ClusterGroup leave channels alone: its "
            "representations factor through its swaps; to let them move channels, use "
            "PermutationGroup(n, group.generators)"
        )
