"""Tables of signals as pandas and spreadsheets write them: nothing dropped or invented."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from gsym._files import load_signals, load_targets, read_partitions, read_signals
from gsym.errors import FileError

pd = pytest.importorskip("pandas")

IDS = ["773869", "767541", "767542", "717447", "717446"]
X = np.random.default_rng(0).normal(55, 10, (60, 5)).round(3)
TIMES = pd.date_range("2012-03-01", periods=60, freq="5min")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "speed.csv"


@pytest.fixture
def text(path):
    def write(content):
        path.write_text(content)
        return str(path)

    return write


def frame(columns=IDS, index=None):
    return pd.DataFrame(X, columns=columns, index=index)


def assert_is_x(signals, names=IDS):
    np.testing.assert_array_equal(signals.values[..., 0].numpy(), X)
    assert signals.names == (None if names is None else tuple(names))


@pytest.mark.parametrize(
    "options",
    [
        {"index": False},
        {},
        {"index": False, "sep": ";"},
        {"sep": "\t"},
        {"sep": ";", "decimal": ","},
        {"index": False, "sep": "\t", "lineterminator": "\r\n"},
        {"encoding": "utf-8-sig"},
        {"quoting": csv.QUOTE_ALL},
    ],
    ids=str,
)
def test_headers_and_indices_of_pandas(path, options):
    frame().to_csv(path, **options)
    signals = load_signals(str(path))
    assert_is_x(signals)
    facts = signals.summary.record()
    assert (facts["samples"], facts["nodes"], facts["missing"]) == (60, 5, 0)
    assert facts["header"] == "row 1" and ("index" in facts) == options.get("index", True)
    assert "60 samples, 5 nodes, 0 missing" in str(signals.summary)


def test_numbers_from_zero_name_the_columns_of_an_array(path):
    pd.DataFrame(X).to_csv(path, index=False)
    assert_is_x(load_signals(str(path)), "01234")
    pd.DataFrame(X).to_csv(path)
    assert_is_x(load_signals(str(path)), "01234")


def test_a_header_of_numbers_above_whole_numbers(path):
    counts = X.astype(int)
    pd.DataFrame(counts, columns=IDS).to_csv(path, index=False)
    assert load_signals(str(path)).values[..., 0].tolist() == counts.tolist()


def test_arrays_without_a_header_stay_as_they_are(path):
    np.savetxt(path, X, delimiter=",")
    assert_is_x(load_signals(str(path)), None)
    np.savetxt(path, X)
    assert_is_x(load_signals(str(path)), None)
    counts = np.random.default_rng(1).integers(0, 9, (40, 6))
    np.savetxt(path, counts, fmt="%d")
    assert read_signals(str(path))[..., 0].tolist() == counts.tolist()


@pytest.mark.parametrize("name", ["", "timestamp", "anything"])
@pytest.mark.parametrize("form", [None, "%Y-%m-%dT%H:%M:%S+00:00", "%d.%m.%Y %H:%M"])
def test_times_in_the_first_column(path, name, form):
    frame(index=pd.Index(TIMES, name=name)).to_csv(path, date_format=form)
    signals = load_signals(str(path))
    assert_is_x(signals)
    assert (signals.times == TIMES.to_numpy()).all() and signals.in_time_order
    assert signals.summary.facts["time"] == "2012-03-01 to 2012-03-01 04:55:00, every 5 min"


def test_times_after_an_index_and_unix_times(path):
    frame().assign(time=TIMES).loc[:, ["time", *IDS]].to_csv(path)
    assert_is_x(load_signals(str(path)))
    frame(index=pd.Index(TIMES.as_unit("s").astype("int64"), name="timestamp")).to_csv(path)
    signals = load_signals(str(path))
    assert_is_x(signals)
    assert signals.in_time_order


def test_times_out_of_order_are_told(path):
    turned = frame(index=TIMES).iloc[::-1]
    turned.to_csv(path)
    with pytest.warns(UserWarning, match="not in the order of their times"):
        signals = load_signals(str(path))
    np.testing.assert_array_equal(signals.values[..., 0].numpy(), X[::-1])
    assert not signals.in_time_order


def test_missing_values_stay_missing(path):
    holes = frame().mask(np.random.default_rng(2).random(X.shape) < 0.1)
    for written in ("", "NA", "NaN", "null"):
        holes.to_csv(path, na_rep=written)
        with pytest.warns(UserWarning, match="values are missing, at 5 nodes .* left so"):
            signals = load_signals(str(path))
        np.testing.assert_array_equal(signals.values[..., 0].numpy(), holes.to_numpy())
        assert signals.summary.facts["missing"] == holes.isna().sum().sum()


def test_row_names_as_r_writes_them(text):
    rows = "\n".join(f'"{i + 1}" ' + " ".join(map(repr, row.tolist())) for i, row in enumerate(X))
    signals = load_signals(text(" ".join(f'"{name}"' for name in IDS) + "\n" + rows + "\n"))
    assert_is_x(signals)


def test_comments_and_names_in_quotes(text):
    content = '# of 2012\n"a,1","b#2",c d\n1,2,3 # a storm\n\n4,5,6\n'
    signals = load_signals(text(content))
    assert signals.names == ("a,1", "b#2", "c d")
    assert signals.values[..., 0].tolist() == [[1, 2, 3], [4, 5, 6]]


def test_decimal_commas_between_spaces(text):
    signals = load_signals(text("1,5 2,25\n3,5 0,1\n"))
    assert signals.values[..., 0].tolist() == [[1.5, 2.25], [3.5, 0.1]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('a,b\n"1,234.5",2\n', "row 2, column 'a'.*'1,234.5'; write numbers without thousands"),
        ("a;b\n1.234,5;2\n", "'1.234,5'; write numbers without thousands"),
        ("a\tb\n1,234\t2,345\n", "row 2: does '1,234' mean 1234 or 1.234"),
        ("a;b\n1,234;567\n890;1,200\n", "row 2: does '1,234' mean 1234 or 1.234"),
        ("a;b\n1,5;2\n1.5;2\n", "'1.5'; other cells have decimal commas"),
        ("a,b,a\n1,2,3\n", "names must differ; columns 1 and 3 are both 'a'"),
        ("a,,c\n1,2,3\n", "column 2 has no name"),
        ("a,b\n1,2\n3\n", r"row 3 has 1 cell, but other rows have 2"),
        ("a,b\n1,2\n3,4,5\n", r"row 3 has 3 cells, but other rows have 2"),
        ("a,b\n1,x\n", "row 2, column 'b': expected a number, got 'x'"),
        ("a,b\n", "has no rows below its header"),
        ("a,b # c\n1,2\n", "row 1: is '# c' a comment or a part of the name"),
        ('a,"b\n1,2\n', "row 1: a quote is not closed"),
        ("1,2\n1.5,2.5\n", "is row 1 .* a header of ids or a sample"),
        ("5,1\n6,4\n7,1\n8,5\n9,9\n", "column 1 counts 5, 6, 7, ...: is it an index or the signal"),
        ("a,b\n1,inf\n", "must be finite; 1 value is infinite, at 1 node"),
        ("time,2012-03-01,2012-03-02\n1,2,3\n2,3,4\n", "the columns are times .* transpose it"),
        ("a,b\n1,2\x00\n", "it is no text"),
        (
            "time,sensor,speed\n2012-03-01,1,5.5\n2012-03-01,2,4.5\n2012-03-02,1,5.5\n"
            "2012-03-02,2,4.5\n",
            "4 rows hold 2 times; .* DataFrame.pivot",
        ),
        ("road,a,b\nA1,1,2\nA1,3,4\n", "holds words such as 'A1', some of them twice"),
    ],
)
def test_doubts_and_faults_are_named(text, content, message):
    with pytest.raises(FileError, match=message):
        load_signals(text(content))


def test_doubts_can_be_settled(text):
    source = text("1,2\n1.5,2.5\n")
    assert load_signals(source, first_row="ids").names == ("1", "2")
    assert len(load_signals(source, first_row="sample").values) == 2
    source = text("5,1\n6,4\n7,1\n8,5\n9,9\n")
    assert load_signals(source, first_column="index").values.shape == (5, 1, 1)
    assert load_signals(source, first_column="node").values.shape == (5, 2, 1)
    assert load_signals(source, 1).values.shape == (5, 1, 1)
    assert load_signals(source, 2).values.shape == (5, 2, 1)


def test_a_separator_at_the_end_of_rows(text):
    with pytest.warns(UserWarning, match="column 3 has no name and no value"):
        signals = load_signals(text("a,b,\n1,2,\n3,4,\n"))
    assert signals.names == ("a", "b") and signals.values.shape == (2, 2, 1)


def test_digits_are_exact(path):
    values = np.random.default_rng(3).normal(size=(50, 4)) * 10.0 ** np.arange(-9, 11, 5)
    pd.DataFrame(values, columns=list("abcd")).to_csv(path, index=False)
    np.testing.assert_array_equal(read_signals(str(path))[..., 0].numpy(), values)


def test_targets_with_an_index_or_times(path):
    pd.Series(X[:, 0]).to_csv(path)
    assert load_targets(str(path), 5).values.tolist() == X[:, 0].tolist()
    pd.Series(X[:, 0], index=TIMES, name="flow").to_csv(path)
    targets = load_targets(str(path), 5)
    assert targets.values.tolist() == X[:, 0].tolist() and (targets.times == TIMES).all()
    path.write_text("1\n\n3\n")
    with pytest.raises(FileError, match="row 2 is empty; write nan"):
        load_targets(str(path), 5)


def test_labels_from_zero_are_no_header(text):
    (trivial, coarse) = read_partitions(text("0,1,2,3\n0,0,1,1\n"), 4)
    assert trivial.num_clusters == 4 and coarse.labels.tolist() == [0, 0, 1, 1]
