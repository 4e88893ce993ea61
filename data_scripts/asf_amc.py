"""Acclaim motion capture: a skeleton file (ASF) and a motion file (AMC) to joint positions.

The AMC file gives angles per bone and frame. With ``C`` the bone's own frame (``axis`` in the
ASF), ``R`` the rotation of the frame and ``G`` of the parent bone, a bone turns by
``G C R C^-1``, and its end lies ``length * direction``, so turned, from its start. Angles are
about the fixed axes x, y, z in this order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from gsym_bench.data import DataError

_INCH = 0.0254

# (joint, where it lies, parent). "lfemur" is where that bone starts, "ltoes_end" where it ends.
# The wrist is where the hand starts: the lwrist bone is the far part of the forearm and turns only
# about itself, so that every bone here is rigid, except chest, which spans two bones of the spine.
JOINTS = (
    ("pelvis", "root", None),
    ("l_hip", "lfemur", "pelvis"),
    ("l_knee", "ltibia", "l_hip"),
    ("l_ankle", "lfoot", "l_knee"),
    ("l_toe_base", "ltoes", "l_ankle"),
    ("l_toe_tip", "ltoes_end", "l_toe_base"),
    ("r_hip", "rfemur", "pelvis"),
    ("r_knee", "rtibia", "r_hip"),
    ("r_ankle", "rfoot", "r_knee"),
    ("r_toe_base", "rtoes", "r_ankle"),
    ("r_toe_tip", "rtoes_end", "r_toe_base"),
    ("spine1", "upperback", "pelvis"),
    ("chest", "lowerneck", "spine1"),
    ("neck", "upperneck", "chest"),
    ("head", "head", "neck"),
    ("head_top", "head_end", "head"),
    ("l_shoulder", "lhumerus", "chest"),
    ("l_elbow", "lradius", "l_shoulder"),
    ("l_wrist", "lhand", "l_elbow"),
    ("l_hand", "lfingers", "l_wrist"),
    ("l_finger_tip", "lfingers_end", "l_hand"),
    ("l_thumb_tip", "lthumb_end", "l_wrist"),
    ("r_shoulder", "rhumerus", "chest"),
    ("r_elbow", "rradius", "r_shoulder"),
    ("r_wrist", "rhand", "r_elbow"),
    ("r_hand", "rfingers", "r_wrist"),
    ("r_finger_tip", "rfingers_end", "r_hand"),
    ("r_thumb_tip", "rthumb_end", "r_wrist"),
)


@dataclass(frozen=True)
class Bone:
    """One bone of a skeleton.

    Attributes:
        parent: Name of the bone it hangs on; ``None`` for the root.
        offset: From its start to its end in the rest pose, ``[3]``, metres.
        frame: Its own axes in the rest pose.
        axes: The axes it may turn about, a part of ``"xyz"``, in the order of the AMC file.
    """

    parent: str | None
    offset: np.ndarray
    frame: Rotation
    axes: str


@dataclass(frozen=True)
class Skeleton:
    """The bones of one subject.

    Attributes:
        bones: By name; ``"root"`` first, and every parent before its children.
        unit: Metres in one unit of the AMC file's root translation.
    """

    bones: Mapping[str, Bone]
    unit: float


def parse_asf(text: str) -> Skeleton:
    """Read a skeleton.

    Args:
        text: Content of an ASF file with angles in degrees, as all of CMU's are.

    Raises:
        DataError: If the text is not such a file.
    """
    try:
        return _parse_asf(text)
    except (KeyError, IndexError, ValueError) as error:
        raise DataError(f"not an ASF file of the kind CMU publishes: {error!r}") from error


def _parse_asf(text: str) -> Skeleton:
    sections: dict[str, list[list[str]]] = {}
    current: list[list[str]] = []
    for line in text.splitlines():
        words = line.split("#")[0].split()
        if words and words[0].startswith(":"):
            sections[words[0]] = current = []
        elif words:
            current.append(words)

    units = {words[0]: words[1] for words in sections[":units"]}
    if units["angle"] != "deg":
        raise ValueError(f"expected angles in deg, got {units['angle']}")
    root = {words[0]: words[1:] for words in sections[":root"]}
    expected = {"order": "TX TY TZ RX RY RZ", "axis": "XYZ"}
    for key, value in expected.items():
        if " ".join(root[key]).upper() != value:
            raise ValueError(f"expected the root's {key} {value}, got {' '.join(root[key])}")
    if any(map(float, root["position"] + root["orientation"])):
        raise ValueError("expected the root at rest in the origin")

    unit = _INCH / float(units["length"])
    loose: dict[str, Bone] = {}
    fields: dict[str, list[str]] = {}
    for words in sections[":bonedata"]:
        if words[0] == "begin":
            fields = {}
        elif words[0] == "end":
            (name,) = fields["name"]
            *angles, order = fields["axis"]
            dof = fields.get("dof", [])
            if order != "XYZ" or not set(dof) <= {"rx", "ry", "rz"}:
                raise ValueError(f"bone {name}: expected axis XYZ and dof rx ry rz, got {fields}")
            direction = np.array(fields["direction"], float)
            loose[name] = Bone(
                parent=None,
                offset=float(fields["length"][0]) * unit * direction,
                frame=Rotation.from_euler("xyz", np.array(angles, float), degrees=True),
                axes="".join(axis[1] for axis in dof),
            )
        else:
            fields[words[0]] = words[1:]

    bones = {"root": Bone(None, np.zeros(3), Rotation.identity(), "xyz")}
    for parent, *children in sections[":hierarchy"]:
        for name in children:
            if parent not in bones:
                raise ValueError(f"bone {parent} has children before it has a parent")
            bone = loose.pop(name)
            bones[name] = Bone(parent, bone.offset, bone.frame, bone.axes)
    if loose:
        raise ValueError(f"bones {sorted(loose)} have no parent")
    return Skeleton(bones, unit)


def parse_amc(text: str, skeleton: Skeleton) -> dict[str, np.ndarray]:
    """Read a motion.

    Args:
        text: Content of an AMC file in degrees.
        skeleton: What the motion moves.

    Returns:
        By bone that can move, ``[frames, axes]`` in degrees; the root has its translation, in units
        of the file, before its three angles.

    Raises:
        DataError: If the text is not such a file, or belongs to another skeleton; if a frame is
            missing, or lacks a bone or has it twice: nothing is filled in.
    """
    width = {name: len(bone.axes) for name, bone in skeleton.bones.items() if bone.axes}
    width["root"] += 3
    _, mark, body = text.partition(":DEGREES")
    if not mark:
        raise DataError("not an AMC file in degrees: there is no line :DEGREES")
    frames: list[dict[str, list[float]]] = []
    number = None
    for line in body.splitlines():
        words = line.split()
        if len(words) == 1 and words[0].isdecimal():
            if number is not None and int(words[0]) != number + 1:
                raise DataError(f"frame {words[0]} follows frame {number}: frames are missing")
            number = int(words[0])
            frames.append({})
        elif words:
            name, *values = words
            if number is None:
                raise DataError(f"bone {name} comes before the first frame")
            if name in frames[-1]:
                raise DataError(f"frame {number}: bone {name} is there twice")
            if len(values) != width.get(name):
                raise DataError(
                    f"frame {number}: expected {width.get(name, 'no')} values for bone {name}, "
                    f"got {len(values)}; the ASF and AMC files must be of one subject"
                )
            try:
                frames[-1][name] = [float(value) for value in values]
            except ValueError as error:
                raise DataError(f"frame {number}, bone {name}: {error}") from error
            if not np.isfinite(frames[-1][name]).all():
                raise DataError(f"frame {number}, bone {name}: {' '.join(values)} is not finite")
    if not frames:
        raise DataError("0 frames; file cut off?")
    assert number is not None
    short = [frame for frame, moved in enumerate(frames) if len(moved) < len(width)]
    if short:
        lacking = [name for name in width if name not in frames[short[0]]]
        raise DataError(
            f"{len(short)} of {len(frames)} frames lack bones: frame "
            f"{number - len(frames) + 1 + short[0]} does not move {lacking}; file cut off?"
        )
    return {name: np.array([moved[name] for moved in frames]) for name in width}


def bone_ends(skeleton: Skeleton, motion: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Forward kinematics: where each bone ends.

    Args:
        skeleton: From ``parse_asf``.
        motion: From ``parse_amc``, ``[frames, ...]`` by bone.

    Returns:
        ``[frames, 3]`` by bone, metres, y up; ``"root"`` is the root itself.
    """
    ends = {"root": motion["root"][:, :3] * skeleton.unit}
    turned = {"root": Rotation.from_euler("xyz", motion["root"][:, 3:], degrees=True)}
    for name, bone in skeleton.bones.items():
        if bone.parent is None:
            continue
        turn = turned[bone.parent]
        if bone.axes:
            angles = np.zeros((len(motion[name]), 3))
            angles[:, ["xyz".index(axis) for axis in bone.axes]] = motion[name]
            local = Rotation.from_euler("xyz", angles, degrees=True)
            turn = turn * bone.frame * local * bone.frame.inv()
        turned[name] = turn
        ends[name] = ends[bone.parent] + turn.apply(bone.offset)
    return ends


def joint_positions(skeleton: Skeleton, motion: Mapping[str, np.ndarray]) -> np.ndarray:
    """The 28 ``JOINTS``, ``float32 [frames, 28, 3]``, metres, y up, in the room's frame.

    Raises:
        DataError: If the skeleton lacks a bone.
    """
    ends = bone_ends(skeleton, motion)
    places = []
    for _, place, _ in JOINTS:
        bone = place.removesuffix("_end")
        if bone not in ends:
            raise DataError(f"the skeleton has no bone {bone}; it has {sorted(ends)}")
        parent = skeleton.bones[bone].parent
        places.append(ends[bone if place.endswith("_end") or parent is None else parent])
    return np.stack(places, axis=1).astype(np.float32)


def joint_tables() -> dict[str, np.ndarray]:
    """Trees and mirrors of the 28 joints and of their 17- and 16-joint parts.

    Returns:
        ``parents`` (-1 for the pelvis), ``joint_names``, ``asf_names`` and ``mirror``; for ``17``
        and ``16``, ``sub*`` are indices into the 28 and ``parents*`` and ``mirror*`` into ``sub*``.
    """
    names = [name for name, _, _ in JOINTS]
    up = {name: parent for name, _, parent in JOINTS}
    legs = [f"{side}_{joint}" for side in "rl" for joint in ("hip", "knee", "ankle")]
    arms = [f"{side}_{joint}" for side in "lr" for joint in ("shoulder", "elbow", "wrist")]
    tables = {"joint_names": np.array(names), "asf_names": np.array([j[1] for j in JOINTS])}
    for suffix, kept in {
        "": names,
        "17": ["pelvis", *legs, "spine1", "chest", "neck", "head_top", *arms],
        "16": ["pelvis", *legs, "spine1", "chest", "head_top", *arms],
    }.items():
        parents = []
        for name in kept:
            parent = up[name]
            while parent is not None and parent not in kept:
                parent = up[parent]
            parents.append(-1 if parent is None else kept.index(parent))
        swap = {"l_": "r_", "r_": "l_"}
        mirror = [kept.index(swap.get(name[:2], name[:2]) + name[2:]) for name in kept]
        tables[f"parents{suffix}"] = np.array(parents, np.int16)
        tables[f"mirror{suffix}"] = np.array(mirror, np.int16)
        if suffix:
            tables[f"sub{suffix}"] = np.array([names.index(name) for name in kept], np.int16)
    return tables
