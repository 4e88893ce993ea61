"""The answer in words: what it says, and when it says less."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from stub_choice import candidate, chain, choice

import gsym
from gsym.choosing.answer import answer, next_steps, share
from gsym.choosing.choice import Task
from gsym.risk.learning import Crossing, Outlook


def with_outlook(shown, now, *crossings, earliest=np.inf, signals=300):
    shown.soft = SimpleNamespace(
        outlook=Outlook(now, crossings, earliest), levels=shown.candidates, signals=signals
    )
    return shown


def test_groups_weights_gain_and_how_long():
    shown = chain(scores=(0.5, 0.48, 0.4, 0.41, 0.8))
    text = answer(with_outlook(shown, 2, Crossing(2, 1, 912.0, 600.0, 2000.0)))
    assert text == (
        "Treat the nodes of each of these 3 groups as interchangeable: 12 weights instead of 144, "
        "20 % less error than no symmetry (95 % interval 14 to 26 %), and it will pay until about "
        "910 signals."
    )
    steps = next_steps(shown, "mph")
    assert "off by 0.632 mph; with no symmetry, 0.707 (root mean square" in steps[0]
    assert steps[1].startswith("Where size or explanation count, take 2 clusters: 6 weights")
    assert "You have 300 signals. With more than about 910, choose again: 6 clusters" in steps[2]


def test_the_interval_is_that_of_the_paired_difference():
    shown = chain(scores=(0.5, 0.48, 0.4, 0.41, 0.8))
    shown.candidates[0].errors = np.zeros(11)
    mean, low, high = share(shown)
    # Student's t with ten degrees of freedom.
    assert mean == pytest.approx(0.2)
    assert (high - mean, mean - low) == pytest.approx([2.2281 * 0.0025 / 0.5] * 2, rel=1e-4)


def test_what_signals_do_not_tell_is_not_told():
    shown = chain(scores=(0.401, 0.48, 0.4, 0.41, 0.8))
    text = answer(shown)
    assert "as much error as no symmetry, as far as these signals tell" in text
    assert "% less to" in text and "will pay" not in text
    assert any("hardly tell" in step for step in next_steps(shown))
    assert "at least about 910" in answer(
        with_outlook(shown, 2, Crossing(2, 1, 912.0, 600.0, np.inf))
    )
    assert "no number of signals is in sight" in answer(with_outlook(shown, 2))
    assert "until at least about 450 signals" in answer(with_outlook(shown, 2, earliest=450.0))
    assert "pay" not in answer(with_outlook(shown, 2, earliest=300.0))
    # An outlook that starts from another group says nothing of this one.
    assert "pay" not in answer(with_outlook(shown, 1))


def test_no_symmetry_and_all_of_it():
    none = chain(scores=(0.3, 0.5, 0.4, 0.41, 0.8))
    assert answer(none).startswith(
        "Treat no nodes as interchangeable: 144 weights, 25 % less error than 3 clusters"
    ) or "as much error as 3 clusters" in answer(none)
    whole = chain(scores=(0.9, 0.5, 0.4, 0.41, 0.2))
    assert answer(whole).startswith(
        "Treat all 12 nodes as interchangeable: 2 weights instead of 144, "
    )


def test_nodes_alone_exchanges_and_general_groups():
    alone = gsym.Partition.from_labels([0, 0, 1, 2])
    assert "of this group as interchangeable and the other 2 by themselves" in answer(
        choice([candidate(alone, 0.1)])
    )
    partition = gsym.Partition.from_labels([0, 0, 1, 1, 2, 2])
    swaps = gsym.PermutationGroup.from_cycles(3, [(0, 1, 2)])
    both = candidate(gsym.ClusterGroup(partition, swaps=swaps), 0.1, partition=partition)
    assert "and exchange whole groups where the graph looks the same" in answer(choice([both]))
    rotation = gsym.PermutationGroup.from_cycles(6, [(0, 1, 2), (3, 4, 5)])
    assert answer(choice([candidate(rotation, 0.1)])).startswith("Treat as a symmetry what ")


def test_units_are_those_of_the_score():
    shown = chain()
    shown.task = Task(standardize="node")
    assert "standard deviations of its node" in next_steps(shown, "mph")[0]
    shown.words = replace(shown.words, squared=False)
    assert next_steps(shown, "mph")[0] == (
        "Train it with the script below. Its risk, from signals left out of the fit, is 0.3; that "
        "of no symmetry is 0.9. Lower is better."
    )


def test_a_choice_prints_its_answer():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 6))
    y = x + 0.1 * rng.normal(size=x.shape)
    levels = [gsym.Partition.singletons(6), gsym.Partition.single(6)]
    found = gsym.choose_group(levels, x, y, soft=True)
    assert found.task == Task(1, 1)
    assert str(found).endswith(found.answer)
    assert "2 weights instead of 36" in found.answer


def test_single_nodes_that_swaps_exchange_are_interchangeable():
    swaps = gsym.PermutationGroup.from_cycles(5, [(0, 1, 2)])
    group = gsym.ClusterGroup(gsym.Partition.singletons(5), swaps=swaps)
    text = answer(choice([candidate(group, 0.1, partition=group.partition)]))
    assert text.startswith(
        "Treat the nodes of this group as interchangeable and the other 2 by themselves, in "
        "exchanges that leave the graph the same"
    )


def test_weights_of_a_map_to_one_number_are_those_of_the_orbits():
    shown = chain(scores=(0.5, 0.48, 0.4, 0.41, 0.8))
    shown.task = Task(out_channels=0)
    assert ": 3 weights instead of 12, " in answer(shown)
    assert any("take 2 clusters: 2 weights," in step for step in next_steps(shown))


def test_a_score_that_is_no_error_is_no_percentage():
    shown = chain(scores=(0.5, 0.48, 0.4, 0.41, 0.8))
    shown.words = replace(shown.words, score="score", squared=False)
    text = answer(shown)
    assert "a score lower by 0.1 than that of no symmetry (95 % interval 0.0" in text
    assert "error" not in text and "%" not in text.replace("95 %", "")
    steps = " ".join(next_steps(shown, "mph"))
    assert (
        "Its score, from signals left out of the fit, is 0.4; that of no symmetry is 0.5." in steps
    )
    assert "6 weights, and the same score, as far as these signals tell." in steps
    assert "error" not in steps and "mph" not in steps
