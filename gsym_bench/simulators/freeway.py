"""A seeded freeway: kinematic-wave traffic seen by exchangeable lane detectors.

The road follows the kinematic-wave theory of Lighthill, Whitham and Richards, discretised by the
cell-transmission model (Daganzo 1994, "The cell transmission model: a dynamic representation of
highway traffic consistent with the hydrodynamic theory"): one cell per station, a triangular
fundamental diagram, first-in-first-out exits, entries that queue.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from scipy.signal import lfilter

INTERVAL_MINUTES = 5
INTERVALS_PER_DAY = 24 * 60 // INTERVAL_MINUTES
STEPS_PER_INTERVAL = 15

NUM_LANES = 4
WAVE_SPEED = 12.0
JAM_DENSITY = 190.0 * NUM_LANES
RAMP_CAPACITY = 1800.0
MIN_SPEED = 3.0
MAX_READING = 85.0


@dataclass(frozen=True, eq=False)
class Road:
    """A directed freeway of ``c`` cells, numbered in driving direction.

    Attributes:
        length: Cell lengths in miles, ``[c]``.
        free_speed: Free-flow speeds in mph, ``[c]``.
        capacity: Most vehicles per hour over all lanes, ``[c]``.
        demand: Vehicles per hour that want to enter at each cell in the busiest hour of an average
            day, ``[c]``; cell 0 takes the traffic of the road before it, the others their ramps.
        exit_share: Share of the vehicles leaving a cell that leave the freeway, ``[c]``.
        lane_std: Standard deviation of a lane's slow drift from its station in mph, ``[c]``.
        noise_std: Standard deviation of the noise of one reading in mph, ``[c]``.
    """

    length: np.ndarray
    free_speed: np.ndarray
    capacity: np.ndarray
    demand: np.ndarray
    exit_share: np.ndarray
    lane_std: np.ndarray
    noise_std: np.ndarray


ROAD = Road(
    length=np.array([0.5, 0.6, 0.45, 0.7, 0.5, 0.55, 0.65, 0.45, 0.6, 0.5, 0.7, 0.55]),
    free_speed=np.array([68.0, 56.0, 64.0, 52.0, 60.0, 70.0, 66.0, 54.0, 48.0, 62.0, 56.0, 70.0]),
    capacity=1e3 * np.array([8.4, 8.4, 8.0, 6.9, 8.2, 8.4, 8.0, 7.8, 6.3, 8.0, 8.2, 7.2]),
    demand=1e3 * np.array([5.2, 0.0, 0.8, 0.0, 0.6, 0.0, 0.6, 0.6, 0.0, 0.8, 1.2, 0.0]),
    exit_share=np.array([0.0, 0.05, 0.0, 0.0, 0.14, 0.0, 0.0, 0.0, 0.0, 0.08, 0.0, 1.0]),
    lane_std=np.array([1.0, 6.0, 2.0, 5.0, 1.5, 4.0, 6.0, 1.0, 3.0, 5.0, 1.5, 4.0]),
    noise_std=np.array([5.0, 1.0, 4.0, 1.5, 5.0, 1.0, 1.5, 4.0, 6.0, 1.0, 5.0, 2.0]),
)


@dataclass(frozen=True, eq=False)
class Freeway:
    """What the detectors of a simulated freeway recorded; nodes are lanes, station by station.

    Attributes:
        speed: Five-minute mean speeds in mph, ``[t, n]``, float32; 0 is missing.
        time_of_day: Fraction of the day at which each interval starts, ``[t]``, float32.
        edge_index: ``[2, e]``, int64, without self loops; from row 0 to row 1.
        edge_weight: ``[e]``, float32, constant between any two stations and within each.
        positions: Where the detectors lie, in miles, ``[n, 2]``.
        station: Station of each detector, ``[n]``; its groups of four are the true orbits.
        segment: Segment of four stations of each detector, ``[n]``.
    """

    speed: np.ndarray
    time_of_day: np.ndarray
    edge_index: np.ndarray
    edge_weight: np.ndarray
    positions: np.ndarray
    station: np.ndarray
    segment: np.ndarray


def simulate_freeway(seed: int, *, days: int = 40) -> Freeway:
    """Simulate ``days`` days of a freeway of 12 stations with 4 lane detectors each.

    Symmetry, known by construction: given the speeds of the cells, the reading of a lane is its
    station's cell speed plus a deviation that is independent between lanes and has one law for all
    of them (an AR(1) series, reading noise, missing spells). The law of the data is therefore
    unchanged when lanes of one station are exchanged: the group is the product of one S_4 per
    station, and the graph, whose weights depend on the two stations only, is preserved by it
    exactly. It is no larger: stations differ in place, free speed, capacity, ramps and detectors,
    so an exchange of detectors between stations changes means and variances.

    Args:
        seed: Fixes every random draw: demand, incidents, lanes, missing spells.
        days: Days to simulate; each starts empty at midnight and they run as one batch.

    Returns:
        The readings, ``t = 288 * days`` and ``n = 48``, with their graph.

    Raises:
        ValueError: If ``days`` is not positive.
    """
    if days < 1:
        raise ValueError(f"days must be at least 1, got {days}; 40 gives 28 days of training data")
    rng = np.random.default_rng(seed)
    demand = ROAD.demand * _demand_profile(rng, days)[..., None]
    capacity = ROAD.capacity * _incident_factors(rng, days)
    density = cell_densities(ROAD, demand, capacity)
    cell_speed = equilibrium_speed(density, ROAD.free_speed).mean(axis=1)
    # [interval, day, cell] -> [t, cell], days one after another
    cell_speed = cell_speed.swapaxes(0, 1).reshape(days * INTERVALS_PER_DAY, -1)

    num_stations = len(ROAD.length)
    station = np.repeat(np.arange(num_stations), NUM_LANES)
    edge_index, edge_weight = _graph(station)
    interval = np.arange(days * INTERVALS_PER_DAY) % INTERVALS_PER_DAY
    return Freeway(
        speed=_read_lanes(rng, cell_speed, station),
        time_of_day=(interval / INTERVALS_PER_DAY).astype(np.float32),
        edge_index=edge_index,
        edge_weight=edge_weight,
        positions=_positions(station),
        station=station,
        segment=station // 4,
    )


def equilibrium_speed(density: np.ndarray, free_speed: np.ndarray) -> np.ndarray:
    """Speed of the triangular diagram in mph at ``density`` in vehicles per mile, ``[..., c]``."""
    congested = WAVE_SPEED * (JAM_DENSITY / np.maximum(density, 1e-9) - 1)
    return np.clip(congested, MIN_SPEED, free_speed)


def cell_densities(road: Road, demand: np.ndarray, capacity: np.ndarray) -> np.ndarray:
    """Run the cell-transmission model from an empty road.

    Args:
        road: The road; its average demand and capacity give way to those below.
        demand: Vehicles per hour that want to enter, ``[intervals, ..., c]``.
        capacity: Vehicles per hour that a cell can pass, ``[intervals, ..., c]``.

    Returns:
        Densities in vehicles per mile before each step, ``[intervals, 15, ..., c]``.

    Raises:
        ValueError: If a vehicle could cross a whole cell in one step.
    """
    hours = INTERVAL_MINUTES / 60 / STEPS_PER_INTERVAL
    if (road.free_speed * hours > road.length).any():
        raise ValueError(
            f"a vehicle may not cross more than one cell in a step of {hours * 3600:.0f} s: "
            f"lengthen the cells, the shortest is {road.length.min()} miles"
        )
    density = np.zeros(demand.shape[1:])
    queue = np.zeros_like(density)
    history = np.empty((len(demand), STEPS_PER_INTERVAL, *density.shape))
    entry_limit = np.full(len(road.length), RAMP_CAPACITY)
    entry_limit[0] = np.inf  # the mainline has no ramp
    for interval, (wanted, passing) in enumerate(zip(demand, capacity, strict=True)):
        for step in range(STEPS_PER_INTERVAL):
            history[interval, step] = density
            sending = np.minimum(road.free_speed * density, passing)
            room = np.minimum(passing, WAVE_SPEED * (JAM_DENSITY - density))
            entering = np.minimum(wanted + queue / hours, entry_limit)
            arriving = entering.copy()
            arriving[..., 1:] += (sending * (1 - road.exit_share))[..., :-1]
            # mainline and ramp share a full cell in proportion to what they send
            accepted = np.minimum(1, room / np.maximum(arriving, 1e-9))
            leaving = sending.copy()
            leaving[..., :-1] *= accepted[..., 1:]
            queue += hours * (wanted - accepted * entering)
            density = density + hours / road.length * (accepted * arriving - leaving)
    return history


def _demand_profile(rng: Generator, days: int) -> np.ndarray:
    """Demand relative to the busiest hour of an average day, ``[288, days]``."""
    hour = np.arange(INTERVALS_PER_DAY)[:, None] * 24 / INTERVALS_PER_DAY
    shift = rng.normal(0, 0.3, size=(2, days))
    morning = np.exp(-0.5 * ((hour - 7.8 - shift[0]) / 1.3) ** 2)
    evening = np.exp(-0.5 * ((hour - 17.2 - shift[1]) / 1.7) ** 2)
    daytime = 1 / (1 + np.exp(-(hour - 5.5) / 0.5)) / (1 + np.exp((hour - 20.5) / 0.8))
    level = rng.normal([[0.55], [0.5]], 0.06, size=(2, days))
    base = 0.12 + 0.4 * daytime + level[0] * morning + level[1] * evening
    return base * np.exp(0.05 * _ar1(rng, base.shape, coefficient=0.8))


def _incident_factors(rng: Generator, days: int) -> np.ndarray:
    """Share of the capacity that is left, ``[288, days, c]``; 1 without an incident."""
    factor = np.ones((INTERVALS_PER_DAY, days, len(ROAD.length)))
    for day in range(days):
        for _ in range(rng.poisson(1.5)):
            cell = rng.integers(len(ROAD.length))
            start = rng.integers(6 * 12, 20 * 12)
            duration = rng.integers(4, 13)
            factor[start : start + duration, day, cell] = rng.uniform(0.4, 0.7)
    return factor


def _read_lanes(rng: Generator, cell_speed: np.ndarray, station: np.ndarray) -> np.ndarray:
    """Detector readings ``[t, n]`` of the speeds ``[t, c]``, 0 where missing."""
    speed = cell_speed[:, station]
    drift = ROAD.lane_std[station] * _ar1(rng, speed.shape, coefficient=0.9)
    noise = ROAD.noise_std[station] * rng.normal(size=speed.shape)
    reading = np.clip(speed + drift + noise, MIN_SPEED, MAX_READING)
    time = np.arange(len(speed))[:, None]
    spell_starts = rng.random(speed.shape) < 0.004
    spell_end = np.where(spell_starts, time + rng.geometric(0.1, size=speed.shape), 0)
    missing = np.maximum.accumulate(spell_end, axis=0) > time
    return np.where(missing, 0, reading).astype(np.float32)


def _ar1(rng: Generator, shape: tuple[int, ...], *, coefficient: float) -> np.ndarray:
    """Stationary AR(1) series of unit variance along the first axis."""
    shocks = np.sqrt(1 - coefficient**2) * rng.normal(size=shape)
    shocks[0] /= np.sqrt(1 - coefficient**2)
    return np.asarray(lfilter([1], [1, -coefficient], shocks, axis=0))


def _station_places() -> np.ndarray:
    """Miles from the start of the road to the middle of each cell."""
    return np.cumsum(ROAD.length) - ROAD.length / 2


def _graph(station: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lanes of a station and of neighbouring stations are joined, both ways."""
    num_stations = len(ROAD.length)
    affinity = np.eye(num_stations)
    downstream = np.exp(-((np.diff(_station_places()) / 0.6) ** 2))
    upstream = downstream / 2  # so that the two walks along the road differ
    i = np.arange(num_stations - 1)
    affinity[i, i + 1] = downstream
    affinity[i + 1, i] = upstream
    weight = affinity[station[:, None], station]
    np.fill_diagonal(weight, 0)
    edges = np.nonzero(weight)
    return np.stack(edges), weight[edges].astype(np.float32)


def _positions(station: np.ndarray) -> np.ndarray:
    """A gently winding road; the lanes are drawn far apart to be visible."""
    lane = np.arange(len(station)) % NUM_LANES
    x = _station_places()[station]
    y = 0.6 * np.sin(x / 1.2) + 0.09 * (lane - (NUM_LANES - 1) / 2)
    return np.stack([x, y], axis=1)
