"""Human3.6M from a user's own copy: read without unpickling, and checked to be what it should."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from gsym_bench.data import DataError, read_npz

# The 16 joints of SemGCN in its order, of the 32 of the data set: hip, right leg, left leg, spine,
# thorax, head, left arm, right arm.
JOINTS = (0, 1, 2, 3, 6, 7, 8, 12, 13, 15, 17, 18, 19, 25, 26, 27)
# In the order of the data set some joints stand twice.
TWICE = ((13, 16), (13, 24), (19, 20), (22, 23), (27, 28), (30, 31))
BONES = ((1, 2), (2, 3), (6, 7), (7, 8), (17, 18), (18, 19), (25, 26), (26, 27))
SUBJECTS = {"train": ("S1", "S5", "S6", "S7"), "val": ("S8",), "test": ("S9", "S11")}
CONVERT = (
    "import numpy as np; z = np.load({old!r}, allow_pickle=True)['positions_3d'].item(); "
    "np.savez_compressed({new!r}, **{{s + '/' + a: p for s in z for a, p in z[s].items()}})"
)


def read_human36m(path: Path) -> dict[tuple[str, str], np.ndarray]:
    """Joint positions by subject and action.

    The usual file, ``data_3d_h36m.npz``, is a pickled dictionary, which runs whatever code it holds
    when it is read: it is refused, with the command that converts it, for who trusts its source.

    Args:
        path: An npz file of arrays ``[frames, 32, 3]`` called ``subject/action``, in metres, joints
            in the order of the data set.

    Returns:
        The 16 joints of SemGCN, float32 ``[frames, 16, 3]``, y up.

    Raises:
        DataError: A missing, damaged or pickled file, other names or shapes, subjects that are
            missing, millimetres, or another order of the joints.
    """
    if not path.is_file():
        raise DataError(
            f"no file {path}; Human3.6M comes to registered users from http://vision.imar.ro/human3.6m"
        )
    names = _names(path)
    if "positions_3d" in names:
        old = path.with_name(f"{path.stem}_pickled.npz")
        command = CONVERT.format(old=str(old), new=str(path))
        raise DataError(
            f"{path}: holds pickled objects, which run code when they are read; if you trust where "
            f'it came from, rename it to {old.name} and convert it once: python -c "{command}"'
        )
    wrong = [name for name in names if name.count("/") != 1]
    if wrong or not names:
        raise DataError(
            f"{path}: expected arrays called subject/action, as 'S1/Walking'; got "
            f"{wrong[0] if wrong else 'none'!r}"
        )
    present = {name.partition("/")[0] for name in names}
    missing = [s for part in SUBJECTS.values() for s in part if s not in present]
    if missing:
        raise DataError(
            f"{path}: no sequence of {', '.join(missing)}; it holds {', '.join(sorted(present))}"
        )
    found = {}
    for name, positions in read_npz(path, names).items():
        subject, _, action = name.partition("/")
        _check(path, name, positions)
        right, forth, up = np.moveaxis(positions[:, JOINTS].astype(np.float32), -1, 0)
        found[subject, action] = np.stack([right, up, -forth], axis=-1)
    return found


def _names(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: is no npz file ({error})") from error
    return [member.removesuffix(".npy") for member in members]


def _check(path: Path, name: str, positions: np.ndarray) -> None:
    """Refuse what is not the data set's joints in its order, in metres."""
    if positions.ndim != 3 or positions.shape[1:] != (32, 3) or not len(positions):
        raise DataError(
            f"{path}: {name} must be [frames, 32, 3], the joints before any is left out; got "
            f"{list(positions.shape)}"
        )
    if positions.dtype.kind != "f" or not np.isfinite(positions).all():
        raise DataError(f"{path}: {name} must hold finite positions in metres")
    ends = np.array(BONES).T
    length = np.linalg.norm(positions[:, ends[0]] - positions[:, ends[1]], axis=-1)
    first, second = np.array(TWICE).T
    apart = np.linalg.norm(positions[:, first] - positions[:, second], axis=-1).max()
    middle = np.median(length)
    if apart > 0.05 * middle or (np.ptp(length, axis=0) > 0.2 * middle).any():
        raise DataError(
            f"{path}: the joints of {name} stand in another order than those of Human3.6M: joints "
            f"{', '.join(f'{a} and {b}' for a, b in TWICE)} must coincide (they are up to "
            f"{apart:.3g} apart) and the bones of arms and legs keep their lengths"
        )
    if not 0.1 < middle < 1:
        raise DataError(
            f"{path}: bones of {name} are {middle:.3g} long; expected some 0.3, in metres: divide "
            "millimetres by 1000"
        )
