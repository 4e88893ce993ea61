"""Layers tied along a group, and the mark by which a checkpoint tells its group."""

from __future__ import annotations

import hashlib
import math
import warnings
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gsym.errors import GroupError
from gsym.groups import ClusterGroup, Partition, PermutationGroup, Representation
from gsym.nn._modules import T, TabledModule

_TEXT = 160  # bytes that name the group
_START = (15.0, 0.0) * 4


class TiedLayer(TabledModule[T]):
    """A layer whose checkpoints name its group and are refused by a layer of another one."""

    def __init__(
        self,
        group: PermutationGroup | None,
        in_rep: Representation | None = None,
        out_rep: Representation | None = None,
    ) -> None:
        super().__init__()
        self.group, self.in_rep, self.out_rep = group, in_rep, out_rep
        self._mark: Tensor | None = None

    def get_extra_state(self) -> Tensor:
        """What names the group in the ``state_dict``, float32; see :func:`mark`."""
        if self._mark is None:
            self._mark = self._make_mark()
        return self._mark.clone()

    def _make_mark(self) -> Tensor:
        return mark(self.group, *self._reps())

    def _check_mark(self, state: object) -> None:
        check_mark(state, self.group, *self._reps())

    def _reps(self) -> tuple[Representation | None, Representation | None]:
        """How the group moves all that comes in, and what goes out."""
        return self.in_rep, self.out_rep

    def set_extra_state(self, state: Tensor) -> None:
        """Nothing to do: the group was compared before this layer's parameters came."""

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        state = state_dict.get(f"{prefix}_extra_state")
        if state is not None:
            self._check_mark(state)
        elif any(key.startswith(prefix) for key in state_dict):
            # PyTorch does not tell a part whether missing entries are allowed; if not, it raises.
            _warn_unnamed("does not name it")
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class ChainLayer(TiedLayer[T]):
    """A layer tied along a chain of groups, or by one; checkpoints name all, in their order."""

    def __init__(self, levels: Sequence[PermutationGroup]) -> None:
        super().__init__(levels[0] if len(levels) == 1 else None)
        self.levels = tuple(levels)

    def _make_mark(self) -> Tensor:
        return torch.stack([mark(group) for group in self.levels])

    def _check_mark(self, state: object) -> None:
        own = len(self.levels)
        stacked = isinstance(state, Tensor) and state.dim() == 2
        if isinstance(state, Tensor) and stacked and state.size(0) != own:
            raise GroupError(
                f"the checkpoint was saved with {state.size(0)} levels; this layer has {own}; "
                "build it with the chain of the checkpoint"
            )
        rows = list(state) if isinstance(state, Tensor) and stacked else [state] * own
        for row, group in zip(rows, self.levels, strict=True):
            check_mark(row, group)


def as_clusters(group: PermutationGroup | None) -> ClusterGroup:
    """Any group as clusters with swaps: a general one exchanges single nodes."""
    check_group(group)
    if group is None:
        return ClusterGroup(Partition.single(1))
    return group.as_clusters()


def check_group(group: PermutationGroup | None) -> PermutationGroup | None:
    """The group as it came, once it is known to be one."""
    if group is not None and not isinstance(group, PermutationGroup):
        raise TypeError(
            f"group must be a PermutationGroup, a ClusterGroup or None; got {type(group).__name__}"
        )
    return group


def mark(
    group: PermutationGroup | None,
    in_rep: Representation | None = None,
    out_rep: Representation | None = None,
) -> Tensor:
    """The group's name, its fingerprint and a checksum, as numbers 0 to 15, float32.

    What averages, sums or scales checkpoints does so to every entry. Numbers this small survive
    that in every type of float: a sum of checkpoints of one group is a multiple of the mark, and
    its first entries tell by which factor.
    """
    digest = hashlib.sha256(b"S_n").digest() if group is None else group.fingerprint()
    text = describe(group)
    if in_rep is not None or out_rep is not None:
        # First, because what is too long is cut.
        text = f"channels {_moves(in_rep)} to {_moves(out_rep)}, {text}"
        parts = [digest, *(b"" if rep is None else rep.fingerprint() for rep in (in_rep, out_rep))]
        digest = hashlib.sha256(b"|".join(parts)).digest()
    said = text.encode("ascii", "replace")
    said = said if len(said) <= _TEXT else said[: _TEXT - 3] + b"..."
    content = said.ljust(_TEXT) + digest
    content += zlib.crc32(content).to_bytes(4, "big")
    halves = [float(half) for byte in content for half in divmod(byte, 16)]
    return torch.tensor([*_START, *halves], dtype=torch.float32, device="cpu")


def check_mark(
    state: object,
    group: PermutationGroup | None,
    in_rep: Representation | None = None,
    out_rep: Representation | None = None,
) -> None:
    """Refuse the mark of another group or representation; warn of one that cannot be read."""
    content = _read(state)
    if content is None:
        _warn_unnamed(
            "has it blurred, as differences of checkpoints have, or sums over several groups"
        )
        return
    own = _read(mark(group, in_rep, out_rep))
    if own is None or content[_TEXT:] != own[_TEXT:]:
        said, mine = (part[:_TEXT].decode().rstrip() for part in (content, own or content))
        mine = describe(group) if in_rep is None and out_rep is None else mine
        raise GroupError(
            f"the checkpoint was saved with another group or representation, {said}; this layer "
            f"has {mine}: weights are tied along other orbits; build the layer with the group and "
            "the representations of the checkpoint, which their to_dict() keeps"
        )


def _moves(rep: Representation | None) -> str:
    """What a representation does to channels, in short."""
    if rep is None or rep.is_trivial:
        return "that stay" if rep is None else f"{rep.num_channels} that stay"
    if rep.mixes_channels:
        return f"{rep.num_channels} that mix"
    rows = [
        " ".join(f"{'-' if s < 0 else ''}{a}" for a, s in zip(images, signs, strict=True))
        for images, signs in zip(rep.images.tolist(), rep.signs.tolist(), strict=True)
    ]
    said = " | ".join(rows)
    return f"({said})" if len(said) <= 24 else f"{rep.num_channels} ({said[:20]}...)"


def describe(group: PermutationGroup | None) -> str:
    """The group with its order and sizes, in one line."""
    if group is None:
        return "S_n on any number of nodes"
    said = f"{group} on {group.num_nodes} nodes"
    if not isinstance(group, ClusterGroup):
        sizes = group.node_orbits().sizes.tolist()
        return f"{said}, orbits of {_counts(sizes)}"
    if _knows_order(group):
        log_order = group.log_order()
        order = group.order() if log_order < 20 else f"10^{log_order / math.log(10):.1f}"
        said += f", order {order}"
    said += f", clusters of {_counts(group.partition.sizes)}"
    labels = " ".join(map(str, group.partition.labels.tolist()[:33]))
    return f"{said}, labels {labels}" if group.num_nodes <= 32 else said


def _knows_order(group: PermutationGroup) -> bool:
    """Whether the order takes no search."""
    if isinstance(group, ClusterGroup):
        return group.swaps is None or _knows_order(group.swaps)
    return group._order is not None


def _counts(sizes: list[int] | tuple[int, ...]) -> str:
    """Sizes in short: ``2 + 3``, or how many of each."""
    if len(sizes) <= 6:
        return " + ".join(map(str, sizes))
    common = Counter(sizes).most_common(4)
    return " + ".join(f"{count} x {size}" for size, count in common) + (
        " + ..." if len(set(sizes)) > 4 else ""
    )


def _read(state: object) -> bytes | None:
    """The content of a mark or of a multiple of one, if it is whole."""
    length = len(_START) + 2 * (_TEXT + 32 + 4)
    if not isinstance(state, Tensor) or state.is_meta or state.numel() != length:
        return None
    values = state.detach().cpu().double().flatten()
    scale = float(values[: len(_START)].sum()) / sum(_START)
    if not math.isfinite(scale) or abs(scale) < 1e-5:
        return None
    halves = (values / scale).round()
    whole = bool(((halves >= 0) & (halves <= 15)).all())
    if not whole or halves[: len(_START)].tolist() != list(_START):
        return None
    high, low = halves[len(_START) :].view(-1, 2).long().unbind(dim=1)
    content = bytes((16 * high + low).tolist())
    return content[:-4] if zlib.crc32(content[:-4]).to_bytes(4, "big") == content[-4:] else None


def _warn_unnamed(why: str) -> None:
    warnings.warn(
        f"the checkpoint does not say for which group its weights are: it {why}; that shapes agree "
        "does not tell one group from another, so make sure that it is that of the layer",
        UserWarning,
        stacklevel=4,
    )
