"""The left-out error of ridge in a commutant by fitting anew, from the definition alone."""

import numpy as np

from gsym.risk.ridge import as_clusters

MEANS, OWN, SHARED = np.logspace(-6, 4, 21), np.logspace(-6, 1, 8), np.logspace(-8, 4, 13)


def windows(signals, block, gap):
    """Signals judged, and signals to fit to, for each block."""
    for start in range(0, signals, block):
        stop = min(start + block, signals)
        kept = np.r_[0 : max(start - gap, 0), min(stop + gap, signals) : signals]
        yield np.arange(start, stop), kept


def deviations(v):
    return (v - v.mean(1, keepdims=True)).reshape(-1, v.shape[2])


def shared_map(x, y, penalty):
    """The own-value map of S_n, by ridge regression on deviations from the mean of all nodes."""
    a, b = deviations(x), deviations(y)
    return np.linalg.solve(a.T @ a + penalty * np.eye(a.shape[1]), a.T @ b)


def select(table):
    """Each column under the row that is best for the others."""
    others = table.sum(1, keepdims=True) - table
    return others.argmin(0)


def shared_penalties(x, y, block, gap):
    """The penalty of the shared map for each block, chosen by fitting anew without the others."""
    scale = (deviations(x) ** 2).sum() / x.shape[2]
    table = np.array(
        [
            [
                ((deviations(y[b]) - deviations(x[b]) @ shared_map(x[kept], y[kept], p)) ** 2).sum()
                for b, kept in windows(len(x), block, gap)
            ]
            for p in scale * SHARED
        ]
    )
    return scale * SHARED[select(table)]


def pool(clusters):
    """Projection of signals on cluster means ``[n, n]``."""
    labels = clusters.partition.labels.numpy()
    same = labels[:, None] == labels
    return same / same.sum(1, keepdims=True)


def table_of_errors(group, clusters, x, y, penalties, block, gap):
    """Errors of cluster means and of deviations, ``[2, penalties, blocks]``, summed over entries.

    Regression in the basis of 0/1 orbit matrices, with the whole map's Frobenius norm as the
    penalty and one constant per node orbit.
    """
    pairs, nodes = group.pair_orbits(), group.node_orbits()
    matrices = np.stack([(pairs.index == o).double().numpy() for o in range(pairs.num_orbits)])
    constants = np.stack([(nodes.index == o).double().numpy() for o in range(nodes.num_orbits)])
    sizes = np.repeat(pairs.sizes.numpy(), x.shape[2])
    P = pool(clusters)
    out = np.empty((2, len(penalties), -(-len(x) // block)))
    shared = shared_penalties(x, y, block, gap)
    for number, (b, kept) in enumerate(windows(len(x), block, gap)):
        rest = y - x @ shared_map(x[kept], y[kept], shared[number])
        features = np.einsum("rij,sjc->sirc", matrices, x).reshape(*x.shape[:2], -1)
        ones = np.broadcast_to(constants.T, (len(x), *constants.T.shape))
        features = np.concatenate([features, ones], axis=2)
        A, z = (v[kept].reshape(-1, v.shape[2]) for v in (features, rest))
        for row, penalty in enumerate(penalties):
            ridge = np.diag(np.append(penalty * sizes, np.zeros(len(constants))))
            weight = np.linalg.solve(A.T @ A + ridge, A.T @ z)
            error = features[b] @ weight - rest[b]
            means = np.einsum("ij,sjc->sic", P, error)
            out[:, row, number] = (means**2).sum(), ((error - means) ** 2).sum()
    return out


def left_out_errors(group, x, y, *, block=1, gap=0, penalty=None, clusters=None):
    """Mean squared error of each block under a fit that has not seen it or the gap around it.

    Args:
        group: The group, by whose pair orbits weights are tied.
        x: Inputs.
        y: Targets.
        block: Signals judged together.
        gap: Signals left out around them.
        penalty: Of the ridge; ``None`` chooses one for means and one for deviations, for each block
            that which suits the others.
        clusters: The same group with its clusters, which say what are means and deviations.
    """
    clusters = as_clusters(group) if clusters is None else as_clusters(clusters)
    entries = np.array([len(b) for b, _ in windows(len(x), block, gap)]) * y[0].size
    if penalty is not None:
        return table_of_errors(group, clusters, x, y, [penalty], block, gap).sum((0, 1)) / entries
    P = pool(clusters)
    k = round(float(np.trace(P)))
    m = np.einsum("ij,sjc->sic", P, x)
    centred = (m - m.mean(0)).reshape(len(x), -1)
    mean_scale = (centred**2).sum() / np.linalg.matrix_rank(centred)
    if clusters.swaps is not None:
        images = np.einsum("ij,sjc->sic", group_mean(group), m)
        centred = (m - images.mean(0)).reshape(len(x), -1)
        mean_scale = (centred**2).sum() / np.linalg.matrix_rank(
            np.concatenate([centred[:, p] for p in images_of(clusters, x.shape[2])])
        )
    own_scale = ((x - m) ** 2).sum() / max((x.shape[1] - k) * x.shape[2], 1)
    tables = [
        table_of_errors(group, clusters, x, y, scale * grid, block, gap)[part]
        for part, (scale, grid) in enumerate([(mean_scale, MEANS), (own_scale or 1.0, OWN)])
    ]
    columns = np.arange(tables[0].shape[1])
    return sum(table[select(table), columns] for table in tables) / entries


def elements(group):
    """All elements of a small group, by closure."""
    known = {tuple(range(group.num_nodes))}
    frontier = list(known)
    generators = group.generators.tolist()
    while frontier:
        perm = frontier.pop()
        for generator in generators:
            image = tuple(generator[i] for i in perm)
            if image not in known:
                known.add(image)
                frontier.append(image)
    return np.array(sorted(known))


def group_mean(group):
    """The average of all permutations ``[n, n]``."""
    orbits = group.node_orbits().index.numpy()
    same = orbits[:, None] == orbits
    return same / same.sum(1, keepdims=True)


def images_of(clusters, channels):
    """Positions of the entries of a flattened signal under every element of the swaps."""
    nodes = [c.numpy() for c in clusters.partition.clusters()]
    for perm in elements(clusters.swaps):
        moved = np.empty(clusters.num_nodes, dtype=int)
        for c, target in enumerate(perm):
            moved[nodes[c]] = nodes[target]
        yield (moved[:, None] * channels + np.arange(channels)).reshape(-1)
