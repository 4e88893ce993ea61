"""Download the benchmark data from their official addresses, verify and convert them.

    python -m data_scripts.fetch fashion-mnist|mnist|metr-la|cmu|all --out DIR [--from DIR]

An interrupted download goes on where it stopped; what is there and verified is kept. ``--from``
reads raw or finished files that lie in a folder already, and needs no network. Every file has a
known checksum; that of CMU's archive is stated by one third party alone, so if it differs the
archive may be right all the same: ``--allow-unverified`` takes it, from a folder or over TLS.

The 40 CMU sequences are our own choice from the index of that database, five for each of the eight
actions that the literature uses; which trials the literature took is not recorded, so results on
them do not compare with published ones. The archive states no rates: we take every trial as 120 Hz,
as CMU's FAQ does, and keep every second frame. Subjects have their own skeletons and may occur in
several splits.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import shlex
import shutil
import signal
import sys
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pooch
import requests
import tyro
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

# Python puts the folder of a script on its path, not the repository that gsym_bench/ lies in.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_scripts import asf_amc
from data_scripts.sources import SOURCES, Source
from gsym_bench.data import DataError, fetch_command, read_npz, replacing, write_npz

ROUNDS = 2
TIMEOUT = (10, 60)  # seconds to connect, seconds between two packets
CHUNK = 1 << 18
LARGEST_TRIAL = 64 * 2**20  # bytes; the longest of CMU's recordings has some ten million

console = Console(markup=False, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Converted:
    """One file that we write.

    Attributes:
        path: Where it lies, below the output folder.
        shapes: Its arrays; a letter stands for any size, the same one wherever it recurs.
        sha256: Of the copy that the published results used.
        convert: Builds the arrays from the raw files, given by name.
    """

    path: str
    shapes: dict[str, tuple[int | str, ...]]
    sha256: str
    convert: Callable[[dict[str, Path]], dict[str, np.ndarray]]


# Subject_trial. The last of each action is its test sequence, the last but one validates.
TRIALS: dict[str, str] = {
    "basketball": "06_02 06_06 06_08 06_14 06_15",
    "basketball_signal": "26_02 27_02 28_01 29_02 30_01",
    "directing_traffic": "13_26 13_27 14_24 13_28 14_25",
    "jumping": "13_11 13_13 13_39 13_40 16_05",
    "running": "35_17 35_18 09_01 09_02 16_35",
    "soccer": "10_01 10_02 10_03 10_05 11_01",
    "walking": "35_01 35_02 07_01 07_02 08_01",
    "washwindow": "13_20 13_21 14_10 13_22 14_11",
}


def fetch(
    dataset: str, out: Path, folder: Path | None = None, *, allow_unverified: bool = False
) -> None:
    """Bring one data set into ``out``, in the layout that ``gsym_bench.data`` reads.

    Args:
        dataset: A key of ``SOURCES``.
        out: The data directory; made if missing.
        folder: Take the files from this folder instead of the network.
        allow_unverified: Take a file whose checksum differs, where that is not confirmed.

    Raises:
        DataError: If a file cannot be had or is not the right one; says what to do by hand.
    """
    allow = allow_unverified
    target = CONVERTED.get(dataset)
    if target is None:
        _raw_files(dataset, out, out / dataset, folder, allow, keep_in_place=False)
        return
    path = out / target.path
    if path.exists():
        try:
            validate(path, target)
        except DataError as error:
            console.print(f"{error}\nmaking it again")
        else:
            console.print(f"kept {path}")
            return
    for found in _search(folder, path.name):
        validate(found, target)
        if pooch.file_hash(str(found)) != target.sha256:
            console.print(
                f"note: {found} has the right arrays but is not the copy of the published results, "
                f"SHA-256 {target.sha256}"
            )
        _copy(found, path)
        console.print(f"copied {found} to {path}")
        return
    raw = _raw_files(dataset, out, out / "raw" / dataset, folder, allow, keep_in_place=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_npz(path, **target.convert(raw))
    validate(path, target)
    console.print(f"wrote {path}")


def validate(path: Path, target: Converted) -> None:
    """Read every array of a converted file and check its shape.

    Raises:
        DataError: If the file is damaged or not in the layout of ``target``.
    """
    arrays = read_npz(path, list(target.shapes))
    sizes: dict[int | str, int] = {}
    for key, shape in target.shapes.items():
        got = arrays[key].shape
        expected = tuple(sizes.get(size, size) for size in shape)
        fits = len(got) == len(shape) and all(
            isinstance(size, str) or size == n for size, n in zip(expected, got, strict=True)
        )
        if not fits:
            raise DataError(f"{path}: expected {key} of shape {list(expected)}, got {list(got)}")
        sizes |= {size: n for size, n in zip(shape, got, strict=True) if isinstance(size, str)}


def _raw_files(
    dataset: str, out: Path, store: Path, folder: Path | None, allow: bool, *, keep_in_place: bool
) -> dict[str, Path]:
    """The verified raw files of a data set by name: in ``store``, in ``folder``, or downloaded."""
    files, absent = {}, []
    for name, source in SOURCES[dataset].items():
        path = store / name
        if path.exists():
            reason = mismatch(path, source, allow)
            if reason is None:
                console.print(f"kept {path}")
                files[name] = path
                continue
            console.print(f"{path}: {reason}; getting it again")
        if folder is None:
            download(dataset, source, path, out, allow)
            console.print(f"downloaded {path}")
        else:
            reasons = {found: mismatch(found, source, allow) for found in _search(folder, name)}
            good = [found for found, reason in reasons.items() if reason is None]
            if not good:
                absent += [f"{found}: {reason}" for found, reason in reasons.items()]
                absent += [] if reasons else [f"{name}: not in {folder}"]
                continue
            if keep_in_place:
                path = good[0]
            else:
                _copy(good[0], path)
                console.print(f"copied {good[0]} to {path}")
        files[name] = path
    if absent:
        raise DataError(
            "\n  ".join([f"{dataset} cannot be made from {folder}:", *absent])
            + f"\nPut the right files there, or download them: {fetch_command(dataset, out)}"
        )
    return files


def mismatch(path: Path, source: Source, allow_unverified: bool = False) -> str | None:
    """Why a file is not the one of ``source``; ``None`` if it is, or may be and that is allowed."""
    algorithm, expected = source.checksum.split(":")
    got = pooch.file_hash(str(path), algorithm)
    if got == expected:
        return None
    reason = f"expected {algorithm} {expected}, got {got}"
    if source.confirmed:
        return reason
    if not zipfile.is_zipfile(path):
        return f"not a complete zip archive ({reason})"
    if not allow_unverified:
        return f"{reason}; that checksum is unconfirmed: --allow-unverified takes the file"
    console.print(f"warning: {path}: {reason}. That checksum is unconfirmed, so we go on.")
    return None


def download(
    dataset: str, source: Source, path: Path, out: Path, allow_unverified: bool = False
) -> None:
    """Download one file to ``path``, from the first address that gives the right one.

    The file grows under the name ``path`` + ``.part``, which a later call goes on with. What came
    without TLS is taken with the right checksum only.

    Raises:
        DataError: If no address gives it; names the file, the folder to put it in, the command.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    failures = []
    for url in source.urls * ROUNDS:
        try:
            _stream(url, part)
        except requests.RequestException as error:
            failures.append(f"{url}: {error}")
            continue
        reason = mismatch(part, source, allow_unverified and url.startswith("https://"))
        if reason is None:
            part.replace(path)
            return
        part.unlink()
        failures.append(f"{url}: {reason}; the file was deleted")
    by_hand = out / "by-hand"
    raise DataError(
        "\n  ".join([f"{path.name} could not be downloaded:", *failures])
        + "\nTry again later: the same command goes on where it stopped. Or get the files of "
        f"{dataset} ({', '.join(SOURCES[dataset])}) by other means, put them into the folder "
        f"{by_hand}, and type:\n"
        f"  {fetch_command(dataset, out)} --from {shlex.quote(str(by_hand))}"
    )


def _stream(url: str, part: Path) -> None:
    """Append to ``part`` what it lacks; start anew if the server or the sizes do not allow it."""
    have = part.stat().st_size if part.exists() else 0
    # Without "identity" a server may compress on the way, and byte positions lose their meaning.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        _check_tls(url, response)
        status, content_range = response.status_code, response.headers.get("Content-Range", "")
        if status == 416 and content_range == f"bytes */{have}":
            return
        stale = status == 416 or (status == 206 and not content_range.startswith(f"bytes {have}-"))
        if not (have and stale):
            response.raise_for_status()
            _save(response, part, have if status == 206 else 0)
            return
    part.unlink()
    _stream(url, part)


def _check_tls(url: str, response: requests.Response) -> None:
    """Refuse to be led from an address with TLS to one without."""
    steps = [step.url for step in (*response.history, response)]
    bare = [step for step in steps if not step.startswith("https://")]
    if url.startswith("https://") and bare:
        raise requests.exceptions.SSLError(f"led to {bare[0]}, which has no TLS")


def _save(response: requests.Response, part: Path, start: int) -> None:
    """Write the body of a response to ``part`` from the byte ``start`` on."""
    length = response.headers.get("Content-Length")
    total = start + int(length) if length else None
    with part.open("ab" if start else "wb") as file, _progress() as progress:
        task = progress.add_task(part.stem, total=total, completed=start)
        for chunk in response.iter_content(CHUNK):
            file.write(chunk)
            progress.advance(task, len(chunk))
        file.flush()
        os.fsync(file.fileno())
    size = part.stat().st_size
    if total is not None and size != total:
        raise requests.ConnectionError(f"the connection ended after {size} of {total} bytes")


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=console,
        transient=True,
    )


def _search(folder: Path | None, name: str) -> list[Path]:
    return sorted(folder.rglob(name)) if folder else []


def _copy(source: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as old, replacing(path) as new:
        shutil.copyfileobj(old, new)


class _ArrayUnpickler(pickle.Unpickler):
    """Admits numbers, text, lists, dicts and numpy arrays; nothing else can be built or called."""

    _allowed: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._allowed[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is not admitted") from None


def read_adjacency(path: Path, sha256: str) -> tuple[list[int], np.ndarray]:
    """Read DCRNN's ``adj_mx.pkl``, a pickle, after its checksum matched, and arrays only.

    Args:
        path: The file.
        sha256: What its content must hash to.

    Returns:
        Sensor ids, and weights ``float32 [n, n]`` between them in this order.

    Raises:
        DataError: If the checksum differs, or the pickle holds anything but that.
    """
    raw = path.read_bytes()
    got = hashlib.sha256(raw).hexdigest()
    if got != sha256:
        raise DataError(f"{path}: expected sha256 {sha256}, got {got}; the pickle was not opened")
    try:
        ids, _, adj = _ArrayUnpickler(io.BytesIO(raw), encoding="latin1").load()
        ids, adj = [int(sensor) for sensor in ids], np.asarray(adj, np.float32)
    except Exception as error:  # a malformed pickle may raise anything
        raise DataError(f"{path}: not the expected pickle of arrays: {error}") from error
    if adj.shape != (len(ids), len(ids)):
        raise DataError(f"{path}: expected weights between {len(ids)} sensors, got {adj.shape}")
    return ids, adj


def convert_metr_la(raw: dict[str, Path]) -> dict[str, np.ndarray]:
    """METR-LA's readings and graph; the keys are described in ``CONVERTED``.

    Returns:
        ``speed`` in miles per hour, 0 where missing; ``time_unix``, local time written as if
        UTC; ``sensor_ids``; ``adj``, directed Gaussian weights; ``latlon`` in degrees.

    Raises:
        DataError: If a file is malformed or the three disagree on the sensors.
    """
    table = raw["METR-LA.csv"]
    try:
        with table.open(encoding="ascii") as lines:
            ids = np.array(lines.readline().rstrip().split(",")[1:], np.int32)
            stamps, rows = zip(*(line.split(",", 1) for line in lines), strict=True)
            speed = np.array([np.fromstring(row, np.float64, sep=",") for row in rows])
        time = np.array(stamps, "datetime64[s]").astype(np.int64)
        places = np.loadtxt(raw["graph_sensor_locations.csv"], delimiter=",", skiprows=1, ndmin=2)
    except ValueError as error:
        raise DataError(f"{table} or the sensor locations: malformed ({error})") from error
    if speed.shape[1:] != ids.shape:
        raise DataError(f"{table}: expected {len(ids)} readings a line, got {list(speed.shape)}")
    checksum = SOURCES["metr-la"]["adj_mx.pkl"].checksum.removeprefix("sha256:")
    adj_ids, adj = read_adjacency(raw["adj_mx.pkl"], checksum)
    for name, other in (("adj_mx.pkl", adj_ids), ("graph_sensor_locations.csv", places[:, 1])):
        if not np.array_equal(ids, other):
            raise DataError(f"{name} lists other sensors, or in another order, than METR-LA.csv")
    return {
        "speed": np.asfortranarray(speed, np.float32),
        "time_unix": time,
        "sensor_ids": ids,
        "adj": adj,
        "latlon": np.ascontiguousarray(places[:, 2:4]),
    }


def convert_cmu(raw: dict[str, Path]) -> dict[str, np.ndarray]:
    """Joint positions of the sequences in ``TRIALS``, one after another, at 60 Hz.

    Returns:
        ``positions [f, 28, 3]`` in metres, y up, root motion included; where each sequence starts,
        its length, name, action and split; the tables of ``asf_amc.joint_tables``; ``bone_length``
        in metres, the mean over all frames, since every subject has bones of their own.

    Raises:
        DataError: If the archive is damaged or lacks a trial.
    """
    path = raw["allasfamc.zip"]
    sequences: list[np.ndarray] = []
    names, actions, splits = [], [], []
    try:
        with zipfile.ZipFile(path) as archive:
            for action, trials in TRIALS.items():
                *train, val, test = trials.split()
                for trial in (*train, val, test):
                    sequences.append(_trial_positions(archive, trial))
                    names.append(trial)
                    actions.append(action)
                    splits.append({val: "val", test: "test"}.get(trial, "train"))
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DataError(f"{path}: damaged ({error}); delete it and fetch it again") from error
    lengths = np.array([len(sequence) for sequence in sequences], np.int32)
    positions = np.concatenate(sequences)
    tables = asf_amc.joint_tables()
    bones = positions - positions[:, tables["parents"]]
    bones[:, 0] = 0
    return {
        "positions": positions,
        "fps": np.array(60, np.float32),
        "seq_start": (np.cumsum(lengths) - lengths).astype(np.int32),
        "seq_len": lengths,
        "seq_name": np.array(names),
        "action": np.array(actions),
        "split": np.array(["test" if split == "test" else "train" for split in splits]),
        "bench_split": np.array(splits),
        "bone_length": np.linalg.norm(bones, axis=-1).mean(axis=0),
        **tables,
    }


def _trial_positions(archive: zipfile.ZipFile, trial: str) -> np.ndarray:
    """Every second frame of a trial, ``[f, 28, 3]`` in metres."""
    members = {PurePosixPath(member).name: member for member in archive.namelist()}

    def text(name: str) -> str:
        if name not in members:
            raise DataError(f"no file {name} in the archive")
        size = archive.getinfo(members[name]).file_size
        if size > LARGEST_TRIAL:
            raise DataError(f"{name} unpacks to {size:,} bytes, expected {LARGEST_TRIAL:,} at most")
        return archive.read(members[name]).decode("latin1")

    try:
        skeleton = asf_amc.parse_asf(text(f"{trial.split('_')[0]}.asf"))
        motion = asf_amc.parse_amc(text(f"{trial}.amc"), skeleton)
        halved = {bone: values[::2] for bone, values in motion.items()}
        return asf_amc.joint_positions(skeleton, halved)
    except DataError as error:
        raise DataError(f"{archive.filename}, trial {trial}: {error}") from error


CONVERTED: dict[str, Converted] = {
    "metr-la": Converted(
        path="traffic/metr_la.npz",
        shapes={
            "speed": ("t", "n"),
            "time_unix": ("t",),
            "sensor_ids": ("n",),
            "adj": ("n", "n"),
            "latlon": ("n", 2),
        },
        sha256="34c1442d4aec6b334e8d3ad68b7fdc4382c28ee521b291e4c7cacd5b0faccebf",
        convert=convert_metr_la,
    ),
    "cmu": Converted(
        path="skeleton/cmu_mocap_28j_60hz.npz",
        shapes={
            "positions": ("f", 28, 3),
            "fps": (),
            **dict.fromkeys(("seq_start", "seq_len", "seq_name"), ("s",)),
            **dict.fromkeys(("action", "split", "bench_split"), ("s",)),
            **dict.fromkeys(("parents", "mirror", "joint_names", "asf_names"), (28,)),
            "bone_length": (28,),
            **dict.fromkeys(("sub17", "parents17", "mirror17"), (17,)),
            **dict.fromkeys(("sub16", "parents16", "mirror16"), (16,)),
        },
        sha256="f158d69c81ba2c5a17ee74a68dec649e820db531a55ed55347d808c7779e5918",
        convert=convert_cmu,
    ),
}


def main(
    dataset: tyro.conf.Positional[Literal["fashion-mnist", "mnist", "metr-la", "cmu", "all"]],
    /,
    out: Path,
    folder: Annotated[Path | None, tyro.conf.arg(name="from")] = None,
    allow_unverified: bool = False,
) -> None:
    """Download, verify and convert benchmark data.

    Args:
        dataset: Which data.
        out: The data directory, made if missing.
        folder: Take the files from this folder, searched by name, instead of the network.
        allow_unverified: Take CMU's archive, whose checksum is unconfirmed, if it has another one.
    """
    failures = []
    if folder is not None and not folder.is_dir():
        raise SystemExit(f"--from expects a folder, got {folder}")
    for name in SOURCES if dataset == "all" else [dataset]:
        try:
            fetch(name, out, folder, allow_unverified=allow_unverified)
        except (DataError, OSError) as error:
            failures.append(f"{name}: {error}")
        except KeyboardInterrupt:
            console.print("interrupted; the same command goes on where it stopped")
            raise SystemExit(130) from None
    if failures:
        raise SystemExit("\n\n".join(failures))


if __name__ == "__main__":
    # A queue of jobs ends them with this signal, a terminal with the other.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    tyro.cli(main)
