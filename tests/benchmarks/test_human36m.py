"""Human3.6M in the usual npz layout: a tiny file, and everything that may be wrong with one."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from gsym_bench.data import DataError
from gsym_bench.human36m import JOINTS, SUBJECTS, TWICE, read_human36m
from gsym_bench.tasks import TASKS

EVERYONE = [s for part in SUBJECTS.values() for s in part]


def walk(frames, seed=0):
    """A body of 32 joints that turns and bends knees and elbows; z is up, as in the data set."""
    rng = np.random.default_rng(seed)
    body = np.zeros((32, 3))
    for side, first in ((-0.13, 1), (0.13, 6)):
        for k in range(5):
            body[first + k] = [side, 0.1 * (k > 2), -0.45 * min(k, 2) - 0.05 * (k > 2)]
    body[12:16, 2] = [0.23, 0.48, 0.6, 0.7]
    for side, first in ((0.15, 17), (-0.15, 25)):
        for k in range(7):
            body[first + k] = [side, 0, 0.48 - 0.27 * min(k, 2) - 0.01 * max(k - 3, 0)]
    body = np.broadcast_to(body, (frames, 32, 3)).copy()
    for first, last in ((1, 5), (6, 10), (17, 23), (25, 31)):
        bend, middle = rng.uniform(0, 1, (frames, 1)), body[:, [first + 1]]
        x, y, z = np.moveaxis(body[:, first + 2 : last + 1] - middle, -1, 0)
        c, s = np.cos(bend), np.sin(bend)
        body[:, first + 2 : last + 1] = middle + np.stack([x, c * y - s * z, s * y + c * z], -1)
    for a, b in TWICE:
        body[:, b] = body[:, a]
    turn = rng.uniform(0, 2 * np.pi, frames)
    c, s, zero = np.cos(turn), np.sin(turn), 0 * turn
    rotations = np.stack([c, -s, zero, s, c, zero, zero, zero, zero + 1], -1).reshape(-1, 3, 3)
    return (body @ rotations.swapaxes(1, 2) + rng.normal(size=(frames, 1, 3))).astype(np.float32)


@pytest.fixture
def write(tmp_path):
    folder = tmp_path / "skeleton"
    folder.mkdir()

    def write(change=None):
        found = {
            f"{s}/{action}": walk(9, seed)
            for seed, s in enumerate(EVERYONE)
            for action in ("Walking", "Walking 1", "Eating")
        }
        if change is not None:
            change(found)
        path = folder / "data_3d_h36m.npz"
        np.savez(path, **found)
        return path

    return write


def test_joints_are_those_of_the_task_with_y_up(write):
    found = read_human36m(write())
    assert len(found) == 3 * len(EVERYONE)
    body, raw = found["S5", "Eating"], walk(9, 1)
    assert body.shape == (9, 16, 3) and body.dtype == np.float32
    np.testing.assert_array_equal(body[..., 1], raw[:, JOINTS, 2])
    # The head is above the feet, and no body was mirrored: the axes are a rotation of the old ones.
    assert (body[:, 9, 1] > body[:, 3, 1] + 1).all()
    turned = raw[:, JOINTS] @ np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]])
    np.testing.assert_allclose(body, turned)


def test_the_task_splits_by_subject(write):
    data = write().parents[1]
    problem = TASKS["skeleton-h36m"].load(data, "quick", 0)
    assert problem.dataset == "human3.6m"
    assert problem.train.inputs.shape == (2 * 1400, 16, 2)
    assert problem.val.targets.shape == (2 * 350, 16, 3)
    assert (problem.test.targets[:, 0] == 0).all()


def test_the_pickled_file_is_refused_with_a_command_that_converts_it(tmp_path):
    path = tmp_path / "data_3d_h36m.npz"
    usual = {s: {"Walking": walk(4), "Eating 2": walk(5)} for s in EVERYONE}
    np.savez(path, positions_3d=np.array(usual, dtype=object))
    with pytest.raises(DataError, match="run code when they are read") as refused:
        read_human36m(path)
    command = str(refused.value).partition("python -c ")[2]
    path.rename(tmp_path / "data_3d_h36m_pickled.npz")
    subprocess.run([sys.executable, "-c", command.strip('"')], check=True)
    assert read_human36m(path)["S11", "Eating 2"].shape == (5, 16, 3)


def rename(found):
    found["Walking"] = found.pop("S1/Walking")


def forget(found):
    for name in [name for name in found if name.startswith("S9/")]:
        del found[name]


def exchange(found):
    order = np.arange(32)
    order[[13, 17]] = [17, 13]
    found["S1/Walking"] = found["S1/Walking"][:, order]


def cycle(found):
    order = np.arange(32)
    order[[1, 2, 6]] = [2, 6, 1]
    found["S1/Walking"] = found["S1/Walking"][:, order]


def stretch(found):
    found["S1/Walking"][4, 2] += 1


def fewer(found):
    found["S1/Walking"] = found["S1/Walking"][:, :17]


def millimetres(found):
    found["S1/Walking"] = found["S1/Walking"] * 1000


def gap(found):
    found["S1/Walking"][3, 2, 1] = np.nan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename, r"called subject/action, as 'S1/Walking'; got 'Walking'"),
        (forget, r"no sequence of S9; it holds S1, S11, S5, S6, S7, S8"),
        (exchange, r"the joints of S1/Walking stand in another order"),
        (cycle, r"the joints of S1/Walking stand in another order"),
        (stretch, r"keep their lengths"),
        (fewer, r"S1/Walking must be \[frames, 32, 3\].*got \[9, 17, 3\]"),
        (millimetres, r"divide millimetres by 1000"),
        (gap, r"finite positions in metres"),
    ],
)
def test_a_file_that_is_not_the_data_set_is_refused(write, change, message):
    with pytest.raises(DataError, match=message):
        read_human36m(write(change))


def test_no_file_or_no_archive(tmp_path):
    with pytest.raises(DataError, match="comes to registered users"):
        read_human36m(tmp_path / "none.npz")
    (tmp_path / "bad.npz").write_bytes(b"not a zip")
    with pytest.raises(DataError, match="is no npz file"):
        read_human36m(tmp_path / "bad.npz")
