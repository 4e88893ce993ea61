"""Square patches of an image."""

from __future__ import annotations

import math
from itertools import pairwise

from gsym.coarsening._request import Method, Request
from gsym.coarsening.hierarchy import Hierarchy
from gsym.errors import ClusteringError
from gsym.groups import Partition


def _grid(request: Request) -> Hierarchy:
    assert request.height is not None and request.width is not None
    height, width = request.height, request.width
    if height < 1 or width < 1 or height * width != request.num_nodes:
        raise ClusteringError(
            f"an image of {height} x {width} pixels has {max(0, height * width)} nodes; got "
            f"{request.num_nodes}"
        )
    common = math.gcd(height, width)
    sides = [side for side in range(1, common + 1) if common % side == 0]
    counts = {height * width // side**2: side for side in sides}
    if request.levels is None:
        # Sides nest only if each divides the next: grow by the smallest prime factor.
        chain = [1]
        while chain[-1] < common:
            chain.append(next(s for s in sides if s > chain[-1] and s % chain[-1] == 0))
        partitions = [Partition.grid(height, width, side) for side in chain]
        return request.chain(partitions)
    asked = [k for k in request.levels if k > 1]
    missing = [k for k in asked if k not in counts]
    if missing:
        raise ClusteringError(
            f"square patches do not cut an image of {height} x {width} pixels into {missing[0]}; "
            f"they give {', '.join(map(str, sorted(counts, reverse=True)))}"
        )
    sides = [counts[k] for k in asked]
    nested = all(larger % smaller == 0 for smaller, larger in pairwise(sides))
    partitions = [Partition.grid(height, width, side) for side in sides]
    return request._hierarchy(partitions, nested=nested)


METHODS = {"grid": Method(_grid, "square patches of an image", "nested", needs=("height", "width"))}
