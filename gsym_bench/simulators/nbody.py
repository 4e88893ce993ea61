"""Charged particles in space: the n-body system of the EGNN paper, with or without gravity.

Satorras, Hoogeboom, Welling, arXiv 2102.09844, section 5.1, after the charged particles of Kipf et
al., arXiv 1802.04687. Lengths, times, masses and charges have no units: all masses and the strength
of the Coulomb force are 1. As in the published code, every coordinate of the force on a particle is
clipped. That acts on particles closer than about a tenth; there it creates momentum and favours the
axes, so that a general rotation commutes with the motion only while no particles come that close.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

NUM_PARTICLES, DIM = 5, 3
SPEED = 0.5
TIME_STEP = 1e-3
MAX_FORCE = 100.0
STEPS_PER_FRAME = 100
# Published frames start at the first sampled step, so frame 30 is the 31st.
STEPS_TO_INPUT, HORIZON = 31 * STEPS_PER_FRAME, 10 * STEPS_PER_FRAME
CHUNK = 1000  # samples whose arrays stay in the cache


@dataclass(frozen=True, eq=False)
class Motion:
    """Where particles are and where they will be, for ``b`` independent systems.

    Attributes:
        loc: Places at frame 30, ``[b, 5, 3]``, float64.
        vel: Velocities at frame 30, ``[b, 5, 3]``.
        charge: Charges, 1 or -1, ``[b, 5]``.
        target: Places at frame 40, one unit of time later, ``[b, 5, 3]``.
    """

    loc: np.ndarray
    vel: np.ndarray
    charge: np.ndarray
    target: np.ndarray


def simulate_motions(seed: int, count: int, *, gravity: float = 0.0) -> Motion:
    """Draw ``count`` systems and follow them from their start to frame 40.

    Gravity is switched on at frame 30. The input then has the same law with and without it and
    tells nothing of its direction; falling from the start, every velocity would point along it.

    Symmetry, known by construction: the motion commutes with all permutations of the particles and,
    while no force is clipped, with all of E(3); with gravity, with translations and the rotations
    and reflections that leave the vertical where it is.

    Args:
        seed: Fixes every random draw.
        count: Number of systems.
        gravity: Acceleration of all particles along -z.

    Returns:
        Inputs and targets.

    Raises:
        ValueError: If ``count`` is not positive or ``gravity`` not finite.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1; got {count}")
    if not np.isfinite(gravity):
        raise ValueError(f"gravity must be a finite acceleration; got {gravity}")
    loc, vel, charge = _start(np.random.default_rng(seed), count)
    loc, vel = advance(loc, vel, charge, STEPS_TO_INPUT)
    target, _ = advance(loc, vel, charge, HORIZON, gravity=gravity)
    return Motion(loc, vel, charge, target)


def advance(
    loc: np.ndarray, vel: np.ndarray, charge: np.ndarray, steps: int, *, gravity: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Integrate by the semi-implicit Euler rule: velocities first, then places.

    Args:
        loc: Places, ``[b, n, d]``.
        vel: Velocities, ``[b, n, d]``.
        charge: Charges, ``[b, n]``.
        steps: Number of steps of a thousandth.
        gravity: Acceleration of all particles along the last axis, downwards.

    Returns:
        Places and velocities after the steps, ``[b, n, d]``.

    Cost:
        ``O(steps b n^2 d)``; about 0.1 microseconds per system and step for five particles.
    """
    first, second = np.triu_indices(charge.shape[1], k=1)
    incidence = np.zeros((charge.shape[1], len(first)))
    incidence[first, np.arange(len(first))] = 1
    incidence[second, np.arange(len(first))] = -1
    ends = []
    for start in range(0, len(loc), CHUNK):
        part = slice(start, start + CHUNK)
        # Systems last: every operation then runs along contiguous memory.
        x, v = (np.array(np.moveaxis(a[part], 0, -1), float, order="C") for a in (loc, vel))
        q = charge[part].T
        product = q[first] * q[second]
        for _ in range(steps):
            difference = x[first] - x[second]
            square = np.einsum("pdb,pdb->pb", difference, difference)
            size = product / np.maximum(square, 1e-20) ** 1.5  # 0 / 0 where two coincide
            force = np.tensordot(incidence, size[:, None] * difference, axes=1)
            np.clip(force, -MAX_FORCE, MAX_FORCE, out=force)
            force[:, -1] -= gravity
            v += TIME_STEP * force
            x += TIME_STEP * v
        ends.append([np.moveaxis(a, -1, 0) for a in (x, v)])
    places, velocities = (np.concatenate(arrays) for arrays in zip(*ends, strict=True))
    return places, velocities


def energy(loc: np.ndarray, vel: np.ndarray, charge: np.ndarray) -> np.ndarray:
    """Kinetic and Coulomb energy of each system ``[b]``, without gravity."""
    first, second = np.triu_indices(charge.shape[1], k=1)
    distance = np.linalg.norm(loc[:, first] - loc[:, second], axis=-1)
    potential = (charge[:, first] * charge[:, second] / distance).sum(1)
    return 0.5 * (vel**2).sum((1, 2)) + potential


def _start(rng: Generator, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Normal places, velocities of length 0.5 in any direction, fair charges."""
    loc = rng.normal(size=(count, NUM_PARTICLES, DIM))
    vel = rng.normal(size=(count, NUM_PARTICLES, DIM))
    vel *= SPEED / np.linalg.norm(vel, axis=-1, keepdims=True)
    charge = rng.choice([-1.0, 1.0], size=(count, NUM_PARTICLES))
    return loc, vel, charge
