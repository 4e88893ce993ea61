"""Where the benchmark data lie, and what their files must hash to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """One file to download.

    Attributes:
        urls: Where it lies, in the order to try.
        checksum: ``"sha256:..."`` or ``"md5:..."``.
        confirmed: Whether the host or several parties state the checksum. One that a single third
            party states may be wrong: a file that has another is taken on demand only.
    """

    urls: tuple[str, ...]
    checksum: str
    confirmed: bool = True


def _four_files(bases: tuple[str, ...], checksums: tuple[str, ...]) -> dict[str, Source]:
    names = [
        f"{part}-{kind}-ubyte.gz"
        for part in ("train", "t10k")
        for kind in ("images-idx3", "labels-idx1")
    ]
    return {
        name: Source(tuple(base + name for base in bases), f"sha256:{checksum}")
        for name, checksum in zip(names, checksums, strict=True)
    }


_DCRNN = "https://raw.githubusercontent.com/liyaguang/DCRNN/{}/data/sensor_graph/{}"
_DCRNN_COMMITS = ("master", "602afd9d767d3aa1c9b3eac51710d6aeee12c227")
_ZENODO = "https://zenodo.org/{}"

SOURCES: dict[str, dict[str, Source]] = {
    "fashion-mnist": _four_files(
        (
            # The address that its authors give, of the same bucket, has no TLS.
            "https://fashion-mnist.s3.eu-central-1.amazonaws.com/",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        ),
        (
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        ),
    ),
    "mnist": _four_files(
        (
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        (
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
    ),
    "metr-la": {
        "METR-LA.csv": Source(
            (
                _ZENODO.format("records/5146275/files/METR-LA.csv?download=1"),
                _ZENODO.format("api/records/5146275/files/METR-LA.csv/content"),
            ),
            "md5:d3adaa79856bf610f25558fc242c7190",
        ),
        "adj_mx.pkl": Source(
            tuple(_DCRNN.format(commit, "adj_mx.pkl") for commit in _DCRNN_COMMITS),
            "sha256:a35687c6e15aa228dc45027b0ed2a0ea0f4ec78f573deb992c595092d12f61b3",
        ),
        "graph_sensor_locations.csv": Source(
            tuple(_DCRNN.format(commit, "graph_sensor_locations.csv") for commit in _DCRNN_COMMITS),
            "sha256:eb8ea96e07358b45d0e4ba3b89c2673fa20c54af50150249e627389e749ade6f",
        ),
    },
    "cmu": {
        "allasfamc.zip": Source(
            # Of old the host spoke no TLS.
            ("https://mocap.cs.cmu.edu/allasfamc.zip", "http://mocap.cs.cmu.edu/allasfamc.zip"),
            "sha256:4b0fc3a7ba3cbb2aa23948b4cefe7efa45edf864b2b5e00713659a4f2144a591",
            confirmed=False,
        ),
    },
}
