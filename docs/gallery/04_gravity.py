"""
EGNN, PEnGUiN and gravity
=========================

A network that commutes with every rotation cannot know where down is. This page lets things fall,
and compares a network that keeps all of the symmetry of space, one that is told which direction
counts, and one that learns how much of the symmetry to keep.
"""

# %%
# A world with and without gravity
# --------------------------------
# Four nodes go half the way to their centre, which every rotation respects. With gravity they
# fall as well, and then only rotations about the vertical are left.

# sphinx_gallery_thumbnail_number = 3
import matplotlib.pyplot as plt
import torch

import gsym
from gsym_bench.simulators.partial import blow, fall, places, pull

generator = torch.Generator().manual_seed(0)
train, test = places(120, 3, generator), places(500, 3, generator)
features = torch.ones(1, 4, 1)
edge_index = torch.tensor([[i, j] for i in range(4) for j in range(4) if i != j]).T
down = torch.tensor([[0.0, 0.0, -1.0]])


def models():
    """The three, with as many layers and channels."""
    torch.manual_seed(0)
    size = {"hidden_channels": 16, "num_layers": 2}
    return {
        "EGNN": gsym.nn.EGNN(1, 1, **size),
        "EGNN, told where down is": gsym.nn.EGNN(1, 1, extra_vectors=down, **size),
        "PEnGUiN, alpha learned": gsym.nn.Penguin(1, 1, alpha="learned", **size),
    }


def moved(model, pos):
    return model(features.expand(len(pos), -1, -1), pos, edge_index)[1]


def fit(model, world, price=0.05, steps=100):
    """Train; symmetry that is not kept costs a little."""
    own = [p for name, p in model.named_parameters() if name.endswith("logit")]  # of alpha
    others = [p for name, p in model.named_parameters() if not name.endswith("logit")]
    optimiser = torch.optim.Adam(
        [{"params": others, "lr": 0.005}, *([{"params": own, "lr": 0.1}] if own else [])]
    )
    alphas = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = (moved(model, train) - world(train)).square().mean()
        if isinstance(model, gsym.nn.Penguin):
            alpha = model.symmetry_score(features.expand(len(train), -1, -1), train, edge_index)
            loss = loss + price * (1 - alpha).mean()
            alphas.append(alpha.mean().item())
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        return (moved(model, test) - world(test)).square().mean().sqrt().item(), alphas


# %%
# Who learns what
# ---------------
# Without gravity all three do well. With it the plain EGNN stays off, whatever it is trained: the
# fall is no map that commutes with rotations. The other two follow.

worlds = {"no gravity": pull, "gravity": fall}
errors, trained = {}, {}
for world, motion in worlds.items():
    for name, model in models().items():
        errors[world, name], _ = fit(model, motion)
        trained[world, name] = model
        print(f"{world:11} {name:25} {errors[world, name]:.3f} off")

names = list(models())
figure, axes = plt.subplots(figsize=(7, 2.8), layout="constrained")
for k, world in enumerate(worlds):
    heights = [errors[world, name] for name in names]
    axes.barh([i + 0.38 * k for i in range(3)], heights, 0.36, label=world)
axes.set(yticks=[i + 0.19 for i in range(3)], yticklabels=names, xlabel="distance off (rms)")
axes.invert_yaxis()
axes.legend()
plt.show()

# %%
# What alpha says
# ---------------
# Alpha is how much of the symmetry PEnGUiN keeps: 1 is an EGNN, 0 a free network. It begins at a
# half; a price pulls it up, what the world breaks pulls it down. Here a wind blows, differently
# by place, and alpha tells a strong wind from none. Its value depends on the price and on how long
# one trains, so compare alphas within one setting only.

figure, axes = plt.subplots(figsize=(6, 2.8), layout="constrained")
for strength in (0.0, 0.5, 3.0):
    torch.manual_seed(0)
    small = gsym.nn.Penguin(1, 1, hidden_channels=16, num_layers=1, alpha="learned")
    _, found = fit(small, lambda pos, w=strength: blow(pos, w))
    print(f"wind {strength:g}: alpha {found[-1]:.2f}")
    axes.plot(found, label=f"wind {strength:g}")
axes.set(xlabel="step", ylabel="alpha", ylim=(0, 1))
axes.legend()
plt.show()

# %%
# Which rotations are left
# ------------------------
# Turn what goes in, and compare with what comes out, turned. About the vertical the network that
# was told where down is commutes exactly; about a level axis it must not.


def turned(model, axis):
    turn = torch.linalg.matrix_exp(0.8 * torch.linalg.cross(torch.eye(3), axis.expand(3, 3)))
    with torch.no_grad():
        away = moved(model, test @ turn.T) - moved(model, test) @ turn.T
    return (away.square().mean().sqrt() / test.square().mean().sqrt()).item()


vertical, level = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 0.0])
for name in names:
    model = trained["gravity", name]
    about = turned(model, vertical), turned(model, level)
    print(f"{name:25} about the vertical {about[0]:.0e}, about a level axis {about[1]:.0e}")

model = trained["gravity", "EGNN, told where down is"]
figure, plots = plt.subplots(1, 2, figsize=(8, 3), sharey=True, layout="constrained")
for axes, name in zip(plots, names[:2], strict=True):
    with torch.no_grad():
        end = moved(trained["gravity", name], test[:1])[0]
    for start, right, said in zip(test[0], fall(test[:1])[0], end, strict=True):
        axes.annotate(
            "", right[[0, 2]], start[[0, 2]], arrowprops={"arrowstyle": "->", "color": "0.6"}
        )
        axes.plot(*start[[0, 2]], "o", color="0.6")
        axes.plot(*said[[0, 2]], "x", color="C3")
    axes.set(title=name, xlabel="sideways", ylabel="height")
plt.show()

assert turned(model, vertical) < 1e-4 < 0.01 < turned(model, level)
assert errors["gravity", "EGNN, told where down is"] < errors["gravity", "EGNN"]
