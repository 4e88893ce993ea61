"""Representations by orthogonal matrices: channels that a group mixes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from functools import cached_property
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from gsym._validate import IntegerArray, check_dense, check_whole, refuse_masked
from gsym.errors import GroupError
from gsym.groups._host import lives_on_cpu
from gsym.groups._record import record
from gsym.groups.cluster import ClusterGroup
from gsym.groups.coordinates import ChannelMoves
from gsym.groups.elements import Algebra, broken_relation
from gsym.groups.matrices import TOLERANCE, is_homomorphism, listed_elements, spread
from gsym.groups.permutation import PermutationGroup
from gsym.groups.representation import (
    Representation,
    acting_group,
    check_is_group,
    check_within,
    count_within,
    named_failure,
)

# Matrices that agree to so many digits are one value, on every machine.
_DIGITS = 8


@lives_on_cpu
class MatrixRepresentation(Representation):
    """Channels that a group mixes by orthogonal matrices, which are no signed permutations.

    Made by :meth:`gsym.Representation.from_matrices`.
    """

    mixes_channels = True

    def __init__(self, group: PermutationGroup, matrices: Tensor) -> None:
        self.group = group
        self._matrices = matrices

    @classmethod
    def from_matrices(cls, group: PermutationGroup, matrices: object) -> Representation:
        """As :meth:`gsym.Representation.from_matrices`."""
        check_is_group(group)
        rows = _read_matrices(group, matrices)
        size = rows.abs()
        if bool(((size < TOLERANCE) | ((size - 1).abs() < TOLERANCE)).all()):
            images = size.argmax(dim=1)
            signs = rows.gather(1, images[:, None])[:, 0].sign().long()
            return Representation(group, images, signs)
        made = cls(group, rows)
        acting = acting_group(group).generators
        _, products = listed_elements(acting)
        if not is_homomorphism(rows, spread(rows, products), products):
            raise named_failure(group, _broken_relation(acting, rows))
        return made

    @property
    def num_channels(self) -> int:
        """Number of channels."""
        return self._matrices.size(1)

    @property
    def matrices(self) -> Tensor:
        """Matrix of each generator, float64 ``[m, c, c]``, a copy."""
        return self._matrices.clone()

    @property
    def moves(self) -> ChannelMoves:
        """There are none: channels are mixed."""
        self._refuse()

    @property
    def images(self) -> Tensor:
        """There are none: channels are mixed."""
        self._refuse()

    @property
    def signs(self) -> Tensor:
        """There are none: channels are mixed."""
        self._refuse()

    @property
    def is_trivial(self) -> bool:
        """Never: the trivial representation is a permutation of channels."""
        return False

    @property
    def is_permutation(self) -> bool:
        """Never: a representation by permutations is none of this kind."""
        return False

    def moves_of_generators(self, group: PermutationGroup) -> ChannelMoves:
        """There are none: channels are mixed."""
        self.check_group(group)
        self._refuse()

    def of(self, perm: IntegerArray) -> ChannelMoves:
        """There is none: channels are mixed; see :meth:`matrix`."""
        self._refuse()

    def on_clusters(self, clusters: ClusterGroup) -> Representation:
        """The same matrices for the group written as clusters whose swaps are its generators."""
        if self.group == clusters:
            return self
        assert clusters.swaps == self.group
        return MatrixRepresentation(clusters, self._matrices)

    def matrix(self, perm: IntegerArray) -> Tensor:
        """The matrix rho(g) of one element, float64 ``[c, c]``.

        Raises:
            GroupError: ``perm`` is not in the group.
        """
        numbers, matrices = self._elements
        number = numbers.get(self._acting(perm).numpy().tobytes())
        if number is None:
            raise GroupError(f"the permutation does not belong to {self.group!r}")
        return matrices[number].clone()

    def act(self, perm: IntegerArray, x: Tensor) -> Tensor:
        """``(g x)[g(i)] = rho(g) x[i]`` for a signal ``[..., n, c]``, floating point.

        Raises:
            GroupError: ``perm`` is not in the group.
            SignalError: A signal on other nodes or channels, or of integers.
        """
        nodes = self._check_signal(perm, x)
        return x.index_select(-2, nodes) @ self.matrix(perm).to(x).mT

    def __add__(self, other: Representation) -> Representation:
        """The direct sum: the channels of both, side by side."""
        return self._sum(self, other)

    def __radd__(self, other: Representation) -> Representation:
        return self._sum(other, self)

    def _sum(self, first: Representation, second: Representation) -> Representation:
        for rep in (first, second):
            if not isinstance(rep, Representation):
                return NotImplemented
            rep.check_group(self.group)
        blocks = zip(first.matrices, second.matrices, strict=True)
        return MatrixRepresentation(
            self.group, torch.stack([torch.block_diag(*pair) for pair in blocks])
        )

    def __mul__(self, copies: int) -> Representation:
        """Several copies: channel ``a * copies + t`` is copy ``t`` of channel ``a``."""
        copies = check_whole(copies, "copies", GroupError)
        if copies < 1:
            raise GroupError(f"there is at least one copy; got copies={copies}")
        still = torch.eye(copies, dtype=torch.float64)
        return MatrixRepresentation(self.group, torch.kron(self._matrices, still[None]))

    __rmul__ = __mul__

    def without_copies(self) -> tuple[Representation, int]:
        """The smallest representation of which this is ``copies * smaller``, and the copies."""
        c = self.num_channels
        for copies in range(c, 1, -1):
            if c % copies:
                continue
            smaller = MatrixRepresentation(self.group, self._matrices[:, ::copies, ::copies])
            # Exactly, lest the small numbers between copies be lost.
            if torch.equal((smaller * copies).matrices, self._matrices):
                return smaller, copies
        return self, 1

    def to_dict(self) -> dict[str, Any]:
        """The representation in numbers and strings, which JSON can hold."""
        return record(
            "MatrixRepresentation", group=self.group.to_dict(), matrices=self._matrices.tolist()
        )

    def fingerprint(self) -> bytes:
        """SHA-256 of the matrices, to eight digits, and of what the group ties."""
        rows = self._rounded().tobytes()
        parts = [b"matrices", str(self.num_channels).encode(), self.group.fingerprint(), rows]
        return hashlib.sha256(b"|".join(parts)).digest()

    def _written(self) -> tuple[object, ...]:
        return self.group, self.num_channels, self._rounded().tobytes()

    def _rounded(self) -> np.ndarray:
        # Whole numbers have no negative zero.
        return np.rint(self._matrices.numpy() * 10**_DIGITS).astype(np.int64)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as what it is written as; the rest follows from that."""
        return MatrixRepresentation, (self.group, self._matrices)

    def __repr__(self) -> str:
        return (
            f"Representation({self.num_channels} channels, mixed by matrices, of {self.group} on "
            f"{self.group.num_nodes} nodes)"
        )

    @cached_property
    def _elements(self) -> tuple[dict[bytes, int], Tensor]:
        """The number of every element by its images, and the matrices of all."""
        perms, products = listed_elements(acting_group(self.group).generators)
        numbers = {perm.tobytes(): number for number, perm in enumerate(perms)}
        return numbers, torch.from_numpy(spread(self._matrices, products))

    def _refuse(self) -> NoReturn:
        raise GroupError(
            f"{self!r} mixes channels, but signed permutations of them are needed here: "
            "Representation.from_signs, from_permutation or regular; matrices serve act, matrix, "
            "commutant_dim, project and layers"
        )


def _read_matrices(group: PermutationGroup, matrices: object) -> Tensor:
    """Orthogonal matrices of the acting generators, float64 ``[m, c, c]``."""
    if not isinstance(matrices, Iterable) or isinstance(matrices, str | bytes):
        raise TypeError(
            f"matrices must have one matrix per generator; got {type(matrices).__name__}"
        )
    listed = list(matrices)
    within = count_within(group, len(listed))
    rows = [_read_matrix(row, f"the matrix of generator {i}") for i, row in enumerate(listed)]
    if len({row.size(0) for row in rows}) > 1:
        raise GroupError(
            f"every matrix must have the same channels; got {[row.size(0) for row in rows]}"
        )
    read = torch.stack(rows)
    still = torch.eye(read.size(1), dtype=torch.float64)
    check_within(bool(((read[:within] - still).abs() < TOLERANCE).all()))
    return read[within:]


def _read_matrix(given: object, what: str) -> Tensor:
    refuse_masked(given, what, GroupError)
    if isinstance(given, Tensor):
        check_dense(what, given, GroupError, values=True)
    try:
        # NumPy reads numbers in float64, torch in its default type.
        matrix = given if isinstance(given, Tensor) else torch.from_numpy(np.array(given))
    except (ValueError, TypeError, RuntimeError) as cause:
        raise GroupError(f"{what} must be numbers [c, c]; got {given!r:.80}") from cause
    if matrix.is_complex() or matrix.dtype == torch.bool:
        raise GroupError(f"{what} must be real numbers; got {matrix.dtype}")
    if matrix.dim() != 2 or matrix.size(0) != matrix.size(1) or not matrix.numel():
        raise GroupError(f"{what} must be [c, c]; got {list(matrix.shape)}")
    matrix = matrix.detach().to(device="cpu", dtype=torch.float64, copy=True)
    still = torch.eye(matrix.size(0), dtype=torch.float64)
    off = float((matrix.mT @ matrix - still).abs().max())
    if not math.isfinite(off) or off > TOLERANCE:
        raise GroupError(
            f"{what} must be orthogonal to {TOLERANCE:.0e}; its transpose times itself is off the "
            f"identity by {off:.1e}; give it in float64, in an orthonormal basis of the channels"
        )
    return matrix


def _broken_relation(generators: Tensor, matrices: Tensor) -> str | None:
    """A product of generators that keeps the nodes and mixes channels, if a short one does."""
    algebra = Algebra[np.ndarray](
        lambda a, b: a @ b, np.transpose, lambda a, b: float(np.abs(a - b).max()) <= TOLERANCE
    )
    one = np.eye(matrices.size(1))
    return broken_relation(generators.numpy(), list(matrices.numpy()), one, algebra)


# Here, so that modules import each other in one direction.
Representation._matrix_form = MatrixRepresentation
