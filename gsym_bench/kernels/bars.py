"""What the kernels have to reach: every bar against every peer, at one size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from gsym_bench.kernels.groups import GROUPS

FORWARD, BOTH = "forward", "forward and backward"

# What torch is told before it starts; every setting is measured in a process of its own.
PLAIN, HUGE, KEPT, EXACT, TF32 = "THP off", "THP on", "memory kept", "float32", "TF32"
SETTINGS = {"cpu": (PLAIN, HUGE, KEPT), "cuda": (EXACT, TF32)}

# The quickest of these by its median, each of which materialises a tied matrix.
BEST_DENSE = "best dense form"
DENSE_FORMS = ("gather and product", "einsum", "flat gather")

# One level of the three of a layer, by itself.
FINEST = "finest level alone"

# The same layer of the same group, with channels that stay.
UNSIGNED = "without signs"

# Channels where n is swept, and n where channels are.
CHANNELS, EDGES = 64, 10**5


class Size(NamedTuple):
    """Of one measurement.

    Attributes:
        n: Edges, or whatever the rows are.
        k: Nodes that the edges join, or what the rows belong to: segments or clusters; of a general
            group its pair orbits.
        channels: Width of all features.
        batch: Signals side by side.
    """

    n: int
    k: int
    channels: int
    batch: int = 1


@dataclass(frozen=True)
class Goal:
    """What one peer's time and memory over those of gsym must reach.

    Attributes:
        bar: Name of the bar, which is met when all its goals are.
        case: Name in `cases.CASES`.
        size: Where it holds.
        mode: ``FORWARD`` or ``BOTH``.
        peer: Against what. ``"copy"``: the bandwidth of gsym over that of a copy.
        least: Least ratio of times.
        stretch: What the machine should allow; NaN if nothing is stated.
        memory: Least ratio of peak memories; NaN if nothing is stated.
        huge: ``least`` with transparent huge pages; the same if ``None``.
        settings: Where the goal has to be met.
        brief: Whether a step takes seconds, so that one process measures it a few times.
    """

    bar: str
    case: str
    size: Size
    mode: str
    peer: str
    least: float
    stretch: float = math.nan
    memory: float = math.nan
    huge: float | None = None
    settings: tuple[str, ...] = (PLAIN, HUGE)
    brief: bool = False

    @property
    def device(self) -> str:
        """``"cpu"`` or ``"cuda"``."""
        return "cuda" if self.bar.startswith("H") else "cpu"

    def least_in(self, setting: str) -> float:
        """Least ratio of times in a setting."""
        return self.huge if setting == HUGE and self.huge is not None else self.least

    def is_met(self, setting: str, ratio: float, memory_ratio: float) -> bool:
        """Whether measured ratios reach the goal; what could not be measured does not."""
        enough = math.isnan(self.memory) or memory_ratio >= self.memory
        return ratio >= self.least_in(setting) and enough


_MILLION = Size(10**6, 62_500, 64)
_FOUR = Size(4 * 10**6, 250_000, 64)
_GATHER = Size(1_600_000, 100_000, 64)
_EGNN = Size(160_000, 10_000, 64)
_EGNN_LARGE = Size(1_600_000, 100_000, 64)
_NBODY = Size(2_000, 500, 64, 100)
_ORBIT = tuple(Size(100_000, k, 32, 32) for k in (100, 4))
_WIDE = Size(784, 4, 32, 32)

_EQUAL = Size(102_400, 100, 32)
_EGO = Size(1_194_845, 2_000, 64)
_FEW_EGO = Size(44_252, 74, 64)

# Least ratios by channels; every other group has the last one, at 64.
_GENERAL = {
    ("D4 on 8 x 8", 16): 3,
    ("D4 on 8 x 8", 64): 10,
    ("mirror", 64): 2,
    ("Z4 x Z4 x Z4", 64): 20,
} | {(name, 64): 0.95 for name in GROUPS if name not in ("D4 on 8 x 8", "mirror", "Z4 x Z4 x Z4")}

_SEGMENTS_GPU = Size(16 * 10**6, 10**6, 64)
_GATHER_GPU = Size(10**7, 625_000, 64)
_EGNN_GPU = Size(10**7, 625_000, 64)
_EGNN_GPU_WIDE = Size(10**7, 625_000, 128)


def _both_peers(
    bar: str,
    case: str,
    size: Size,
    mode: str,
    least: float,
    stretch: float,
    memory: float = math.nan,
    huge: float | None = None,
    settings: tuple[str, ...] = (PLAIN, HUGE),
) -> tuple[Goal, ...]:
    """Faster than the better of two is faster than either."""
    return tuple(
        Goal(bar, case, size, mode, peer, least, stretch, memory, huge, settings)
        for peer in ("plain EGNN", "PyG MessagePassing")
    )


GOALS = (
    Goal("C1", "segment_sum", _MILLION, FORWARD, "copy", 0.9, 0.95),
    Goal("C1", "segment_sum", _MILLION, FORWARD, "PyG scatter", 3),
    Goal("C1", "segment_sum", _MILLION, FORWARD, "torch-scatter", 4.4),
    Goal("C1", "segment_sum", _MILLION, FORWARD, "segment_reduce", 7),
    Goal("C1", "segment_sum", _FOUR, FORWARD, "copy", 0.65, 0.85),
    Goal("C2", "gather_segment_sum", _GATHER, FORWARD, "PyG scatter", 7, 12, 15),
    Goal("C2", "gather_segment_sum", _GATHER, BOTH, "PyG scatter", 10, 12, 15),
    Goal("C2", "gather_segment_sum", _GATHER, BOTH, "torch.sparse", 5),
    Goal("C3", "segment_max", _MILLION, BOTH, "scatter_reduce", 1.5, 2.5),
    *_both_peers("C4", "EGNNConv in plain torch", _EGNN, FORWARD, 3.5, 4.5, 12, 2.3),
    *_both_peers("C4", "EGNNConv in plain torch", _EGNN, BOTH, 2.1, 2.8, 6, 1.6),
    *_both_peers("C5", "EGNNConv", _EGNN, FORWARD, 6, 7, huge=3.6),
    *_both_peers("C5", "EGNNConv", _EGNN, BOTH, 3.5, 4.5, huge=2.5),
    *_both_peers("C6", "EGNNConv", _EGNN_LARGE, FORWARD, 3.4, 6, 14),
    *_both_peers("C6", "EGNNConv", _EGNN_LARGE, BOTH, 2.3, 6, 12),
    *_both_peers("C7", "EGNNConv, n-body", _NBODY, BOTH, 1.5, 2.5),
    *(
        Goal("C8", "OrbitLinear", size, mode, peer, least, stretch)
        for size in _ORBIT
        for mode, peer, least, stretch in (
            (FORWARD, "nn.Linear", 1 / 1.15, 1 / 1.05),
            (FORWARD, "naive scatter", 4.5, math.nan),
            (BOTH, "nn.Linear", 1 / 1.6, 1 / 1.2),
            (BOTH, "naive scatter", 3, math.nan),
        )
    ),
    Goal("C9", "OrbitLinear, dense", _WIDE, BOTH, "dense", 3000, 6000, 500, settings=(PLAIN,)),
    *(
        Goal("C10", "EquivariantTensorLinear", _EQUAL, mode, "stacked by size", least, stretch, 4)
        for mode, least, stretch in ((FORWARD, 10, 14), (BOTH, 6.5, 9))
    ),
    *(
        Goal(
            bar,
            "EquivariantTensorLinear, ego-networks",
            size,
            mode,
            peer,
            8,
            memory=5,
            settings=(PLAIN,) if bar == "C11" else (PLAIN, HUGE),
            brief=bar == "C11",
        )
        for bar, size, peer in (
            ("C10", _FEW_EGO, "stacked by size"),
            ("C10", _FEW_EGO, "stacked, padded"),
            ("C11", _EGO, "stacked by size"),
        )
        for mode in (FORWARD, BOTH)
    ),
    *(
        Goal(
            "C12" if least > 1 else "C13",
            f"OrbitLinear, {name}",
            Size(GROUPS[name].num_nodes, GROUPS[name].commutant_dim(), channels, 64),
            mode,
            BEST_DENSE,
            least,
            settings=(PLAIN,),
        )
        for (name, channels), least in _GENERAL.items()
        for mode in (FORWARD, BOTH)
    ),
    *(
        Goal("C14", "OrbitLinear, levels", size, mode, FINEST, 1 / 1.35)
        for size in _ORBIT
        for mode in (FORWARD, BOTH)
    ),
    *(
        Goal("C15", "OrbitLinear, signs", size, mode, UNSIGNED, 1 / 1.1, settings=(PLAIN,))
        for size in _ORBIT
        for mode in (FORWARD, BOTH)
    ),
    Goal("H1", "segment_sum", _SEGMENTS_GPU, FORWARD, "copy", 0.85, 0.92, settings=(EXACT,)),
    Goal("H1", "segment_sum", _SEGMENTS_GPU, FORWARD, "index_add", 2, settings=(EXACT,)),
    Goal("H1", "segment_sum", _SEGMENTS_GPU, FORWARD, "segment_reduce", 4, settings=(EXACT,)),
    Goal("H1", "segment_sum, Zipf", _SEGMENTS_GPU, FORWARD, "copy", 0.7, settings=(EXACT,)),
    *(
        Goal(
            "H2",
            "gather_segment_sum",
            _GATHER_GPU,
            FORWARD,
            peer,
            least,
            stretch,
            settings=(EXACT,),
        )
        for peer, least, stretch in (("torch.sparse", 0.95, 1.1), ("PyG scatter", 3, 4))
    ),
    *_both_peers("H3", "EGNNConv", _EGNN_GPU, FORWARD, 5, 8, 20, settings=(EXACT,)),
    *_both_peers("H3", "EGNNConv", _EGNN_GPU, BOTH, 3.5, 5, 20, settings=(EXACT,)),
    Goal("H3", "EGNNConv", _EGNN_GPU, FORWARD, "torch.compile", 2.5, settings=(EXACT,)),
    *_both_peers("H4", "EGNNConv", _EGNN_GPU, FORWARD, 7, 11, settings=(TF32,)),
    *_both_peers("H4", "EGNNConv", _EGNN_GPU, BOTH, 4.5, 7, settings=(TF32,)),
    *_both_peers("H5", "EGNNConv", _EGNN_GPU_WIDE, FORWARD, 6, 9, settings=(TF32,)),
    *_both_peers("H5", "EGNNConv", _EGNN_GPU_WIDE, BOTH, 4, 9, settings=(TF32,)),
    *(
        Goal("H6", "OrbitLinear", size, FORWARD, peer, least, stretch, settings=(EXACT,))
        for size in _ORBIT
        for peer, least, stretch in (
            ("nn.Linear", 1 / 1.3, 1 / 1.1),
            ("naive scatter", 6, math.nan),
        )
    ),
    *_both_peers("H8", "EGNN, n-body", _NBODY, BOTH, 8, 15, settings=(EXACT,)),
    Goal("H8", "EGNN, n-body", _NBODY, BOTH, "CUDA graph", 2, settings=(EXACT,)),
)

BARS = tuple(dict.fromkeys(goal.bar for goal in GOALS))
SWEEP = "sweep"  # all that is measured beside the bars

_RESULTS = (
    "It is the memory of a forward pass on ego-networks. A peak counts the result of a call and "
    "not its input, for all alike. gsym holds the result and nothing else of its size, so it "
    "cannot hold less. Stacked by size, a peer holds three of the size of a result: the results of "
    "all sizes, the same in one piece, and in the order of the pairs; the stack of one size, a few "
    "of all subgraphs, comes and goes before. So about three is the most that this ratio can be: a "
    "fifth would be less than the result itself. With gradients, which need every stack, it is "
    "reached."
)

HELD_BACK = {
    "C1": "To read the rows takes most of the time, as the sum of all entries beside it shows, "
    "which reads as much and writes nothing. Where the C library has kept its memory and both "
    "cores share one way to memory, PyG's scatter takes less than three times as long as that.",
    "C4": "Products take half of the time of a forward pass; every other step on a block of edges "
    "is a call of torch that passes over the block once more.",
    "C5": "The products of the edges run as fast as the matrix product beside them, and the "
    "exponentials of SiLU come on top; with huge pages the peers lose fewer page faults.",
    "C7": "For so few edges the calls from Python count, and the nodes of derivatives they make.",
    "C10": _RESULTS,
    "C11": _RESULTS,
    "C12": "At 16 channels the calls from Python count, and the nodes of derivatives they make; on "
    "the mirror a dense product multiplies less than twice as many numbers.",
    "C13": "For so few nodes the calls from Python count.",
    "C15": "With signs the matrix between cluster means is made whole; channels that stay are "
    "mixed block by block in a basis adapted to the group. With few clusters both take the same "
    "calls on rows, and what differs is a table of some thousand numbers: a ratio that is not near "
    "1 there is noise of the machine.",
}
"""Why a bar or its stretch is not reached, where it is not."""
