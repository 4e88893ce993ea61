import hashlib
import io
import os
import pickle
import subprocess
import sys
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

pytest.importorskip("pooch")
pytest.importorskip("requests")
pytest.importorskip("rich")
pytest.importorskip("tyro")

from data_scripts import asf_amc, fetch
from gsym_bench.data import DataError, write_npz

CONTENT = np.random.default_rng(0).bytes(3000)
ROOT = Path(fetch.__file__).parents[1]


def sha256(content):
    return "sha256:" + hashlib.sha256(content).hexdigest()


class Host:
    """A server on this machine; tests state what it holds and how it misbehaves."""

    def __init__(self):
        self.files = {}
        self.ranges = True
        self.cuts = []  # bodies end early, after so many bytes, one per request
        self.asked = []  # (path, Range header)
        host = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                asked = self.headers.get("Range")
                host.asked.append((self.path, asked))
                body = host.files.get(self.path)
                if body is None:
                    self.send_error(404)
                    return
                size, start = len(body), 0
                if asked and host.ranges:
                    start = int(asked.removeprefix("bytes=").removesuffix("-"))
                    self.send_response(206 if start < size else 416)
                    span = f"{start}-{size - 1}" if start < size else "*"
                    self.send_header("Content-Range", f"bytes {span}/{size}")
                else:
                    self.send_response(200)
                body = body[start:]
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: host.cuts.pop(0)] if host.cuts else body)
                self.close_connection = True

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def stop(self):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def host(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(fetch, "CHUNK", 100)
    host = Host()
    yield host
    host.stop()


@pytest.fixture
def source(host, monkeypatch):
    """One file, ``a.gz`` of the data set ``mnist``, on one host."""
    host.files["/a.gz"] = CONTENT
    return serve(monkeypatch, f"{host.url}/a.gz")


def serve(monkeypatch, *urls, content=CONTENT):
    source = fetch.Source(urls, sha256(content))
    monkeypatch.setitem(fetch.SOURCES, "mnist", {"a.gz": source})
    return source


def left(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


# Downloads


def test_downloads_once(source, host, tmp_path):
    fetch.fetch("mnist", tmp_path)
    assert (tmp_path / "mnist" / "a.gz").read_bytes() == CONTENT
    fetch.fetch("mnist", tmp_path)
    assert host.asked == [("/a.gz", None)]
    assert left(tmp_path) == ["a.gz"]


def test_goes_on_after_a_cut_connection(source, host, tmp_path):
    host.cuts = [1250]
    fetch.fetch("mnist", tmp_path)
    assert (tmp_path / "mnist" / "a.gz").read_bytes() == CONTENT
    assert [asked for _, asked in host.asked] == [None, "bytes=1200-"]


def test_goes_on_in_the_next_call(source, host, tmp_path):
    host.cuts = [500, 500]
    with pytest.raises(DataError, match="goes on where it stopped"):
        fetch.fetch("mnist", tmp_path)
    assert left(tmp_path) == ["a.gz.part"]
    fetch.fetch("mnist", tmp_path)
    assert (tmp_path / "mnist" / "a.gz").read_bytes() == CONTENT
    assert [asked for _, asked in host.asked] == [None, "bytes=500-", "bytes=1000-"]


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize(
    "part", [b"", CONTENT[:1], CONTENT[:2999], CONTENT, CONTENT + b"more"], ids=len
)
def test_goes_on_from_any_part(source, host, tmp_path, ranges, part):
    host.ranges = ranges
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "a.gz.part").write_bytes(part)
    fetch.fetch("mnist", tmp_path)
    assert (tmp_path / "mnist" / "a.gz").read_bytes() == CONTENT
    assert left(tmp_path) == ["a.gz"]


def test_a_foreign_part_is_deleted_and_downloaded_anew(source, host, tmp_path):
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "a.gz.part").write_bytes(b"something else")
    fetch.fetch("mnist", tmp_path)
    assert (tmp_path / "mnist" / "a.gz").read_bytes() == CONTENT


@pytest.mark.parametrize(
    "wrong",
    [CONTENT[:700] + bytes([CONTENT[700] ^ 1]) + CONTENT[701:], CONTENT[:-1], b""],
    ids=["flipped", "truncated", "empty"],
)
def test_a_wrong_file_is_deleted_and_named(source, host, tmp_path, wrong):
    host.files["/a.gz"] = wrong
    with pytest.raises(DataError) as caught:
        fetch.fetch("mnist", tmp_path)
    assert f"{source.checksum.split(':')[1]}, got {sha256(wrong).split(':')[1]}" in str(
        caught.value
    )
    assert "the file was deleted" in str(caught.value)
    assert left(tmp_path) == []


def test_a_damaged_file_on_disk_is_downloaded_anew(source, host, tmp_path, capsys):
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "a.gz").write_bytes(CONTENT[:-1])
    fetch.fetch("mnist", tmp_path)
    assert (tmp_path / "mnist" / "a.gz").read_bytes() == CONTENT
    assert "getting it again" in capsys.readouterr().out


@pytest.mark.parametrize("bad", ["absent", "damaged"])
def test_the_next_mirror_is_tried(host, monkeypatch, tmp_path, bad):
    host.files["/good"] = CONTENT
    host.files["/damaged"] = CONTENT[::-1]
    serve(monkeypatch, f"{host.url}/{bad}", f"{host.url}/good")
    fetch.fetch("mnist", tmp_path)
    assert (tmp_path / "mnist" / "a.gz").read_bytes() == CONTENT
    assert [path for path, _ in host.asked] == [f"/{bad}", "/good"]


def test_all_hosts_down_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    closed = Host()
    closed.stop()
    serve(monkeypatch, f"{closed.url}/one", f"{closed.url}/two")
    with pytest.raises(DataError) as caught:
        fetch.fetch("mnist", tmp_path)
    message = str(caught.value)
    by_hand = tmp_path / "by-hand"
    assert f"{closed.url}/one" in message
    assert f"{closed.url}/two" in message
    assert "the files of mnist (a.gz) by other means" in message
    assert f"into the folder {by_hand}" in message
    assert f"python -m data_scripts.fetch mnist --out {tmp_path} --from {by_hand}" in message
    by_hand.mkdir()
    (by_hand / "a.gz").write_bytes(CONTENT)
    fetch.fetch("mnist", tmp_path, by_hand)
    assert (tmp_path / "mnist" / "a.gz").read_bytes() == CONTENT


def test_certificates_are_verified(monkeypatch, tmp_path):
    serve(monkeypatch, "https://127.0.0.1/a.gz")
    seen = []

    def send(session, request, **options):
        seen.append(options["verify"])
        raise fetch.requests.exceptions.SSLError("self-signed")

    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.delenv("CURL_CA_BUNDLE", raising=False)
    monkeypatch.setattr(fetch.requests.Session, "send", send)
    with pytest.raises(DataError, match="self-signed"):
        fetch.fetch("mnist", tmp_path)
    assert seen == [True] * fetch.ROUNDS


def test_a_way_from_tls_to_none_is_refused(monkeypatch, tmp_path):
    serve(monkeypatch, "https://127.0.0.1/a.gz")

    def get(url, **options):
        response = fetch.requests.Response()
        step = fetch.requests.Response()
        step.url, response.url, response.history = url, "http://elsewhere/a.gz", [step]
        response.status_code, response.raw = 200, io.BytesIO(CONTENT)
        return response

    monkeypatch.setattr(fetch.requests, "get", get)
    with pytest.raises(DataError, match=r"led to http://elsewhere/a\.gz, which has no TLS"):
        fetch.fetch("mnist", tmp_path)
    assert left(tmp_path) == []


def test_what_came_without_tls_is_never_unverified(host, monkeypatch, tmp_path):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("07_01.amc", "1")
    host.files["/allasfamc.zip"] = content.getvalue()
    source = fetch.Source((f"{host.url}/allasfamc.zip",), sha256(b"another"), confirmed=False)
    monkeypatch.setitem(fetch.SOURCES, "cmu", {"allasfamc.zip": source})
    with pytest.raises(DataError, match="the file was deleted"):
        fetch.fetch("cmu", tmp_path / "out", allow_unverified=True)
    assert left(tmp_path / "out") == []


def test_an_interrupted_download_says_how_to_go_on(monkeypatch, tmp_path, capsys):
    serve(monkeypatch, "https://127.0.0.1/a.gz")

    def get(url, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch.requests, "get", get)
    with pytest.raises(SystemExit) as stop:
        fetch.main("mnist", tmp_path)
    assert stop.value.code == 130
    assert capsys.readouterr().out == "interrupted; the same command goes on where it stopped\n"


def test_the_real_table_has_addresses_and_whole_checksums():
    assert set(fetch.SOURCES) == {"fashion-mnist", "mnist", "metr-la", "cmu"}
    for files in fetch.SOURCES.values():
        for source in files.values():
            algorithm, checksum = source.checksum.split(":")
            assert len(bytes.fromhex(checksum)) == {"sha256": 32, "md5": 16}[algorithm]
            assert source.urls
            assert source.urls[0].startswith("https://")
            assert all(url.startswith(("https://", "http://")) for url in source.urls)
    bare = {u for files in fetch.SOURCES.values() for s in files.values() for u in s.urls
            if not u.startswith("https://")}  # fmt: skip
    assert bare == {"http://mocap.cs.cmu.edu/allasfamc.zip"}
    assert not fetch.SOURCES["cmu"]["allasfamc.zip"].confirmed


# Files that are there already


def test_from_finds_the_file_whose_checksum_fits(monkeypatch, tmp_path):
    serve(monkeypatch)
    for folder, content in (("fashion-mnist", b"same name"), ("mnist", CONTENT)):
        (tmp_path / "in" / folder).mkdir(parents=True)
        (tmp_path / "in" / folder / "a.gz").write_bytes(content)
    fetch.fetch("mnist", tmp_path / "out", tmp_path / "in")
    assert (tmp_path / "out" / "mnist" / "a.gz").read_bytes() == CONTENT
    assert (tmp_path / "in" / "fashion-mnist" / "a.gz").read_bytes() == b"same name"


def test_from_says_what_is_missing_and_keeps_what_is_wrong(monkeypatch, tmp_path):
    serve(monkeypatch)
    (tmp_path / "in").mkdir()
    with pytest.raises(DataError, match=r"a\.gz: not in .*in\n.*data_scripts\.fetch mnist"):
        fetch.fetch("mnist", tmp_path / "out", tmp_path / "in")
    (tmp_path / "in" / "a.gz").write_bytes(b"wrong")
    with pytest.raises(DataError, match=r"in/a\.gz: expected sha256"):
        fetch.fetch("mnist", tmp_path / "out", tmp_path / "in")
    assert (tmp_path / "in" / "a.gz").read_bytes() == b"wrong"
    assert left(tmp_path / "out") == []


def test_main_reports_every_failure(monkeypatch, tmp_path):
    for name in fetch.SOURCES:
        monkeypatch.setitem(fetch.SOURCES, name, {f"{name}.raw": fetch.Source((), "md5:0")})
    with pytest.raises(SystemExit) as caught:
        fetch.main("all", tmp_path / "out", tmp_path)
    assert all(f"{name}.raw: not in" in str(caught.value) for name in fetch.SOURCES)
    with pytest.raises(SystemExit, match="expects a folder"):
        fetch.main("mnist", tmp_path, tmp_path / "nowhere")


def test_runs_as_a_script_from_anywhere(tmp_path):
    script = ROOT / "data_scripts" / "fetch.py"
    command = [sys.executable, str(script), "mnist", "--out", "out", "--from", "."]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "train-images-idx3-ubyte.gz: not in" in done.stderr
    assert "Traceback" not in done.stderr


# METR-LA


class Python2Pickler(pickle._Pickler):
    """Writes text and bytes with the opcodes of Python 2, which the original file has."""

    dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012

    def save_str2(self, value):
        raw = value if isinstance(value, bytes) else value.encode()
        if self.proto == 0:
            self.write(pickle.STRING + repr(raw)[1:].encode() + b"\n")
        else:
            self.write(pickle.BINSTRING + len(raw).to_bytes(4, "little") + raw)
        self.memoize(value)

    dispatch[bytes] = dispatch[str] = save_str2


def python2_pickle(path, value, protocol):
    with path.open("wb") as file:
        Python2Pickler(file, protocol).dump(value)
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))


IDS = ["773869", "767541", "767542"]
ADJ = np.array([[1, 0.5, 0], [0.25, 1, 0], [0, 0, 1]], np.float32)


@pytest.fixture
def metr_la(tmp_path, monkeypatch):
    """A folder with three sensors, two time steps, and the checksums to match."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "METR-LA.csv").write_text(
        f",{','.join(IDS)}\n"
        "2012-03-01 00:00:00,64.375,0.0,67.125\n"
        "2012-03-01 00:05:00,62.666666666666664,1.5,0.0\n"
    )
    (folder / "graph_sensor_locations.csv").write_text(
        "index,sensor_id,latitude,longitude\n"
        + "".join(f"{i},{name},34.{i},-118.{i}\n" for i, name in enumerate(IDS))
    )
    ids_to_rows = {name: i for i, name in enumerate(IDS)}
    python2_pickle(folder / "adj_mx.pkl", [IDS, ids_to_rows, ADJ], 2)
    register(monkeypatch, folder)
    return folder


def register(monkeypatch, folder):
    sources = {
        name: fetch.Source((), sha256((folder / name).read_bytes()))
        for name in fetch.SOURCES["metr-la"]
    }
    monkeypatch.setitem(fetch.SOURCES, "metr-la", sources)


def test_metr_la_is_converted(metr_la, tmp_path):
    fetch.fetch("metr-la", tmp_path / "out", metr_la)
    with np.load(tmp_path / "out" / "traffic" / "metr_la.npz", allow_pickle=False) as z:
        assert z["speed"].dtype == np.float32
        np.testing.assert_array_equal(
            z["speed"], np.array([[64.375, 0, 67.125], [188 / 3, 1.5, 0]], np.float32)
        )
        assert z["time_unix"].dtype == np.int64
        assert z["time_unix"].tolist() == [1330560000, 1330560300]
        assert z["sensor_ids"].dtype == np.int32
        assert z["sensor_ids"].tolist() == [int(name) for name in IDS]
        np.testing.assert_array_equal(z["adj"], ADJ)
        np.testing.assert_array_equal(z["latlon"], [[34.0, -118.0], [34.1, -118.1], [34.2, -118.2]])
    assert left(tmp_path / "out") == ["metr_la.npz"]


def test_metr_la_is_downloaded_and_converted(metr_la, host, monkeypatch, tmp_path):
    for name, source in fetch.SOURCES["metr-la"].items():
        host.files[f"/{name}"] = (metr_la / name).read_bytes()
        moved = fetch.Source((f"{host.url}/{name}",), source.checksum)
        monkeypatch.setitem(fetch.SOURCES["metr-la"], name, moved)
    fetch.fetch("metr-la", tmp_path / "out")
    fetch.fetch("metr-la", tmp_path / "out")
    assert len(host.asked) == 3
    path = tmp_path / "out" / "traffic" / "metr_la.npz"
    path.write_bytes(path.read_bytes()[:-10])
    fetch.fetch("metr-la", tmp_path / "out")
    assert len(host.asked) == 3, "the raw files were not kept"
    fetch.validate(path, fetch.CONVERTED["metr-la"])


@pytest.mark.parametrize(
    ("name", "old", "new", "reason"),
    [
        ("METR-LA.csv", "0.0,67.125", "0.0", "malformed"),
        ("METR-LA.csv", "64.375", "fast", "malformed"),
        ("METR-LA.csv", "2012-03-01 00:00", "yesterday", "malformed"),
        ("METR-LA.csv", "773869", "1", "other sensors"),
        ("graph_sensor_locations.csv", "767541", "2", "other sensors"),
    ],
)
def test_metr_la_refuses_malformed_files(metr_la, monkeypatch, tmp_path, name, old, new, reason):
    text = (metr_la / name).read_text()
    assert old in text
    (metr_la / name).write_text(text.replace(old, new, 1))
    register(monkeypatch, metr_la)
    with pytest.raises(DataError, match=reason):
        fetch.fetch("metr-la", tmp_path / "out", metr_la)
    assert left(tmp_path / "out") == []


@pytest.mark.parametrize("protocol", [0, 2])
def test_reads_a_pickle_of_python_2(tmp_path, protocol):
    path = tmp_path / "adj_mx.pkl"
    python2_pickle(path, [IDS, {name: i for i, name in enumerate(IDS)}, ADJ], protocol)
    raw = path.read_bytes()
    assert b"numpy.core.multiarray" in raw
    assert raw.startswith(b"(lp" if protocol == 0 else b"\x80\x02")
    ids, adj = fetch.read_adjacency(path, hashlib.sha256(raw).hexdigest())
    assert ids == [int(name) for name in IDS]
    assert adj.dtype == np.float32
    np.testing.assert_array_equal(adj, ADJ)


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("protocol", [0, 2, pickle.HIGHEST_PROTOCOL])
def test_a_malicious_pickle_does_not_run(tmp_path, protocol, known):
    path, ran = tmp_path / "adj_mx.pkl", tmp_path / "ran"
    raw = pickle.dumps([IDS, Touch(ran), ADJ], protocol)
    path.write_bytes(raw)
    checksum = hashlib.sha256(raw).hexdigest() if known else "0" * 64
    reason = r"mkdir is not admitted" if known else "the pickle was not opened"
    with pytest.raises(DataError, match=reason):
        fetch.read_adjacency(path, checksum)
    assert not ran.exists()
    pickle.loads(raw)
    assert ran.exists(), "the control did not run either"


@pytest.mark.parametrize(
    "value", [[IDS, {}], [IDS, {}, ADJ[:2]], [IDS, {}, "text"], [["a"], {}, ADJ], 3], ids=str
)
def test_refuses_a_pickle_of_something_else(tmp_path, value):
    path = tmp_path / "adj_mx.pkl"
    python2_pickle(path, value, 2)
    with pytest.raises(DataError, match=r"adj_mx\.pkl"):
        fetch.read_adjacency(path, hashlib.sha256(path.read_bytes()).hexdigest())


def finished(folder, **changes):
    arrays = {
        "speed": np.zeros((4, 3), np.float32),
        "time_unix": np.zeros(4, np.int64),
        "sensor_ids": np.zeros(3, np.int32),
        "adj": np.zeros((3, 3), np.float32),
        "latlon": np.zeros((3, 2)),
    }
    folder.mkdir(exist_ok=True)
    write_npz(folder / "metr_la.npz", **(arrays | changes))
    return folder / "metr_la.npz"


def test_from_copies_a_finished_file(tmp_path, capsys, monkeypatch):
    path = finished(tmp_path / "in")
    fetch.fetch("metr-la", tmp_path / "one", tmp_path / "in")
    assert (tmp_path / "one" / "traffic" / "metr_la.npz").read_bytes() == path.read_bytes()
    assert "is not the copy of the published results" in capsys.readouterr().out
    known = fetch.CONVERTED["metr-la"]
    digest = sha256(path.read_bytes()).removeprefix("sha256:")
    target = fetch.Converted(known.path, known.shapes, digest, known.convert)
    monkeypatch.setitem(fetch.CONVERTED, "metr-la", target)
    fetch.fetch("metr-la", tmp_path / "two", tmp_path / "in")
    assert "is not the copy" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("key", "shape", "reason"),
    [
        ("speed", (4,), r"speed of shape \['t', 'n'\], got \[4\]"),
        ("time_unix", (5,), r"time_unix of shape \[4\], got \[5\]"),
        ("adj", (3, 2), r"adj of shape \[3, 3\], got \[3, 2\]"),
        ("latlon", (3, 3), r"latlon of shape \[3, 2\], got \[3, 3\]"),
    ],
)
def test_from_refuses_a_finished_file_of_other_shapes(tmp_path, key, shape, reason):
    finished(tmp_path / "in", **{key: np.zeros(shape)})
    with pytest.raises(DataError, match=reason):
        fetch.fetch("metr-la", tmp_path / "out", tmp_path / "in")
    assert left(tmp_path / "out") == []


# The real files


@pytest.mark.parametrize("dataset", ["fashion-mnist", "mnist", "metr-la", "cmu"])
def test_the_real_files_are_taken_over(dataset, tmp_path, capsys):
    if "GSYM_DATA" not in os.environ:
        pytest.skip("GSYM_DATA, the data directory, is not set")
    fetch.fetch(dataset, tmp_path, Path(os.environ["GSYM_DATA"]))
    assert "is not the copy" not in capsys.readouterr().out
    expected = fetch.CONVERTED[dataset].path if dataset in fetch.CONVERTED else None
    names = [Path(expected).name] if expected else sorted(fetch.SOURCES[dataset])
    assert left(tmp_path) == names


def test_the_real_tables_agree_with_ours():
    if "GSYM_DATA" not in os.environ:
        pytest.skip("GSYM_DATA, the data directory, is not set")
    path = Path(os.environ["GSYM_DATA"]) / fetch.CONVERTED["cmu"].path
    with np.load(path, allow_pickle=False) as z:
        for name, table in asf_amc.joint_tables().items():
            assert z[name].dtype.kind == table.dtype.kind
            if name != "asf_names":
                np.testing.assert_array_equal(z[name], table, err_msg=name)
        assert set(z) == set(fetch.CONVERTED["cmu"].shapes)
