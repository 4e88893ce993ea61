"""Data sets in PyG's manners: what the items hold, and that no wrong file is read."""

from __future__ import annotations

import gzip
import hashlib
import os

import numpy as np
import pytest
import torch
from torch_geometric.loader import DataLoader

import gsym
from gsym import datasets
from gsym.errors import FileError


@pytest.fixture(autouse=True)
def _no_folder(monkeypatch):
    monkeypatch.delenv("GSYM_DATA", raising=False)


def known(monkeypatch, kind, folder):
    """Take the files of a folder for the right ones."""
    files = {
        name: hashlib.sha256((folder / kind.folder / name).read_bytes()).hexdigest()
        for name in kind.files
    }
    monkeypatch.setattr(kind, "files", files)


def metr_la(folder, steps=30):
    (folder / "traffic").mkdir(parents=True, exist_ok=True)
    speed = np.arange(1.0, 3 * steps + 1).reshape(steps, 3).astype(np.float32)
    speed[5, 1] = 0
    adj = np.array([[1, 0.5, 0], [0, 1, 0], [0.25, 0, 1]], dtype=np.float32)
    np.savez(
        folder / "traffic" / "metr_la.npz",
        speed=np.asfortranarray(speed),
        adj=adj,
        latlon=np.zeros((3, 2)),
        sensor_ids=np.array([7, 8, 9], dtype=np.int32),
        time_unix=np.arange(steps),
    )
    return speed


def test_windows_splits_and_the_graph(tmp_path, monkeypatch):
    speed = metr_la(tmp_path)
    known(monkeypatch, datasets.MetrLa, tmp_path)
    parts = [
        gsym.datasets.MetrLa(str(tmp_path), split=split, lag=2, horizon=3)
        for split in ("train", "val", "test")
    ]
    assert [len(part) for part in parts] == [18, 3, 5], "26 windows, in time"
    item = parts[0][3]
    np.testing.assert_array_equal(item.x.numpy(), speed[3:5].T)
    np.testing.assert_array_equal(item.y.numpy(), speed[5:8].T)
    assert (~item.observed).nonzero().tolist() == [[1, 0]]
    assert item.edge_index.tolist() == [[0, 2], [1, 0]]
    assert item.edge_weight.tolist() == [0.5, 0.25]
    batch = next(iter(DataLoader(parts[0], batch_size=4)))
    assert batch.x.shape == (12, 2) and batch.edge_index.max() == 9 + 2
    assert parts[0].names == ["7", "8", "9"]
    with pytest.raises(ValueError, match="split must be one of train, val, test; got 'all'"):
        gsym.datasets.MetrLa(str(tmp_path), split="all")
    with pytest.raises(ValueError, match="no window of 40 steps"):
        gsym.datasets.MetrLa(str(tmp_path), lag=39, horizon=1)


def test_a_wrong_or_missing_file_is_named(tmp_path, monkeypatch):
    with pytest.raises(FileError, match=r"fetch\.py metr-la --out"):
        gsym.datasets.MetrLa(str(tmp_path))
    metr_la(tmp_path)
    with pytest.raises(FileError, match=r"metr_la\.npz: expected SHA-256 34c1442d.*delete it"):
        gsym.datasets.MetrLa(str(tmp_path))
    with pytest.raises(FileError, match="set GSYM_DATA"):
        gsym.datasets.MetrLa()
    assert not list(tmp_path.rglob("arrays.npz"))


def test_raw_files_of_the_environment_serve(tmp_path, monkeypatch):
    metr_la(tmp_path / "shared")
    known(monkeypatch, datasets.MetrLa, tmp_path / "shared")
    monkeypatch.setenv("GSYM_DATA", str(tmp_path / "shared"))
    found = gsym.datasets.MetrLa(str(tmp_path / "own"), lag=1, horizon=1)
    assert found.raw_dir == str(tmp_path / "shared" / "traffic")
    assert (tmp_path / "own" / "gsym" / "metrla" / "arrays.npz").exists()
    # Nothing that PyG pickles beside it.
    assert not list(tmp_path.rglob("*.pt"))


def fashion(folder, count=4):
    files = {}
    folder.mkdir(parents=True)
    for name in datasets.FashionGrid.files:
        shape = (count, 28, 28) if "images" in name else (count,)
        body = (np.arange(np.prod(shape)) % 250).astype(np.uint8).tobytes()
        head = bytes([0, 0, 8, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape)
        (folder / name).write_bytes(gzip.compress(head + body))
        files[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    return files


def test_images_are_downloaded_and_verified(tmp_path, monkeypatch):
    files = fashion(tmp_path / "served")
    monkeypatch.setattr(datasets.FashionGrid, "files", files)
    monkeypatch.setattr(datasets.FashionGrid, "url", (tmp_path / "served").as_uri() + "/")
    found = gsym.datasets.FashionGrid(str(tmp_path / "root"))
    item = found[1]
    assert found.num_classes == 4
    assert len(found) == 4 and item.x.shape == (784, 1) and item.y == 1
    assert float(item.x[0]) == pytest.approx(784 % 250 / 255)
    # 28 rows of 27 neighbours each way, and as many columns.
    assert item.edge_index.shape == (2, 4 * 28 * 27)
    assert item.pos[0].tolist() == [0, 0] and item.pos[29].tolist() == [1, -1]
    name = next(iter(files))
    (tmp_path / "served" / name).write_bytes(b"another")
    with pytest.raises(FileError, match=f"{name}.*expected SHA-256"):
        gsym.datasets.FashionGrid(str(tmp_path / "other"))
    assert not list((tmp_path / "other").rglob(name + "*"))


def test_items_share_no_memory_and_subsets_are_right(tmp_path, monkeypatch):
    speed = metr_la(tmp_path)
    known(monkeypatch, datasets.MetrLa, tmp_path)
    found = gsym.datasets.MetrLa(str(tmp_path), lag=2, horizon=3)
    item = found[3]
    for key in ("x", "y", "edge_index", "edge_weight"):
        item[key].zero_()
    np.testing.assert_array_equal(found[3].x.numpy(), speed[3:5].T)
    np.testing.assert_array_equal(found[4].x.numpy(), speed[4:6].T)
    assert found[3].edge_index.tolist() == [[0, 2], [1, 0]]
    assert found[3].edge_weight.tolist() == [0.5, 0.25]
    subset = found[[4, 2]]
    assert len(subset) == 2 and torch.equal(subset[1].x, found[2].x)
    assert found.num_classes == 0 and found.num_features == 2
    # What PyG offers for data sets that keep all items as one is not there, rather than wrong.
    assert not hasattr(found, "copy")


def test_force_reload_processes_again(tmp_path, monkeypatch):
    metr_la(tmp_path)
    known(monkeypatch, datasets.MetrLa, tmp_path)
    gsym.datasets.MetrLa(str(tmp_path), lag=1, horizon=1)
    metr_la(tmp_path, steps=40)
    known(monkeypatch, datasets.MetrLa, tmp_path)
    for reload, steps in ((False, 30), (True, 40)):
        found = gsym.datasets.MetrLa(str(tmp_path), lag=1, horizon=1, force_reload=reload)
        assert len(found.arrays["speed"]) == steps


def test_a_folder_that_cannot_be_written_asks_for_root(tmp_path, monkeypatch):
    metr_la(tmp_path)
    known(monkeypatch, datasets.MetrLa, tmp_path)
    monkeypatch.setenv("GSYM_DATA", str(tmp_path))
    (tmp_path / "gsym").touch()  # a file in the way, which stops the superuser too
    with pytest.raises(FileError, match="give root=, a folder that can be written to"):
        gsym.datasets.MetrLa()


def test_several_downloads_at_once_keep_apart(tmp_path, monkeypatch):
    (tmp_path / "served").write_bytes(b"right")
    own, other = tmp_path / "own", tmp_path / "own.part"
    other.write_bytes(b"what another process has so far")
    sha256 = hashlib.sha256(b"right").hexdigest()
    datasets.download((tmp_path / "served").as_uri(), own, sha256)
    assert own.read_bytes() == b"right" and other.exists()


def test_real_data_where_they_are(tmp_path):
    folder = os.environ.get("GSYM_REAL_DATA")
    if folder is None:
        pytest.skip("GSYM_REAL_DATA names no folder of real data")
    os.environ["GSYM_DATA"] = folder
    body = gsym.datasets.CmuMocap(str(tmp_path), split="test")
    item = body[0]
    assert item.pos.shape == (28, 3) and item.edge_index.shape == (2, 54)
    assert torch.equal(body.mirror[body.mirror], torch.arange(28))
    roads = gsym.datasets.MetrLa(str(tmp_path))
    assert roads[0].edge_index.shape == (2, 1515) and len(roads) == 23_974
