from dataclasses import replace
from math import pi

import pytest
import torch

from gsym_bench.simulators.cameras import FOCAL, Cameras, project, random_cameras
from gsym_bench.simulators.gait import (
    JOINT_NAMES,
    MIRROR,
    PARENTS,
    SKELETON_EDGES,
    Gait,
    forward_kinematics,
    simulate_gait,
)

REFLECT = torch.tensor([-1.0, 1.0, 1.0])


def bone_lengths(positions):
    parent, child = torch.tensor(SKELETON_EDGES).T
    return (positions[..., child, :] - positions[..., parent, :]).norm(dim=-1)


class TestSkeleton:
    def test_is_a_tree_on_16_joints(self):
        assert len(JOINT_NAMES) == len(set(JOINT_NAMES)) == len(PARENTS) == 16
        assert len(SKELETON_EDGES) == 15
        assert all(parent < child for parent, child in SKELETON_EDGES)

    def test_mirror_exchanges_left_and_right_names_and_preserves_the_tree(self):
        swap = {"l": "r", "r": "l"}
        for joint, image in enumerate(MIRROR):
            side, _, rest = JOINT_NAMES[joint].partition("_")
            expected = f"{swap[side]}_{rest}" if rest else side
            assert JOINT_NAMES[image] == expected
        edges = {frozenset(edge) for edge in SKELETON_EDGES}
        assert {frozenset((MIRROR[a], MIRROR[b])) for a, b in SKELETON_EDGES} == edges


class TestGait:
    def test_bones_keep_their_length_and_are_equal_left_and_right(self):
        lengths = bone_lengths(simulate_gait(20, 30, seed=0))
        assert lengths.shape == (20, 30, 15)
        torch.testing.assert_close(lengths, lengths[:, :1].expand_as(lengths), atol=5e-6, rtol=0)
        child = [edge[1] for edge in SKELETON_EDGES]
        mirrored = [child.index(MIRROR[joint]) for joint in child]
        torch.testing.assert_close(lengths, lengths[..., mirrored], atol=5e-6, rtol=0)
        assert lengths[:, 0].std(dim=0).min() > 0.005, "people should differ in size"

    def test_the_same_seed_gives_the_same_walks(self):
        assert torch.equal(simulate_gait(3, 4, seed=1), simulate_gait(3, 4, seed=1))
        assert not torch.allclose(simulate_gait(3, 4, seed=1), simulate_gait(3, 4, seed=2))

    def test_a_mirrored_walk_is_a_walk(self):
        gait = Gait.random(10, seed=0)
        mirrored = replace(
            gait,
            phase=gait.phase + pi,
            heading=-gait.heading,
            side_bend=-gait.side_bend,
            swing=gait.swing.flip(-1),
            elbow=gait.elbow.flip(-1),
            abduction=gait.abduction.flip(-1),
        )
        expected = gait.positions(20)[:, :, MIRROR] * REFLECT
        torch.testing.assert_close(mirrored.positions(20), expected, atol=1e-5, rtol=0)

    def test_mirrored_walks_have_the_same_moments(self):
        walks = simulate_gait(20_000, 1, seed=0)[:, 0]
        poses = walks - walks[:, :1]

        def gap(mirrored):
            mean = (poses.mean(0) - mirrored.mean(0)).abs().max()
            flat, other = poses.flatten(1), mirrored.flatten(1)
            return max(mean, (flat.T @ flat - other.T @ other).abs().max() / len(poses))

        assert gap(poses[:, MIRROR] * REFLECT) < 0.01
        assert gap(poses[:, MIRROR]) > 0.02, "without the reflection left and right are told apart"

    def test_walks_forwards_on_the_ground(self):
        gait = replace(Gait.random(10, seed=0), heading=torch.zeros(10))
        positions = gait.positions(50)
        lowest = positions[..., 1].amin(dim=-1)
        torch.testing.assert_close(lowest, torch.zeros_like(lowest), atol=1e-6, rtol=0)
        speed = (positions[:, -1, 0, 2] - positions[:, 0, 0, 2]) / (49 / 25)
        assert speed.min() > 0.3 and speed.max() < 4.5
        left = positions[..., 4, 0] - positions[..., 1, 0]
        assert left.min() > 0, "walking to +z with y up, the left hip is at larger x"

    def test_knees_bend_backwards_and_elbows_forwards(self):
        gait = Gait.random(10, seed=0)
        still = dict.fromkeys(("heading", "twist", "side_bend", "lean"), torch.zeros(10))
        positions = replace(gait, **still).positions(40)
        for hip, knee, foot in ((1, 2, 3), (4, 5, 6)):
            thigh = positions[:, :, knee] - positions[:, :, hip]
            shin = positions[:, :, foot] - positions[:, :, knee]
            assert torch.linalg.cross(thigh, shin)[..., 0].min() > -1e-5
        for shoulder, elbow, wrist in ((10, 11, 12), (13, 14, 15)):
            upper = positions[:, :, elbow] - positions[:, :, shoulder]
            lower = positions[:, :, wrist] - positions[:, :, elbow]
            assert torch.linalg.cross(upper, lower)[..., 0].max() < 1e-5

    @pytest.mark.parametrize("size", [(0, 5), (5, 0)])
    def test_refuses_nothing_to_simulate(self, size):
        with pytest.raises(ValueError, match=r"at least one sequence and one frame, got .*=0"):
            simulate_gait(*size, seed=0)


def test_forward_kinematics_agrees_with_a_walk_up_the_tree():
    rng = torch.Generator().manual_seed(0)
    Q, _ = torch.linalg.qr(torch.randn(2, 3, 16, 3, 3, generator=rng, dtype=torch.float64))
    rotations = Q * torch.det(Q)[..., None, None]
    offsets = torch.randn(2, 1, 16, 3, generator=rng, dtype=torch.float64)

    positions = forward_kinematics(rotations, offsets)

    for s in range(2):
        for t in range(3):
            for joint in range(16):
                point, at = torch.zeros(3, dtype=torch.float64), joint
                while PARENTS[at] >= 0:
                    point = rotations[s, t, PARENTS[at]] @ (offsets[s, 0, at] + point)
                    at = PARENTS[at]
                torch.testing.assert_close(positions[s, t, joint], point)


class TestCameras:
    def test_projects_known_points(self):
        camera = Cameras(torch.tensor([[0.0, 1.0, 4.0]]), torch.tensor([[0.0, 1.0, 0.0]]))
        pose = torch.tensor([[[7.0, 1.0, -3.0], [8.0, 1.0, -3.0], [7.0, 2.0, -1.0]]])
        image, in_camera = project(pose, camera)
        # The camera follows the root, looks along -z and has +x to its right.
        expected = torch.tensor([[0.0, 0.0], [1 / 4, 0.0], [0.0, -1 / 2]]) * FOCAL
        torch.testing.assert_close(image[0], expected)
        relative = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, -1.0, -2.0]])
        torch.testing.assert_close(in_camera[0], relative)

    def test_random_cameras_stand_where_they_should(self):
        cameras = random_cameras(1000, seed=0)
        distance = cameras.position[:, [0, 2]].norm(dim=-1)
        assert 4 <= distance.min() < 4.05 and 4.95 < distance.max() <= 5
        assert cameras.position[:, 1].min() >= 1.4 and cameras.position[:, 1].max() <= 1.6
        yaw = torch.atan2(cameras.position[:, 0], cameras.position[:, 2])
        assert torch.histc(yaw, bins=4, min=-pi, max=pi).min() > 200
        R = cameras.rotation()
        torch.testing.assert_close(R @ R.mT, torch.eye(3).expand_as(R), atol=1e-6, rtol=0)
        torch.testing.assert_close(torch.det(R), torch.ones(1000))

    def test_walkers_are_in_the_image_and_keep_their_bones(self):
        poses = simulate_gait(200, 1, seed=0)[:, 0]
        image, in_camera = project(poses, random_cameras(200, seed=0))
        assert 0.3 < image.abs().max() < 1
        torch.testing.assert_close(bone_lengths(in_camera), bone_lengths(poses), atol=1e-5, rtol=0)
        assert (in_camera[:, 0] == 0).all()

    def test_refuses_a_wrong_number_of_cameras(self):
        with pytest.raises(ValueError, match=r"each of 3 poses, got 2"):
            project(torch.zeros(3, 16, 3), random_cameras(2, seed=0))

    def test_refuses_a_joint_behind_the_camera(self):
        camera = Cameras(torch.tensor([[0.0, 1.0, 4.0]]), torch.tensor([[0.0, 1.0, 0.0]]))
        with pytest.raises(ValueError, match=r"depth of -2\.00 m"):
            project(torch.tensor([[[0.0, 1.0, 0.0], [0.0, 1.0, 6.0]]]), camera)
