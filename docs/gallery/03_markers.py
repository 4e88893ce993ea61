"""
Fill lost markers
=================

Motion capture loses markers: a hand goes behind the back, and for some frames its place is
missing. The other joints say where it is, and the mirror of the body says more: what the left arm
does the right one may do.
"""

# %%
# Walkers, and what is lost
# -------------------------
# Simulated walkers, seen from the hip. Few recordings are complete, as is usual; in the others a
# wrist and an elbow are lost together.

# sphinx_gallery_thumbnail_number = 2
import matplotlib.pyplot as plt
import numpy as np

import gsym
from gsym_bench.simulators.gait import JOINT_NAMES, SKELETON_EDGES, simulate_gait

walks = simulate_gait(40, 40, seed=3).numpy()[:, ::4]
walks = 100 * (walks - walks[:, :, :1])[:, :, 1:]  # centimetres from the hip, without the hip
walks = walks + 0.3 * np.random.default_rng(0).standard_normal(walks.shape)  # as markers are read
names = JOINT_NAMES[1:]
n = len(names)
lost = [names.index("r_elbow"), names.index("r_wrist")]
observed = np.ones((n, 3), dtype=bool)
observed[lost] = False
rest = walks[20:].reshape(-1, n, 3)
print(f"{walks.shape[0]} walkers, {n} joints; lost: {[names[i] for i in lost]}")

# %%
# The symmetry of a body
# ----------------------
# Left and right joints change places, and what points to the side changes its sign. That is a group
# with a representation of the channels. Without the sign it would be the wrong symmetry.

pairs = [(i, names.index(f"l{name[1:]}")) for i, name in enumerate(names) if name[:2] == "r_"]
mirror = gsym.PermutationGroup.from_cycles(n, pairs)
sideways = gsym.Representation.from_signs(mirror, [[-1, 1, 1]])
nothing = gsym.PermutationGroup.trivial(n)
levels = {"no symmetry": [nothing], "mirror as well": [nothing, (mirror, sideways)]}

# %%
# Few recordings, with and without the mirror
# -------------------------------------------
# A covariance of the joints fills what is lost by the conditional mean. With the mirror among its
# levels it learns by itself how much of it to use. Errors are means over draws of who was recorded.


def fit(count, which, draw=0):
    recorded = np.random.default_rng(draw).permutation(20)[:count]
    complete = walks[recorded].reshape(-1, n, 3)
    groups = np.repeat(np.arange(count), walks.shape[1])
    model = gsym.SymmetricCovariance(levels[which], objective="likelihood")
    return model.fit(complete, groups=groups)


def fill(model):
    mean, variance = model.conditional(rest, observed)
    off = np.linalg.norm((mean - rest)[:, lost], axis=-1)
    return mean, variance, off.mean()


counts = (4, 8, 16)
errors = {
    which: [np.mean([fill(fit(count, which, draw))[2] for draw in range(4)]) for count in counts]
    for which in levels
}
middle = np.linalg.norm((walks[:20].mean((0, 1)) - rest)[:, lost], axis=-1).mean()
print(f"always the mean place: {middle:.2f} cm off")
for which, found in errors.items():
    print(
        f"{which:15}",
        *(f"{e:.2f} cm with {c} walkers" for e, c in zip(found, counts, strict=True)),
        sep="  ",
    )

figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
for which, found in errors.items():
    axes.plot(counts, found, "o-", label=which)
axes.set(xlabel="walkers recorded completely", ylabel="cm off", xticks=counts, ylim=(0, None))
axes.legend()
plt.show()

# %%
# How much of the mirror is used stands in the weights.

model = fit(8, "mirror as well")
print(model.weights_)

# %%
# A walk with a lost arm
# ----------------------
# The filled arm of one walker, from the front, in several frames: true in grey, filled in colour.
# The circles are two standard deviations wide. The model says of every frame how sure it is.

mean, variance, _ = fill(model)
deviation = np.sqrt(variance)
figure, plots = plt.subplots(1, 4, figsize=(8, 3.2), sharex=True, sharey=True, layout="constrained")
bones = [(i - 1, j - 1) for i, j in SKELETON_EDGES if i and j]
for axes, frame in zip(plots, range(4), strict=True):
    for places, colour in ((rest[frame], "0.7"), (mean[frame], "C0")):
        for i, j in bones:
            if colour == "0.7" or j in lost:
                axes.plot(*places[[i, j], :2].T, color=colour)
    for i in lost:
        axes.add_patch(
            plt.Circle(mean[frame, i, :2], 2 * deviation[frame, i, :2].mean(), alpha=0.2)
        )
    axes.set(aspect="equal", xlabel="cm to the side")
plt.show()

# %%
# Is it as sure as it says? Two deviations hold 95 % of a Gaussian. Walking is none, and other
# walkers move in other ways than those of the fit: expect a few per cent less.

inside = (np.abs(mean - rest) < 2 * deviation)[:, lost].mean()
print(f"{inside:.1%} of the lost coordinates lie within two deviations")

wrist, up = lost[1], 1
frames = np.arange(walks.shape[1])
figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
axes.plot(frames, rest[frames, wrist, up], color="0.5", label="true")
axes.plot(frames, mean[frames, wrist, up], "o", label="filled")
low, high = (mean + sign * 2 * deviation for sign in (-1, 1))
axes.fill_between(frames, low[frames, wrist, up], high[frames, wrist, up], alpha=0.2)
axes.set(xlabel="frame", ylabel="height of the wrist above the hip, cm")
axes.legend()
plt.show()

assert max(errors["mirror as well"]) < middle
