"""The page as a file: what it holds, what it refuses, what it survives."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import networkx as nx
import numpy as np
import pytest
import torch
from stub_choice import candidate, chain, choice, path_graph

import gsym
from gsym.choosing.page import write_page
from gsym.choosing.page.drawing import NUM_COLOURS, cluster_colours, grid_cells, place
from gsym.choosing.page.script import code
from gsym.errors import SignalError

HOSTILE = '</script><b id="hacked">\'"&\u2028\x00\ud800{{ 7 * 7 }}'


class Tags(HTMLParser):
    """Every element with its attributes, and the text of scripts."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.found, self.scripts, self._script = [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self._script = dict(attrs) if tag == "script" else self._script

    def handle_data(self, data):
        if self._script is not None:
            self.scripts.append((self._script, data))

    def handle_endtag(self, tag):
        if tag == "script":
            self._script = None

    def of(self, name):
        return [attrs for tag, attrs in self.found if tag == name]


def written(shown, tmp_path, **options):
    path = write_page(shown, tmp_path / "page.html", **options)
    text = path.read_text(encoding="utf-8")
    tags = Tags(text)
    (data,) = [body for attrs, body in tags.scripts if attrs.get("id") == "data"]

    def no_constant(name):
        raise AssertionError(f"{name} is not JSON")

    return text, tags, json.loads(data, parse_constant=no_constant)


def unpack(text, dtype):
    return np.frombuffer(base64.b64decode(text), dtype)


def test_holds_every_candidate(tmp_path):
    shown = chain()
    text, tags, data = written(shown, tmp_path, title="A path")
    rows = data["candidates"]
    assert [row["clusters"] for row in rows][:2] == ["12 clusters", "6 clusters"]
    assert rows[-1]["clusters"] == "1 cluster"
    assert (data["best"], data["simplest"]) == (2, 3)
    for row, known in zip(rows, shown.candidates, strict=True):
        assert unpack(row["labels"], "<u2").tolist() == known.partition.labels.tolist()
        assert row["sizes"] == list(known.partition.sizes)
        assert row["dim"] == f"{known.commutant_dim:,}"
        matrix = unpack(row["matrix"]["values"], "<i2") / 32767 * row["matrix"]["largest"]
        order = row["matrix"]["order"]
        expected = known.matrix[np.ix_(order, order)].flatten()
        assert matrix == pytest.approx(expected, abs=1e-3 * max(1, abs(expected).max()))
    assert rows[2]["score"] == "0.300 ± 0.010"
    assert rows[0]["above"] == "0.6000 ± 0.0025 above the lowest"
    assert "<title>A path</title>" in text
    assert len(tags.of("circle")) >= 12 and len(tags.of("tr")) == 6 + 1 + 3


def test_asks_nothing_of_the_network_and_runs_its_own_script_only(tmp_path):
    text, tags, _ = written(chain(), tmp_path)
    assert not any({"src", "srcset", "action"} & attrs.keys() for _, attrs in tags.found)
    links = [attrs for _, attrs in tags.found if "href" in attrs]
    assert [a["href"].split(":")[0] for a in links] == ["data", "data"]
    assert all("download" in attrs for attrs in links)
    assert not {"link", "img", "iframe", "object", "base"} & {tag for tag, _ in tags.found}
    assert "url(" not in text and "@import" not in text
    (policy,) = [
        m["content"] for m in tags.of("meta") if "content-security-policy" in str(m).lower()
    ]
    assert policy.startswith("default-src 'none'")
    (script,) = [body for attrs, body in tags.scripts if not attrs]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and "unsafe-eval" not in policy
    assert not any(name.startswith("on") for _, attrs in tags.found for name in attrs)


def test_user_text_stays_text(tmp_path):
    shown = chain()
    shown.criterion = HOSTILE
    text, tags, _ = written(
        shown, tmp_path, title=HOSTILE, names=[f"{i}{HOSTILE}" for i in range(12)]
    )
    assert not any(attrs.get("id") == "hacked" for _, attrs in tags.found)
    assert "<b id" not in text and "49" not in text.split("<style>")[0]
    assert len(tags.scripts) == 2
    assert "{{ 7 * 7 }}" in text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_missing_numbers(tmp_path, value):
    shown = chain()
    for c in shown.candidates[:2]:
        c.score = float("nan") if value is None else value
        c.standard_error = c.gap = c.gap_error = float("nan")
        c.bias = c.variance = value
    shown.candidates[1].matrix = None
    shown.candidates[2].matrix = np.full((3, 3), np.nan)
    shown.regret_bound = float("nan")
    text, _, data = written(shown, tmp_path)
    assert data["candidates"][0]["score"] == "not estimated" and data["candidates"][0]["y"] is None
    assert data["candidates"][1]["matrix"] is None and data["candidates"][0]["parts"] == []
    assert "NaN" not in text.split('id="data"')[1].split("</script>")[0]
    assert "more risk" not in text


def test_no_score_at_all(tmp_path):
    shown = chain(scores=(float("nan"),) * 5)
    _, tags, data = written(shown, tmp_path)
    assert all(row["y"] is None for row in data["candidates"])
    assert not [p for p in tags.of("path") if p.get("class") == "dot"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positions": np.zeros((11, 2))}, r"positions must be \[12, 2\].*got \[11, 2\]"),
        ({"positions": torch.zeros(12, 3)}, r"got \[12, 3\]"),
        ({"positions": np.array([[np.nan, 0]] * 12)}, "those of node 0 are"),
        ({"names": ["a"]}, "names must be a list of 12, one per node; got 1"),
        ({"names": "abcdefghijkl"}, "names must be a list"),
    ],
)
def test_wrong_input_leaves_the_old_file(tmp_path, options, message):
    path = tmp_path / "page.html"
    path.write_text("old")
    with pytest.raises(SignalError, match=message):
        write_page(chain(), path, **options)
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_matrix_of_another_size_is_refused(tmp_path):
    shown = chain()
    shown.candidates[1].matrix = np.zeros((5, 5))
    with pytest.raises(SignalError, match=r"matrix of 6 clusters must be \[6, 6\]; got \[5, 5\]"):
        write_page(shown, tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


def test_folder_that_does_not_exist(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        write_page(chain(), tmp_path / "nowhere" / "page.html")


def run(text):
    names = {}
    exec(text, names)
    return names["layer"].group


def as_text(row):
    labels = ", ".join(map(str, unpack(row["labels"], "<u2").tolist()))
    return row["code"].replace("LABELS", labels) if row["listed"] else row["code"]


def mirrored():
    partition = gsym.Partition.from_labels([0, 0, 1, 1, 2, 2])
    swaps = gsym.PermutationGroup.from_cycles(3, [(0, 1, 2)])
    group = gsym.ClusterGroup(partition, swaps=swaps)
    return candidate(group, 0.4, partition=partition)


def test_the_code_builds_the_layer(tmp_path):
    rotation = gsym.PermutationGroup.from_cycles(6, [(0, 1, 2, 3, 4, 5)])
    shown = choice(
        [
            candidate(gsym.Partition.singletons(6), 0.5),
            candidate(gsym.Partition.from_labels([0, 1, 1, 0, 2, 2]), 0.2),
            mirrored(),
            candidate(rotation, 0.6),
            candidate(gsym.PermutationGroup.trivial(6), 0.7),
            candidate(gsym.Partition.single(6), 0.8),
        ]
    )
    _, _, data = written(shown, tmp_path)
    for row, known in zip(data["candidates"], shown.candidates, strict=True):
        group = run(as_text(row))
        assert torch.equal(group.pair_orbits().index, known.group.pair_orbits().index), row["code"]


@pytest.mark.parametrize("patch", [1, 2, (2, 3), 4, 12])
def test_patches_of_an_image_have_short_code(tmp_path, patch):
    partition = gsym.Partition.grid(12, 12, patch)
    cells = torch.cartesian_prod(torch.arange(12), torch.arange(12))
    shown = choice([candidate(partition, 0.1)])
    _, tags, data = written(shown, tmp_path, positions=cells.flip(1) * torch.tensor([1, -1]))
    row = data["candidates"][0]
    assert not row["listed"] and len(row["code"]) < 200
    assert run(row["code"]).partition == partition
    assert data["columns"] == 12 and data["cells"] == list(range(144))
    assert len(tags.of("circle")) < 5 and len(tags.of("rect")) >= 144


def test_columns_first_grids_list_their_labels(tmp_path):
    partition = gsym.Partition.grid(4, 6, 2)
    cells = torch.cartesian_prod(torch.arange(6), torch.arange(4))
    shown = choice([candidate(partition, 0.1)])
    _, _, data = written(shown, tmp_path, positions=cells * torch.tensor([1, -1]))
    assert data["candidates"][0]["listed"]
    assert run(as_text(data["candidates"][0])).partition == partition


def test_large_matrices_are_averaged(tmp_path):
    n = 100
    known = candidate(gsym.Partition.singletons(n), 0.5)
    known.matrix = np.outer(np.arange(n), np.ones(n))
    known.matrix[0, 0] = np.nan
    _, _, data = written(choice([known]), tmp_path)
    matrix = data["candidates"][0]["matrix"]
    assert (matrix["cells"], matrix["parts"], matrix["order"]) == (64, 100, None)
    values = unpack(matrix["values"], "<i2").reshape(64, 64) / 32767 * matrix["largest"]
    cut = np.arange(64) * n // 64
    means = np.add.reduceat(np.arange(n, dtype=float), cut) / np.diff([*cut, n])
    assert values[:, 5] == pytest.approx(means, abs=0.01)
    assert values[0, 0] < -98, "the cell without a number is marked, not drawn"


def test_many_candidates_are_thinned(tmp_path):
    n = 250
    counts = range(n, 0, -1)
    scores = [abs(k - 77) for k in counts]
    shown = chain(n, tuple(counts), tuple(scores))
    text, _, data = written(shown, tmp_path)
    assert 190 <= len(data["candidates"]) <= 200
    kept = [row["clusters"] for row in data["candidates"]]
    assert kept[0] == "250 clusters" and kept[-1] == "1 cluster"
    assert kept[data["best"]] == "77 clusters"
    assert "of 250 candidates are shown" in text


def test_a_large_graph_is_drawn_coarsened(tmp_path):
    n = 6000
    fine = gsym.Partition(torch.arange(n) // 4)
    coarse = gsym.Partition(torch.arange(n) // 1000)
    shown = choice(
        [
            candidate(fine, 0.5, matrix=None),
            candidate(coarse, 0.2),
        ],
        edge_index=path_graph(n),
    )
    text, tags, data = written(shown, tmp_path)
    rows = data["candidates"]
    assert data["coarsened"] and unpack(rows[0]["labels"], "<u2").size == 1500
    assert len(tags.of("option")) == 0 and "Each dot stands for several of 6,000 nodes" in text
    assert rows[1]["sizes"] == [1000] * 6
    assert "choice.candidates[1].group" in rows[1]["code"] and not rows[1]["listed"]
    assert len(text) < 600_000


def test_a_large_graph_without_a_level_to_draw(tmp_path):
    n = 5200
    shown = choice(
        [candidate(gsym.Partition.single(n), 0.2)],
        edge_index=path_graph(n),
    )
    _, _, data = written(shown, tmp_path, names=[HOSTILE] * n)
    labels = unpack(data["candidates"][0]["labels"], "<u2")
    assert labels.size == 2500 and not labels.any()


@pytest.mark.parametrize("n", [1, 2, 5])
def test_small_and_empty_graphs(tmp_path, n):
    for edge_index in (None, torch.empty(2, 0, dtype=torch.int64)):
        shown = choice([candidate(gsym.Partition.single(n), 1.0)], edge_index=edge_index)
        _, _, data = written(shown, tmp_path)
        assert unpack(data["candidates"][0]["labels"], "<u2").size == n


def test_nodes_in_one_place_are_drawn(tmp_path):
    text, _, _ = written(chain(), tmp_path, positions=np.full((12, 2), 3e8))
    assert "nan" not in text.split('id="nodes"')[1].split("</svg>")[0]
    text, _, _ = written(
        chain(), tmp_path, positions=np.array([[0, 1e-300 * i] for i in range(12)])
    )
    assert "nan" not in text.split('id="nodes"')[1].split("</svg>")[0]


def test_the_layout_follows_the_graph():
    graph = nx.convert_node_labels_to_integers(nx.grid_2d_graph(6, 9))
    edges = np.array(graph.edges).T
    positions = place(edges, 54)
    lengths = np.linalg.norm(positions[edges[0]] - positions[edges[1]], axis=1)
    assert lengths.std() / lengths.mean() < 0.35
    apart = np.linalg.norm(positions[0] - positions[-1])
    assert apart > 6 * lengths.mean()
    assert np.array_equal(positions, place(edges, 54)), "the same graph is drawn alike"


def test_components_do_not_overlap():
    star = np.array([[0] * 8, list(range(1, 9))])
    cycle = np.array([[9, 10, 11], [10, 11, 9]])
    positions = place(np.hstack([star, cycle]), 14)
    parts = [positions[:9], positions[9:12], positions[12:13], positions[13:]]
    for i, one in enumerate(parts):
        for other in parts[:i]:
            gaps = np.maximum(one.min(0) - other.max(0), other.min(0) - one.max(0))
            assert gaps.max() > 0
    leaves = positions[1:9]
    distances = np.linalg.norm(leaves[:, None] - leaves[None], axis=-1) + np.eye(8)
    assert distances.min() > 0, "twins do not hide each other"


def test_grid_cells_are_found_and_nothing_else_is():
    cells = np.array([[x, y] for y in range(3) for x in range(4)], dtype=float)
    column, row = grid_cells(cells)
    assert row[0] == 2 and column[0] == 0, "y points upwards"
    assert grid_cells(np.vstack([cells[:-1], cells[:1]])) is None, "one cell twice, one empty"
    assert grid_cells(cells[:4]) is None, "a line is no grid"


def test_colours_follow_the_largest_part_and_part_neighbours():
    rng = np.random.default_rng(0)
    positions = rng.random((300, 2))
    levels = [np.arange(300)]
    for k in (120, 60, 30, 14, 5, 2, 1):
        merge = rng.integers(0, k, levels[-1].max() + 1)
        merge[:k] = np.arange(k)
        levels.append(merge[levels[-1]])
    colours = cluster_colours(levels, positions)
    for fine, coarse, own, above in zip(levels, levels[1:], colours, colours[1:], strict=False):
        for parent in range(coarse.max() + 1):
            sizes = np.bincount(fine[coarse == parent], minlength=own.size)
            largest = np.flatnonzero(sizes == sizes.max())
            assert above[parent] in own[largest]
    for labels, own in zip(levels, colours, strict=True):
        assert own.size == labels.max() + 1 and own.min() >= 0 and own.max() < NUM_COLOURS
        if own.size <= NUM_COLOURS:
            assert len(set(own.tolist())) == own.size


def test_neighbouring_patches_differ():
    levels = [gsym.Partition.grid(24, 24, p).labels.numpy() for p in (2, 4, 12)]
    cells = np.array([[c, -r] for r in range(24) for c in range(24)], dtype=float)
    for labels, colour in zip(levels, cluster_colours(levels, cells), strict=True):
        shown = colour[labels].reshape(24, 24)
        patch = labels.reshape(24, 24)
        for a, b, p, q in (
            (shown[1:], shown[:-1], patch[1:], patch[:-1]),
            (shown[:, 1:], shown[:, :-1], patch[:, 1:], patch[:, :-1]),
        ):
            assert (a != b)[p != q].all()


def test_levels_that_do_not_nest_are_coloured():
    levels = [np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 1, 1, 1, 0])]
    line = np.column_stack([np.arange(6.0), np.zeros(6)])
    fine, coarse = cluster_colours(levels, line)
    assert fine[1] == coarse[1] and len(set(fine.tolist())) == 3


def test_large_generators_are_not_written_out():
    partition = gsym.Partition.singletons(4000)
    swaps = gsym.PermutationGroup.from_cycles(4000, [tuple(range(4000))], [(0, 1, 2)])
    known = candidate(gsym.Partition.single(4), 0.1)
    known.group = gsym.ClusterGroup(partition, swaps=swaps)
    text, listed = code(known, 3)
    assert "choice.candidates[3].group" in text and not listed


def test_the_style_names_every_colour(tmp_path):
    text, _, _ = written(chain(), tmp_path)
    for i in range(NUM_COLOURS):
        assert len(re.findall(rf"--c{i}: #[0-9a-f]{{6}}", text)) == 2, "light and dark"
        assert f".c{i} {{" in text
