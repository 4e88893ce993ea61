"""The study of soft layers: its cells, what it chooses, and what its page says."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from rich.console import Console

from gsym.nn.soft import ConstrainedRelaxation, ResidualPathway
from gsym_bench.studies import softlayers
from gsym_bench.suite.errors import BenchmarkError
from gsym_bench.suite.results import append_row, read_rows
from gsym_bench.suite.task import Schedule
from gsym_bench.tasks.inpainting import patch_groups


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("softlayers")
    with pytest.MonkeyPatch.context() as patch:
        whole = softlayers.TASKS["inpainting"]

        def short(data, seed):
            return replace(whole(data, seed), schedule=Schedule(4, lr=1e-2))

        patch.setitem(softlayers.TASKS, "inpainting", short)
        softlayers.main(out, None, ["inpainting"], 2, Console(quiet=True))
    return out


def test_every_way_is_trained_and_told(folder):
    rows = read_rows(folder, softlayers.RESULTS)
    names = softlayers.LEVELS["digits"]
    assert len(rows) == 2 * len(softlayers.ways(names))
    text = (folder / softlayers.PAGE).read_text("utf-8")
    for title in (softlayers.SUM, "best single level", *softlayers.PUBLISHED):
        assert f"| {title} |" in text
    assert "the sum of levels is" in text
    [first, *_] = [row for row in rows if row.model == softlayers.SUM]
    for layer in ("first", "last"):
        shares = [first.value("test", softlayers._energy(layer, name)) for name in names]
        assert sum(shares) == pytest.approx(1)


def test_validation_chooses_and_the_verdict_follows_the_numbers(folder):
    names = softlayers.LEVELS["digits"]
    rows = [
        replace(row, values=tuple(replace(v, value=v.value + shift) for v in row.values))
        for row in read_rows(folder, softlayers.RESULTS)
        for shift in [
            {"best single level: S_64": -50.0, softlayers.RELAXED: 90.0}.get(row.model, 0)
        ]
    ]
    lines = {line.name: line for line in softlayers.chosen(rows, names)}
    assert lines["best single level"].rows[0].model == "best single level: S_64"
    said = softlayers._verdict(lines)
    assert "worse than best single level" in said
    assert "better than relaxed weight sharing" in said


def test_nets_have_the_maps_of_their_way():
    data = softlayers.inpainting(None, 0)
    names = list(data.levels)
    kinds = {way.kind: softlayers.SoftTraining(way, data).model() for way in softlayers.ways(names)}
    assert isinstance(kinds[softlayers.RESIDUAL].first, ResidualPathway)
    assert isinstance(kinds[softlayers.CONSTRAINED].last, ConstrainedRelaxation)
    assert kinds[softlayers.SUM].first.levels == tuple(data.levels.values())
    x = data.parts[0].inputs[:2]
    known = x[..., 1:] == 0
    for net in kinds.values():
        y = data.finish(net(x), x)
        assert torch.equal(y[known], x[..., :1][known])


def test_refuses_what_is_not_there(tmp_path):
    with pytest.raises(BenchmarkError, match="tasks are"):
        softlayers.main(tmp_path, None, ["poses"], 1, Console(quiet=True))
    with pytest.raises(BenchmarkError, match="run gsym-bench softlayers"):
        softlayers.report(tmp_path)


def test_the_levels_nest():
    images = patch_groups(28, (28, 4, 2), ())
    chains = [[images[name] for name in softlayers.LEVELS["fashion-mnist"]]]
    for load in (softlayers.inpainting, softlayers.traffic):
        chains.append(list(load(None, 0).levels.values()))
    for chain in chains:
        for fine, coarse in pairwise(chain):
            assert fine.partition.refines(coarse.partition)


def test_rows_of_other_draws_are_left_out(folder, tmp_path):
    rows = read_rows(folder, softlayers.RESULTS)
    older = [replace(row, key=f"old {row.key}", schedule="old", seed=row.seed + 5) for row in rows]
    assert all("each part by itself" in row.key for row in rows)
    for row in (*older, *rows):
        append_row(tmp_path, row, softlayers.RESULTS)
    page = softlayers.report(tmp_path).read_text("utf-8")
    assert page == (folder / softlayers.PAGE).read_text("utf-8")
