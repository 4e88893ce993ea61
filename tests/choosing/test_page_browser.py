"""The page in a browser: everything follows the slider, and nothing leaves the file."""

from __future__ import annotations

import base64
import json
import time

import numpy as np
import pytest
import torch
from helpers import site_check
from stub_choice import candidate, chain, choice

import gsym
from gsym.choosing.page import write_page
from gsym_bench.studies.page import browser, emulate
from gsym_bench.suite.errors import BenchmarkError

pytest.importorskip("selenium")

HOSTILE = '</script><b id="hacked">'


@pytest.fixture(scope="module")
def window():
    try:
        with browser() as opened:
            yield opened
    except BenchmarkError as missing:
        pytest.skip(str(missing))


@pytest.fixture(autouse=True)
def _as_at_the_start(window):
    emulate(window)
    window.get_log("browser")
    window.get_log("performance")


def requests(window):
    """Addresses that the browser asked for since the last look."""
    events = [json.loads(entry["message"])["message"] for entry in window.get_log("performance")]
    sent = [e for e in events if e["method"] == "Network.requestWillBeSent"]
    return [event["params"]["request"]["url"] for event in sent]


def press(window, *keys):
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(window).send_keys(*keys).perform()


def key(name):
    from selenium.webdriver.common.keys import Keys

    return getattr(Keys, name)


def text(window, name):
    return window.execute_script("return document.getElementById(arguments[0]).textContent", name)


def position(window):
    return int(window.execute_script("return document.getElementById('dial').value"))


def set_dial(window, value):
    window.execute_script(
        "const d = document.getElementById('dial'); d.value = arguments[0];"
        "d.dispatchEvent(new Event('input'))",
        value,
    )


def state(window):
    """Everything of the page that follows the slider."""
    script = """
        const all = (s) => [...document.querySelectorAll(s)];
        const canvas = document.getElementById("matrix");
        const pen = canvas.getContext("2d");
        const pixel = (x, y) => [...pen.getImageData(x, y, 1, 1).data].slice(0, 3);
        const k = arguments[0];
        const side = 720 - 16;
        const at = (i) => Math.round(16 + ((i + 0.5) * side) / k);
        const cells = [];
        for (let i = 0; i < k; i++) for (let j = 0; j < k; j++) cells.push(pixel(at(j), at(i)));
        return {
          nodes: all("#nodes > *").map((n) => n.getAttribute("class")),
          fills: all("#nodes > *").map((n) => getComputedStyle(n).fill),
          sizes: all("#sizes > *").length,
          cells,
          marker: document.getElementById("here").getAttribute("cx"),
          current: all("tr[aria-current]").map((r) => r.rowIndex - 1),
        };
    """
    return lambda k: window.execute_script(script, k)


def test_everything_follows_the_slider(window, tmp_path):
    shown = chain()
    path = write_page(
        shown, tmp_path / "page.html", title=HOSTILE, names=[HOSTILE + str(i) for i in range(12)]
    )
    window.get(path.as_uri())
    assert position(window) == 2, "the page opens at the best candidate"
    markers = []
    for i, known in enumerate(shown.candidates):
        set_dial(window, i)
        k = known.num_clusters
        now = state(window)(k)
        labels = known.partition.labels.tolist()
        for a in range(12):
            for b in range(a):
                same = now["nodes"][a] == now["nodes"][b]
                assert same == (labels[a] == labels[b]), (i, a, b)
        alone = [" alone" in name for name in now["nodes"]]
        assert alone == [known.partition.sizes[label] == 1 for label in labels]
        assert now["sizes"] == k
        assert text(window, "clusters") == f"{k} cluster{'s' * (k > 1)}"
        assert text(window, "dim") == f"{known.commutant_dim:,}"
        assert text(window, "score").startswith(f"{known.score:.3f} ±")
        assert now["current"] == [i]
        markers.append(float(now["marker"]))
        # Ward's order of a path is the order of its pieces: rows above columns are negative.
        order = np.argsort([labels.index(c) for c in range(k)])
        signs = np.sign(known.matrix[np.ix_(order, order)]).flatten()
        for sign, (red, _, blue) in zip(signs, now["cells"], strict=True):
            assert np.sign(red - blue) == sign or (sign == 0 and abs(red - blue) < 12)
        names = {}
        exec(text(window, "code"), names)
        assert names["group"].partition == known.partition
    assert markers == sorted(markers) and len(set(markers)) == 5
    assert not window.execute_script("return document.getElementById('hacked')")
    assert [e for e in window.get_log("browser") if e["level"] == "SEVERE"] == []


def test_no_request_leaves_the_file(window, tmp_path):
    path = write_page(chain(), tmp_path / "page.html")
    window.get(path.as_uri())
    set_dial(window, 0)
    assert requests(window) == [path.as_uri()]
    refused = window.execute_async_script(
        "const done = arguments[0];"
        "document.addEventListener('securitypolicyviolation', (e) => done(e.effectiveDirective));"
        "fetch('http://127.0.0.1:9/').catch(() => {})"
    )
    assert refused == "connect-src"
    window.execute_script(
        "const s = document.createElement('script'); s.text = 'window.ran = 1';"
        "document.body.append(s)"
    )
    assert window.execute_script("return window.ran") is None, "only the page's own script runs"


def test_a_request_would_be_seen(window, tmp_path):
    path = tmp_path / "page.html"
    path.write_text('<img src="http://127.0.0.1:9/picture.png">')
    window.get(path.as_uri())
    assert "http://127.0.0.1:9/picture.png" in requests(window)


def test_keys_alone_are_enough(window, tmp_path):
    window.get(write_page(chain(), tmp_path / "page.html").as_uri())
    press(window, key("ARROW_RIGHT"))
    assert position(window) == 3, "arrows work before anything has the focus"
    press(window, key("ARROW_LEFT"), key("ARROW_LEFT"))
    assert position(window) == 1
    reached = []
    for _ in range(20):
        press(window, key("TAB"))
        focus = (
            "const e = document.activeElement; const label = e.labels && e.labels[0];"
            "return [e.id, getComputedStyle(e).outlineStyle,"
            " e.getAttribute('aria-label') || e.textContent || (label && label.textContent)]"
        )
        name, outline, label = window.execute_script(focus)
        reached.append(name)
        if name:
            assert outline == "solid" and label, f"{name} shows its focus and says what it is"
        if name == "dial":
            press(window, key("END"))
            assert position(window) == 4 and text(window, "clusters") == "1 cluster"
            press(window, key("ARROW_RIGHT"))
            assert position(window) == 4, "the last candidate stays"
            press(window, key("HOME"), key("ARROW_RIGHT"))
            assert position(window) == 1, "one press is one step"
            spoken = window.execute_script(
                "return document.activeElement.getAttribute('aria-valuetext')"
            )
            assert spoken.startswith("6 clusters, risk 0.500")
        if name == "to-simplest":
            press(window, key("ENTER"))
            assert position(window) == 3
        if name == "find":
            press(window, "node 5")
            assert text(window, "about") == "node 5: cluster 2, of 2 nodes."
            lit = window.execute_script("return document.querySelectorAll('#nodes .lit').length")
            assert lit == 2
    for wanted in ("to-best", "to-simplest", "finer", "dial", "coarser", "find", "copy", "code"):
        assert wanted in reached


def test_the_pointer_reads_nodes_cells_and_curve(window, tmp_path):
    from selenium.webdriver.common.action_chains import ActionChains

    window.get(write_page(chain(), tmp_path / "page.html").as_uri())
    node = window.find_elements("css selector", "#nodes > *")[7]
    ActionChains(window).move_to_element(node).perform()
    assert text(window, "about") == "node 7: cluster 1, of 4 nodes."
    canvas = window.find_element("id", "matrix")
    ActionChains(window).move_to_element_with_offset(
        canvas, 40 - canvas.size["width"] // 2, 0
    ).perform()
    assert text(window, "cell") == "From cluster 0 to cluster 1: 2"
    curve = window.find_element("id", "curve")
    window.execute_script("arguments[0].scrollIntoView({block: 'center'})", curve)
    ActionChains(window).move_to_element_with_offset(
        curve, int(0.45 * curve.size["width"]), 0
    ).click().perform()
    assert position(window) == 4


def test_copying(window, tmp_path):
    window.get(write_page(chain(), tmp_path / "page.html").as_uri())
    window.find_element("id", "copy").click()
    deadline = time.monotonic() + 5
    while text(window, "copy") == "Copy" and time.monotonic() < deadline:
        time.sleep(0.05)
    copied = text(window, "copy")
    selected = window.execute_script("return String(getSelection())")
    assert copied == "Copied" or "Partition.from_labels" in selected


def luminance(colour):
    values = np.array([float(v) for v in colour[colour.index("(") + 1 : -1].split(",")[:3]]) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


@pytest.mark.parametrize("dark", [False, True])
def test_light_and_dark_can_be_read(window, tmp_path, dark):
    emulate(window, dark=dark)
    window.get(write_page(chain(), tmp_path / "page.html").as_uri())
    ground = window.execute_script(
        "return getComputedStyle(document.documentElement).backgroundColor"
    )
    assert (luminance(ground) < 0.05) == dark
    for selector in ("h1", ".lead", ".how", "dd", "dt", "pre", "#copy", "summary"):
        style = window.execute_script(
            "const e = document.querySelector(arguments[0]);"
            "const ground = (g) => getComputedStyle(g).backgroundColor; let g = e;"
            "while (ground(g) === 'rgba(0, 0, 0, 0)') g = g.parentElement;"
            "return [getComputedStyle(e).color, ground(g)]",
            selector,
        )
        high, low = sorted(map(luminance, style), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5, f"{selector} stands out too little"


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_fits_the_width(window, tmp_path, width):
    emulate(window, width=width)
    long = ["a very long name of a sensor without any end to it " * 3] * 11 + ["x" * 400]
    window.get(write_page(chain(), tmp_path / "page.html", names=long, title="y" * 200).as_uri())
    set_dial(window, 0)
    widths = "const e = document.documentElement; return [e.scrollWidth, e.clientWidth]"
    scroll, client = window.execute_script(widths)
    assert client == width and scroll <= width


def everything(folder):
    """A page with all that one can hold: a map, exchanges of clusters, a mixture, a profile."""
    shown = chain()
    rng = torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, 60, 12, generator=rng)
    levels = [known.partition for known in shown.candidates]
    swaps = gsym.PermutationGroup.from_cycles(6, [(0, 1, 2), (3, 4, 5)])
    turned = gsym.ClusterGroup(levels[1], swaps=swaps)
    found = gsym.choose_group(
        [*levels, turned], x, x.roll(1, 1) + noise, edge_index=shown.edge_index, soft=True
    )
    layer = gsym.nn.OrbitLinear(1, 1, shown.candidates[1].group)
    profile = gsym.check.profile(layer, [levels[1], levels[-1]], x[:4, :, None])
    where = np.column_stack([np.linspace(60, 61, 12), np.linspace(170, 190, 12)])
    return write_page(found, folder / "page.html", latlon=where, unit="mph", profile=profile)


def test_no_fault_with_all_that_a_page_can_hold(window, tmp_path):
    pytest.importorskip("axe_core_python")
    path = everything(tmp_path)
    text = path.read_text(encoding="utf-8")
    for part in ('id="profile"', 'class="mixture"', "The map", 'class="dot swaps"', "scale-bar"):
        assert part in text
    assert list(site_check().faults(window, path)) == []
    pale = text.replace("--soft: #5b6573", "--soft: #c5c9ce")
    path.write_text(pale, encoding="utf-8")
    assert any("color-contrast" in fault for fault in site_check().faults(window, path))


def test_prints_the_table_and_no_controls(window, tmp_path):
    window.get(write_page(chain(), tmp_path / "page.html").as_uri())
    window.execute_script("window.dispatchEvent(new Event('beforeprint'))")
    emulate(window, print_=True)
    shown = "return arguments[0].map((s) => document.querySelector(s).getClientRects().length > 0)"
    controls = ["#dial", "#copy", "#find"]
    content = ["#graph", "#curve", "#matrix", "#code", "#all table", "#now"]
    assert window.execute_script(shown, controls) == [False] * 3
    assert window.execute_script(shown, content) == [True] * 6
    emulate(window)
    window.execute_script("window.dispatchEvent(new Event('afterprint'))")
    printed = window.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    assert base64.b64decode(printed["data"]).startswith(b"%PDF")
    assert window.execute_script("return document.getElementById('all').open") is False


def test_a_grid_of_784_pixels(window, tmp_path):
    cells = torch.cartesian_prod(torch.arange(28), torch.arange(28)).flip(1) * torch.tensor([1, -1])
    patches = [candidate(gsym.Partition.grid(28, 28, p), 0.1 * p) for p in (1, 2, 7, 28)]
    path = write_page(choice(patches), tmp_path / "page.html", positions=cells)
    window.get(path.as_uri())
    borders = []
    for i in range(4):
        set_dial(window, i)
        borders.append(
            window.execute_script(
                "return document.getElementById('borders').getAttribute('d') || ''"
            ).count("M")
        )
        names = {}
        exec(text(window, "code"), names)
        assert names["partition"] == patches[i].partition
    assert borders == [2 * 28 * 27, 2 * 28 * 13, 2 * 28 * 3, 0]
    rows = window.execute_script(
        "const nodes = [...document.querySelectorAll('#nodes > *')];"
        "return nodes.map((e) => e.getBoundingClientRect().top)"
    )
    assert np.all(np.diff(np.array(rows).reshape(28, 28)[:, 0]) > 0), "row 0 is drawn at the top"


def test_groups_without_clusters_and_exchanges(window, tmp_path):
    partition = gsym.Partition.from_labels([0, 0, 1, 1, 2, 2])
    swaps = gsym.PermutationGroup.from_cycles(3, [(0, 1, 2)])
    rotation = gsym.PermutationGroup.from_cycles(6, [(0, 1, 2), (3, 4, 5)])
    shown = choice(
        [
            candidate(rotation, 0.3),
            candidate(gsym.ClusterGroup(partition), 0.5, partition=partition),
            candidate(
                gsym.ClusterGroup(partition, swaps=swaps), 0.4, partition=partition, matrix=None
            ),
            candidate(gsym.Partition.single(6), 0.9),
        ]
    )
    window.get(write_page(shown, tmp_path / "page.html").as_uri())
    for i, known in enumerate(shown.candidates):
        set_dial(window, i)
        names = {}
        exec(text(window, "code"), names)
        assert torch.equal(names["group"].pair_orbits().index, known.group.pair_orbits().index)
        hidden = window.execute_script("return document.getElementById('matrix').hidden")
        assert hidden == (known.matrix is None)
    assert [e for e in window.get_log("browser") if e["level"] == "SEVERE"] == []
