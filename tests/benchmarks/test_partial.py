"""The worlds of partly broken symmetry: what each keeps and breaks, and the command on them."""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import pytest
import torch

from gsym.nn import PenguinConv
from gsym_bench.__main__ import main
from gsym_bench.simulators.partial import (
    EDGE_INDEX,
    NUM_NODES,
    WALL,
    blow,
    fall,
    heights,
    places,
    pull,
    slide,
)
from gsym_bench.studies import penguin
from gsym_bench.studies.motion import Part
from gsym_bench.suite.errors import BenchmarkError
from gsym_bench.suite.results import read_rows

WORLDS = {"pull": pull, "fall": fall, "slide": slide, "blow": partial(blow, wind=1.0)}


def sample(dim, count=50):
    return places(count, dim, torch.Generator().manual_seed(0)).double()


def rotation(dim, axes=(0, 1), angle=0.8):
    q = torch.eye(dim, dtype=torch.float64)
    i, j = axes
    q[i, i] = q[j, j] = math.cos(angle)
    q[i, j], q[j, i] = -math.sin(angle), math.sin(angle)
    return q


def defect(move, pos, q, shift=0.0):
    """Largest error of commuting, node by node ``[b, n]``."""
    return (move(pos @ q.T + shift) - (move(pos) @ q.T + shift)).norm(dim=-1)


def test_the_graph_is_complete():
    assert sorted(map(tuple, EDGE_INDEX.T.tolist())) == [
        (i, j) for i in range(NUM_NODES) for j in range(NUM_NODES) if i != j
    ]


def test_places_follow_their_generator():
    first, again, other = (places(3, 2, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert places(20_000, 2, torch.Generator().manual_seed(0)).std() == pytest.approx(2, rel=0.02)


@pytest.mark.parametrize("name", WORLDS)
def test_a_cycle_of_three_nodes_moves_along(name):
    pos, cycle = sample(3), torch.tensor([2, 0, 1, 3])
    moved = torch.empty_like(pos)
    moved[:, cycle] = pos
    torch.testing.assert_close(WORLDS[name](moved)[:, cycle], WORLDS[name](pos))
    assert not torch.allclose(WORLDS[name](moved), WORLDS[name](pos))


def test_pull_has_all_of_the_symmetry():
    pos = sample(3)
    for axes in ((0, 1), (1, 2)):
        assert defect(pull, pos, -rotation(3, axes), shift=5.0).max() < 1e-12
    torch.testing.assert_close(pull(pos).mean(-2), pos.mean(-2))
    spread = [p - p.mean(-2, keepdim=True) for p in (pull(pos), pos)]
    torch.testing.assert_close(spread[0], 0.5 * spread[1])


def test_fall_keeps_the_turns_about_its_axis():
    pos = sample(3)
    assert defect(fall, pos, rotation(3, (0, 1)), shift=5.0).max() < 1e-12
    assert defect(fall, pos, rotation(3, (1, 2))).min() > 0.1
    upside_down = torch.diag(torch.tensor([1.0, 1, -1])).double()
    torch.testing.assert_close(defect(fall, pos, upside_down), torch.full((50, 4), 2.0).double())


def test_slide_breaks_it_at_the_wall_only():
    pos, q = sample(2, 500), rotation(2)
    beyond = (pos[..., 0] > WALL) | ((pos @ q.T)[..., 0] > WALL)
    error = defect(slide, pos, q)
    assert 0.2 < beyond.double().mean() < 0.8
    assert error[~beyond].max() < 1e-12
    assert error[beyond].mean() > 0.5
    slid = (slide(pos) - pos)[pos[..., 0] > WALL]
    torch.testing.assert_close(slid, torch.tensor([0.0, 1.0]).double().expand_as(slid))


def test_blow_breaks_it_as_much_as_the_wind_blows():
    pos, q = sample(2), rotation(2)
    torch.testing.assert_close(blow(pos, 0.0), pull(pos))
    one, three = (defect(partial(blow, wind=wind), pos, q) for wind in (1.0, 3.0))
    torch.testing.assert_close(three, 3 * one)
    assert one.mean() > 0.1
    assert (one <= 2).all()


def test_heights_are_no_invariants():
    pos = sample(2)
    torch.testing.assert_close(heights(pos + 1), heights(pos) + 1)
    assert (heights(pos @ rotation(2).T) - heights(pos)).abs().mean() > 0.5


# The command


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(penguin, "SIZES", (6, 5, 4))
    monkeypatch.setattr(penguin, "WINDS", (0.0, 1.0))
    monkeypatch.setattr(penguin, "SCHEDULE", dataclasses.replace(penguin.SCHEDULE, epochs=2))


def test_the_command_runs_resumes_and_reports(tiny, tmp_path, capsys):
    main(["penguin", "--out", str(tmp_path), "--seeds", "2"])
    assert "regional, Penguin, seed 1: validation MSE" in capsys.readouterr().out
    before = (tmp_path / "penguin.csv").read_bytes()
    main(["penguin", "--out", str(tmp_path), "--seeds", "2"])
    assert (tmp_path / "penguin.csv").read_bytes() == before
    rows = read_rows(tmp_path, "penguin.csv")
    assert len(rows) == 2 * (7 + 3 + 3 + 2 * 3)
    counts = {(row.task, row.model): len(row.values) - 2 for row in rows}
    assert counts["subgroup", "Penguin"] == 1
    assert counts["subgroup", "Penguin, hard, axis learned"] == 2
    assert counts["subgroup", "EGNN, axis learned"] == 1
    assert counts["feature-wise", "Penguin"] == 2
    assert counts["regional", "Penguin"] == len(penguin.ACROSS)
    assert counts["approximate, wind 1", "Penguin"] == 1
    assert counts["regional", "EGNN"] == counts["regional", "GNN"] == 0
    page = (tmp_path / "penguin.md").read_text()
    for words in ("## Regional", "left of 0", "| GNN (baseline) |", "--seeds 2", "against "):
        assert words in page
    assert (tmp_path / "penguin.png").stat().st_size > 10_000


def test_a_world_without_results_is_named(tiny, tmp_path, monkeypatch):
    main(["penguin", "--out", str(tmp_path), "--seeds", "1"])
    monkeypatch.setattr(penguin, "WINDS", (0.0, 1.0, 7.0))
    with pytest.raises(BenchmarkError, match="no results of approximate, wind 7"):
        penguin.report(tmp_path)


def test_a_diverged_world_leaves_a_gap(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(penguin.worlds, "slide", lambda pos: pos * torch.nan)
    main(["penguin", "--out", str(tmp_path), "--seeds", "1"])
    statuses = {row.task: row.status for row in read_rows(tmp_path, "penguin.csv")}
    assert statuses["regional"] == "diverged"
    assert statuses["subgroup"] == "ok"
    lines = (tmp_path / "penguin.md").read_text().partition("## Regional")[2].splitlines()
    assert [cell.strip() for cell in lines[4].split("|")][3:6] == ["-", "-", "1"]


def test_the_wall_is_probed_along_the_first_coordinate():
    net = PenguinConv(1, 1, 4, alpha="node", dim=2)

    def score(x, pos, edge_index):
        return (pos[..., :1] > WALL).float()

    net.symmetry_score = score
    found = penguin._probe_wall(net, Part({}, torch.zeros(1)), EDGE_INDEX)
    assert list(found) == penguin.AT
    assert list(found.values()) == (penguin.ACROSS > WALL).float().tolist()


def test_an_upright_axis_has_cosine_one():
    net = PenguinConv(1, 1, 4, alpha="learned", learn_axis=True)
    part = Part({"x": torch.ones(1, 4, 1), "pos": torch.zeros(1, 4, 3)}, torch.zeros(1, 4, 3))
    for axis, cosine in (([0.0, 0, -2], 1), ([1.0, 0, 0], 0), ([0.0, 3, 4], 0.8)):
        net.equivariant.axis.data = torch.tensor(axis)
        found = penguin._probe_axis(net, part, EDGE_INDEX)
        assert found == pytest.approx({penguin.ALPHA: 0.5, penguin.COSINE: cosine})
