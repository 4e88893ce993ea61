from dataclasses import replace
from itertools import pairwise
from math import factorial

import numpy as np
import pytest
import torch
from helpers import load_golden

from gsym.check import equivariance_error
from gsym_bench.data import DataError
from gsym_bench.simulators.cameras import Cameras, project, random_cameras
from gsym_bench.simulators.gait import JOINT_NAMES, MIRROR, PARENTS
from gsym_bench.suite.task import Split
from gsym_bench.tasks.skeleton import (
    REFLECTION,
    Skeleton,
    _gait_poses,
    align,
    mpjpe,
    skeleton_groups,
)

CMU_JOINTS = (
    *("pelvis", "r_hip", "r_knee", "r_ankle", "l_hip", "l_knee", "l_ankle", "spine1", "chest"),
    *("head_top", "l_shoulder", "l_elbow", "l_wrist", "r_shoulder", "r_elbow", "r_wrist"),
)
ACTIONS = {"train": ["walk", "jump"], "val": ["walk"], "test": ["jump", "wash"]}


@pytest.fixture(scope="module")
def problem():
    return Skeleton().load(None, "quick", 0)


@pytest.fixture
def poses():
    rng = torch.Generator().manual_seed(0)
    return torch.randn(5, 16, 3, generator=rng, dtype=torch.float64)


@pytest.fixture
def rotation():
    rng = torch.Generator().manual_seed(1)
    Q, _ = torch.linalg.qr(torch.randn(3, 3, generator=rng, dtype=torch.float64))
    return Q * torch.det(Q)


def write_cmu(folder, **changes):
    """A small file like that of CMU, in another joint order; the right shin tells the sequence."""
    names = sorted([*CMU_JOINTS, "l_toe_tip"])
    sequences = [(action, part) for part, actions in ACTIONS.items() for action in actions] * 2
    lengths = np.arange(5, 5 + len(sequences))
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    rest = np.array([[0.01 * i, 1.0, 0.02 * i] for i in range(len(names))])
    positions = np.tile(rest, (lengths.sum(), 1, 1))
    for number, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        knee = positions[start : start + length, names.index("r_knee")]
        below = knee - [0.0, 0.1 + 0.05 * number, 0.0]
        positions[start : start + length, names.index("r_ankle")] = below
    arrays = {
        "positions": positions.astype(np.float32),
        "joint_names": np.array(names),
        "seq_start": starts,
        "seq_len": lengths,
        "action": np.array([action for action, _ in sequences]),
        "bench_split": np.array([part for _, part in sequences]),
    }
    path = folder / "skeleton" / "cmu_mocap_28j_60hz.npz"
    path.parent.mkdir()
    np.savez(path, **{**arrays, **changes})


def sequence_numbers(split):
    shin = (split.targets[:, 3] - split.targets[:, 2]).norm(dim=-1)
    return ((shin - 0.1) / 0.05).round().int()


class TestGroups:
    def test_orders_and_free_weights(self):
        groups = skeleton_groups()
        assert {name: group.order() for name, group in groups.items()} == {
            "S_16": factorial(16),
            "(S_6)^2": factorial(6) ** 2,
            "(S_3)^4 x| (S_2)^2": 4 * 6**4,
            "Aut = (S_2)^2": 4,
            "mirror S_2": 2,
            "trivial": 1,
        }
        dims = [group.commutant_dim() for group in groups.values()]
        assert dims == sorted(dims)
        # S_16, (S_6)^2, Aut and trivial as counted in the reference.
        assert (dims[0], dims[1], dims[3], dims[-1]) == (2, 38, 118, 256)

    def test_each_holds_the_next(self):
        groups = list(skeleton_groups().values())
        for large, small in pairwise(groups):
            assert all(large.contains(perm) for perm in small.generators)
            assert not all(small.contains(perm) for perm in large.generators)

    def test_what_preserves_the_skeleton(self, problem):
        preserving = {n for n, g in problem.groups.items() if g.preserves(problem.edge_index)}
        assert preserving == {"Aut = (S_2)^2", "mirror S_2", REFLECTION, "trivial"}

    def test_the_mirror_exchanges_left_and_right(self):
        mirror = skeleton_groups()["mirror S_2"]
        assert mirror.contains(torch.tensor(MIRROR))

    def test_limbs_are_tied_joint_by_joint(self):
        groups = skeleton_groups()
        legs = torch.arange(16)
        legs[[1, 2, 3, 4, 5, 6]] = torch.tensor([4, 5, 6, 1, 2, 3])
        assert groups["(S_3)^4 x| (S_2)^2"].contains(legs)
        assert groups["Aut = (S_2)^2"].contains(legs)
        assert not groups["mirror S_2"].contains(legs)


class TestMetrics:
    def test_mpjpe_by_hand(self):
        target = torch.zeros(2, 2, 3)
        prediction = torch.tensor([[[3.0, 4, 0], [0, 0, 1]], [[0, 0, 0], [0, 2, 0]]])
        assert mpjpe(prediction, target).item() == pytest.approx((5 + 1 + 0 + 2) / 4)

    def test_task_reports_millimetres(self, problem):
        targets = problem.val.targets
        shifted = Skeleton().metrics(
            targets + torch.tensor([0.03, 0.0, 0.04]), problem.val, problem
        )
        assert list(shifted) == ["MPJPE", "P-MPJPE"]
        assert shifted["MPJPE"] == pytest.approx(50, abs=1e-3)
        assert shifted["P-MPJPE"] == pytest.approx(0, abs=1e-3)

    def test_aligned_error_ignores_similarity_transforms(self, poses, rotation):
        moved = 2.5 * poses @ rotation + torch.tensor([1.0, -2.0, 3.0])
        assert mpjpe(moved, poses) > 1
        torch.testing.assert_close(align(moved, poses), poses)

    def test_aligned_error_of_noise_does_not_depend_on_the_frame(self, poses, rotation):
        rng = torch.Generator().manual_seed(2)
        noisy = poses + 0.1 * torch.randn(poses.shape, generator=rng, dtype=poses.dtype)
        error = mpjpe(align(noisy, poses), poses)
        assert 0.05 < error < 0.3
        torch.testing.assert_close(mpjpe(align(0.3 * noisy @ rotation + 7, poses), poses), error)

    def test_aligned_error_sees_reflections(self, poses):
        reflected = poses * torch.tensor([-1.0, 1.0, 1.0])
        assert mpjpe(align(reflected, poses), poses) > 0.5

    def test_alignment_is_the_best_one(self, poses, rotation):
        noisy = poses @ rotation + 0.3 * poses.roll(1, 0)
        best = align(noisy, poses)
        error = (best - poses).square().sum()
        for axis in range(3):
            for angle in (-0.01, 0.01):
                generator = torch.zeros(3, 3, dtype=poses.dtype)
                generator[axis - 1, axis - 2], generator[axis - 2, axis - 1] = angle, -angle
                centre = best.mean(1, True)
                turned = (best - centre) @ torch.matrix_exp(generator) + centre
                assert (turned - poses).square().sum() > error
        for scale in (0.99, 1.01):
            assert (scale * best - poses).square().sum() > error

    def test_a_pose_without_extent_becomes_the_centre(self, poses):
        point = torch.ones_like(poses)
        expected = poses.mean(1, True).expand_as(poses)
        torch.testing.assert_close(align(point, poses), expected)

    def test_golden(self):
        golden = load_golden()
        assert golden["G_parents"].tolist() == list(PARENTS)
        prediction, target = golden["G_metric_pred"], golden["G_metric_target"]
        error = mpjpe(prediction, target).item()
        aligned = mpjpe(align(prediction, target), target).item()
        assert error == pytest.approx(float(golden["G_metric_mpjpe"]), rel=1e-10)
        assert aligned == pytest.approx(float(golden["G_metric_pmpjpe"]), rel=1e-10)


class TestEmbedded:
    def test_shapes_and_ranges(self, problem):
        for split in (problem.train, problem.val, problem.test):
            assert split.inputs.shape == (len(split), 16, 2)
            assert split.targets.shape == (len(split), 16, 3)
            assert split.inputs.abs().max() < 1
            assert (split.targets[:, 0] == 0).all()
        assert problem.edge_index.shape == (2, 30)
        assert problem.positions.shape == (16, 2)

    def test_no_person_is_in_two_splits(self, problem):
        # Bones do not change with the view, so they tell people apart.
        def legs(split):
            thighs = (split.targets[:, 2] - split.targets[:, 1]).norm(dim=-1)
            shins = (split.targets[:, 3] - split.targets[:, 2]).norm(dim=-1)
            return torch.stack([thighs, shins], dim=-1).double()

        def same_person(a, b):
            return (torch.cdist(legs(a), legs(b)) < 1e-5).any()

        assert same_person(problem.train, problem.train.batch(torch.tensor([0])))
        assert not same_person(problem.train, problem.val)
        assert not same_person(problem.train, problem.test)
        assert not same_person(problem.val, problem.test)

    def test_data_do_not_depend_on_the_seed(self, problem):
        other = Skeleton().load(None, "standard", 3)
        for part in ("train", "val", "test"):
            assert torch.equal(getattr(problem, part).inputs, getattr(other, part).inputs)


class TestFiles:
    def test_missing_file_says_how_to_get_it(self, tmp_path):
        with pytest.raises(DataError, match=r"cmu_mocap_28j_60hz\.npz.*fetch.* cmu"):
            Skeleton().load(tmp_path, "quick", 0)

    def test_a_missing_joint_is_named(self, tmp_path):
        names = sorted([*CMU_JOINTS, "l_toe_tip"])
        names[names.index("r_knee")] = "knee"
        write_cmu(tmp_path, joint_names=np.array(names))
        with pytest.raises(DataError, match="no joint 'r_knee'"):
            Skeleton().load(tmp_path, "quick", 0)

    def test_sequences_that_do_not_fill_the_file_are_refused(self, tmp_path):
        write_cmu(tmp_path, positions=np.zeros((20, 17, 3), np.float32))
        with pytest.raises(DataError, match="hold 95 frames, positions 20"):
            Skeleton().load(tmp_path, "quick", 0)

    def test_splits_hold_their_sequences_and_weigh_actions_equally(self, tmp_path):
        write_cmu(tmp_path)
        problem = Skeleton().load(tmp_path, "quick", 0)
        # Sequences are walk, jump | walk | jump, wash, twice; washing never occurs in training.
        expected = {"train": ({0, 5}, {1, 6}), "val": ({2, 7},), "test": ({3, 8},)}
        for part, actions in expected.items():
            numbers = sequence_numbers(getattr(problem, part))
            assert set(numbers.tolist()) == set().union(*actions)
            counts = {sum(int((numbers == n).sum()) for n in action) for action in actions}
            assert len(counts) == 1, "every action has the same number of poses"


class TestModel:
    @pytest.mark.parametrize("name", [*skeleton_groups(), REFLECTION])
    def test_lifts_and_learns(self, problem, name):
        task = Skeleton()
        torch.manual_seed(0)
        model = task.model(problem, name, "quick")
        batch = problem.train.batch(torch.arange(64))
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        losses = []
        for _ in range(30):
            loss = task.loss(model(batch.inputs), batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.8 * losses[0]
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())

    def test_the_reflected_mirror_is_exact_and_reflects(self, problem):
        torch.manual_seed(0)
        model = Skeleton().model(problem, REFLECTION, "quick").double()
        group, reps = problem.groups[REFLECTION], problem.representations[REFLECTION]
        x = problem.val.inputs[:64].double()
        model(x)  # moves the running statistics of the norm
        assert equivariance_error(model, group, x, in_rep=reps[0], out_rep=reps[1]) < 1e-12
        assert equivariance_error(model, group, x) > 1e-2
        trivial = Skeleton().model(problem, "trivial", "quick")
        count, free = (sum(p.numel() for p in m.parameters()) for m in (model, trivial))
        assert 0.5 < count / free < 0.54

    def test_mirrored_poses_are_poses(self, problem):
        """A camera reflected with the body sees the reflected image."""
        mirror = problem.groups[REFLECTION].generators[0]
        positions = _gait_poses()["val"][:50]
        cameras = random_cameras(len(positions), 3)
        flip = torch.tensor([-1.0, 1.0, 1.0])
        reflected = Cameras(cameras.position * flip, cameras.target * flip)
        swapped = torch.empty_like(positions)
        swapped[:, mirror] = positions * flip
        seen, there = project(positions, cameras)
        seen_2, there_2 = project(swapped, reflected)
        first, second = problem.representations[REFLECTION]
        torch.testing.assert_close(first.act(mirror, seen), seen_2, atol=1e-5, rtol=0)
        torch.testing.assert_close(second.act(mirror, there), there_2, atol=1e-5, rtol=0)

    def test_the_graph_is_not_saved(self, problem):
        model = Skeleton().model(problem, "trivial", "quick")
        assert "edge_index" in dict(model.named_buffers())
        assert "edge_index" not in model.state_dict()


class TestBaselines:
    def test_beat_each_other_in_order(self, problem):
        task = Skeleton()
        errors = {}
        for name, fit in task.baselines().items():
            prediction = fit(problem)(problem.val)
            assert prediction.shape == problem.val.targets.shape
            assert prediction.dtype == problem.val.targets.dtype
            errors[name] = task.metrics(prediction, problem.val, problem)["MPJPE"]
        assert errors["quadratic ridge"] < errors["ridge"] < errors["training mean"]
        assert errors["quadratic ridge, reflected"] < errors["ridge"]

    def test_the_reflected_ridge_has_the_symmetry(self, problem):
        predict = Skeleton().baselines()["quadratic ridge, reflected"](problem)
        group, (first, second) = problem.groups[REFLECTION], problem.representations[REFLECTION]
        swap, split = group.generators[0], problem.val
        there = second.act(swap, predict(split))
        moved = predict(Split(first.act(swap, split.inputs), split.targets))
        torch.testing.assert_close(moved, there, atol=1e-3, rtol=0)

    def test_ridge_recovers_a_linear_map(self, problem):
        rng = torch.Generator().manual_seed(0)
        A = torch.randn(32, 48, generator=rng)

        def linear(split):
            return Split(split.inputs, (split.inputs.flatten(1) @ A).view(-1, 16, 3))

        made = replace(problem, train=linear(problem.train), val=linear(problem.val))
        prediction = Skeleton().baselines()["ridge"](made)(made.val)
        torch.testing.assert_close(prediction, made.val.targets, atol=1e-2, rtol=1e-2)


def test_joint_names_of_both_sources_mean_the_same():
    same = {"pelvis": "hip", "spine1": "spine", "chest": "thorax", "head_top": "head"}
    renamed = [same.get(name, name.replace("ankle", "foot")) for name in CMU_JOINTS]
    assert tuple(renamed) == JOINT_NAMES
