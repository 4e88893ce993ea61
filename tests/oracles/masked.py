"""Ridge in a commutant where only some targets count, by fitting anew, from the definition."""

import numpy as np
from oracles.left_out import SHARED, select, windows


def centred(x, y, seen):
    """Deviations of the entries that count from their mean in every signal."""
    rows = []
    for a, b, keep in zip(x, y, seen, strict=True):
        if keep.any():
            rows.append((a[keep] - a[keep].mean(0), b[keep] - b[keep].mean()))
    a, b = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    return a, b


def shared_map(x, y, seen, penalty):
    """The own-value map of S_n for every target channel."""
    found = []
    for o in range(y.shape[2]):
        a, b = centred(x, y[..., o], seen[..., o])
        found.append(np.linalg.solve(a.T @ a + penalty * np.eye(a.shape[1]), a.T @ b))
    return np.stack(found, axis=1)


def shared_penalties(x, y, seen, block, gap):
    """The penalty of the shared map for each block, which suits the others."""
    scale = np.mean(
        [(centred(x, y[..., o], seen[..., o])[0] ** 2).sum() for o in range(y.shape[2])]
    )
    scale /= x.shape[2]
    table = np.zeros((len(SHARED), -(-len(x) // block)))
    for row, p in zip(table, scale * SHARED, strict=True):
        for number, (b, kept) in enumerate(windows(len(x), block, gap)):
            own = shared_map(x[kept], y[kept], seen[kept], p)
            for o in range(y.shape[2]):
                if seen[b][..., o].any():
                    d, t = centred(x[b], y[b][..., o], seen[b][..., o])
                    row[number] += ((t - d @ own[:, o]) ** 2).sum()
    return scale * SHARED[select(table)]


def masked_residuals(group, x, y, seen, *, block=1, gap=0, penalty=1.0, shared=True):
    """Residuals of each block's targets that count, under a fit that has not seen it ``[s, n, c]``.

    Args:
        group: By whose pair orbits weights are tied.
        x: Inputs ``[s, n, c_in]``.
        y: Targets ``[s, n, c_out]``.
        seen: Which targets count ``[s, n, c_out]``.
        block: Signals judged together.
        gap: Signals left out around them.
        penalty: On the squared Frobenius norm of the map less the shared one.
        shared: Whether there is a shared map.
    """
    x, y = x - x.mean((0, 1)), np.where(seen, y, 0.0)
    pairs, nodes = group.pair_orbits(), group.node_orbits()
    matrices = np.stack([(pairs.index == o).double().numpy() for o in range(pairs.num_orbits)])
    constants = np.stack([(nodes.index == o).double().numpy() for o in range(nodes.num_orbits)])
    sizes = np.repeat(pairs.sizes.numpy(), x.shape[2])
    features = np.einsum("rij,sjc->sirc", matrices, x).reshape(*x.shape[:2], -1)
    ones = np.broadcast_to(constants.T, (len(x), *constants.T.shape))
    features = np.concatenate([features, ones], axis=2)
    ridge = np.diag(np.append(penalty * sizes, np.zeros(len(constants))))
    strengths = shared_penalties(x, y, seen, block, gap) if shared else None
    out = np.zeros(y.shape)
    for number, (b, kept) in enumerate(windows(len(x), block, gap)):
        rest = y
        if shared:
            rest = y - x @ shared_map(x[kept], y[kept], seen[kept], strengths[number])
        for o in range(y.shape[2]):
            used = seen[kept][..., o]
            A, z = features[kept][used], rest[kept][..., o][used]
            weight = np.linalg.lstsq(A.T @ A + ridge, A.T @ z, rcond=None)[0]
            error = rest[b][..., o] - features[b] @ weight
            out[b, :, o] = np.where(seen[b][..., o], error, 0.0)
    return out
