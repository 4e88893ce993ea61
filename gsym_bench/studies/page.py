"""The pages that the documentation shows, and their pictures from a headless browser."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial import distance_matrix
from torch import Tensor

from gsym.choosing.choose import choose_group
from gsym.choosing.page import write_page
from gsym.coarsening.propose import coarsen
from gsym.groups import Partition
from gsym_bench.data import replacing
from gsym_bench.suite.errors import BenchmarkError

# Start and end of made-up roads, in the unit of the map.
_ROADS = np.array(
    [
        [[0.0, 0.1], [1.6, 0.2]],
        [[0.0, 0.8], [1.6, 0.7]],
        [[0.3, 0.0], [0.2, 1.0]],
        [[1.2, 0.0], [1.3, 1.0]],
        [[0.1, 0.0], [1.5, 0.95]],
        [[0.6, 0.9], [1.4, 0.4]],
    ]
)
_CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def road_sensors(
    num_sensors: int = 207, samples: int = 300
) -> tuple[Tensor, np.ndarray, Tensor, Tensor]:
    """Made-up sensors on six roads, whose readings depend on the mean of their stretch.

    Returns:
        ``edge_index`` of the four nearest sensors and a spanning tree, positions ``[n, 2]``, and
        signals and targets ``[samples, n]``; the targets commute with a group of twelve clusters,
        but for noise.
    """
    rng = np.random.default_rng(3)
    road, along = rng.integers(0, len(_ROADS), num_sensors), rng.random((num_sensors, 1))
    start, end = _ROADS[road].swapaxes(0, 1)
    positions = start + along * (end - start) + rng.normal(scale=0.012, size=(num_sensors, 2))
    distance = distance_matrix(positions, positions)
    near = np.argsort(distance, axis=1)[:, 1:5]
    tree = np.stack(minimum_spanning_tree(distance).nonzero())
    edges = np.hstack([np.stack([np.repeat(np.arange(num_sensors), 4), near.reshape(-1)]), tree])
    edge_index = torch.from_numpy(np.unique(np.hstack([edges, edges[::-1]]), axis=1))
    labels = coarsen(edge_index, num_sensors, method="ward")[12].labels.numpy()
    shares = np.eye(12)[labels] / np.bincount(labels)
    x = rng.normal(size=(samples, num_sensors))
    mixing = rng.normal(size=(12, 12)) * (rng.random((12, 12)) < 0.4)
    y = 0.5 * x + (x @ shares @ mixing.T)[:, labels] + rng.normal(size=x.shape)
    return edge_index, positions, torch.from_numpy(x), torch.from_numpy(y)


def on_the_map(positions: np.ndarray) -> np.ndarray:
    """Latitudes and longitudes of positions on the map of made-up roads, 20 km high."""
    latitude = 34.0 + 0.18 * positions[:, 1]
    longitude = -118.5 + 0.18 * positions[:, 0] / np.cos(np.radians(34.1))
    return np.stack([latitude, longitude], axis=1)


def smooth_images(size: int = 28, samples: int = 150) -> tuple[Tensor, Tensor]:
    """Made-up smooth images under noise, and without it: ``[samples, size * size]`` each."""
    rng = np.random.default_rng(0)
    clean = np.stack([gaussian_filter(rng.normal(size=(size, size)), 3.5) for _ in range(samples)])
    clean = (clean / clean.std()).reshape(samples, -1)
    noisy = clean + rng.normal(scale=2.0, size=clean.shape)
    return torch.from_numpy(noisy), torch.from_numpy(clean)


def write_pages(folder: Path) -> dict[str, Path]:
    """Choose a group for both examples and write their pages."""
    edge_index, positions, x, y = road_sensors()
    n = x.size(1)
    sensors = choose_group(coarsen(edge_index, n, method="ward"), x, y, soft=True)
    noisy, clean = smooth_images()
    patches = [Partition.grid(28, 28, patch) for patch in (1, 2, 4, 7, 14, 28)]
    images = choose_group(patches, noisy, clean)
    pixels = torch.cartesian_prod(torch.arange(28), torch.arange(28))
    return {
        "sensors": write_page(
            sensors,
            folder / "sensors.html",
            latlon=on_the_map(positions),
            names=[f"sensor {i}" for i in range(n)],
            title="Road sensors",
        ),
        "images": write_page(
            images,
            folder / "images.html",
            positions=pixels.flip(1) * torch.tensor([1, -1]),
            title="Images of 28 by 28 pixels",
        ),
    }


@contextmanager
def browser(width: int = 1280, height: int = 900) -> Iterator[Any]:
    """A headless Chromium, driven by Selenium, that logs every request it makes.

    Raises:
        BenchmarkError: Chromium, its driver or Selenium is missing.
    """
    program = next(filter(None, map(shutil.which, _CHROMIUM)), None)
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        raise BenchmarkError(
            "no Chromium with its driver; apt-get install chromium chromium-driver"
        )
    try:
        webdriver = import_module("selenium.webdriver")
        service = import_module("selenium.webdriver.chrome.service")
    except ImportError as cause:
        raise BenchmarkError("no Selenium; pip install selenium") from cause
    options = webdriver.ChromeOptions()
    options.binary_location = program
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        f"--window-size={width},{height}",
    ):
        options.add_argument(argument)
    window = webdriver.Chrome(options=options, service=service.Service(driver))
    try:
        yield window
    finally:
        window.quit()


def emulate(window: Any, *, dark: bool = False, print_: bool = False, width: int = 1280) -> None:
    """Set colour scheme, medium and width of the page that a browser shows."""
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    window.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"media": "print" if print_ else "screen", "features": [scheme]},
    )
    window.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
    )


def picture(window: Any, path: Path) -> None:
    """Write a picture of the whole page that a browser shows."""
    box = "const b = document.documentElement; return [b.clientWidth, b.scrollHeight]"
    width, height = window.execute_script(box)
    shot = window.execute_cdp_cmd(
        "Page.captureScreenshot",
        {
            "captureBeyondViewport": True,
            "clip": {"x": 0, "y": 0, "width": width, "height": height, "scale": 1},
        },
    )
    with replacing(path) as file:
        file.write(base64.b64decode(shot["data"]))


def main(out: Path) -> None:
    """Take the pictures that the documentation shows into the folder ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as folder, browser() as window:
        pages = write_pages(Path(folder))
        for name, dark in (("sensors", False), ("images", True)):
            emulate(window, dark=dark)
            window.get(pages[name].as_uri())
            picture(window, out / f"choose_{name}_{'dark' if dark else 'light'}.png")
