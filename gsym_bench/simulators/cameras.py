"""Virtual pinhole cameras that follow a subject."""

from __future__ import annotations

from dataclasses import dataclass
from math import pi

import torch
from torch import Tensor

FOCAL = 2 * 1145 / 1000
"""Focal length in half image widths: 1145 pixels on a square image of 1000, as in Human3.6M."""


@dataclass(frozen=True)
class Cameras:
    """Where cameras stand, in metres from the spot on the ground below the subject's root.

    Attributes:
        position: ``[m, 3]``, y up.
        target: The point in the middle of the image, ``[m, 3]``.
    """

    position: Tensor
    target: Tensor

    def rotation(self) -> Tensor:
        """World to camera, ``[m, 3, 3]``; camera axes point right, down and into the scene."""
        forward = torch.nn.functional.normalize(self.target - self.position, dim=-1)
        up = forward.new_tensor([0.0, 1.0, 0.0]).expand_as(forward)
        right = torch.nn.functional.normalize(torch.linalg.cross(forward, up), dim=-1)
        down = torch.linalg.cross(forward, right)
        return torch.stack([right, down, forward], dim=-2)


def random_cameras(num: int, seed: int) -> Cameras:
    """Cameras 4 to 5 m away and about 1.5 m high, anywhere around the subject.

    They aim within 0.25 m of a point 1 m above the ground, so that the subject is not exactly in
    the middle of the image.
    """
    rng = torch.Generator().manual_seed(seed)
    distance, height, yaw = torch.rand(3, num, generator=rng)
    distance, height, yaw = 4 + distance, 1.4 + 0.2 * height, 2 * pi * yaw
    position = torch.stack([distance * yaw.sin(), height, distance * yaw.cos()], dim=-1)
    target = torch.tensor([0.0, 1.0, 0.0]) + 0.5 * (torch.rand(num, 3, generator=rng) - 0.5)
    return Cameras(position, target)


def project(positions: Tensor, cameras: Cameras) -> tuple[Tensor, Tensor]:
    """Photograph each pose with its camera.

    Args:
        positions: Joints in metres, y up, ``[b, n, 3]``; joint 0 is the root.
        cameras: ``b`` cameras, or one for all poses.

    Returns:
        Image coordinates ``[b, n, 2]``, right and down, where the image is ``[-1, 1]`` on both
        axes; and joints in the camera frame relative to the root, ``[b, n, 3]``, in metres.

    Raises:
        ValueError: If the number of cameras does not fit or a joint is not before its camera.
    """
    if cameras.position.size(0) not in (1, positions.size(0)):
        raise ValueError(
            f"expected one camera or one for each of {positions.size(0)} poses, "
            f"got {cameras.position.size(0)}"
        )
    on_ground = positions[:, :1] * positions.new_tensor([1.0, 0.0, 1.0])
    seen_from = positions - on_ground - cameras.position[:, None]
    in_camera = seen_from @ cameras.rotation().mT
    depth = in_camera[..., 2:]
    if (depth <= 0).any():
        raise ValueError(
            f"expected every joint before its camera, got a depth of {depth.min():.2f} m; "
            "move the cameras away"
        )
    return FOCAL * in_camera[..., :2] / depth, in_camera - in_camera[:, :1]
