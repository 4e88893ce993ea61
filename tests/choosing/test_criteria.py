"""Criteria come in by name or as objects, and bring their own words."""

import numpy as np
import pytest
import torch

from gsym import Partition, choose_group
from gsym.choosing import CRITERIA, Candidate, Criterion, register_criterion
from gsym.choosing.choice import Words

LEVELS = [Partition.singletons(6), Partition([0, 0, 0, 1, 1, 1]), Partition.single(6)]


def draw(samples=40):
    return torch.randn(samples, 6, generator=torch.Generator().manual_seed(0))


class Middle(Criterion):
    """Likes two orbits best, and remembers what it was shown."""

    words = Words("regret of the middle", (("bias", "Distance", "from two orbits"),))

    def evaluate(self, groups, data):
        self.data = data
        rows = np.ones(len(data.samples.left_out))
        counts = [group.node_orbits().num_orbits for group in groups]
        return [
            Candidate(group, rows * abs(count - 2), bias=abs(count - 2.0))
            for group, count in zip(groups, counts, strict=True)
        ]


@pytest.fixture
def registered():
    register_criterion("middle")(Middle)
    yield "middle"
    del CRITERIA["middle"]


def test_an_object_decides():
    criterion = Middle()
    choice = choose_group(LEVELS, draw(), criterion=criterion, block=4, standardize="node")
    assert choice.partition == LEVELS[1] and choice.criterion == "Middle"
    assert [c.score for c in choice.candidates] == [4, 0, 1] and choice.best.bias == 0
    assert choice.words is Middle.words
    samples = criterion.data.samples
    assert len(samples.left_out) == 10 and samples.standardize == "node"
    assert criterion.data.denoising and len(criterion.data.x) == 40


def test_a_registered_name_decides(registered):
    assert choose_group(LEVELS, draw(), criterion=registered).partition == LEVELS[1]


def test_the_page_takes_the_words_of_the_criterion(tmp_path):
    choice = choose_group(LEVELS, draw(), criterion=Middle())
    page = choice.report(tmp_path / "page.html").read_text()
    assert "Lowest regret of the middle" in page and "Distance" in page
    assert "risk" not in page.split("<script")[0].split("</style>")[1]
    page = choose_group(LEVELS, draw()).report(tmp_path / "page.html").read_text()
    assert "Lowest risk" in page and "Cost of estimation" in page


def test_the_default_is_ridge():
    by_name = choose_group(LEVELS, draw(), criterion="ridge")
    assert by_name.scores == choose_group(LEVELS, draw()).scores


class Silent(Middle):
    def evaluate(self, groups, data):
        return super().evaluate(groups, data)[1:]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criterion": "rigde"}, "criterion must be 'ridge', or an object .* got 'rigde'"),
        ({"criterion": Middle}, "got <class"),
        ({"criterion": ["ridge"]}, r"got \['ridge'\]"),
        ({"criterion": len}, "a function goes to score="),
        ({"criterion": Middle(), "score": len}, "leave criterion out"),
        ({"criterion": Silent()}, "returned 2 candidates for 3 groups"),
    ],
)
def test_bad_criteria_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        choose_group(LEVELS, draw(), swaps=None, **options)
