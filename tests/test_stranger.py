"""A stranger's path: a table of pandas, edges by names, the page in a browser, its script run."""

from __future__ import annotations

import runpy
from urllib.request import urlopen

import numpy as np
import pytest

from gsym import __main__ as entry
from gsym_bench.studies.page import browser
from gsym_bench.suite.errors import BenchmarkError

pytest.importorskip("selenium")
pytest.importorskip("tyro")
pandas = pytest.importorskip("pandas")


def test_from_an_empty_folder_to_a_trained_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    names = [f"Station {letter}" for letter in "ABCDEFGHI"]
    shared = rng.normal(size=(96, 3)).cumsum(0) / 5
    values = shared.repeat(3, axis=1) + 0.1 * rng.normal(size=(96, 9))
    times = pandas.date_range("2024-03-01", periods=96, freq="h")
    pandas.DataFrame(values, index=times, columns=names).to_csv("readings.csv")
    roads = pandas.DataFrame({"from": names[:-1], "to": names[1:], "weight": 1.0})
    roads.to_csv("roads.csv", index=False)
    args = ["choose", "--graph", "roads.csv", "--signals", "readings.csv", "--lag", "2"]
    entry.main([*args, "--levels", "9", "3", "1", "--no-swaps", "--out", "page.html"])
    out = capsys.readouterr().out
    try:
        with browser() as window:
            window.get((tmp_path / "page.html").as_uri())
            answer = window.find_element("id", "answer").text
            allowed = {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
            window.execute_cdp_cmd("Browser.grantPermissions", allowed)
            window.find_element("id", "copy-script").click()
            script = window.execute_async_script(
                "const done = arguments[0];"
                "const read = () => document.getElementById('copy-script').textContent === 'Copy'"
                "  ? setTimeout(read, 50) : navigator.clipboard.readText().then(done, done);"
                "read()"
            )
            assert script == window.find_element("id", "script").get_attribute("textContent")
            saved = window.find_element("id", "save-csv").get_attribute("href")
            word = window.find_element("css selector", ".term")
            word.click()
            tip = window.find_element("id", "tip")
            assert tip.is_displayed() and tip.text.startswith("A model that treats nodes as")
            severe = [e for e in window.get_log("browser") if e["level"] == "SEVERE"]
    except BenchmarkError as missing:
        pytest.skip(str(missing))
    assert severe == []
    assert answer in out and answer.startswith("Treat ")
    (tmp_path / "train.py").write_text(script)
    ran = runpy.run_path(str(tmp_path / "train.py"))
    assert ran["error"] < ran["plain"], "it learned more than the mean"
    table = pandas.read_csv(urlopen(saved))
    assert table["node"].tolist() == names
    assert table["cluster"].tolist() == ran["group"].partition.labels.tolist()
