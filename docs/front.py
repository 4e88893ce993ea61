"""The picture of the front page: a body under three groups, one colour per orbit of its joints.

python docs/front.py writes it for light and for dark pages.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gsym import ClusterGroup, Partition, PermutationGroup

PAGES = Path(__file__).parent / "pages"
BODY = PAGES / "results" / "skeleton_cmu-mocap_standard_graph.npz"
# Right and left joints of the body that change places, in the order of its file.
PAIRS = ((1, 4), (2, 5), (3, 6), (13, 10), (14, 11), (15, 12))
INK = {"light": ("#32383e", "#9aa2ab"), "dark": ("#e6e8ea", "#79818a")}
WIDTH, HEIGHT, SCALE, TOP = 200, 300, 52, 130


def colours(group: PermutationGroup) -> list[str]:
    """One hue per orbit of nodes."""
    orbits = group.node_orbits()
    hues = [round(360 * ((0.58 + 0.618 * o) % 1)) for o in range(orbits.num_orbits)]
    return [f"hsl({hues[o]} 70% 52%)" for o in orbits.index.tolist()]


def draw(theme: str) -> str:
    """The picture as SVG."""
    with np.load(BODY) as body:
        places, edges = body["positions"], body["edge_index"].T
    n = len(places)
    groups = {
        "every joint alike": ClusterGroup(Partition.single(n)),
        "left like right": PermutationGroup.from_cycles(n, PAIRS),
        "no two alike": PermutationGroup.trivial(n),
    }
    ink, bone = INK[theme]
    parts = []
    for k, (words, group) in enumerate(groups.items()):
        x = WIDTH * k + WIDTH / 2 + SCALE * places[:, 0]
        y = TOP - SCALE * places[:, 1]
        parts += [
            f'<path d="M{x[i]:.1f} {y[i]:.1f}L{x[j]:.1f} {y[j]:.1f}" stroke="{bone}"/>'
            for i, j in edges
            if i < j
        ]
        parts += [
            f'<circle cx="{x[i]:.1f}" cy="{y[i]:.1f}" r="9" fill="{colour}"/>'
            for i, colour in enumerate(colours(group))
        ]
        dim = group.commutant_dim()
        for line, (size, text) in enumerate(((17, words), (14, f"{dim} weights of {n * n}"))):
            parts.append(
                f'<text x="{WIDTH * k + WIDTH // 2}" y="{HEIGHT - 38 + 22 * line}" fill="{ink}" '
                f'font-size="{size}">{text}</text>'
            )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {3 * WIDTH} {HEIGHT}" '
        'font-family="system-ui, sans-serif" text-anchor="middle" stroke-width="3">'
        "<style>text, circle { stroke: none }</style>" + "".join(parts) + "</svg>\n"
    )


if __name__ == "__main__":
    for theme in INK:
        path = PAGES / "images" / f"front_{theme}.svg"
        path.write_text(draw(theme), encoding="utf-8")
