"""The simulated freeway: physics, determinism, and the symmetry that it is built to have."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from gsym.groups import ClusterGroup, Partition
from gsym_bench.simulators.freeway import (
    INTERVALS_PER_DAY,
    Road,
    cell_densities,
    equilibrium_speed,
    simulate_freeway,
)


@pytest.fixture(scope="module")
def freeway():
    return simulate_freeway(0)


@pytest.fixture
def road():
    """Six equal cells without ramps; everybody leaves at the end."""
    ones = np.ones(6)
    return Road(0.5 * ones, 60 * ones, 8000 * ones, 0 * ones, np.eye(6)[5], ones, ones)


def steady(road, inflow, capacity):
    """Densities and flows after four hours of constant inflow into the first cell."""
    demand = np.zeros((48, 6))
    demand[:, 0] = inflow
    density = cell_densities(road, demand, np.tile(capacity, (48, 1)))[-1, -1]
    return density, density * equilibrium_speed(density, road.free_speed)


def test_light_traffic_flows_freely(road):
    density, flow = steady(road, 3000, road.capacity)
    np.testing.assert_allclose(flow, 3000, rtol=1e-6)
    np.testing.assert_allclose(density, 3000 / 60, rtol=1e-6)


def test_bottleneck_jams_the_cells_before_it_and_conserves_vehicles(road):
    capacity = np.array([8000.0, 8000, 8000, 5000, 8000, 8000])
    density, flow = steady(road, 6000, capacity)
    # in a steady state every cell passes the same flow, that of the bottleneck
    np.testing.assert_allclose(flow, 5000, rtol=1e-3)
    speed = equilibrium_speed(density, road.free_speed)
    assert (speed[:3] < 40).all()
    np.testing.assert_allclose(speed[3:], 60)


def test_exits_take_their_share(road):
    share = np.array([0, 0.25, 0, 0, 0, 1.0])
    _, flow = steady(replace(road, exit_share=share), 4000, road.capacity)
    np.testing.assert_allclose(flow, [4000, 4000, 3000, 3000, 3000, 3000], rtol=1e-6)


def test_densities_stay_between_empty_and_jam(road):
    density = cell_densities(road, np.full((48, 6), 9000.0), np.full((48, 6), 4000.0))
    assert density.min() >= 0
    assert density.max() <= 760


def test_a_cell_too_short_for_a_step_is_refused(road):
    short = replace(road, length=np.full(6, 0.2))
    with pytest.raises(ValueError, match=r"lengthen the cells, the shortest is 0\.2 miles"):
        steady(short, 1000, road.capacity)


def test_no_days_are_refused():
    with pytest.raises(ValueError, match="days must be at least 1, got 0"):
        simulate_freeway(0, days=0)


def test_readings(freeway):
    t = 40 * INTERVALS_PER_DAY
    assert freeway.speed.shape == (t, 48)
    assert freeway.speed.dtype == np.float32
    observed = freeway.speed > 0
    assert freeway.speed.min() == 0
    assert freeway.speed[observed].min() >= 3
    assert freeway.speed.max() <= 85
    assert 0.02 < 1 - observed.mean() < 0.06
    np.testing.assert_array_equal(freeway.time_of_day[:2], np.float32([0, 1 / 288]))
    assert freeway.time_of_day[INTERVALS_PER_DAY] == 0
    assert freeway.positions.shape == (48, 2)
    np.testing.assert_array_equal(np.bincount(freeway.station), [4] * 12)
    np.testing.assert_array_equal(np.bincount(freeway.segment), [16] * 3)


def test_two_rush_hours_jam_the_road(freeway):
    hour = (freeway.time_of_day * 24).astype(int)
    speed = np.where(freeway.speed > 0, freeway.speed, np.nan)
    by_hour = [np.nanmean(speed[hour == h]) for h in range(24)]
    assert max(by_hour[8], by_hour[17]) < 45
    assert min(by_hour[3], by_hour[13], by_hour[22]) > 55


def test_the_seed_fixes_everything(freeway):
    short = simulate_freeway(3, days=2)
    again = simulate_freeway(3, days=2)
    for name, value in vars(short).items():
        np.testing.assert_array_equal(value, getattr(again, name), err_msg=name)
    assert not np.array_equal(short.speed, simulate_freeway(4, days=2).speed)


def test_the_graph_has_exactly_the_symmetry_of_the_stations(freeway):
    edge_index = torch.from_numpy(freeway.edge_index)
    edge_weight = torch.from_numpy(freeway.edge_weight)
    assert not (edge_index[0] == edge_index[1]).any()
    station = torch.from_numpy(freeway.station)
    assert ClusterGroup(Partition.from_labels(station)).preserves(edge_index, edge_weight)
    pairs = ClusterGroup(Partition.from_labels(station // 2))
    assert not pairs.preserves(edge_index, edge_weight)


def test_edges_join_lanes_of_a_station_and_of_the_next(freeway):
    weight = np.zeros((48, 48))
    weight[tuple(freeway.edge_index)] = freeway.edge_weight
    apart = np.abs(freeway.station[:, None] - freeway.station)
    np.testing.assert_array_equal(weight > 0, (apart <= 1) & ~np.eye(48, dtype=bool))
    down, up = weight[0, 4], weight[4, 0]
    assert 0 < up < down < 1


def lane_moments(freeway):
    """Of each lane: mean, spread, change per step in mph, and share of missing readings."""
    speed = np.where(freeway.speed > 0, freeway.speed, np.nan)
    change = np.diff(speed, axis=0)
    return np.stack(
        [
            np.nanmean(speed, axis=0),
            np.nanstd(speed, axis=0),
            np.nanstd(change, axis=0),
            100 * np.isnan(speed).mean(axis=0),
        ]
    )


def lane_correlations(freeway):
    """Correlations of all pairs of lanes over the readings that both have, ``[n, n]``."""
    observed = (freeway.speed > 0).astype(float)
    mean, std = lane_moments(freeway)[:2]
    z = observed * (freeway.speed - mean) / std
    return z.T @ z / (observed.T @ observed)


def worst_differences(freeway):
    """Largest difference between lanes, and between pairs of lanes, of equal stations."""
    moments = np.ptp(lane_moments(freeway).reshape(4, 12, 4), axis=2).max(axis=1)
    blocks = lane_correlations(freeway).reshape(12, 4, 12, 4).swapaxes(1, 2)
    within = blocks[np.arange(12), np.arange(12)][:, ~np.eye(4, dtype=bool)]
    between = blocks[~np.eye(12, dtype=bool)].reshape(-1, 16)
    return moments, max(np.ptp(within, axis=1).max(), np.ptp(between, axis=1).max())


# Sampling errors of 11,520 correlated readings, in mph, mph, mph and percent.
MOMENT_TOLERANCE = np.array([1.5, 1.0, 0.4, 5.0])
CORRELATION_TOLERANCE = 0.2


def test_lanes_of_a_station_are_exchangeable(freeway):
    moments, correlations = worst_differences(freeway)
    np.testing.assert_array_less(moments, MOMENT_TOLERANCE)
    assert correlations < CORRELATION_TOLERANCE


@pytest.mark.parametrize("other", [4, 8, 20, 44])
def test_an_exchange_across_stations_shows_in_moments(freeway, other):
    moments, _ = worst_differences(exchange(freeway, other))
    assert (moments[:3] > 2 * MOMENT_TOLERANCE[:3]).any()


def test_an_exchange_of_far_stations_shows_in_correlations(freeway):
    _, correlations = worst_differences(exchange(freeway, 44))
    assert correlations > 2 * CORRELATION_TOLERANCE


def exchange(freeway, other):
    speed = freeway.speed.copy()
    speed[:, [0, other]] = speed[:, [other, 0]]
    return replace(freeway, speed=speed)


def test_neighbouring_stations_differ(freeway):
    moments = lane_moments(freeway)[:3].reshape(3, 12, 4).mean(axis=2)
    for s, t in pairwise(range(12)):
        assert np.abs(moments[:, s] - moments[:, t]).max() > 2, (s, t)
