"""Subgraphs: many small graphs of different sizes in flat lists, without padding."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gsym.errors import GraphError
from gsym.kernels.segments import Segments, Tiles

# Pairs of one subgraph that a thread of compiled loops may have to take, if the others have as much
# to do: this many, or this part of all.
_MOST_PAIRS, _MOST_SHARE = 2**16, 4


@dataclass(frozen=True, eq=False, repr=False)
class Subgraphs:
    """Where the nodes and ordered pairs of many subgraphs lie in flat lists.

    Nodes of one subgraph are neighbours in the list of nodes. The list of pairs holds either all
    ordered pairs of every subgraph, row by row, or those that :meth:`from_batch` was given.

    Attributes:
        num_subgraphs: Number of subgraphs, b; a subgraph may be empty.
        num_nodes: Nodes of all subgraphs together, n.
        num_pairs: Pairs of all subgraphs together, p.
        num_colours: Colours of the nodes, q; 1 where all nodes are alike.
        num_kinds: Kinds of subgraphs, k, each with separate weights; 1 where all share them.
        row: First node of every pair, int64 ``[p]``.
        col: Second node of every pair, int64 ``[p]``.

    Example:
        >>> subgraphs = gsym.nn.Subgraphs.from_sizes([2, 0, 1])
        >>> subgraphs
        Subgraphs(3 subgraphs, 3 nodes, 5 pairs)
        >>> subgraphs.row.tolist(), subgraphs.col.tolist()
        ([0, 0, 1, 1, 2], [0, 1, 0, 1, 2])
    """

    num_subgraphs: int
    num_nodes: int
    num_pairs: int
    num_colours: int
    num_kinds: int
    row: Tensor
    col: Tensor
    size: Tensor  # [b, 1] nodes of every subgraph, at least 1, to divide by
    node_size: Tensor  # [n, 1] that of the subgraph of every node
    kind: Segments  # k segments: that of every subgraph
    colour: Segments  # k q segments: kind and colour of every node
    subgraph: Segments  # b segments: that of every node
    part: Segments  # b q segments: subgraph and colour of every node
    block: Segments  # b q^2 segments: subgraph, colours of node and partner, [n q]
    by_row: Segments  # n q segments: row and colour of the column of every pair
    by_col: Segments  # n q segments: column and colour of the row of every pair
    colours: Segments  # k q^2 segments: kind and both colours of every pair
    reverse: Tensor | None  # [p] the pair the other way round; None where some are missing
    swap: tuple[Segments, Segments] | None  # pairs that have one, and which
    loop: tuple[Segments, Segments]  # pairs (i, i), and their nodes
    blocks: tuple[Tensor, ...] | None  # int32 tables of compiled loops, see `_blocks`
    _tiles: dict[tuple[str, int, int], Tiles] = field(default_factory=dict, init=False)

    @classmethod
    def from_sizes(cls, sizes: object, colour: Tensor | None = None) -> Subgraphs:
        """All ordered pairs of subgraphs of the given sizes.

        Args:
            sizes: Nodes of every subgraph, ``[b]``.
            colour: Colour of every node, ``[n]``, in ``0..q-1``.
        """
        counts = torch.as_tensor(sizes, dtype=torch.int64, device="cpu")
        if counts.dim() != 1 or bool((counts < 0).any()):
            raise GraphError(f"sizes must list numbers of nodes, none negative; got {sizes!r:.80}")
        batch = torch.repeat_interleave(torch.arange(counts.numel()), counts)
        return cls.from_batch(batch, counts.numel(), colour=colour)

    @classmethod
    def from_batch(
        cls,
        batch: Tensor,
        num_subgraphs: int | None = None,
        *,
        pairs: Tensor | None = None,
        colour: Tensor | None = None,
        num_colours: int | None = None,
        kind: Tensor | None = None,
        num_kinds: int | None = None,
    ) -> Subgraphs:
        """Subgraphs from the subgraph of every node.

        Args:
            batch: Subgraph of every node, int64 ``[n]``, sorted.
            num_subgraphs: Number of subgraphs, if the last may be empty.
            pairs: The pairs that carry features, int64 ``[2, p]``, among the nodes; all ordered
                pairs of every subgraph if left out. All others count as zero.
            colour: Colour of every node, int64 ``[n]``: its maps exchange nodes of one colour only.
            num_colours: Number of colours, if the last may be missing.
            kind: Kind of every subgraph, int64 ``[b]``: those of one kind share their weights.
            num_kinds: Number of kinds, if the last may be missing.

        Raises:
            GraphError: A batch that is not sorted, a pair between two subgraphs or given twice,
                a colour outside ``0..q-1``.
        """
        batch = _indices("batch", batch, 1)
        if bool((batch.diff() < 0).any()):
            raise GraphError("batch must be sorted: the nodes of a subgraph are contiguous")
        found = int(batch[-1]) + 1 if batch.numel() else 0
        count = found if num_subgraphs is None else num_subgraphs
        if batch.numel() and (int(batch[0]) < 0 or found > count):
            raise GraphError(f"batch must lie in 0..{count - 1}; got up to {found - 1}")
        shade, q = _labels("colour", colour, num_colours, batch)
        device, n = batch.device, batch.numel()
        sort, k = _labels("kind", kind, num_kinds, torch.zeros(count, device=device).long())
        sizes = torch.bincount(batch, minlength=count)
        if pairs is None:
            row, col, reverse = _all_pairs(batch, sizes)
        else:
            row, col = _indices("pairs", pairs, 2)
            _check_pairs(row, col, batch, n)
            reverse = _reverses(row, col, n)
        return cls._build(batch, sizes, row, col, reverse, (shade, q), (sort, k))

    @classmethod
    def _build(
        cls,
        batch: Tensor,
        sizes: Tensor,
        row: Tensor,
        col: Tensor,
        reverse: Tensor,
        colour: tuple[Tensor, int],
        kind: tuple[Tensor, int],
    ) -> Subgraphs:
        """All tables, from what is known to be right; ``reverse`` is -1 where there is none."""
        (shade, q), (sort, k) = colour, kind
        n, p, count = batch.numel(), row.numel(), sizes.numel()
        there = (reverse >= 0).nonzero().view(-1)
        closed = there.numel() == p
        loops = (row == col).nonzero().view(-1)
        every = torch.arange(q, device=batch.device)
        tint = sort[batch] * q + shade
        block = ((batch * q + shade)[:, None] * q + every).view(-1)
        size = sizes.clamp(min=1)[:, None]
        return cls(
            num_subgraphs=count,
            num_nodes=n,
            num_pairs=p,
            num_colours=q,
            num_kinds=k,
            row=row,
            col=col,
            size=size,
            node_size=size[batch],
            kind=Segments(sort, k),
            colour=Segments(tint, k * q),
            subgraph=Segments(batch, count),
            part=Segments(batch * q + shade, count * q),
            block=Segments(block, count * q * q),
            by_row=Segments(row * q + shade[col], n * q),
            by_col=Segments(col * q + shade[row], n * q),
            colours=Segments(tint[row] * q + shade[col], k * q * q),
            reverse=reverse if closed else None,
            swap=None if closed else (Segments(reverse[there], p), Segments(there, p)),
            loop=(Segments(loops, p), Segments(row[loops], n)),
            blocks=_blocks(batch, sizes, row, col, reverse, tint, sort),
        )

    @classmethod
    def from_blocks(cls, blocks: tuple[Tensor, ...], num_colours: int, num_kinds: int) -> Subgraphs:
        """The subgraphs of the tables that compiled loops take."""
        row, col, reverse, tint, kind, first_node, _ = (table.long() for table in blocks)
        sizes = first_node.diff()
        batch = torch.repeat_interleave(sizes)
        colour = tint % num_colours, num_colours
        return cls._build(batch, sizes, row, col, reverse, colour, (kind, num_kinds))

    @property
    def device(self) -> torch.device:
        """Where the tables lie."""
        return self.row.device

    def to(self, device: torch.device | str) -> Subgraphs:
        """The same subgraphs on another device."""
        if torch.device(device) == self.device:
            return self

        def moved(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(moved(part) for part in value)
            return value.to(device) if hasattr(value, "to") else value

        return Subgraphs(**{f.name: moved(getattr(self, f.name)) for f in fields(self) if f.init})

    def tiles(self, of: str, in_channels: int, out_channels: int) -> Tiles:
        """Tables of products with one matrix per segment of a field.

        The field is ``"kind"`` of subgraphs, ``"colour"`` of nodes or ``"colours"`` of pairs.
        """
        key = of, in_channels, out_channels
        if key not in self._tiles:
            if torch.compiler.is_compiling():  # which cannot sort; each row has its own matrix
                held: Segments = getattr(self, of)
                traced = Segments.traced(held.index.long(), held.num_segments)
                return Tiles.traced(traced)
            self._tiles[key] = Tiles(getattr(self, of), in_channels, out_channels)
        return self._tiles[key]

    def __repr__(self) -> str:
        colours = f", {self.num_colours} colours" if self.num_colours > 1 else ""
        return (
            f"Subgraphs({self.num_subgraphs} subgraphs, {self.num_nodes} nodes, "
            f"{self.num_pairs} pairs{colours})"
        )


def _blocks(
    batch: Tensor,
    sizes: Tensor,
    row: Tensor,
    col: Tensor,
    reverse: Tensor,
    tint: Tensor,
    kind: Tensor,
) -> tuple[Tensor, ...] | None:
    """Row, column and reverse of pairs, colour of nodes, kind of subgraphs, and where they begin.

    ``None`` where the pairs do not come by subgraph, or one has too many for a single thread.
    """
    owner = batch[row]
    pairs = torch.bincount(owner, minlength=sizes.numel())
    largest = int(pairs.max()) if pairs.numel() else 0
    if largest > max(_MOST_PAIRS, row.numel() // _MOST_SHARE) or bool((owner.diff() < 0).any()):
        return None
    if max(row.numel(), batch.numel(), sizes.numel()) >= 2**31 - 1:
        return None
    first = (F.pad(counts.cumsum(0), (1, 0)) for counts in (sizes, pairs))
    tables = row, col, reverse, tint, kind, *first
    return tuple(table.to(torch.int32, copy=True) for table in tables)


def _indices(name: str, value: object, dims: int) -> Tensor:
    """An int64 tensor ``[n]`` or ``[2, p]``."""
    shape = "[n]" if dims == 1 else "[2, p]"
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor {shape}; got {type(value).__name__}")
    fits = value.dim() == dims and (dims == 1 or value.size(0) == 2)
    if not fits or value.dtype != torch.int64:
        raise GraphError(f"{name} must be int64 {shape}; got {value.dtype} {list(value.shape)}")
    return value


def _labels(name: str, value: Tensor | None, given: int | None, like: Tensor) -> tuple[Tensor, int]:
    """One label for each row of ``like``, all 0 if none are given, and their number."""
    if value is None:
        if given not in (None, 1):
            raise GraphError(f"num_{name}s={given} needs {name}")
        return torch.zeros_like(like), 1
    label = _indices(name, value, 1)
    if label.shape != like.shape or label.device != like.device:
        raise GraphError(
            f"{name} must hold {like.numel()} labels on {like.device}; "
            f"got {label.numel()} on {label.device}"
        )
    found = int(label.max()) + 1 if label.numel() else 1
    count = found if given is None else given
    if label.numel() and (int(label.min()) < 0 or found > count):
        raise GraphError(
            f"{name} must lie in 0..{count - 1}; got {int(label.min())} to {found - 1}"
        )
    return label, count


def _all_pairs(batch: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Row, column and reverse of all ordered pairs, row by row."""
    n, device = batch.numel(), batch.device
    width = sizes[batch]  # pairs of every row
    row = torch.repeat_interleave(torch.arange(n, device=device), width)
    start = width.cumsum(0) - width  # where the pairs of every row begin
    first = (sizes.cumsum(0) - sizes)[batch]  # the first node of the subgraph of every node
    col = torch.arange(row.numel(), device=device) - start[row] + first[row]
    return row, col, start[col] + row - first[row]


def _check_pairs(row: Tensor, col: Tensor, batch: Tensor, n: int) -> None:
    """Refuse pairs that are out of range, between subgraphs, or there twice."""
    for end in (row, col):
        if end.numel() and not 0 <= int(end.min()) <= int(end.max()) < n:
            raise GraphError(
                f"pairs must lie in 0..{n - 1}; got {int(end.min())} to {int(end.max())}"
            )
    apart = (batch[row] != batch[col]).nonzero()
    if apart.numel():
        first = int(apart[0])
        raise GraphError(
            f"pair {first} joins nodes {int(row[first])} and {int(col[first])} of two subgraphs"
        )
    if torch.unique(row * n + col).numel() != row.numel():
        raise GraphError("pairs must not be given twice; add up their features first")


def _reverses(row: Tensor, col: Tensor, n: int) -> Tensor:
    """Where the reverse of every pair lies; -1 where it is not there."""
    keys, order = torch.sort(row * n + col)
    turned = col * n + row
    place = torch.searchsorted(keys, turned).clamp(max=max(keys.numel() - 1, 0))
    return torch.where(keys[place] == turned, order[place], -1) if keys.numel() else place
