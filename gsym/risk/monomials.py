r"""Ridge regression on monomials, tied to a small group that may act on channels as well.

The regression of :mod:`gsym.risk.ridge` is linear and leaves channels alone. Here a group of few
elements acts by ``(g x)[g(i)] = rho(g) x[i]``, and the features are the coordinates of a signal
and, for degree 2, their products. All images of every signal under the group are fitted together;
the ridge objective is convex and then invariant, so its one minimum is equivariant, exactly. A
signal is left out with its images, in closed form, by the block hat matrix:
:math:`(I - H_{bb})^{-1} e_b`.

**Features.** Coordinates :math:`z` are divided by their standard deviation over all images, which
is constant along orbits, so the group still acts on features by signed permutations. Their origin
stays where the user put it: to a penalty, products of coordinates less their means are another
model, and signs are those about an origin. With degree 2,

.. math::
    \phi(x) = \bigl( z_i; \; z_i z_j \text{ for } i < j; \; z_i^2 / \sqrt 2 \bigr), \qquad
    \langle \phi(x), \phi(x') \rangle = \langle z, z' \rangle + \tfrac12 \langle z, z' \rangle^2 ,

so the Gram matrix needs no products. The smaller of the two sides is decomposed. The standard
deviations are not estimated again without the signals that are left out.

**Errors.** The error of a block is the *root* of its mean squared leave-one-out error, in the units
of the targets. A few unusual signals carry most of a mean of squares, and they would decide
instead of the symmetry.

Reference:
    Allen 1974 (leave-one-out error of ridge).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gsym.errors import GroupError, SignalError
from gsym.groups import Representation
from gsym.groups.elements import has_at_most, list_elements, signed_points
from gsym.risk.left_out import LeftOut
from gsym.risk.regressions import images_alike, left_out_residuals, spectrum
from gsym.risk.samples import select

# Groups of up to this many elements are applied to the data.
MAX_IMAGES = 64
# Rows or columns that are decomposed, and numbers in a table of features.
MAX_SIDE, MAX_TABLE = 4096, 2**26
# In units of the mean square of a signal's features. Smaller ones nearly interpolate where features
# and signals are equally many, and leave-one-out errors of such fits say little.
PENALTIES = np.logspace(-3, 1, 9)


@dataclass(frozen=True, eq=False)
class Moves:
    """How every element of a small group moves the coordinates ``(node, channel)`` of a signal.

    Attributes:
        source: Coordinate that each takes its value from, ``[m, n c]``; the identity comes first.
        sign: Sign that it takes it with, ``[m, n c]``.
    """

    source: NDArray
    sign: NDArray

    def images(self, x: NDArray) -> NDArray:
        """All images of signals ``[s, n c]``: ``[s, m, n c]``."""
        out: NDArray = x[:, self.source] * self.sign
        return out

    def alike(self) -> NDArray:
        """Share of the coordinates that two images have in the same place, ``[m, m]``."""
        return images_alike(self.source, self.sign)


def moves_of(in_rep: Representation, out_rep: Representation | None) -> tuple[Moves, Moves]:
    """How a group moves inputs and targets, element by element.

    Args:
        in_rep: How it moves the channels of inputs.
        out_rep: Those of targets; ``None`` for targets of one number per signal, which stay.

    Raises:
        GroupError: More than :data:`MAX_IMAGES` elements.
    """
    group = in_rep.group
    if not has_at_most(group, MAX_IMAGES):
        raise GroupError(
            f"the regression on monomials takes groups of up to {MAX_IMAGES} elements; {group} has "
            "more: leave it out, or use the linear one"
        )
    still = np.zeros((group.num_generators, 0), dtype=np.int64)
    rows = [_points(in_rep), still if out_rep is None else _points(out_rep)]
    width = rows[0].shape[1]
    listed = list_elements(np.concatenate([rows[0], rows[1] + width], axis=1), MAX_IMAGES)
    assert listed is not None
    points = np.argsort(listed[0], axis=1)
    parts = points[:, 0:width:2], points[:, width::2] - width
    first, second = (Moves(part // 2, 1.0 - 2.0 * (part % 2)) for part in parts)
    return first, second


def _points(rep: Representation) -> NDArray:
    """Generators on signed coordinates, two points for each, ``[m, 2 n c]``."""
    nodes, channels = rep.group.generators.numpy(), rep.moves_of_generators(rep.group)
    m, n = nodes.shape
    images = nodes[:, :, None] * rep.num_channels + channels.images.numpy()[:, None, :]
    signs = np.broadcast_to(channels.signs.numpy()[:, None, :], images.shape)
    width = n * rep.num_channels
    return signed_points(images.reshape(m, width), signs.reshape(m, width))


class Monomials:
    """The features of all images of the signals, decomposed once for any number of targets.

    Args:
        images: Images of every signal, ``[s, m, n c]``.
        degree: 1, or 2 for products as well.
        left_out: Which signals are left out together.

    Raises:
        SignalError: Too many signals and features to decompose.
    """

    def __init__(self, images: NDArray, degree: int, left_out: LeftOut) -> None:
        s, self.copies, width = images.shape
        self.left_out, self.degree, rows = left_out, degree, s * self.copies
        z = images.reshape(rows, width)
        spread = z.std(0)
        varies = spread > 1e-12 * np.abs(z).max(0)
        self._weight = varies / np.where(varies, spread, 1.0)
        self._rows = z * self._weight
        z = self._rows[:, varies]
        width = z.shape[1]
        features = width if degree == 1 else width * (width + 3) // 2
        if not features:
            self._left, self._squares = np.zeros((rows, 0)), np.zeros(0)
        elif rows <= min(features, MAX_SIDE):
            gram = self._products(self._rows)
            gram -= gram.mean(0)
            gram -= gram.mean(1, keepdims=True)
            squares, vectors = np.linalg.eigh(gram)
            keep = squares > max(squares[-1], 0.0) * rows * np.finfo(float).eps
            self._left, self._squares = vectors[:, keep], squares[keep]
        elif features <= MAX_SIDE and rows * features <= MAX_TABLE:
            if degree == 2:
                i, j = np.triu_indices(width)
                z = np.concatenate([z, z[:, i] * z[:, j] * np.where(i == j, 0.5**0.5, 1.0)], axis=1)
            self._left, self._squares = spectrum(z - z.mean(0))
        else:
            raise SignalError(
                f"{s:,} signals with {self.copies} images each and {features:,} features are too "
                f"many: one of {rows:,} and {features:,} must be at most {MAX_SIDE:,}; take fewer "
                "signals, evenly spaced"
            )
        self._scale = self._squares.sum() / rows

    def errors(self, targets: NDArray) -> NDArray:
        """Squared leave-one-out errors of every column, summed over the signals of each block.

        Args:
            targets: Images of targets ``[s, m, q]``.

        Returns:
            ``[penalties, blocks, q]``, the mean over images.
        """
        wanted = targets.reshape(len(self._left), -1)
        wanted = wanted - wanted.mean(0)
        scores = self._left.T @ wanted
        table = np.empty((len(PENALTIES), len(self.left_out), wanted.shape[1]))
        for row, penalty in zip(table, PENALTIES * self._scale, strict=True):
            shrink = self._squares / (self._squares + penalty)
            rest = wanted - self._left @ (shrink[:, None] * scores)
            found = left_out_residuals(self._left, shrink, rest, self.left_out, self.copies)
            for blocks, error in found:
                row[blocks] = (error**2).sum(1) / self.copies
        return table

    def predictor(self, targets: NDArray, penalty: float) -> Callable[[NDArray], NDArray]:
        """The fit to all signals, as a function of signals ``[t, n c]``.

        Args:
            targets: Images of targets ``[s, m, q]``.
            penalty: One of :data:`PENALTIES`.
        """
        wanted = targets.reshape(len(self._left), -1)
        mean = wanted.mean(0)
        scores = self._left.T @ (wanted - mean)
        dual = self._left @ (scores / (self._squares + penalty * self._scale)[:, None])
        # The weights sum to zero, so centring the features moves the constant alone.
        constant = mean - self._products(self._rows).mean(0) @ dual

        def predict(x: NDArray) -> NDArray:
            out: NDArray = self._products(x * self._weight) @ dual + constant
            return out

        return predict

    def _products(self, z: NDArray) -> NDArray:
        """Inner products of features with those of all rows, ``[t, rows]``."""
        product: NDArray = z @ self._rows.T
        return product if self.degree == 1 else product + 0.5 * product**2


def root_errors(table: NDArray, entries: int, left_out: LeftOut) -> tuple[NDArray, float]:
    """Root mean squared error of each block under the penalty that suits the others.

    Args:
        table: Squared errors ``[penalties, blocks]``, summed over signals and entries.
        entries: Numbers to predict per signal.
        left_out: The blocks.

    Returns:
        ``[blocks]``, and the penalty that suits all best.
    """
    size = (left_out.stops - left_out.starts) * entries
    roots = np.sqrt(table / size)
    judged_by, chosen = select(roots)
    return roots[judged_by, np.arange(len(left_out))], float(PENALTIES[chosen])


class MonomialRidge:
    """Ridge regression on monomials, tied to a small group with representations on channels.

    Args:
        x: Inputs ``[s, n, c_in]``, float64.
        y: Targets ``[s, n, c_out]``, or ``[s, 1, 1]`` with ``out_rep=None``.
        in_rep: A group of up to :data:`MAX_IMAGES` elements, and how it moves the channels of x.
        out_rep: How it moves those of y; ``None``: y is invariant.
        left_out: Which signals are left out together.
        degree: 1, or 2 for products as well.

    Attributes:
        errors: Left-out root mean squared error of each block, in the units of y.
        penalty: The chosen one of :data:`PENALTIES`.

    Raises:
        GroupError: A larger group.
        SignalError: Too many signals and features to decompose.

    Symmetry:
        Exact: :meth:`predict` commutes with the group.

    Cost:
        ``O(r^2 max(s m, p))`` with m elements, p features and ``r = min(s m, p)``, and
        ``O(s m r q)`` for each of 9 penalties and q numbers to predict.

    Example:
        >>> group = PermutationGroup.from_cycles(3, [(0, 1)])
        >>> sign = Representation.from_signs(group, [[-1]])
        >>> x = np.random.default_rng(0).normal(size=(40, 3, 1))
        >>> fit = MonomialRidge(x, 2 * x, sign, sign, LeftOut(40, 1))
        >>> bool(fit.errors.mean() < 0.01), fit.predict(x).shape
        (True, (40, 3, 1))
    """

    def __init__(
        self,
        x: NDArray,
        y: NDArray,
        in_rep: Representation,
        out_rep: Representation | None,
        left_out: LeftOut,
        degree: int = 2,
    ) -> None:
        moves_in, moves_out = moves_of(in_rep, out_rep)
        flat = y.reshape(len(y), -1)
        self._shape = y.shape[1:]
        self._targets = flat[:, None].repeat(len(moves_in.source), 1)
        if out_rep is not None:
            self._targets = moves_out.images(flat)
        self._features = Monomials(moves_in.images(x.reshape(len(x), -1)), degree, left_out)
        table = self._features.errors(self._targets).sum(-1)
        self.errors, self.penalty = root_errors(table, flat.shape[1], left_out)

    def predict(self, x: NDArray) -> NDArray:
        """Predict targets ``[t, n, c_out]`` (``[t, 1, 1]``) of inputs ``[t, n, c_in]``."""
        fitted = self._features.predictor(self._targets, self.penalty)
        return fitted(x.reshape(len(x), -1)).reshape(len(x), *self._shape)
