"""
A tied layer in a PyG model
===========================

You have a model with ``GCNConv`` and a ``DataLoader``. Where all graphs of the loader are the
same one, with other signals, a layer may know which node is which, as far as a group allows. This
page puts such layers in its place.
"""

# %%
# Data as PyG has them
# --------------------
# Simulated walkers, seen from a camera to the side. From the places of the joints in the picture
# the model says how far each joint is away. All samples share the skeleton.

# sphinx_gallery_thumbnail_number = 2
import matplotlib.pyplot as plt
import torch
from torch import nn
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GCNConv

import gsym
from gsym_bench.simulators.gait import JOINT_NAMES, SKELETON_EDGES, simulate_gait

edge_index = torch.tensor(SKELETON_EDGES).T
edge_index = torch.cat([edge_index, edge_index.flip(0)], dim=1)
poses = simulate_gait(24, 40, seed=0)[:, ::5]
poses = poses - poses[:, :, :1]


def samples(walkers):
    return [
        Data(x=pose[:, :2], y=pose[:, 2:], edge_index=edge_index)
        for walker in walkers
        for pose in walker
    ]


train = DataLoader(samples(poses[:12]), batch_size=32, shuffle=True)
test = DataLoader(samples(poses[12:]), batch_size=96)
print(f"{len(train.dataset)} poses to train, {len(test.dataset)} to test; one looks so:")
print(train.dataset[0])

# %%
# The model, twice
# ----------------
# ``GCNConv`` has one weight matrix for all joints. A tied layer has one for each orbit of pairs
# of joints. The group exchanges left and right; in the picture that turns what points to the
# side, the first of two channels, which a representation says. PyG stacks the graphs of a batch,
# so the layer is told how many there are.

pairs = [
    (i, JOINT_NAMES.index(f"l{name[1:]}")) for i, name in enumerate(JOINT_NAMES) if name[:2] == "r_"
]
mirror = gsym.PermutationGroup.from_cycles(len(JOINT_NAMES), pairs)
turned = gsym.Representation.from_signs(mirror, [[-1, 1]])


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = GCNConv(2, 32)
        self.second = GCNConv(32, 1)

    def forward(self, data):
        hidden = self.first(data.x, data.edge_index).relu()
        return self.second(hidden, data.edge_index)


class Tied(nn.Module):
    def __init__(self, group, in_rep=None):
        super().__init__()
        self.net = gsym.nn.GNet([2, 32, 1], group, in_rep=in_rep)

    def forward(self, data):
        return self.net(data.x, data.edge_index, batch_size=data.num_graphs)


def fit(model):
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    curve = []
    for _ in range(25):
        for batch in train:
            optimiser.zero_grad()
            (model(batch) - batch.y).square().mean().backward()
            optimiser.step()
        with torch.no_grad():
            away = torch.cat([(model(batch) - batch.y).abs() for batch in test])
        curve.append(100 * away.mean().item())
    return curve


# %%
# What comes of it
# ----------------
# The convolution of PyG sees the neighbours of a joint but not which joint it is, and two of them
# see two bones far. The tied networks know the joints. With the mirror what is learned of a left
# arm holds for the right one as well.

torch.manual_seed(0)
models = {
    "GCNConv": Plain(),
    "left like right": Tied(mirror, turned),
    "no two alike": Tied(gsym.PermutationGroup.trivial(16)),
}
flat = 100 * torch.cat([batch.y.abs() for batch in test]).mean().item()
figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
for name, model in models.items():
    curve = fit(model)
    size = sum(p.numel() for p in model.parameters())
    print(f"{name:16} {size:7,} weights, {curve[-1]:.1f} cm off")
    axes.plot(curve, label=name)
axes.axhline(flat, color="0.6", ls=":", label="always flat")
axes.set(xlabel="epoch", ylabel="mean distance off, cm", ylim=(0, None))
axes.legend()
plt.show()

# %%
# One walker of the test set, from the side the camera does not see: true in grey, predicted in
# colour.

sample = next(iter(test))
figure, plots = plt.subplots(1, 3, figsize=(8, 3.4), sharex=True, sharey=True, layout="constrained")
for axes, (name, model) in zip(plots, models.items(), strict=True):
    with torch.no_grad():
        depth = model(sample)[:16, 0]
    for z, colour in ((sample.y[:16, 0], "0.7"), (depth, "C0")):
        for i, j in SKELETON_EDGES:
            axes.plot([z[i], z[j]], [sample.x[i, 1], sample.x[j, 1]], color=colour)
    axes.set(title=name, xlabel="depth, m", aspect="equal")
plt.show()

# %%
# Instead of stacked graphs the layer also takes ``x [b, n, c]``, and then the graph is stored once.

x = torch.randn(4, 16, 2)
stacked = torch.cat([edge_index + 16 * i for i in range(4)], dim=1)
conv = gsym.nn.GNetConv(2, 8, mirror)
same = torch.allclose(
    conv(x, edge_index), conv(x.flatten(0, 1), stacked, batch_size=4).view(4, 16, -1), atol=1e-5
)
print(f"both give the same: {same}")
assert same
