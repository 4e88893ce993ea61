"""Lift the 2D joints of a person to 3D: nodes are joints, the graph is the skeleton."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler
from torch import Tensor, nn

from gsym.groups import ClusterGroup, Partition, PermutationGroup, Representation
from gsym_bench.data import DataError, find, read_npz
from gsym_bench.human36m import SUBJECTS, read_human36m
from gsym_bench.models.pose import PoseNet
from gsym_bench.simulators.cameras import project, random_cameras
from gsym_bench.simulators.gait import JOINT_NAMES, SKELETON_EDGES, simulate_gait
from gsym_bench.suite.task import (
    Predictor,
    Problem,
    Schedule,
    Split,
    Task,
    register,
    with_images,
)

_CMU_FILE = "skeleton/cmu_mocap_28j_60hz.npz"
_CMU_JOINTS = (
    *("pelvis", "r_hip", "r_knee", "r_ankle", "l_hip", "l_knee", "l_ankle"),
    *("spine1", "chest", "head_top"),
    *("l_shoulder", "l_elbow", "l_wrist", "r_shoulder", "r_elbow", "r_wrist"),
)
_POSES_PER_ACTION = {"train": 1400, "val": 350, "test": 350}
_GAIT_SEQUENCES = {"train": 240, "val": 60, "test": 60}
_GAIT_FRAMES, _GAIT_STEP = 40, 5
FRONT_VIEW = (
    *((0.0, 0.0), (-0.3, -0.1), (-0.4, -1.0), (-0.5, -1.9)),
    *((0.3, -0.1), (0.4, -1.0), (0.5, -1.9)),
    *((0.0, 0.6), (0.0, 1.2), (0.0, 1.9)),
    *((0.5, 1.1), (0.8, 0.5), (1.1, -0.1), (-0.5, 1.1), (-0.8, 0.5), (-1.1, -0.1)),
)
# The mirror that also changes the sign of what points to the side.
REFLECTION = "mirror S_2, reflected"
_RIDGE_STRENGTHS = tuple(10.0**k for k in range(-6, 3))


@register
class Skeleton(Task):
    """2D joints to 3D joints relative to the hip, on the 16-joint skeleton of SemGCN.

    Each pose is seen by a virtual camera of its own, anywhere around the person. Inputs are image
    coordinates in ``[-1, 1]``, targets metres in the camera frame; the metrics are in millimetres.
    No sequence is in two splits, and the data are the same for every seed, which sets only the
    first weights and the order of the samples.

    Embedded data are simulated walks, every fifth frame. With ``data``, they are CMU motion
    capture: in each split, every action gives the same number of poses (1,400 in training, 350 in
    validation and test), evenly spaced over its frames; an action with fewer frames repeats some,
    seen by other cameras. An action that does not occur in training is left out.

    The model is the published residual net without its graph (``propagate="none"``), which had
    the smaller validation error in a trial against learned edge weights. The published tied
    variants multiply their learned adjacency with the identity and so pass no messages either.
    The epoch is chosen on validation sequences, not on the test set.

    Exchanging left and right also reflects the body, so no permutation of joints alone is an exact
    symmetry of lifting; the mirror that changes the sign of the lateral coordinate as well is one,
    of the projection and of bodies. The other groups are approximations, and the task asks which
    one pays.

    Reference:
        Huang, Levie, Villar, arXiv 2308.10436, section on human pose estimation.
    """

    name: ClassVar[str] = "skeleton"
    title: ClassVar[str] = "2D to 3D human pose"
    metric: ClassVar[str] = "MPJPE"
    unit: ClassVar[str] = "mm"
    model_name: ClassVar[str] = "PoseNet"

    def load(self, data: Path | None, profile: str, seed: int) -> Problem:
        """Build the problem; ``seed`` and ``profile`` do not change the data.

        Raises:
            DataError: The motion capture file is missing or is not what it should be.
        """
        dataset, poses = self.bodies(data)
        one_way = torch.tensor(SKELETON_EDGES).T
        groups = skeleton_groups()
        groups = {**groups, REFLECTION: groups["mirror S_2"]}
        return Problem(
            dataset=dataset,
            train=_photograph(poses["train"], seed=0),
            val=_photograph(poses["val"], seed=1),
            test=_photograph(poses["test"], seed=2),
            edge_index=torch.cat([one_way, one_way.flip(0)], dim=1),
            positions=torch.tensor(FRONT_VIEW),
            groups=groups,
            representations={REFLECTION: reflection(groups[REFLECTION])},
        )

    def bodies(self, data: Path | None) -> tuple[str, dict[str, Tensor]]:
        """Name of the data, and poses ``[b, 16, 3]`` of each split in metres, y up."""
        if data is None:
            return "gait (simulated)", _gait_poses()
        return "cmu-mocap", _evenly(cmu_sequences(data))

    def schedule(self, profile: str, data: Path | None) -> Schedule:
        epochs = {"quick": (10, 3), "standard": (80, 14)}[profile][data is not None]
        return Schedule(epochs=epochs, batch_size=64, lr=1e-3, cosine=True)

    def model(self, problem: Problem, group: str, profile: str) -> nn.Module:
        hidden = 32 if profile == "quick" else 64
        reps = problem.representations.get(group, (None, None))
        return PoseNet(problem.groups[group], hidden, 1, "none", problem.edge_index, *reps)

    def loss(self, prediction: Tensor, batch: Split) -> Tensor:
        return F.mse_loss(prediction, batch.targets)

    def metrics(self, prediction: Tensor, split: Split, problem: Problem) -> dict[str, float]:
        """Mean joint error before and after the best similarity transform, in millimetres."""
        prediction, targets = prediction.double(), split.targets.double()
        return {
            "MPJPE": 1000 * mpjpe(prediction, targets).item(),
            "P-MPJPE": 1000 * mpjpe(align(prediction, targets), targets).item(),
        }

    def baselines(self) -> Mapping[str, Callable[[Problem], Predictor]]:
        return {
            "training mean": _fit_mean,
            "ridge": lambda problem: _fit_ridge(problem, degree=1),
            "quadratic ridge": lambda problem: _fit_ridge(problem, degree=2),
            "quadratic ridge, reflected": _fit_reflected_ridge,
        }


@register
class SkeletonHuman36M(Skeleton):
    """The same task on a user's own copy of Human3.6M, ``skeleton/data_3d_h36m.npz``.

    Subjects 1, 5, 6 and 7 train, 8 validates, 9 and 11 test. Poses are chosen and photographed as
    those of CMU motion capture, so errors are not those of the cameras of the data set.
    """

    name: ClassVar[str] = "skeleton-h36m"
    title: ClassVar[str] = "2D to 3D human pose, Human3.6M"
    needs_data: ClassVar[bool] = True

    def bodies(self, data: Path | None) -> tuple[str, dict[str, Tensor]]:
        assert data is not None
        sequences = read_human36m(data / "skeleton" / "data_3d_h36m.npz")
        part_of = {s: part for part, subjects in SUBJECTS.items() for s in subjects}
        frames: dict[str, dict[str, list[Tensor]]] = {part: {} for part in _POSES_PER_ACTION}
        for (subject, action), positions in sequences.items():
            if subject in part_of:
                # The two takes of an action differ in a number at the end.
                own = frames[part_of[subject]].setdefault(action.rstrip(" 0123456789"), [])
                own.append(torch.from_numpy(positions))
        return "human3.6m", _evenly(frames)


def reflection(mirror: PermutationGroup) -> tuple[Representation, Representation]:
    """How the mirror moves image coordinates (right, down) and camera coordinates."""
    return (
        Representation.from_signs(mirror, [[-1, 1]]),
        Representation.from_signs(mirror, [[-1, 1, 1]]),
    )


def skeleton_groups() -> dict[str, PermutationGroup]:
    """A chain of groups on the 16 joints; each holds the next."""
    joint = {name: i for i, name in enumerate(JOINT_NAMES)}
    right_leg, left_leg = ([joint[f"{s}_{j}"] for j in ("hip", "knee", "foot")] for s in "rl")
    right_arm, left_arm = (
        [joint[f"{s}_{j}"] for j in ("shoulder", "elbow", "wrist")] for s in "rl"
    )
    spine = [[joint[name]] for name in ("hip", "spine", "thorax", "head")]

    limbs = Partition.from_clusters([right_leg, left_leg, right_arm, left_arm, *spine])
    limb_swaps = PermutationGroup.from_cycles(8, [(0, 1)], [(2, 3)])
    leg_pairs = list(zip(right_leg, left_leg, strict=True))
    arm_pairs = list(zip(right_arm, left_arm, strict=True))
    joints = Partition.singletons(len(JOINT_NAMES))

    def swapping(*generators: Sequence[tuple[int, int]]) -> PermutationGroup:
        swaps = PermutationGroup.from_cycles(len(JOINT_NAMES), *generators)
        return ClusterGroup(joints, swaps=swaps)

    return {
        "S_16": PermutationGroup.symmetric(len(JOINT_NAMES)),
        "(S_6)^2": ClusterGroup(
            Partition.from_clusters([right_leg + left_leg, right_arm + left_arm, *spine])
        ),
        "(S_3)^4 x| (S_2)^2": ClusterGroup(limbs, swaps=limb_swaps),
        "Aut = (S_2)^2": swapping(leg_pairs, arm_pairs),
        "mirror S_2": swapping(leg_pairs + arm_pairs),
        "trivial": PermutationGroup.trivial(len(JOINT_NAMES)),
    }


def mpjpe(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean distance of joints, ``[b, n, 3]`` twice to a scalar in the same unit."""
    return torch.linalg.vector_norm(prediction - target, dim=-1).mean()


def align(prediction: Tensor, target: Tensor) -> Tensor:
    """Each predicted pose scaled, turned and moved onto its target with least squared error.

    Turned, not reflected: a mirrored pose stays wrong.

    Args:
        prediction: ``[b, n, 3]``.
        target: ``[b, n, 3]``.

    Returns:
        The aligned predictions, ``[b, n, 3]``.

    Reference:
        Umeyama, IEEE PAMI 1991.
    """
    prediction_centre, target_centre = prediction.mean(1, True), target.mean(1, True)
    centred = prediction - prediction_centre
    U, S, Vh = torch.linalg.svd(centred.mT @ (target - target_centre))
    sign = torch.ones_like(S)
    sign[:, -1] = torch.det(U @ Vh).sign()
    rotation = (U * sign[:, None]) @ Vh
    spread = centred.square().sum(dim=(1, 2))
    # A prediction without extent has no best scale; it stays a point at the target's centre.
    scale = (S * sign).sum(-1) / spread.clamp_min(torch.finfo(spread.dtype).tiny)
    return scale[:, None, None] * (centred @ rotation) + target_centre


def _photograph(positions: Tensor, seed: int) -> Split:
    """Poses ``[b, 16, 3]`` as seen by one random camera each."""
    return Split(*project(positions, random_cameras(len(positions), seed)))


def _gait_poses() -> dict[str, Tensor]:
    walks = simulate_gait(sum(_GAIT_SEQUENCES.values()), _GAIT_FRAMES, seed=0)[:, ::_GAIT_STEP]
    parts = walks.split(list(_GAIT_SEQUENCES.values()))
    return {name: part.flatten(0, 1) for name, part in zip(_GAIT_SEQUENCES, parts, strict=True)}


def cmu_sequences(data: Path) -> dict[str, dict[str, list[Tensor]]]:
    """Sequences ``[t, 16, 3]`` of CMU motion capture, 60 frames per second, by split and action."""
    path = find(data, _CMU_FILE, "cmu")
    keys = ("positions", "joint_names", "seq_start", "seq_len", "action", "bench_split")
    z = read_npz(path, keys)
    names, num_frames = z["joint_names"].tolist(), len(z["positions"])
    missing = sorted(set(_CMU_JOINTS) - set(names))
    if missing:
        raise DataError(f"{path}: no joint {missing[0]!r}; delete the file and fetch it again")
    if z["seq_len"].sum() != num_frames:
        raise DataError(
            f"{path}: sequences hold {z['seq_len'].sum()} frames, positions {num_frames}; "
            "delete the file and fetch it again"
        )
    positions = torch.from_numpy(z["positions"])[:, [names.index(name) for name in _CMU_JOINTS]]

    frames: dict[str, dict[str, list[Tensor]]] = {part: {} for part in _POSES_PER_ACTION}
    columns = (z[key].tolist() for key in ("seq_start", "seq_len", "action", "bench_split"))
    for start, length, action, part in zip(*columns, strict=True):
        frames[part].setdefault(action, []).append(positions[start : start + length])
    return frames


def _evenly(frames: Mapping[str, Mapping[str, Sequence[Tensor]]]) -> dict[str, Tensor]:
    """As many poses of every action of training, by split, evenly spaced over its sequences."""
    poses = {}
    for part, count in _POSES_PER_ACTION.items():
        chosen = []
        for action in sorted(frames["train"].keys() & frames[part].keys()):
            available = torch.cat(list(frames[part][action]))
            chosen.append(available[torch.linspace(0, len(available) - 1, count).round().long()])
        poses[part] = torch.cat(chosen)
    return poses


def _fit_mean(problem: Problem) -> Predictor:
    mean = problem.train.targets.mean(dim=0)
    return lambda split: mean.expand_as(split.targets)


def _fit_reflected_ridge(problem: Problem) -> Predictor:
    """Quadratic ridge on poses and their mirror images, which ties it as the net is tied."""
    return _fit_ridge(with_images(problem, REFLECTION), degree=2)


def _fit_ridge(problem: Problem, degree: int) -> Predictor:
    """Ridge on all monomials of the image coordinates; the strength is chosen on validation."""
    train = problem.train

    def predictor(strength: float) -> Predictor:
        features = PolynomialFeatures(degree, include_bias=False)
        model = make_pipeline(features, StandardScaler(), Ridge(strength))
        model.fit(train.inputs.flatten(1).double(), train.targets.flatten(1).double())

        def predict(split: Split) -> Tensor:
            flat = torch.from_numpy(model.predict(split.inputs.flatten(1).double()))
            return flat.to(split.targets).view_as(split.targets)

        return predict

    def error(predict: Predictor) -> float:
        return mpjpe(predict(problem.val), problem.val.targets).item()

    return min(map(predictor, _RIDGE_STRENGTHS), key=error)
