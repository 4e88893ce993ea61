"""How many calls of Python one warm call of a layer makes: a small batch is bound by them."""

import pytest

from gsym.kernels.cpp import library
from gsym_bench.kernels import frames

CALLS = frames.layers()
# Loops in plain torch make other calls.
pytestmark = pytest.mark.skipif(not library.is_usable(), reason="no C++")


@pytest.mark.parametrize(("layer", "most"), [("EGNNConv", 119), ("GNetConv", 89)])
def test_few_frames(layer, most):
    found = frames.count(CALLS[layer])
    assert found.total <= most
    assert found.checking + found.choosing <= most // 3


def test_a_call_more_is_counted():
    once, twice = (
        frames.count(lambda n=n: [CALLS["OrbitLinear"]() for _ in range(n)]) for n in (1, 2)
    )
    assert twice.total == 2 * once.total > 0
    assert twice.checking == 2 * once.checking > 0
    assert twice.choosing == 2 * once.choosing > 0


def test_prints_a_row_for_each_layer(capsys):
    frames.main(["OrbitLinear"])
    head, row = capsys.readouterr().out.splitlines()
    assert head.split() == ["layer", "frames", "checking", "choosing"]
    assert row.split()[0] == "OrbitLinear"
    with pytest.raises(SystemExit):
        frames.main(["Nobody"])
    assert "no such layer: Nobody; there are OrbitLinear" in capsys.readouterr().err
