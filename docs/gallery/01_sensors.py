"""
Your sensors in a CSV
=====================

You have a table of readings, one column per sensor, and a list of which sensors are neighbours.
This page finds out which sensors a model may treat as interchangeable, fills the gaps of the
table with intervals, and trains a model on it.
"""

# %%
# The table
# ---------
# The readings are speeds of a simulated freeway: stations with four lanes each. We write them to
# files as you would have them, and forget where they came from.

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

import gsym
from gsym_bench.simulators.freeway import simulate_freeway

folder = Path(tempfile.mkdtemp())
road = simulate_freeway(0, days=5)
names = [f"station{s:02d}-lane{i % 4 + 1}" for i, s in enumerate(road.station)]
times = pd.date_range("2024-03-04", periods=len(road.speed), freq="5min")
table = pd.DataFrame(road.speed, index=times, columns=names).replace(0.0, np.nan)
table.iloc[::6].to_csv(folder / "speeds.csv")
source, target = road.edge_index
keep = source < target
pd.DataFrame(
    {
        "source": np.array(names)[source[keep]],
        "target": np.array(names)[target[keep]],
        "weight": road.edge_weight[keep],
    }
).to_csv(folder / "edges.csv", index=False)

speeds = pd.read_csv(folder / "speeds.csv", index_col=0, parse_dates=True)
edges = pd.read_csv(folder / "edges.csv")
print(speeds.iloc[:3, :4].round(1))
print(edges.head(3))
print(f"{len(speeds)} times, {speeds.shape[1]} sensors, {speeds.isna().mean().mean():.1%} missing")

# %%
# Candidates
# ----------
# ``coarsen`` reads a graph, also one of NetworkX, and proposes a chain of partitions: first every
# sensor alone, at last all in one cluster. ``names`` tells which node is which column.

import networkx as nx

graph = nx.from_pandas_edgelist(edges, edge_attr="weight")
h = gsym.coarsen(graph)
speeds = speeds[list(h.names)]
print(h)

# %%
# Fill the gaps, and say how sure that is
# ---------------------------------------
# ``SymmetricCovariance`` mixes averages of the covariance over the groups of the chain, with
# weights from held-out signals. What is missing follows from what was read at the same time, with
# a variance. To see whether that is right we hide a tenth of what was read on the last days.

x = speeds.to_numpy()
train, test = slice(0, 3 * 48), slice(3 * 48, None)
read = ~np.isnan(x)
seen = read & ~(np.random.default_rng(0).random(x.shape) < 0.1)
values = np.where(read, x, 0.0)
levels = [h[12], h[3], h[1]]
model = gsym.SymmetricCovariance(levels, objective="likelihood")
model.fit(values[train], observed=read[train])
mean, variance = model.conditional(values[test], seen[test])

hidden = (read & ~seen)[test]
error = (mean - x[test])[hidden]
deviation = np.sqrt(variance)[hidden]
usual = (model.location_ - x[test])[hidden]
print(f"weights: {model.weights_}")
print(f"mean absolute error of hidden speeds: {np.abs(error).mean():.2f} mph")
print(f"with the mean of the sensor:          {np.abs(usual).mean():.2f} mph")
print(f"within two deviations:                {(np.abs(error) < 2 * deviation).mean():.1%}")

node = int(hidden.sum(0).argmax())
hours = np.arange(len(mean)) / 2
known, open_ = seen[test][:, node], hidden[:, node]
figure, axes = plt.subplots(figsize=(8, 3), layout="constrained")
axes.plot(hours[known], x[test][known, node], ".-", color="0.6", label="read")
axes.errorbar(
    hours[open_],
    mean[open_, node],
    2 * np.sqrt(variance[open_, node]),
    fmt="o",
    ms=4,
    label="filled, two deviations",
)
axes.plot(hours[open_], x[test][open_, node], "x", color="black", label="what was hidden")
axes.set(xlabel="hours", ylabel="mph", title=h.names[node])
figure.legend(loc="outside lower center", ncols=3)
plt.show()

# %%
# Which symmetry?
# ---------------
# The task: some sensors fail, and a model says what all of them would have read. Three days are too
# few to fit a weight for every pair of sensors well, and enough not to treat all sensors alike. The
# choice weighs the two by errors on signals that were left out; near times are alike, so half a day
# is left out together.

full = model.impute(values, read) - model.location_
failed = np.random.default_rng(1).random(full.shape) < 0.2
left = np.where(failed, 0.0, full)
sizes = [48, 24, 12, 6, 3, 1]
choice = gsym.choose_group(h, left[train], full[train], block=24, levels=sizes)
chosen = choice.simplest
print(f"simplest that does as well: {chosen.group}")
choice.plot()
plt.show()

# %%
# The curve falls while larger groups save weights that the signals cannot fix, and rises where they
# join what differs. On the map sensors of one colour may be exchanged. Are these the lanes of one
# station? We know for once.

labels = chosen.partition.labels.numpy()
station = dict(zip(names, road.station, strict=True))
truth = np.array([station[name] for name in h.names])
place = dict(zip(names, road.positions, strict=True))
places = np.array([place[name] for name in h.names])
pure = [len(set(truth[labels == c])) == 1 for c in range(labels.max() + 1)]
print(f"{sum(pure)} of {len(pure)} clusters lie within one station")

figure, axes = plt.subplots(figsize=(8, 2.6), layout="constrained")
axes.scatter(*places.T, c=labels, cmap="tab20", s=60)
axes.set(xlabel="miles along the road", ylabel="lane", yticks=[], title=str(chosen.group))
plt.show()

# %%
# Train a model
# -------------
# The group goes into a layer as ``group=``. Three small networks see what is left of the same
# signals, and which sensors failed; they differ in the group alone.

inputs = torch.tensor(np.stack([left / 10, failed], axis=-1), dtype=torch.float32)
targets = torch.tensor(full / 10, dtype=torch.float32)[..., None]
counts = torch.tensor(failed & read)[..., None]


def miss(answer, part):
    """Mean absolute error of what failed, in mph."""
    return 10 * ((answer - targets[part]).abs() * counts[part]).sum() / counts[part].sum()


def fit(group):
    torch.manual_seed(0)
    net = gsym.nn.GNet([2, 16, 1], group, propagate="none")
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    curve = []
    for _ in range(100):
        optimiser.zero_grad()
        miss(net(inputs[train]), train).backward()
        optimiser.step()
        with torch.no_grad():
            curve.append(miss(net(inputs[test]), test).item())
    return curve, sum(p.numel() for p in net.parameters())


n = len(h.names)
groups = {
    "all sensors alike": gsym.ClusterGroup(gsym.Partition.single(n)),
    "chosen": chosen.group,
    "no two alike": gsym.ClusterGroup(gsym.Partition.singletons(n)),
}
usual = miss(torch.zeros_like(targets[test]), test).item()
print(f"mean of the sensor: {usual:.2f} mph")
figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
for name, group in groups.items():
    curve, size = fit(group)
    print(f"{name + ':':19} {curve[-1]:.2f} mph with {size:,} weights")
    axes.plot(curve, label=name)
axes.axhline(usual, color="0.6", ls=":", label="mean of the sensor")
axes.set(xlabel="step", ylabel="test error, mph")
axes.legend()
plt.show()

# %%
# ``choice.report(path)`` writes the choice on one page, and ``gsym choose`` does it
# from the two files, without any code.

assert (np.abs(error) < 2 * deviation).mean() > 0.8
