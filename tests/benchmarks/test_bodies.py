"""Forecasts of bodies: windows, models that do nothing, and the page."""

from __future__ import annotations

import pytest
import torch
from rich.console import Console

from gsym_bench.simulators.gait import JOINT_NAMES
from gsym_bench.studies import bodies
from gsym_bench.studies.motion import run
from gsym_bench.suite.errors import BenchmarkError
from gsym_bench.suite.results import read_rows


def falling(frames=60):
    """A body whose every joint goes at its own constant speed, in metres per frame at 25 Hz."""
    generator = torch.Generator().manual_seed(0)
    start, speed = torch.randn(2, 1, 16, 3, generator=generator)
    return start + 0.01 * speed * torch.arange(frames)[:, None, None]


@pytest.mark.parametrize("milliseconds", [80, 1000])
def test_windows_by_hand(milliseconds):
    part = bodies.windows([falling()], 25.0, milliseconds, 20, seed=0)
    x, pos, velocity = (part.inputs[name] for name in ("x", "pos", "velocity"))
    assert x.shape == (20, 16, 17) and (pos[:, 0] == 0).all() and (part.pos[:, 0] == 0).all()
    sequence = falling() - falling()[:, :1]
    frame = [(sequence - body).abs().amax((1, 2)).argmin() for body in pos]
    later = torch.stack([sequence[t + milliseconds // 40] for t in frame])
    torch.testing.assert_close(part.pos, later)
    torch.testing.assert_close(velocity, pos - torch.stack([sequence[t - 2] for t in frame]))
    torch.testing.assert_close(x[..., 16], velocity.norm(dim=-1))
    # At a constant speed, going on is right and standing still is not.
    setting = dict(zip(bodies.MILLISECONDS, bodies.settings("quick", None), strict=True))
    models = setting[milliseconds].models
    error = {
        name: bodies._probe(models[name].make(part), part, bodies.EDGE_INDEX)[bodies.ERROR]
        for name in ("constant velocity", "last pose (zero velocity)")
    }
    assert error["constant velocity"] < 0.01 < error["last pose (zero velocity)"]


def test_constant_velocity_counts_whole_frames(tmp_path):
    # At 60 Hz the two poses are 5 frames apart, 83 ms, and 1,000 ms are 60 frames.
    part = bodies.windows([falling(100)], bodies.CMU_RATE, 1000, 20, seed=0)
    model = bodies.settings("quick", tmp_path)[-1].models["constant velocity"]
    assert bodies._probe(model.make(part), part, bodies.EDGE_INDEX)[bodies.ERROR] < 0.01


def test_horizons_begin_with_the_same_poses_and_parts_share_none():
    short, long = (bodies.settings("quick", None)[i].load(0) for i in (0, -1))
    for a, b in zip(short, long, strict=True):
        assert torch.equal(a.inputs["pos"], b.inputs["pos"]) and not torch.equal(a.pos, b.pos)
    parts = [{body.numpy().tobytes() for body in part.inputs["pos"]} for part in short]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
    other = bodies.settings("quick", None)[0].load(1)
    assert torch.equal(other[2].pos, short[2].pos) and not torch.equal(other[0].pos, short[0].pos)


def test_short_sequences_are_refused():
    with pytest.raises(BenchmarkError, match="28 frames of a window"):
        bodies.windows([falling(27)], 25.0, 80, 3, seed=0)


def test_rows_make_a_page(tmp_path, monkeypatch):
    monkeypatch.setitem(bodies.SIZES, "quick", bodies.Size((20, 10, 10), 1))
    monkeypatch.setattr(bodies, "MILLISECONDS", (80, 400))
    text = bodies.main(tmp_path, "quick", None, 1, Console(quiet=True)).read_text()
    rows = read_rows(tmp_path, bodies.RESULTS)
    assert len(rows) == 10 and {row.status for row in rows} == {"ok"}
    still = next(r for r in rows if r.model.startswith("last pose") and "400" in r.task)
    assert f"{still.value('test', bodies.ERROR):.3g}" in text
    penguin = next(r for r in rows if r.model.startswith("Penguin"))
    alphas = [penguin.value("test", f"{bodies.ALPHA}{name}") for name in JOINT_NAMES]
    assert all(0 <= alpha <= 1 for alpha in alphas)
    assert (tmp_path / bodies.PICTURE).exists()


def test_other_threads_announce_no_cells(tmp_path, monkeypatch, capsys):
    """The rows of these cells are found by settings alone."""
    monkeypatch.setitem(bodies.SIZES, "quick", bodies.Size((20, 10, 10), 1))
    settings = bodies.settings("quick", None)[:1]
    for threads in (1, 2):
        torch.set_num_threads(threads)
        run(settings, out=tmp_path, name="rows.csv", profile="quick", seeds=1, console=None)
    assert capsys.readouterr().out.count("cells to run") == 1


def test_workers_find_the_same_rows(tmp_path, monkeypatch):
    monkeypatch.setitem(bodies.SIZES, "quick", bodies.Size((20, 10, 10), 1))
    found = []
    for workers in (1, 2):
        out = tmp_path / str(workers)
        settings = bodies.settings("quick", None)[-2:]
        run(
            settings,
            out=out,
            name="rows.csv",
            profile="quick",
            seeds=2,
            console=None,
            workers=workers,
        )
        rows = read_rows(out, "rows.csv")
        assert len(rows) == 20 and {row.status for row in rows} == {"ok"}
        found.append({row.key: row.values for row in rows})
    assert found[0] == found[1]
