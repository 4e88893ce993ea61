"""A seeded walker: forward kinematics on the 16-joint skeleton of SemGCN.

The law of the walks is unchanged by mirroring, that is, by swapping left and right joints
(``MIRROR``) and reflecting one horizontal axis: both sides have the same bones, what differs
between them is drawn independently from one law, they move half a cycle apart with a uniform
phase, and heading, twist and side bend are as often left as right. Swapping joints without the
reflection gives a body whose knees bend the wrong way, so no permutation alone is a symmetry.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import pi

import torch
from torch import Tensor

JOINT_NAMES = (
    *("hip", "r_hip", "r_knee", "r_foot", "l_hip", "l_knee", "l_foot", "spine", "thorax", "head"),
    *("l_shoulder", "l_elbow", "l_wrist", "r_shoulder", "r_elbow", "r_wrist"),
)
PARENTS = (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 8, 10, 11, 8, 13, 14)
MIRROR = (0, 4, 5, 6, 1, 2, 3, 7, 8, 9, 13, 14, 15, 10, 11, 12)
SKELETON_EDGES = tuple((parent, child) for child, parent in enumerate(PARENTS) if parent >= 0)
FRAME_RATE = 25.0
"""Frames per second."""

_R_HIP, _R_KNEE, _L_HIP, _L_KNEE, _SPINE, _THORAX = 1, 2, 4, 5, 7, 8
_L_SHOULDER, _L_ELBOW, _R_SHOULDER, _R_ELBOW = 10, 11, 13, 14
_FEET = (3, 6)


@dataclass(frozen=True)
class Gait:
    """What sets one walk apart from another; radians, one row per sequence.

    Attributes:
        bones: Half widths of pelvis and shoulders and the bone lengths in metres, ``[s, 9]``: hip,
            thigh, shin, spine, chest, head, shoulder, upper arm, forearm.
        phase: Where in the cycle the left leg starts, ``[s]``.
        cadence: Cycles (two steps) per second, ``[s]``.
        stride: Largest hip flexion, ``[s]``.
        knee: Mean knee flexion, ``[s]``.
        knee_phase: By how much the knee leads the hip, ``[s]``.
        lean: Torso to the front, ``[s]``.
        side_bend: Torso to the left, ``[s]``.
        twist: Largest turn of pelvis and, the other way, of the shoulders, ``[s]``.
        heading: Direction of the walk, ``[s]``.
        swing: Largest shoulder flexion of the left and the right arm, ``[s, 2]``.
        elbow: Mean elbow flexion, left and right, ``[s, 2]``.
        abduction: How far the arms are held from the body, left and right, ``[s, 2]``.
    """

    bones: Tensor
    phase: Tensor
    cadence: Tensor
    stride: Tensor
    knee: Tensor
    knee_phase: Tensor
    lean: Tensor
    side_bend: Tensor
    twist: Tensor
    heading: Tensor
    swing: Tensor
    elbow: Tensor
    abduction: Tensor

    @classmethod
    def random(cls, num_sequences: int, seed: int) -> Gait:
        """Draw the parameters of ``num_sequences`` walks."""
        rng = torch.Generator().manual_seed(seed)

        def uniform(low: float, high: float, *shape: int) -> Tensor:
            return low + (high - low) * torch.rand(num_sequences, *shape, generator=rng)

        mean_bones = torch.tensor([0.12, 0.44, 0.42, 0.24, 0.24, 0.26, 0.16, 0.29, 0.25])
        return cls(
            bones=mean_bones * uniform(0.9, 1.1, 1) * uniform(0.95, 1.05, 9),
            phase=uniform(0, 2 * pi),
            cadence=uniform(0.7, 1.4),
            stride=uniform(0.2, 0.7),
            knee=uniform(0.1, 0.7),
            knee_phase=uniform(0.8, 1.6),
            lean=uniform(-0.1, 0.5),
            side_bend=uniform(-0.15, 0.15),
            twist=uniform(0.0, 0.25),
            heading=uniform(0, 2 * pi),
            swing=uniform(0.0, 0.9, 2),
            elbow=uniform(0.1, 1.6, 2),
            abduction=uniform(0.05, 0.6, 2),
        )

    def positions(self, num_frames: int) -> Tensor:
        """Joint positions, ``[s, num_frames, 16, 3]``, in metres; y is up, the ground at 0."""
        time = torch.arange(num_frames) / FRAME_RATE
        cycle = self.phase[:, None] + 2 * pi * self.cadence[:, None] * time
        left_right = cycle[..., None] + torch.tensor([0.0, pi])
        beat = cycle.sin()

        # Each rotation turns what hangs below its joint; x points to the left, z to the front.
        hip = _rotation(0, -self.stride[:, None, None] * left_right.sin())
        knee_lead = left_right + self.knee_phase[:, None, None]
        knee = _rotation(0, self.knee[:, None, None] * (1 + knee_lead.cos()))
        outwards = self.abduction[:, None, :] * torch.tensor([1.0, -1.0])
        swing = -self.swing[:, None, :] * left_right.sin()
        shoulder = _rotation(2, outwards) @ _rotation(0, -swing)
        elbow = _rotation(0, -self.elbow[:, None, :] * (1 + 0.2 * left_right.cos()))
        twist = self.twist[:, None] * beat

        rotations = torch.eye(3).repeat(*cycle.shape, len(PARENTS), 1, 1)
        rotations[:, :, 0] = _rotation(1, self.heading[:, None] + twist)
        rotations[:, :, _SPINE] = (_rotation(2, -self.side_bend) @ _rotation(0, self.lean))[:, None]
        rotations[:, :, _THORAX] = _rotation(1, -2 * twist)
        rotations[:, :, [_L_HIP, _R_HIP]] = hip
        rotations[:, :, [_L_KNEE, _R_KNEE]] = knee
        rotations[:, :, [_L_SHOULDER, _R_SHOULDER]] = shoulder
        rotations[:, :, [_L_ELBOW, _R_ELBOW]] = elbow
        body = forward_kinematics(rotations, self._offsets()[:, None])

        leg = self.bones[:, 1] + self.bones[:, 2]
        speed = 4 * leg * self.stride.sin() * self.cadence
        direction = torch.stack([self.heading.sin(), self.heading.cos()], dim=-1)
        body[..., [0, 2]] += (speed[:, None] * time)[..., None, None] * direction[:, None, None]
        body[..., 1] -= body[:, :, _FEET, 1].amin(dim=-1, keepdim=True)
        return body

    def _offsets(self) -> Tensor:
        """Each joint as seen from its parent in a body standing upright, ``[s, 16, 3]``."""
        hip, thigh, shin, spine, chest, head, shoulder, upper_arm, forearm = self.bones.unbind(-1)
        x, y = torch.zeros(2, len(hip), len(PARENTS))
        leg, arm = torch.stack([hip, -thigh, -shin], -1), torch.stack([upper_arm, forearm], -1)
        x[:, 1], x[:, 4] = -leg[:, 0], leg[:, 0]
        y[:, 2:4] = y[:, 5:7] = leg[:, 1:]
        y[:, 7:10] = torch.stack([spine, chest, head], -1)
        x[:, 10], x[:, 13] = shoulder, -shoulder
        y[:, 11:13] = y[:, 14:16] = -arm
        return torch.stack([x, y, torch.zeros_like(x)], dim=-1)


def simulate_gait(num_sequences: int, num_frames: int, seed: int) -> Tensor:
    """Draw walks of random people.

    Args:
        num_sequences: Number of people ``s``; bones, rhythm, posture and heading differ.
        num_frames: Consecutive frames ``t`` of each, ``FRAME_RATE`` per second.
        seed: The same seed gives the same walks.

    Returns:
        Joint positions ``[s, t, 16, 3]`` in metres, y up, in the order of ``JOINT_NAMES``.

    Raises:
        ValueError: If there is nothing to simulate.
    """
    if num_sequences < 1 or num_frames < 1:
        raise ValueError(
            "expected at least one sequence and one frame, "
            f"got num_sequences={num_sequences} and num_frames={num_frames}"
        )
    return Gait.random(num_sequences, seed).positions(num_frames)


def forward_kinematics(rotations: Tensor, offsets: Tensor) -> Tensor:
    """Joint positions of a kinematic tree whose root is the origin.

    Args:
        rotations: Rotation of each joint relative to its parent, ``[..., 16, 3, 3]``; it turns the
            bones that start at the joint.
        offsets: Each joint as seen from its parent, ``[..., 16, 3]``; the root's is not used.

    Returns:
        Positions, ``[..., 16, 3]``.
    """
    offsets = offsets.expand(*rotations.shape[:-2], 3)
    turned = [rotations[..., 0, :, :]]
    placed = [torch.zeros_like(offsets[..., 0, :])]
    for joint, parent in enumerate(PARENTS[1:], start=1):
        bone = turned[parent] @ offsets[..., joint, :, None]
        placed.append(placed[parent] + bone.squeeze(-1))
        turned.append(turned[parent] @ rotations[..., joint, :, :])
    return torch.stack(placed, dim=-2)


def _rotation(axis: int, angle: Tensor) -> Tensor:
    """Right-handed rotations about a coordinate axis, ``[...]`` to ``[..., 3, 3]``."""
    first, second = (axis + 1) % 3, (axis + 2) % 3
    matrix = torch.eye(3).repeat(*angle.shape, 1, 1)
    matrix[..., first, first] = matrix[..., second, second] = angle.cos()
    matrix[..., second, first] = angle.sin()
    matrix[..., first, second] = -angle.sin()
    return matrix
