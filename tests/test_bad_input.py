"""No bad input is accepted in silence, and none ends the interpreter."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import bad_inputs
from bad_inputs import CATEGORIES, Bad

# Together more than a thousand; none may get lost.
LEAST = {
    "groups": 280,
    "representations": 170,
    "automorphisms": 110,
    "layers": 250,
    "forward": 230,
    "kernels": 130,
    "coarsen": 90,
    "choose_group": 80,
    "check": 35,
    "transforms": 30,
    "readers": 50,
}


def test_bad_input_meets_an_early_error_that_says_what_to_do():
    # One process for all: most of its time goes into imports.
    done = subprocess.run(
        [sys.executable, bad_inputs.__file__, *CATEGORIES],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        check=False,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    begun = [(line["category"], line["label"]) for line in lines if "fault" not in line]
    ended = [(line["category"], line["label"]) for line in lines if "fault" in line]
    last = begun[-1] if begun else "nothing"
    assert done.returncode == 0, f"the interpreter ended at {last}:\n{done.stderr[-1500:]}"
    faults = [f"{x['category']}, {x['label']}: {x['fault']}" for x in lines if x.get("fault")]
    assert not faults, f"{len(faults)} of {len(begun)}:\n" + "\n".join(faults)
    assert ended == begun
    for category in CATEGORIES:
        found = len({label for of, label in begun if of == category})
        print(f"{category}: {found} bad inputs")
        assert found >= LEAST[category], category


def test_the_judge_sees_silence_wrong_words_foreign_errors_and_crashes():
    def met(call, words="nodes", holds=None):
        return bad_inputs.judge(Bad("groups", "one", call, words, holds))

    ours = lambda: bad_inputs.Partition([0, 2])  # noqa: E731
    assert met(lambda: 1).startswith("accepted")
    assert met(lambda: int("a")).startswith("no error of ours")
    assert met(lambda: [][0]).startswith("IndexError")
    assert met(ours, "no such words").startswith("says nothing of")
    assert met(ours, "label") == ""
    assert met(lambda: 1, "", lambda y: y == 2).startswith("not as documented")
    assert re.match("documented to work", met(ours, "", lambda y: True))
