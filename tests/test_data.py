import gzip
import io
import os
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from gsym_bench import data
from gsym_bench.data import DataError


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_images(folder, num_train=3, num_test=2, size=28):
    folder.mkdir()
    rng = np.random.default_rng(0)
    arrays = []
    for part, count in (("train", num_train), ("t10k", num_test)):
        x = rng.integers(0, 256, (count, size, size), np.uint8)
        y = rng.integers(0, 10, count, np.uint8)
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(x)))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(y)))
        arrays += [x, y]
    return arrays


def test_find_names_the_missing_file_and_the_command(tmp_path):
    (tmp_path / "traffic").mkdir()
    (tmp_path / "traffic" / "a.npz").touch()
    assert data.find(tmp_path, "traffic/a.npz", "metr-la") == tmp_path / "traffic" / "a.npz"
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError) as caught:
            data.find(folder, "traffic/b.npz", "metr-la")
        assert str(folder / "traffic" / "b.npz") in str(caught.value)
        assert f"python -m data_scripts.fetch metr-la --out {folder}" in str(caught.value)


def test_the_command_can_be_pasted_when_the_folder_has_spaces():
    assert data.fetch_command("mnist", "my data").endswith("mnist --out 'my data'")


@pytest.mark.parametrize("shape", [(5,), (2, 28, 28), (0, 28, 28)])
def test_read_idx_returns_what_was_written(tmp_path, shape):
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    (tmp_path / "a.gz").write_bytes(gzip.compress(idx(array)))
    got = data.read_idx(tmp_path / "a.gz")
    assert got.dtype == np.uint8
    assert got.flags.writeable
    np.testing.assert_array_equal(got, array)


@pytest.fixture
def packed():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 28, 28), np.uint8)
    return gzip.compress(idx(pixels))


@pytest.mark.parametrize("share", [0, 0.001, 0.01, 0.5, 0.9, 0.999])
def test_read_idx_refuses_a_truncated_file(tmp_path, packed, share):
    path = tmp_path / "a.gz"
    path.write_bytes(packed[: int(share * len(packed))])
    with pytest.raises(DataError, match=r"a\.gz.*fetch it again"):
        data.read_idx(path)


def test_read_idx_refuses_a_flipped_byte(tmp_path, packed):
    path = tmp_path / "a.gz"
    path.write_bytes(packed[:500] + bytes([packed[500] ^ 1]) + packed[501:])
    with pytest.raises(DataError, match=r"a\.gz.*fetch it again"):
        data.read_idx(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"plain text", "gzip"),
        (gzip.compress(b""), "magic"),
        (gzip.compress(b"\x00\x00\x0d\x01\x00\x00\x00\x01abcd"), "00 00 0d"),
        (gzip.compress(b"\x00\x00\x08\x03\x00\x00"), "header of 16 bytes, got 6"),
        (gzip.compress(idx(np.zeros(5))[:-1]), r"\[5\] bytes, 4 follow"),
        (gzip.compress(idx(np.zeros(5)) + b"x"), r"\[5\] bytes, 6 follow"),
    ],
    # gzip writes the time of day, so the bytes cannot name the case: each worker would differ.
    ids=["no gzip", "empty", "type", "short header", "too short", "too long"],
)
def test_read_idx_says_what_is_wrong(tmp_path, content, reason):
    path = tmp_path / "a.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=reason):
        data.read_idx(path)


@pytest.mark.parametrize("sizes", [(2**16, 2**15, 2), (2**32 - 1,) * 3])
def test_read_idx_refuses_to_unpack_too_much(tmp_path, sizes):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(bytes([0, 0, 8, 3]) + struct.pack(">3I", *sizes)))
    with pytest.raises(DataError, match=rf"a\.gz: unpacks to {np.prod(sizes, dtype=object):,}"):
        data.read_idx(path)


def test_read_idx_does_not_unpack_what_the_header_does_not_state(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "LARGEST", 2**24)
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(idx(np.zeros(5)) + bytes(2**26)))
    tracemalloc.start()
    with pytest.raises(DataError, match=r"\[5\] bytes, 16777216 follow"):
        data.read_idx(path)
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()


def bomb(path, shape, content=b"", count=1):
    """An archive of arrays whose headers state a shape, whatever follows them."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": shape}
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(count):
            archive.writestr(f"{'xyz'[number]}.npy", header.getvalue() + content)


def test_read_npz_refuses_an_array_that_is_not_there(tmp_path):
    bomb(tmp_path / "a.npz", (10**6, 10**6))
    with pytest.raises(DataError, match=r"x\.npy states 8,000,000,000,000 bytes, \d+ follow"):
        data.read_npz(tmp_path / "a.npz", ["x"])


def test_read_npz_refuses_to_unpack_too_much(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "LARGEST", 10**6)
    bomb(tmp_path / "a.npz", (5 * 10**4,), bytes(4 * 10**5), count=3)
    assert (tmp_path / "a.npz").stat().st_size < 10**4
    with pytest.raises(DataError, match=r"a\.npz: unpacks to 1,200,\d+ bytes, expected 1,000,000"):
        data.read_npz(tmp_path / "a.npz", ["x"])


def test_write_npz_refuses_a_mask(tmp_path):
    with pytest.raises(TypeError, match="expected x without a mask"):
        data.write_npz(tmp_path / "a.npz", x=np.ma.masked_array([1.0, 2.0], [False, True]))
    assert not list(tmp_path.iterdir())


def test_read_idx_refuses_a_missing_file(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        data.read_idx(tmp_path / "a.gz")


def test_npz_round_trip(tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(b"old")
    data.write_npz(path, x=np.arange(3), name=np.array(["a", "bc"]))
    got = data.read_npz(path, ["name", "x"])
    assert got["name"].tolist() == ["a", "bc"]
    assert got["x"].tolist() == [0, 1, 2]
    assert [file.name for file in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9, 0.99])
def test_read_npz_refuses_a_truncated_file(tmp_path, share):
    path = tmp_path / "a.npz"
    data.write_npz(path, x=np.random.default_rng(0).random(1000))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(DataError, match=r"a\.npz.*fetch it again"):
        data.read_npz(path, ["x"])


@pytest.mark.parametrize("position", [100, 1000, 5000])
def test_read_npz_refuses_a_flipped_byte(tmp_path, position):
    path = tmp_path / "a.npz"
    data.write_npz(path, x=np.random.default_rng(0).random(1000))
    raw = bytearray(path.read_bytes())
    raw[position] ^= 0xFF
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"a\.npz"):
        data.read_npz(path, ["x"])


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_read_npz_never_unpickles(tmp_path, suffix):
    path, ran = tmp_path / f"a{suffix}", tmp_path / "ran"
    save = np.savez if suffix == ".npz" else np.save
    save(path, np.array([Touch(ran)], object), allow_pickle=True)
    with pytest.raises(DataError, match=r"a\.np"):
        data.read_npz(path, ["arr_0"])
    assert not ran.exists()
    np.load(path, allow_pickle=True)["arr_0" if suffix == ".npz" else 0]
    assert ran.exists(), "the control did not run either"


def test_read_npz_names_missing_arrays(tmp_path):
    data.write_npz(tmp_path / "a.npz", x=np.zeros(1))
    with pytest.raises(DataError, match=r"\['y'\].*only \['x'\]"):
        data.read_npz(tmp_path / "a.npz", ["x", "y"])
    with pytest.raises(DataError, match="No such file"):
        data.read_npz(tmp_path / "b.npz", ["x"])
    np.save(tmp_path / "c.npy", np.zeros(1))
    with pytest.raises(DataError, match="got a single array"):
        data.read_npz(tmp_path / "c.npy", ["x"])


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.npz"
    data.write_npz(path, x=np.arange(3))
    with pytest.raises(TypeError, match="expected x"):
        data.write_npz(path, x=np.array([{}], object))
    with pytest.raises(KeyboardInterrupt), data.replacing(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert [file.name for file in tmp_path.iterdir()] == ["a.npz"]
    assert data.read_npz(path, ["x"])["x"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("dataset", ["fashion-mnist", "mnist"])
def test_load_images(tmp_path, dataset):
    expected = write_images(tmp_path / dataset)
    images = data.load_images(tmp_path, dataset)
    got = [images.x_train, images.y_train, images.x_test, images.y_test]
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_load_images_says_what_is_wrong(tmp_path):
    with pytest.raises(DataError, match="'cifar'"):
        data.load_images(tmp_path, "cifar")
    with pytest.raises(DataError, match=r"train-images.*data_scripts\.fetch mnist"):
        data.load_images(tmp_path, "mnist")
    write_images(tmp_path / "mnist", size=27)
    with pytest.raises(DataError, match=r"train-images.*\[3, 27, 27\]"):
        data.load_images(tmp_path, "mnist")
    write_images(tmp_path / "fashion-mnist")
    labels = tmp_path / "fashion-mnist" / "t10k-labels-idx1-ubyte.gz"
    for wrong, reason in (([1, 2, 3], "expected 2 labels"), ([1, 10], "got 10")):
        labels.write_bytes(gzip.compress(idx(np.array(wrong))))
        with pytest.raises(DataError, match=f"t10k-labels.*{reason}"):
            data.load_images(tmp_path, "fashion-mnist")


@pytest.mark.parametrize(
    ("dataset", "mean", "std"),
    [("fashion-mnist", 0.28604, 0.35302), ("mnist", 0.13066, 0.30811)],
)
def test_the_real_images_have_the_published_statistics(dataset, mean, std):
    if "GSYM_DATA" not in os.environ:
        pytest.skip("GSYM_DATA, the data directory, is not set")
    images = data.load_images(Path(os.environ["GSYM_DATA"]), dataset)
    assert images.x_train.shape == (60000, 28, 28)
    assert images.x_test.shape == (10000, 28, 28)
    assert images.x_train.mean() / 255 == pytest.approx(mean, abs=1e-5)
    assert images.x_train.std() / 255 == pytest.approx(std, abs=1e-5)
