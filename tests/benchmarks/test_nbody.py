"""The charged particles: physics, symmetry, determinism; and the command that trains on them."""

from __future__ import annotations

import csv
import dataclasses
from functools import partial
from itertools import permutations

import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from scipy import stats
from scipy.spatial.transform import Rotation

from gsym_bench.__main__ import main
from gsym_bench.simulators import nbody as simulator
from gsym_bench.simulators.nbody import TIME_STEP, advance, energy, simulate_motions
from gsym_bench.studies import motion, nbody
from gsym_bench.suite.engine import Engine
from gsym_bench.suite.errors import BenchmarkError
from gsym_bench.suite.results import read_rows
from gsym_bench.suite.train import Trainer

LIKE = np.ones((1, 5))


def systems(count, seed=0):
    rng = np.random.default_rng(seed)
    loc, vel = rng.normal(size=(2, count, 5, 3))
    return loc, 0.3 * vel, rng.choice([-1.0, 1.0], size=(count, 5))


def by_formula(loc, vel, charge, steps, gravity=0.0):
    """One system, one particle after another."""
    loc, vel = loc.copy(), vel.copy()
    for _ in range(steps):
        forces = np.zeros_like(loc)
        for i, j in permutations(range(len(loc)), 2):
            r = loc[i] - loc[j]
            forces[i] += charge[i] * charge[j] * r / np.linalg.norm(r) ** 3
        forces = forces.clip(-100, 100)
        forces[:, -1] -= gravity
        vel += 0.001 * forces
        loc += 0.001 * vel
    return loc, vel


def test_a_chunk_of_systems_is_a_slow_loop_over_each(monkeypatch):
    monkeypatch.setattr(simulator, "CHUNK", 2)
    loc, vel, charge = systems(3)
    loc[1, 1] = loc[1, 0] + [0.01, 0, 0.005]  # close enough to clip the force
    ends = advance(loc, vel, charge, 20, gravity=0.7)
    for b in range(3):
        slow = by_formula(loc[b], vel[b], charge[b], 20, gravity=0.7)
        for ours, theirs in zip(ends, slow, strict=True):
            np.testing.assert_allclose(ours[b], theirs, rtol=0, atol=1e-11)


def test_the_input_is_left_alone():
    loc, vel, charge = systems(2)
    before = loc.copy(), vel.copy()
    for layout in (loc, np.asfortranarray(loc), np.moveaxis(np.moveaxis(loc, 0, -1).copy(), -1, 0)):
        end, _ = advance(layout, vel, charge, 3)
        assert not np.array_equal(end, layout)
        np.testing.assert_array_equal(layout, before[0])
        np.testing.assert_array_equal(vel, before[1])


def test_two_opposite_charges_circle_each_other():
    # At distance 1 the centripetal acceleration v^2 / 0.5 is the force 1.
    speed = np.sqrt(0.5)
    loc = np.array([[[0.5, 0, 0], [-0.5, 0, 0]]])
    vel = np.array([[[0, speed, 0], [0, -speed, 0]]])
    period = round(np.pi / speed / TIME_STEP)
    half, _ = advance(loc, vel, np.array([[1.0, -1.0]]), period // 2)
    np.testing.assert_allclose(half, -loc, atol=5e-3)
    full, _ = advance(loc, vel, np.array([[1.0, -1.0]]), period)
    np.testing.assert_allclose(full, loc, atol=5e-3)


def test_like_charges_keep_energy_and_momentum():
    loc, vel, _ = systems(20)
    charge = np.repeat(LIKE, 20, axis=0)
    far = np.linalg.norm(loc[:, :, None] - loc[:, None], axis=-1) + 9 * np.eye(5) > 0.5
    loc, vel, charge = (a[far.all((1, 2))] for a in (loc, vel, charge))
    assert len(loc) > 3
    end = advance(loc, vel, charge, 2000)
    np.testing.assert_allclose(end[1].sum(1), vel.sum(1), atol=1e-11)
    np.testing.assert_allclose(energy(*end, charge), energy(loc, vel, charge), rtol=5e-3)
    kinetic = energy(*end, 0 * charge)
    assert (kinetic > 2 * energy(loc, vel, 0 * charge)).all()  # they flew apart


def test_gravity_adds_a_free_fall_and_nothing_else():
    loc, vel, charge = systems(4)
    steps = 500
    without, with_gravity = (advance(loc, vel, charge, steps, gravity=g) for g in (0.0, 2.0))
    fall = 2 * TIME_STEP**2 * steps * (steps + 1) / 2
    np.testing.assert_allclose(with_gravity[0] - without[0], [[[0, 0, -fall]] * 5] * 4, atol=1e-8)
    assert np.abs(with_gravity[1].sum(1) - vel.sum(1)).max() > 1
    assert nbody._fall() == pytest.approx(0.5005)


# Clipping acts on coordinates, so all systems commute only with exchanges of the axes.
AXES = np.array([[0.0, 0, -1], [1, 0, 0], [0, 1, 0]])
TURN = Rotation.from_rotvec([0.3, -1.1, 0.6]).as_matrix()
AROUND = Rotation.from_rotvec([0, 0, 1.1]).as_matrix()


@pytest.mark.parametrize(
    ("matrix", "gravity", "commutes"),
    [(TURN, 0.0, True), (-TURN, 0.0, True), (TURN, 1.0, False), (AROUND, 1.0, True)],
)
def test_rotations(matrix, gravity, commutes):
    loc, vel, charge = systems(4)
    loc = 3 * loc  # far enough apart that no force is clipped
    moved = advance(loc @ matrix.T + 2, vel @ matrix.T, charge, 500, gravity=gravity)
    end = advance(loc, vel, charge, 500, gravity=gravity)
    error = np.abs(moved[0] - (end[0] @ matrix.T + 2)).max()
    assert error < 1e-9 if commutes else error > 0.01


def test_clipped_forces_commute_with_exchanges_of_the_axes_only():
    loc, vel, charge = systems(4)
    loc[:, 1] = loc[:, 0] + [0.02, 0.01, 0.03]
    end, _ = advance(loc, vel, charge, 2)
    axes, turned = (advance(loc @ m.T, vel @ m.T, charge, 2)[0] for m in (AXES, TURN))
    np.testing.assert_allclose(axes, end @ AXES.T, atol=1e-12)
    assert np.abs(turned - end @ TURN.T).max() > 1e-6


def test_a_cycle_of_three_particles_moves_along():
    loc, vel, charge = systems(4)
    cycle = np.array([2, 0, 1, 3, 4])  # particle i becomes particle cycle[i]
    moved = [np.empty_like(a) for a in (loc, vel, charge)]
    for new, old in zip(moved, (loc, vel, charge), strict=True):
        new[:, cycle] = old
    end, turned = advance(loc, vel, charge, 300)[0], advance(*moved, 300)[0]
    np.testing.assert_allclose(turned[:, cycle], end, atol=1e-8)
    assert np.abs(turned[:, np.argsort(cycle)] - end).max() > 0.1


def test_coincident_particles_stay_finite():
    loc = np.zeros((1, 5, 3))
    end, vel = advance(loc, loc, LIKE, 2)
    np.testing.assert_array_equal(end, 0)
    np.testing.assert_array_equal(vel, 0)


def test_the_seed_fixes_everything():
    first, again, other = (simulate_motions(seed, 3) for seed in (5, 5, 6))
    for name, value in vars(first).items():
        np.testing.assert_array_equal(value, getattr(again, name), err_msg=name)
    assert not np.array_equal(first.loc, other.loc)
    fallen = simulate_motions(5, 3, gravity=1.0)
    np.testing.assert_array_equal(fallen.loc, first.loc)
    np.testing.assert_allclose(fallen.target[..., 2], first.target[..., 2] - 0.5005, atol=1e-3)


def test_the_start_is_that_of_the_paper():
    loc, vel, charge = simulator._start(np.random.default_rng(0), 2000)
    assert stats.kstest(loc.ravel(), "norm").pvalue > 0.01
    np.testing.assert_allclose(np.linalg.norm(vel, axis=-1), 0.5)
    assert set(charge.ravel()) == {-1.0, 1.0}
    assert abs(charge.mean()) < 0.03


@pytest.mark.parametrize(
    ("count", "gravity", "message"),
    [
        (0, 0.0, "count must be at least 1; got 0"),
        (1, float("nan"), "finite acceleration; got nan"),
    ],
)
def test_bad_requests(count, gravity, message):
    with pytest.raises(ValueError, match=message):
        simulate_motions(0, count, gravity=gravity)


# The command


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(nbody.SIZES, "quick", (12, 8, 8))
    monkeypatch.setitem(nbody.EPOCHS, "quick", {"n-body": 2, "n-body with gravity": 1})


def test_the_networks_are_those_of_the_paper():
    plain, gravity = nbody.settings("standard").values()
    part = nbody.load(0, sizes=(4, 2, 2), gravity=0.0)[0]
    assert sum(p.numel() for p in plain.models["EGNN"].make(part).parameters()) == 134_020
    assert list(plain.models) == ["EGNN", "GNN", "linear"]
    assert [name for name, m in gravity.models.items() if m.baseline] == ["EGNN", "GNN", "linear"]


def test_inputs_are_those_of_the_paper():
    train, val, test = nbody.load(0, sizes=(4, 2, 3), gravity=0.0)
    assert [len(part.pos) for part in (train, val, test)] == [4, 2, 3]
    raw = simulate_motions(0, 9)
    np.testing.assert_allclose(test.pos, raw.target[6:], rtol=1e-6)
    for k, (j, i) in enumerate(nbody.EDGE_INDEX.T.tolist()):
        attr = train.inputs["edge_attr"][:, k].numpy()
        np.testing.assert_array_equal(attr[:, 0], (raw.charge[:, i] * raw.charge[:, j])[:4])
        square = ((raw.loc[:, i] - raw.loc[:, j]) ** 2).sum(-1)[:4]
        np.testing.assert_allclose(attr[:, 1], square, rtol=1e-5)
    np.testing.assert_allclose(
        train.inputs["x"][..., 0], np.linalg.norm(raw.vel, axis=-1)[:4], rtol=1e-6
    )


def test_the_linear_baseline_finds_time_and_fall():
    rng = torch.Generator().manual_seed(0)
    pos, vel = torch.randn(2, 50, 5, 3, generator=rng)
    shift = torch.tensor([0.0, 0.0, -0.5])
    part = motion.Part({"x": pos[..., :1], "pos": pos, "velocity": vel}, pos + 0.7 * vel + shift)
    net = nbody.LinearMotion(part)
    torch.testing.assert_close(net.time.detach(), torch.tensor(0.7))
    torch.testing.assert_close(net.shift.detach(), shift, atol=1e-5, rtol=0)
    assert motion.error(net, part, nbody.EDGE_INDEX) < 1e-10


def test_an_equivariant_map_errs_by_the_fall():
    """A system and its mirror image together know nothing of the direction of the fall."""
    part = nbody.load(0, sizes=(4, 2, 50), gravity=0.0)[2]
    torch.manual_seed(0)
    net = nbody.settings("quick")["n-body"].models["EGNN"].make(part)
    mirrored = dict(part.inputs, pos=-part.inputs["pos"], velocity=-part.inputs["velocity"])
    fall = torch.tensor([0.0, 0.0, nbody._fall()])
    errors = [
        motion.error(net, motion.Part(inputs, sign * part.pos - down), nbody.EDGE_INDEX).item()
        for down in (fall, 0 * fall)
        for inputs, sign in ((part.inputs, 1), (mirrored, -1))
    ]
    assert errors[2] == pytest.approx(errors[3], rel=1e-4)
    assert sum(errors[:2]) / 2 - errors[2] == pytest.approx(nbody._fall() ** 2 / 3, rel=1e-3)


def test_the_command_runs_resumes_and_reports(tiny, tmp_path, capsys):
    main(["nbody", "--out", str(tmp_path), "--seeds", "2"])
    assert "n-body, EGNN, seed 1: validation MSE" in capsys.readouterr().out
    before = (tmp_path / "nbody.csv").read_bytes()
    main(["nbody", "--out", str(tmp_path), "--seeds", "2"])
    assert (tmp_path / "nbody.csv").read_bytes() == before
    rows = read_rows(tmp_path, "nbody.csv")
    assert [(row.model, row.seed) for row in rows] == [
        (model, seed) for seed in (0, 1) for model in ("EGNN", "GNN", "linear")
    ]
    main(["nbody", "--gravity", "--out", str(tmp_path), "--seeds", "1"])
    rows = read_rows(tmp_path, "nbody.csv")
    assert len(rows) == 6 + 7
    for row in rows:
        alpha = row.value("test", nbody.ALPHA)
        assert (alpha is not None) == row.model.startswith("Penguin"), row.model
        assert alpha is None or 0 < alpha < 1
    page = (tmp_path / "nbody.md").read_text()
    assert "Published, for 10,000 epochs: EGNN 0.0071" in page
    assert "--profile quick --gravity --seeds 1" in page
    for row in rows:
        assert row.model in page
    assert (tmp_path / "nbody.png").stat().st_size > 10_000


def test_a_killed_command_resumes_bitwise(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(motion, "Engine", partial(Engine, checkpoint_seconds=0.0))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    main(["nbody", "--out", str(whole), "--seeds", "1"])
    real, steps = motion.MotionTraining.loss, []

    def stop(self, model, batch):
        steps.append(batch)
        if len(steps) == 2:
            raise KeyboardInterrupt
        return real(self, model, batch)

    monkeypatch.setattr(motion.MotionTraining, "loss", stop)
    with pytest.raises(SystemExit):
        main(["nbody", "--out", str(killed), "--seeds", "1"])
    assert len(list((killed / "checkpoints").iterdir())) == 1
    main(["nbody", "--out", str(killed), "--seeds", "1"])
    assert len(steps) == 1 + 1 + 1 + 2  # one of two epochs is not trained again
    first, second = (read_rows(out, "nbody.csv") for out in (whole, killed))
    assert [row.values for row in first] == [row.values for row in second]


def test_rows_of_earlier_settings_are_left_out(tiny, tmp_path, monkeypatch):
    main(["nbody", "--out", str(tmp_path), "--seeds", "1"])
    monkeypatch.setitem(nbody.EPOCHS, "quick", {"n-body": 3, "n-body with gravity": 1})
    main(["nbody", "--out", str(tmp_path), "--seeds", "1"])
    rows = read_rows(tmp_path, "nbody.csv")
    assert [(row.model, row.epochs) for row in rows] == [
        ("EGNN", 2), ("GNN", 2), ("linear", 0), ("EGNN", 3), ("GNN", 3)
    ]  # fmt: skip
    table = motion.lines(rows, nbody.settings("quick")["n-body"], "quick")
    assert [(line.name, [row.epochs for row in line.rows]) for line in table] == [
        ("EGNN", [3]), ("GNN", [3]), ("linear", [0])
    ]  # fmt: skip


def test_a_damaged_probe_is_one_line(tiny, tmp_path, capsys):
    main(["nbody", "--out", str(tmp_path), "--seeds", "1"])
    path = tmp_path / "nbody.csv"
    before, _, _ = path.read_text().rstrip(",\n").rpartition(",")
    path.write_text(f"{before},half,\n")
    with pytest.raises(SystemExit) as stop:
        main(["nbody", "--out", str(tmp_path), "--seeds", "1"])
    assert stop.value.code == 2
    assert "nbody.csv: could not convert string to float: 'half'" in capsys.readouterr().err


def test_a_diverged_run_is_counted_and_excluded(tiny, tmp_path, monkeypatch):
    real = motion.error

    def error(net, part, edge_index):
        loss = real(net, part, edge_index)
        spoilt = isinstance(getattr(net, "module", net), nbody.EGNN) and torch.is_grad_enabled()
        return loss * torch.nan if spoilt else loss

    monkeypatch.setattr(motion, "error", error)
    main(["nbody", "--out", str(tmp_path), "--seeds", "1"])
    with (tmp_path / "nbody.csv").open(newline="") as file:
        first = next(csv.DictReader(file))
    assert (first["model"], first["status"], first["value"]) == ("EGNN", "diverged", "")
    (line,) = [t for t in (tmp_path / "nbody.md").read_text().splitlines() if "| EGNN |" in t]
    assert [cell.strip() for cell in line.split("|")][3:6] == ["-", "-", "1"]


def test_the_epoch_is_chosen_by_validation_and_the_test_part_read_once(tiny, tmp_path, monkeypatch):
    real, sizes = motion.error, []

    def error(net, part, edge_index):
        sizes.append((torch.is_grad_enabled(), len(part.pos)))
        return real(net, part, edge_index)

    monkeypatch.setitem(nbody.SIZES, "quick", (12, 8, 9))
    monkeypatch.setattr(motion, "error", error)
    main(["nbody", "--out", str(tmp_path), "--seeds", "1"])
    assert sizes.count((False, 9)) == 3  # one model, one look
    assert (True, 9) not in sizes and (True, 8) not in sizes
    assert sizes.count((False, 8)) > 3


def train(out, model, parts, schedule, on_epoch=lambda *_: None):
    model = dataclasses.replace(model, schedule=schedule)
    training = motion.MotionTraining(model, parts[:2], nbody.EDGE_INDEX)
    trainer = Trainer(
        Fabric(accelerator="cpu"), out / "checkpoint", out / "diverged", 60.0, on_epoch
    )
    return trainer.fit(training, schedule, 0)


def test_the_best_weights_are_kept(tmp_path):
    """A rate so large that training only spoils the network."""
    setting = nbody.settings("quick")["n-body"]
    parts = nbody.load(0, sizes=(20, 20, 4), gravity=0.0)
    seen = []
    schedule = dataclasses.replace(setting.models["EGNN"].schedule, epochs=6, lr=0.02, eval_every=1)
    fit = train(tmp_path, setting.models["EGNN"], parts, schedule, lambda *told: seen.append(told))
    values = [value for _, _, value in seen]
    assert values == sorted(values, reverse=True)
    assert values.index(values[-1]) == fit.best_epoch - 1
    with torch.no_grad():
        found = motion.error(fit.model, parts[1], nbody.EDGE_INDEX).item()
    assert found == pytest.approx(values[-1])


def test_a_price_raises_alpha(tmp_path):
    parts = nbody.load(0, sizes=(20, 20, 4), gravity=0.0)
    setting = nbody.settings("quick")["n-body with gravity"]
    model = setting.models["Penguin, one alpha"]
    found = []
    for price in (0.0, 10.0):
        schedule = dataclasses.replace(model.schedule, epochs=8, lr=0.01)
        priced = dataclasses.replace(model, price=price)
        net = train(tmp_path, priced, parts, schedule).model
        found.append(motion.score(net, parts[1], nbody.EDGE_INDEX).item())
    assert found[1] > found[0] + 0.01


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--profile", "qick"], "unknown profile 'qick'; did you mean quick"),
        (["--seeds", "0"], "at least one seed; got --seeds 0"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(tmp_path, capsys, args, message):
    with pytest.raises(SystemExit) as stop:
        main(["nbody", *args, "--out", str(tmp_path / "out")])
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1


def test_no_results_to_write_a_page_from(tmp_path):
    with pytest.raises(BenchmarkError, match="no results in"):
        nbody.report(tmp_path)
