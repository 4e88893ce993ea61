"""Data sets of signals on one graph in PyG's manners: METR-LA, CMU's motions, images on a grid.

They are looked for where they may lie already: in ``root``, and in the folder that the environment
variable ``GSYM_DATA`` names, in the layout that ``data_scripts/fetch.py`` writes. Every raw file
has to have a known SHA-256 before it is read. Nothing is unpickled: what is processed is kept as
an ``.npz`` of plain arrays.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import urllib.request
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data, Dataset

from gsym._files import replacing
from gsym.errors import FileError

__all__ = ["CmuMocap", "FashionGrid", "MetrLa"]

_TIMEOUT = 60.0
_SPLITS = ("train", "val", "test")
_FASHION_FILES = dict(
    zip(
        [
            f"{part}-{kind}-ubyte.gz"
            for part in ("train", "t10k")
            for kind in ("images-idx3", "labels-idx1")
        ],
        [
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        ],
        strict=True,
    )
)
_FASHION = "https://fashion-mnist.s3.eu-central-1.amazonaws.com/"


class _Signals(Dataset):
    """Signals on one graph: item ``i`` is ``Data(x=..., edge_index=...)``, with its own memory."""

    folder = ""
    files: dict[str, str] = {}  # noqa: RUF012  # SHA-256 of each
    url = ""

    def __init__(
        self,
        root: str | None = None,
        transform: Callable[[Data], Any] | None = None,
        pre_transform: Callable[[Data], Any] | None = None,
        force_reload: bool = False,
    ) -> None:
        if root is None:
            root = os.environ.get("GSYM_DATA")
        if root is None:
            raise FileError(
                f"{type(self).__name__} needs a folder: give root, or set GSYM_DATA to the one "
                "that data_scripts/fetch.py wrote"
            )
        self._processed_to = Path(root) / "gsym" / type(self).__name__.lower()
        try:
            super().__init__(root, transform, pre_transform, force_reload=force_reload)
        except OSError as cause:
            raise FileError(
                f"{type(self).__name__}: {cause}; give root=, a folder that can be written to"
            ) from cause
        with np.load(self.processed_paths[0], allow_pickle=False) as held:
            self.arrays: dict[str, np.ndarray] = {key: held[key] for key in held.files}
        self._fill()

    @property
    def raw_dir(self) -> str:
        """Where the raw files lie: in ``root`` or ``GSYM_DATA``, or where they will."""
        own = Path(str(self.root)) / self.folder
        other = os.environ.get("GSYM_DATA")
        if other is not None and not all((own / name).exists() for name in self.files):
            there = Path(other) / self.folder
            if all((there / name).exists() for name in self.files):
                return str(there)
        return str(own)

    @property
    def processed_dir(self) -> str:
        """Where the arrays are kept."""
        return str(self._processed_to)

    @property
    def raw_file_names(self) -> list[str]:
        """Names of the raw files."""
        return list(self.files)

    @property
    def processed_file_names(self) -> list[str]:
        """One file of plain arrays."""
        return ["arrays.npz"]

    def download(self) -> None:
        """Download what is missing, and keep it only with the right SHA-256."""
        if not self.url:
            raise FileError(
                f"{type(self).__name__}: no {', '.join(self.files)} in {self.raw_dir}; get them "
                f"with: python data_scripts/fetch.py {self._fetched_as} --out {self.root}"
            )
        for name, sha256 in self.files.items():
            path = Path(self.raw_dir) / name
            if not path.exists():
                download(self.url + name, path, sha256)

    _fetched_as = ""

    def _process(self) -> None:
        # PyG's own reads a note of its earlier transforms in a way that could run code.
        if self.force_reload or not Path(self.processed_paths[0]).exists():
            self._processed_to.mkdir(parents=True, exist_ok=True)
            self.process()

    def process(self) -> None:
        """Verify the raw files, and write the arrays that the items are made of."""
        for name, sha256 in self.files.items():
            check_sha256(Path(self.raw_dir) / name, sha256)
        arrays = self._read({name: Path(self.raw_dir) / name for name in self.files})
        with replacing(Path(self.processed_paths[0])) as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    def _read(self, paths: dict[str, Path]) -> dict[str, np.ndarray]:
        raise NotImplementedError

    def _fill(self) -> None:
        raise NotImplementedError

    def len(self) -> int:
        """Number of signals."""
        return int(self.x.size(0))

    def get(self, idx: int) -> Data:
        """Signal ``idx`` on the graph."""
        item = Data(x=self.x[idx], edge_index=self.edge_index, num_nodes=self.num_nodes)
        for key, value in self._of(idx).items():
            item[key] = value
        # To write to an item must change neither the graph nor windows that overlap.
        item = item.clone()
        return item if self.pre_transform is None else self.pre_transform(item)

    def _of(self, idx: int) -> dict[str, Any]:
        return {}

    x: Tensor
    edge_index: Tensor

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 where items have none."""
        return 0

    @property
    def num_nodes(self) -> int:
        """Number of nodes of the graph."""
        return int(self.x.size(1))


class MetrLa(_Signals):
    """METR-LA: speeds at 207 sensors on the roads of Los Angeles, every five minutes.

    Item ``i`` has ``x [207, lag]``, the speeds of ``lag`` steps in miles per hour, ``y [207,
    horizon]``, those of the next steps, ``observed``, False where a target is missing (0), and the
    directed graph of DCRNN, ``edge_index`` and ``edge_weight``, without loops.

    The windows are split, not the time steps, as is the field's protocol: those next to a cut share
    time steps with the next split.

    Args:
        root: Folder that holds ``traffic/metr_la.npz``; by default that of ``GSYM_DATA``.
        split: ``"train"`` (the first 70 %), ``"val"`` or ``"test"`` (the last 20 %), in time.
        lag: Steps of an input.
        horizon: Steps of a target.
        transform: As in PyG.
        pre_transform: As in PyG, but at each access: nothing processed holds objects.
        force_reload: Process the raw files again.

    Raises:
        FileError: No such file, with the command that gets it, or one of another SHA-256.
        ValueError: An unknown split, or windows longer than the split.

    Reference:
        Jagadish et al., CACM 57(7), 2014; the graph: Li et al., arXiv 1707.01926.
    """

    folder = "traffic"
    files = {  # noqa: RUF012
        "metr_la.npz": "34c1442d4aec6b334e8d3ad68b7fdc4382c28ee521b291e4c7cacd5b0faccebf"
    }
    _fetched_as = "metr-la"

    def __init__(
        self,
        root: str | None = None,
        *,
        split: str = "train",
        lag: int = 12,
        horizon: int = 12,
        transform: Callable[[Data], Any] | None = None,
        pre_transform: Callable[[Data], Any] | None = None,
        force_reload: bool = False,
    ) -> None:
        self.split, self.lag, self.horizon = _check_split(split), lag, horizon
        if min(lag, horizon) < 1:
            raise ValueError(f"lag and horizon must be at least 1; got {lag} and {horizon}")
        super().__init__(root, transform, pre_transform, force_reload)

    def _read(self, paths: dict[str, Path]) -> dict[str, np.ndarray]:
        with np.load(paths["metr_la.npz"], allow_pickle=False) as held:
            return {key: np.ascontiguousarray(held[key]) for key in held.files}

    def _fill(self) -> None:
        speed = torch.from_numpy(self.arrays["speed"])
        steps = self.lag + self.horizon
        part = _part(max(len(speed) - steps + 1, 0), self.split, (0.7, 0.8))
        if part.start >= part.stop:
            raise ValueError(f"no window of {steps} steps in {len(speed)} of them")
        windows = speed.unfold(0, steps, 1)
        self.x, self.y = windows[part][..., : self.lag], windows[part][..., self.lag :]
        weights = torch.from_numpy(self.arrays["adj"]).clone().fill_diagonal_(0)
        self.edge_index = weights.nonzero().T.contiguous()
        self.edge_weight = weights[self.edge_index[0], self.edge_index[1]]
        self.latlon = torch.from_numpy(self.arrays["latlon"])
        self.names = [str(sensor) for sensor in self.arrays["sensor_ids"].tolist()]

    def _of(self, idx: int) -> dict[str, Any]:
        y = self.y[idx]
        return {"y": y, "observed": y != 0, "edge_weight": self.edge_weight}


class CmuMocap(_Signals):
    """CMU's motion capture: 28 joints of a body in metres, at 60 Hz.

    Item ``i`` is a frame: ``x`` and ``pos`` ``[28, 3]``, y up, and its ``action`` as a number into
    ``actions``. ``edge_index`` has the bones in both directions; ``mirror [28]`` is the permutation
    that exchanges left and right.

    Args:
        root: Folder that holds ``skeleton/cmu_mocap_28j_60hz.npz``; by default that of
            ``GSYM_DATA``.
        split: ``"train"``, ``"val"`` or ``"test"``: whole sequences, as the suite splits them.
        transform: As in PyG.
        pre_transform: As in PyG, but at each access: nothing processed holds objects.
        force_reload: Process the raw files again.

    Raises:
        FileError: No such file, with the command that gets it, or one of another SHA-256.
        ValueError: An unknown split.

    Reference:
        mocap.cs.cmu.edu; the database was created with funding from NSF EIA-0196217.
    """

    folder = "skeleton"
    files = {  # noqa: RUF012
        "cmu_mocap_28j_60hz.npz": "f158d69c81ba2c5a17ee74a68dec649e820db531a55ed55347d808c7779e5918"
    }
    _fetched_as = "cmu"

    def __init__(
        self,
        root: str | None = None,
        *,
        split: str = "train",
        transform: Callable[[Data], Any] | None = None,
        pre_transform: Callable[[Data], Any] | None = None,
        force_reload: bool = False,
    ) -> None:
        self.split = _check_split(split)
        super().__init__(root, transform, pre_transform, force_reload)

    def _read(self, paths: dict[str, Path]) -> dict[str, np.ndarray]:
        keys = ("positions", "seq_start", "seq_len", "action", "bench_split", "parents", "mirror")
        with np.load(next(iter(paths.values())), allow_pickle=False) as held:
            return {key: held[key] for key in (*keys, "joint_names")}

    def _fill(self) -> None:
        held = self.arrays
        of_split = held["bench_split"] == self.split
        starts, lengths = held["seq_start"][of_split], held["seq_len"][of_split]
        rows = [np.arange(a, a + n) for a, n in zip(starts, lengths, strict=True)]
        frames = np.concatenate(rows) if rows else np.zeros(0, dtype=int)
        self.x = torch.from_numpy(held["positions"][frames])
        self.actions, number = np.unique(held["action"], return_inverse=True)
        self.action = torch.from_numpy(np.repeat(number[of_split], lengths))
        self.mirror = torch.from_numpy(held["mirror"].astype(np.int64))
        self.names = held["joint_names"].tolist()
        child = np.flatnonzero(held["parents"] >= 0)
        bones = np.stack([child, held["parents"][child].astype(np.int64)])
        self.edge_index = torch.from_numpy(np.hstack([bones, bones[::-1]]))

    @property
    def num_classes(self) -> int:
        """Number of actions."""
        return len(self.actions)

    def _of(self, idx: int) -> dict[str, Any]:
        return {"pos": self.x[idx], "action": self.action[idx]}


class FashionGrid(_Signals):
    """Fashion-MNIST on a grid graph of 28 by 28 pixels.

    Item ``i`` has ``x [784, 1]``, grey from 0 to 1, row by row, the class ``y``, and ``pos
    [784, 2]``, column and minus the row. ``edge_index`` joins neighbours in both directions.

    Args:
        root: Folder that holds ``fashion-mnist/``, or to download it to; by default that of
            ``GSYM_DATA``.
        train: The 60,000 images to train on, or the 10,000 to test on.
        transform: As in PyG.
        pre_transform: As in PyG, but at each access: nothing processed holds objects.
        force_reload: Process the raw files again.

    Raises:
        FileError: A download that fails, or a file of another SHA-256.

    Reference:
        Xiao, Rasul and Vollgraf, arXiv 1708.07747; MIT licence.
    """

    folder = "fashion-mnist"
    url = _FASHION
    files = _FASHION_FILES

    def __init__(
        self,
        root: str | None = None,
        *,
        train: bool = True,
        transform: Callable[[Data], Any] | None = None,
        pre_transform: Callable[[Data], Any] | None = None,
        force_reload: bool = False,
    ) -> None:
        self.train = train
        super().__init__(root, transform, pre_transform, force_reload)

    def _read(self, paths: dict[str, Path]) -> dict[str, np.ndarray]:
        return {name.split("-ubyte")[0]: _read_idx(path) for name, path in paths.items()}

    def _fill(self) -> None:
        part = "train" if self.train else "t10k"
        images = torch.from_numpy(self.arrays[f"{part}-images-idx3"])
        rows, columns = images.shape[1:]
        self.x = images.reshape(len(images), rows * columns, 1)
        self.targets = torch.from_numpy(self.arrays[f"{part}-labels-idx1"]).long()
        number = torch.arange(rows * columns).reshape(rows, columns)
        ends = [
            torch.stack([a.reshape(-1), b.reshape(-1)])
            for a, b in ((number[:, :-1], number[:, 1:]), (number[:-1], number[1:]))
        ]
        one_way = torch.cat(ends, dim=1)
        self.edge_index = torch.cat([one_way, one_way.flip(0)], dim=1)
        place = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).flip(1)
        self.pos = place * torch.tensor([1.0, -1.0])

    @property
    def num_classes(self) -> int:
        """Number of kinds of clothes."""
        return int(self.targets.max()) + 1

    def _of(self, idx: int) -> dict[str, Any]:
        return {"x": self.x[idx] / 255.0, "y": self.targets[idx], "pos": self.pos}


def check_sha256(path: Path, expected: str) -> None:
    """Refuse a file that is not the known one.

    Raises:
        FileError: Another SHA-256.
    """
    with path.open("rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if got != expected:
        raise FileError(
            f"{path}: expected SHA-256 {expected}, got {got}; it is damaged or another file: "
            "delete it and get it again"
        )


def download(url: str, path: Path, sha256: str) -> None:
    """Download a file, which takes its name once it is complete and the right one.

    Raises:
        FileError: The address cannot be read, or gives another file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as answer, replacing(path) as file:
            shutil.copyfileobj(answer, file)
            file.flush()
            check_sha256(Path(file.name), sha256)
    except OSError as cause:
        raise FileError(
            f"{url}: {cause}; get the file by other means and put it at {path}"
        ) from cause


def _read_idx(path: Path) -> np.ndarray:
    """A gzipped idx file of bytes."""
    try:
        raw = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as cause:
        raise FileError(f"{path}: cannot be read ({cause})") from cause
    axes = raw[3]
    shape = np.frombuffer(raw, ">u4", axes, 4).astype(int)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * axes).reshape(shape).copy()


def _check_split(split: str) -> str:
    if split not in _SPLITS:
        raise ValueError(f"split must be one of {', '.join(_SPLITS)}; got {split!r}")
    return split


def _part(count: int, split: str, cuts: tuple[float, float]) -> slice:
    """The rows of a split in time."""
    first, second = (round(cut * count) for cut in cuts)
    return {"train": slice(0, first), "val": slice(first, second), "test": slice(second, count)}[
        split
    ]
