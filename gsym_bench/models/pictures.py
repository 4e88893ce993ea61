"""Pictures of filled gaps: a day at a failed sensor, a body that has lost an arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from numpy.typing import NDArray

TRUTH, OURS, OTHERS = "black", "#0072B2", ("#E69F00", "#009E73", "#CC79A7")


def draw_day(
    hours: NDArray, truth: NDArray, ours: Mapping[str, NDArray], others: Mapping[str, NDArray]
) -> Figure:
    """What a sensor read in a day, and what others say that it would have read.

    Args:
        hours: Times ``[t]``.
        truth: What it read, ``[t]``.
        ours: By name ``[t, 3]``: the filled value, and the ends of its interval.
        others: By name ``[t]``.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for color, (name, values) in zip(OTHERS, others.items(), strict=False):
        axes.plot(hours, values, color=color, linewidth=1, label=name)
    for name, values in ours.items():
        middle, low, high = values.T
        label = f"{name}, with its 90 % interval"
        axes.fill_between(hours, low, high, color=OURS, alpha=0.2, linewidth=0)
        axes.plot(hours, middle, color=OURS, linewidth=1.8, label=label)
    axes.plot(hours, truth, color=TRUTH, linewidth=1.2, linestyle=(0, (3, 1)), label="truth")
    axes.set_xlim(hours[0], hours[-1])
    axes.set_xticks(range(0, 25, 3))
    axes.set_xlabel("hour of the day")
    axes.set_ylabel("mph")
    axes.set_title(
        "A sensor has failed for a day: what the others say it would have read", loc="left"
    )
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=4, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def draw_bodies(
    bones: NDArray,
    lost: Sequence[int],
    truth: NDArray,
    ours: Mapping[str, tuple[NDArray, NDArray]],
    others: Mapping[str, NDArray],
) -> Figure:
    """Bodies seen by their cameras, and where the joints that they have lost may be.

    Args:
        bones: Pairs of joints ``[2, e]``.
        lost: The joints.
        truth: Joints ``[b, n, 3]`` in metres, to the right, down and away.
        ours: By name the filled joints, and the half width of their intervals, both ``[b, n, 3]``.
        others: By name the filled joints.
    """
    figure = Figure(figsize=(3.1 * len(truth), 4.4), layout="constrained")
    known = [bone for bone in bones.T if not set(bone) & set(lost)]
    broken = [bone for bone in bones.T if set(bone) & set(lost)]
    for column, body in enumerate(truth):
        axes = figure.add_subplot(1, len(truth), column + 1)

        def limbs(
            joints: NDArray, chosen: Sequence[NDArray], label: str = "", **style: Any
        ) -> None:
            for number, bone in enumerate(chosen):
                own: dict[str, Any] = {"label": label} if label and number == 0 else {}
                axes.plot(joints[bone, 0], joints[bone, 1], **own, **style)  # noqa: B023

        limbs(body, known, color="0.65", linewidth=2)
        limbs(body, broken, "truth", color=TRUTH, linewidth=1.5, linestyle=(0, (3, 1)))
        for color, (name, joints) in zip(OTHERS, others.items(), strict=False):
            limbs(joints[column], broken, name, color=color, linewidth=1.5)
        for name, (joints, reach) in ours.items():
            limbs(joints[column], broken, name, color=OURS, linewidth=2, marker="o", markersize=3)
            for joint in lost:
                x, y = joints[column, joint, :2].tolist()
                across, down = (2 * reach[column, joint, :2]).tolist()
                axes.add_patch(Ellipse((x, y), across, down, color=OURS, alpha=0.15, lw=0))
        axes.set_aspect("equal")
        axes.invert_yaxis()
        axes.axis("off")
        if column == 0:
            handles = axes.get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(
        "The right arm is lost: where it was, and where it may be "
        "(ellipses: 90 % intervals across and down)",
        fontsize=9,
    )
    return figure
