"""
Move a trained model between groups
===================================

A group need not be fixed for good. A model that was trained with much symmetry can go on with
less, one that was trained with none can be tied, and a model of PyG can be asked which symmetry
it has.
"""

# %%
# Train with much symmetry, go on with less
# -----------------------------------------
# Twelve nodes in three clusters. Every node answers with the mean of its cluster, more or less:
# some nodes are a little off, which a model tied to the clusters cannot say.

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch_geometric.nn import GCNConv

import gsym
from gsym import ClusterGroup, Partition

torch.manual_seed(0)
labels = torch.arange(12) // 4
mixing = (labels[:, None] == labels).float() / 4 + 0.08 * torch.randn(12, 12)
x = torch.randn(400, 12, 1)
y = mixing @ x + 0.3 * torch.randn(400, 12, 1)
train, test = slice(0, 60), slice(60, None)


def go_on(layer, steps=60):
    """Train on; the test error after every step."""
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.02)
    errors = []
    for _ in range(steps):
        optimiser.zero_grad()
        (layer(x[train]) - y[train]).square().mean().backward()
        optimiser.step()
        with torch.no_grad():
            errors.append((layer(x[test]) - y[test]).square().mean().item())
    return errors


everything = ClusterGroup(Partition.single(12))
clusters = ClusterGroup(Partition(labels))
nothing = ClusterGroup(Partition.singletons(12))

# %%
# ``to_group`` copies the weights to the smaller orbits. To a subgroup that is exact: the curve
# goes on where it was, without a jump. The dotted curve starts with no symmetry from random
# weights.

layer = gsym.nn.OrbitLinear(1, 1, everything)
curve = go_on(layer)
for group in (clusters, nothing):
    layer = layer.to_group(group)
    print(f"to {group}: {layer.moved}")
    curve += go_on(layer)
alone = go_on(gsym.nn.OrbitLinear(1, 1, nothing), steps=180)
print(f"step by step {min(curve):.3f} at best, from scratch {min(alone):.3f}")

figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
axes.plot(curve, label="one group after another")
axes.plot(alone, ":", label="no symmetry from the start")
for step, name in ((0, "all alike"), (60, "three clusters"), (120, "no symmetry")):
    axes.axvline(step, color="0.8", zorder=0)
    axes.text(step + 2, 1.15 * max(curve), name, va="top", bbox={"color": "white", "pad": 1})
axes.set(xlabel="step", ylabel="test error", ylim=(0, 1.2 * max(curve)))
axes.legend(loc="center right")
plt.show()

# %%
# The other way, to a *larger* group, weights are averaged over the larger orbits: the nearest map
# that commutes with it. ``moved`` says what that lost, so it can be looked at before it is done.

for group in (clusters, everything):
    print(f"to {group}: {layer.to_group(group).moved}")

# %%
# All groups at once
# ------------------
# ``soften`` splits the map into a part for every level of a chain, each being what the coarser
# levels cannot say. Nothing is lost, and the energies say how much each level carries.

levels = [Partition.single(12), clusters, Partition.singletons(12)]
soft = layer.soften(levels)
print(f"softened: {soft.moved}")
shares = soft.energy().flatten().tolist()
print([round(share, 3) for share in shares])

figure, axes = plt.subplots(figsize=(6, 2), layout="constrained")
axes.barh(["no symmetry", "three clusters", "all alike"], shares)
axes.set(xlabel="share of the map")
plt.show()

# %%
# ``harden`` takes one level out of it again.

print(f"hardened to three clusters: {soft.harden(3).moved}")

# %%
# A model of PyG
# --------------
# ``profile`` moves signals and looks at every part of a model. What comes after a part that breaks
# a symmetry is off as well; the part to blame is the first that gives what is not symmetric though
# what it is given is. Here it is the embedding.

edges = torch.tensor([[i, (i + 1) % 12] for i in range(12)]).T
edges = torch.cat([edges, edges.flip(0)], dim=1)


class Forecaster(nn.Module):
    def __init__(self):
        super().__init__()
        self.sensor = nn.Embedding(12, 4)
        self.conv = GCNConv(3 + 4, 10)
        self.head = nn.Linear(10, 1)

    def forward(self, x, edge_index):
        e = self.sensor(torch.arange(12)).expand(*x.shape[:-1], -1)
        return self.head(self.conv(torch.cat([x, e], -1), edge_index).relu())


model = Forecaster()
h = gsym.Hierarchy.from_partitions([Partition(labels)], edge_index=edges)
signal = torch.randn(32, 12, 3)
found = gsym.check.profile(model, h, signal, edges)
print(found)
found.plot()
plt.show()

# %%
# ``convert`` ties them in a copy, which starts as near to the model as the group allows and is
# trained on as any other.

tied = gsym.convert(model, clusters, edge_index=edges)
print(tied.conversion)
print(f"error now {gsym.check.equivariance_error(tied, clusters, signal, edges):.0e}")

assert gsym.check.equivariance_error(tied, clusters, signal, edges) < 1e-5
