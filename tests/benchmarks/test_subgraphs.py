"""The page of ego-networks and of an epoch of SPEN."""

from __future__ import annotations

import math
import os
from dataclasses import replace

from gsym_bench.studies import subgraphs
from gsym_bench.suite.memory import in_new_process


def test_ego_networks_are_counted_and_judged(monkeypatch):
    monkeypatch.setattr(subgraphs, "NODES", (30, 60))
    small, large = subgraphs.ego_networks(30), subgraphs.ego_networks(60)
    assert (small.met, large.met) == ("", "yes")
    assert 30 < small.entries <= 30 * 30 and large.seconds > 0
    monkeypatch.setattr(subgraphs, "SECONDS", 0.0)
    assert subgraphs.ego_networks(60).met == "no"


def test_a_size_has_a_process_of_its_own():
    assert in_new_process(divmod, 7, 2) == (3, 1)
    assert in_new_process(os.getpid) != os.getpid()


def test_page_shows_what_was_measured(monkeypatch):
    row = subgraphs.ego_networks(30)
    ratios = {"ratio": 2.5, "ratio_low": 2.4, "ratio_high": 2.75, "memory_mib": math.nan}
    spen = replace(row, what=subgraphs.EPOCH, variant="SPEN", size=1113, met="yes", **ratios)
    page = subgraphs._page([row, spen])
    assert f"| 30 | {row.entries} |" in page
    assert "| 2.5 (2.4 to 2.75) | yes |" in page and "1,113 graphs" in page
    assert "epoch" not in subgraphs._page([row])
