"""The code that a page offers: the layer of a candidate, and a whole script that trains a net."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from gsym.choosing.choice import Task
from gsym.choosing.page.drawing import MAX_NODES
from gsym.groups import ClusterGroup, Partition, PermutationGroup, Representation

# What the page of a candidate puts in their place.
GROUP, NET = "#GROUP#", "#NET#"

_SCRIPT = '''"""Train a network with the symmetry that was chosen, and say what it errs."""

import torch

import gsym

torch.manual_seed(0)
#LOAD#

# The last fifth of the signals judges; nothing else is learned from them.
cut = len(x) - max(len(x) // 5, 1)
train = torch.arange(#LAST#)


def standardized(values):
    """Mean 0 and variance 1 in the signals to train on; what is missing becomes 0."""
    known = values.isfinite()
    mean = values[train].nanmean(#OVER#, keepdim=True)
    scale = (values[train] - mean).square().nanmean(#OVER#, keepdim=True).sqrt()
    scale = torch.where(scale > 0, scale, torch.ones(()))
    return ((values - mean) / scale).nan_to_num(), known, scale


#DATA#
#GROUP#
net = #NET#


def predict(rows):
    return #PREDICTED#


def squared_error(predicted, rows):
    """Mean over what was observed, in the units of the data."""
    squares = ((predicted - y[rows]) * scale).square() * seen[rows]
    return squares.sum() / seen[rows].sum().clamp(min=1)


optimizer = torch.optim.Adam(net.parameters(), lr=0.01, weight_decay=1e-4)
epochs = 60
for epoch in range(epochs):
    losses = []
    for batch in train[torch.randperm(len(train))].split(64):
        optimizer.zero_grad()
        loss = squared_error(predict(batch), batch) / scale.square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    if epoch % 10 == 0 or epoch == epochs - 1:
        print(f"epoch {epoch}: training loss {sum(losses) / len(losses):.4g}")
torch.save(net.state_dict(), "model.pt")

# The signals that judge are looked at once, when all is learned.
judged = torch.arange(cut, len(x))
with torch.no_grad():
    error = squared_error(predict(judged), judged).sqrt().item()
plain = squared_error(0.0, judged).sqrt().item()
print(f"root mean square error {error:.4g}; the mean of the training signals errs {plain:.4g}")
print("the net is in model.pt")
'''
_MADE_UP = """# Made-up signals: put yours here, [samples, nodes] or [samples, nodes, channels].
x = torch.randn(200, {n}, {channels})
y = {y}"""


def code(candidate: Any, number: int, cells: tuple[int, int] | None = None) -> tuple[str, bool]:
    """Python that builds the layer of a candidate.

    Args:
        candidate: The candidate.
        number: Its place among ``choice.candidates``.
        cells: Rows and columns where the nodes are those of an image, row by row.

    Returns:
        The code, and whether ``LABELS`` in it is to be replaced by the labels.
    """
    lines, listed = group_code(candidate, cells)
    if lines is None:
        lines = [
            "# choice is what gsym.choose_group returned",
            f"group = choice.candidates[{number}].group",
        ]
    layer = "layer = gsym.nn.OrbitLinear(1, 1, group)"
    if candidate.in_rep is not None:
        # One number per signal is the sum over nodes of a channel that stays.
        out_rep = candidate.out_rep or Representation.trivial(candidate.in_rep.group, 1)
        sizes = f"{candidate.in_rep.num_channels}, {out_rep.num_channels}"
        lines = [*lines, *_representations(candidate)]
        layer = f"layer = gsym.nn.OrbitLinear({sizes}, group, in_rep=in_rep, out_rep=out_rep)"
    return "\n".join(["import gsym", "", *lines, layer]), listed


def training_code(
    candidate: Any, task: Task, cells: tuple[int, int] | None, saved: str | None = None
) -> tuple[str, str]:
    """For the script: the lines that make the group of a candidate, and its net.

    Args:
        candidate: The candidate.
        task: What is predicted from what.
        cells: Rows and columns where the nodes are those of an image, row by row.
        saved: File with the arrays of the group, which is read where they are too long to list.
    """
    lines, _ = group_code(candidate, cells)
    if lines is None:
        lines = _saved_code(candidate.group, saved)
    reps = ""
    if candidate.in_rep is not None:
        lines = [*lines, *_representations(candidate)]
        reps = ", in_rep=in_rep, out_rep=out_rep"
    widths = [task.in_channels, 16, task.out_channels or 1]
    return "\n".join(lines), f'gsym.nn.GNet({widths}, group, propagate="none"{reps})'


def training_script(task: Task, num_nodes: int, load: str | None) -> tuple[str, str, str]:
    """A whole script: what stands before, between and after a candidate's group and its net.

    Args:
        task: What is predicted from what.
        num_nodes: Number of nodes.
        load: Lines that make ``x``, and ``y`` unless the task is to recover x; by default
            made-up signals.
    """
    if load is None:
        kind = f"torch.randn(200, {num_nodes}, {task.out_channels})"
        if not task.out_channels:
            kind = "torch.randn(200)"
        load = _MADE_UP.format(n=num_nodes, channels=task.in_channels, y=kind)
        load = load.rsplit("\n", 1)[0] if task.denoising else load
    form = f"{num_nodes}, -1" if task.out_channels else "-1"
    tensors = [f"x = x.reshape(len(x), {num_nodes}, -1).float()"]
    if task.denoising:
        tensors += [
            "y, seen, scale = standardized(x)",
            "# The task is to recover the signals from noisy ones.",
            "x = y + torch.randn_like(y)",
        ]
    else:
        tensors += [
            f"y = y.reshape(len(y), {form}).float()",
            "x, _, _ = standardized(x)",
            "y, seen, scale = standardized(y)",
        ]
    marks = {
        "#LOAD#": load,
        "#LAST#": f"max(cut - {task.gap}, 1)" if task.gap else "cut",
        "#OVER#": "(0, 1)" if task.standardize is None else "0",
        "#DATA#": "\n".join(tensors),
        "#PREDICTED#": "net(x[rows])" if task.out_channels else "net(x[rows]).mean(-2)",
    }
    first, _, rest = _SCRIPT.partition(GROUP)
    between, _, end = rest.partition(NET)
    first, between, end = (_in_one_pass(part, marks) for part in (first, between, end))
    return first, between, end


def filled(script: Sequence[str], group: str, net: str) -> str:
    """The script of a candidate, as the page writes it when the slider moves."""
    first, between, end = script
    return first + group + between + net + end


def _in_one_pass(text: str, marks: dict[str, str]) -> str:
    """Put texts in the place of marks; what looks like a mark in such a text stays."""
    return re.sub("|".join(map(re.escape, marks)), lambda found: marks[found[0]], text)


def group_code(candidate: Any, cells: tuple[int, int] | None) -> tuple[list[str] | None, bool]:
    """Lines that make the group, and whether they hold ``LABELS``; ``None`` if too many."""
    group = candidate.group
    if not is_listed(group):
        return None, False
    swaps = getattr(group, "swaps", None)
    if not isinstance(group, ClusterGroup):
        return [f"group = {_generators_code(group)}"], False
    built = _partition_code(group.partition, cells)
    lines = [f"partition = {built}"]
    if swaps is None:
        lines.append("group = gsym.ClusterGroup(partition)")
    else:
        lines.append(f"swaps = {_generators_code(swaps)}")
        lines.append("group = gsym.ClusterGroup(partition, swaps=swaps)")
    return lines, "LABELS" in built


def is_listed(group: PermutationGroup) -> bool:
    """Whether a group has few enough labels and generators to be written out."""
    moved = getattr(group, "swaps", None) if isinstance(group, ClusterGroup) else group
    numbers = 0 if moved is None else moved.generators.numel()
    return max(group.num_nodes, numbers) <= MAX_NODES


def saved_arrays(group: PermutationGroup) -> dict[str, np.ndarray]:
    """The arrays of a file from which the script makes the group: those that :data:`_ARRAYS` names.

    Example:
        >>> list(saved_arrays(ClusterGroup(Partition.single(4))))
        ['labels']
    """
    if not isinstance(group, ClusterGroup):
        return {"generators": group.generators.numpy()}
    arrays = {"labels": group.partition.labels[None].numpy()}
    return arrays if group.swaps is None else arrays | {"swaps": group.swaps.generators.numpy()}


# Where a choice holds the arrays of a file.
_ARRAYS = {
    "labels": "choice.partition.labels[None]",
    "swaps": "choice.group.swaps.generators",
    "generators": "choice.group.generators",
}


def _saved_code(group: PermutationGroup, saved: str | None) -> list[str]:
    """Lines that read a group with too many numbers to be written out."""
    arrays = saved_arrays(group)
    name = "labels.npz" if saved is None else saved
    lines = ["import numpy", "", f"saved = numpy.load({name!r})  # gsym choose wrote it"]
    if saved is None:
        held = ", ".join(f"{array}={_ARRAYS[array]}" for array in arrays)
        lines[2:] = [
            "# To be written where the choice is:",
            f"# numpy.savez({name!r}, {held})",
            f"saved = numpy.load({name!r})",
        ]
    if "generators" in arrays:
        return [*lines, f'group = gsym.PermutationGroup({group.num_nodes}, saved["generators"])']
    lines.append('partition = gsym.Partition.from_labels(saved["labels"][0])')
    if "swaps" not in arrays:
        return [*lines, "group = gsym.ClusterGroup(partition)"]
    return [
        *lines,
        'swaps = gsym.PermutationGroup(partition.num_clusters, saved["swaps"])',
        "group = gsym.ClusterGroup(partition, swaps=swaps)",
    ]


def _representations(candidate: Any) -> list[str]:
    out_rep = candidate.out_rep or Representation.trivial(candidate.in_rep.group, 1)
    both = (("in_rep", candidate.in_rep), ("out_rep", out_rep))
    return [f"{name} = {_representation_code(rep)}" for name, rep in both]


def _partition_code(partition: Partition, cells: tuple[int, int] | None) -> str:
    n, k = partition.num_nodes, partition.num_clusters
    if partition == Partition.singletons(n):
        return f"gsym.Partition.singletons({n})"
    if k == 1:
        return f"gsym.Partition.single({n})"
    if cells is not None:
        rows, columns = cells
        size = n // k
        for tall in (d for d in range(1, rows + 1) if rows % d == 0 and size % d == 0):
            wide = size // tall
            if columns % wide == 0 and partition == Partition.grid(rows, columns, (tall, wide)):
                patch = str(tall) if tall == wide else f"({tall}, {wide})"
                return f"gsym.Partition.grid({rows}, {columns}, {patch})"
    return "gsym.Partition.from_labels([LABELS])"


def _generators_code(group: PermutationGroup) -> str:
    if not group.generators.numel():
        return f"gsym.PermutationGroup.trivial({group.num_nodes})"
    return f"gsym.PermutationGroup({group.num_nodes}, {group.generators.tolist()})"


def _representation_code(rep: Representation) -> str:
    if rep.is_trivial:
        return f"gsym.Representation.trivial(group, {rep.num_channels})"
    if (rep.images == torch.arange(rep.num_channels)).all():
        return f"gsym.Representation.from_signs(group, {rep.signs.tolist()})"
    return f"gsym.Representation(group, {rep.images.tolist()}, {rep.signs.tolist()})"
