import hashlib
import zipfile

import numpy as np
import pytest

pytest.importorskip("pooch")
pytest.importorskip("requests")
pytest.importorskip("rich")
pytest.importorskip("tyro")

from data_scripts import asf_amc, fetch
from gsym_bench.data import DataError


def sha256(content):
    return "sha256:" + hashlib.sha256(content).hexdigest()


def left(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


# ASF and AMC

HEADER = """\
# a comment
:version 1.10
:units
  mass 1.0
  length 0.45
  angle deg
:root
   order TX TY TZ RX RY RZ
   axis XYZ
   position 0 0 0
   orientation 0 0 0
:bonedata
"""
UNIT = 1 / 0.45 * 2.54 / 100


def bone(name, direction, length=1.0, axis="0 0 0", dof=""):
    lines = [f"name {name}", f"direction {direction}", f"length {length}", f"axis {axis} XYZ"]
    if dof:
        limits = ["(-90.0 90.0)"] * len(dof.split())
        lines += [f"dof {dof}", "limits " + "\n".join(limits)]
    return "\n".join(["begin", "id 1", *lines, "end", ""])


ARM = (
    HEADER
    + bone("upper", "1 0 0", 2.0, dof="rz")
    + bone("lower", "1 0 0", axis="0 0 90", dof="rx")
    + bone("hand", "0 0 1", dof="rx ry rz")
    + bone("nail", "0 1 0", 0.5)
    + ":hierarchy\nbegin\nroot upper\nupper lower nail\nlower hand\nend\n"
)
MOTION = """\
:FULLY-SPECIFIED
:DEGREES
1
root 1 2 3 0 0 0
upper 0
lower 0
hand 0 0 0
2
root 1 2 3 0 0 0
upper 90
lower 90
hand 0 0 0
3
root 0 0 0 0 90 0
upper 90
lower 90
hand 0 0 0
4
root 0 0 0 90 0 90
upper 0
lower 0
hand 90 90 0
"""
# Worked out by hand, in ASF units: frame by frame, then root, upper, lower, hand, nail.
EXPECTED = [
    [(1, 2, 3), (3, 2, 3), (4, 2, 3), (4, 2, 4), (3, 2.5, 3)],
    [(1, 2, 3), (1, 4, 3), (1, 4, 2), (1, 5, 2), (0.5, 4, 3)],
    [(0, 0, 0), (0, 2, 0), (-1, 2, 0), (-1, 3, 0), (0, 2, 0.5)],
    [(0, 0, 0), (0, 2, 0), (0, 3, 0), (0, 3, -1), (0, 2, 0.5)],
]


def test_forward_kinematics_worked_by_hand():
    skeleton = asf_amc.parse_asf(ARM)
    assert skeleton.unit == pytest.approx(UNIT)
    ends = asf_amc.bone_ends(skeleton, asf_amc.parse_amc(MOTION, skeleton))
    got = np.stack([ends[name] for name in ("root", "upper", "lower", "hand", "nail")], axis=1)
    np.testing.assert_allclose(got / UNIT, EXPECTED, atol=1e-12)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("angle deg", "angle rad", "expected angles in deg"),
        ("axis XYZ", "axis ZYX", "the root's axis"),
        ("TX TY TZ RX RY RZ", "RX RY RZ TX TY TZ", "the root's order"),
        ("position 0 0 0", "position 0 1 0", "at rest in the origin"),
        ("axis 0 0 90 XYZ", "axis 0 0 90 ZYX", "bone lower"),
        ("dof rz", "dof l", "bone upper"),
        ("lower hand\n", "", r"\['hand'\] have no parent"),
        ("root upper\n", "", "bone upper has children before"),
        ("upper lower nail", "upper lower nail nose", "nose"),
        ("length 2.0", "", "length"),
        (":hierarchy", ":other", "hierarchy"),
        ("direction 1 0 0", "direction 1 0 zero", "zero"),
    ],
)
def test_parse_asf_says_what_is_wrong(old, new, reason):
    assert old in ARM
    with pytest.raises(DataError, match=reason):
        asf_amc.parse_asf(ARM.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (":DEGREES", ":RADIANS", "no line :DEGREES"),
        ("upper 90", "upper 90 0", "expected 1 values for bone upper, got 2"),
        ("upper 90", "wing 90", "expected no values for bone wing"),
        ("upper 90", "nail 90", "expected no values for bone nail"),
        ("upper 90", "upper x", "frame 2, bone upper"),
        ("hand 90 90 0\n", "", r"1 of 4 frames lack bones: frame 4 does not move \['hand'\]"),
        # A bone twice and another frame without it add up to the right number of rows.
        ("upper 90\n", "upper 90\nupper 90\n", "frame 2: bone upper is there twice"),
        ("upper 90\n", "", r"1 of 4 frames lack bones: frame 2 does not move \['upper'\]"),
        ("\n3\n", "\n5\n", "frame 5 follows frame 2: frames are missing"),
        ("1\nroot", "root", "bone root comes before the first frame"),
        ("upper 90", "upper nan", "frame 2, bone upper: nan is not finite"),
        (MOTION[MOTION.index("1\nroot") :], "", "0 frames"),
    ],
)
def test_parse_amc_says_what_is_wrong(old, new, reason):
    skeleton = asf_amc.parse_asf(ARM)
    assert old in MOTION
    with pytest.raises(DataError, match=reason):
        asf_amc.parse_amc(MOTION.replace(old, new, 1), skeleton)


SIDE = {"l": 1, "r": -1}
BODY = (
    HEADER
    + "".join(
        bone(f"{s}hipjoint", f"{x * 0.6} -0.8 0", 2.5)
        + bone(f"{s}femur", f"{x * 0.28} -0.96 0", 7.5, f"0 0 {x * 20}", "rx ry rz")
        + bone(f"{s}tibia", f"{x * 0.28} -0.96 0", 7.2, f"0 0 {x * 20}", "rx")
        + bone(f"{s}foot", "0 -0.28 0.96", 2.2, "-90 0 0", "rx rz")
        + bone(f"{s}toes", "0 0 1", 1.1, "-90 0 0", "rx")
        + bone(f"{s}clavicle", f"{x * 0.96} 0.28 0", 3.5, dof="ry rz")
        + bone(f"{s}humerus", f"{x} 0 0", 5, f"180 {x * 30} {x * 90}", "rx ry rz")
        + bone(f"{s}radius", f"{x} 0 0", 3.4, f"0 {x * 90} {x * 90}", "rx")
        + bone(f"{s}wrist", f"{x} 0 0", 1.7, f"0 {x * 90} {x * 90}", "ry")
        + bone(f"{s}hand", f"{x} 0 0", 0.6, f"0 {x * 90} {x * 90}", "rx rz")
        + bone(f"{s}fingers", f"{x} 0 0", 0.5, f"0 {x * 90} {x * 90}", "rx")
        + bone(f"{s}thumb", f"{x * 0.6} 0 0.8", 0.7, f"-90 {x * 45} 0", "rx rz")
        for s, x in SIDE.items()
    )
    + "".join(
        bone(name, "0 1 0", 2, dof="rx ry rz")
        for name in ("lowerback", "upperback", "thorax", "lowerneck", "upperneck", "head")
    )
    + ":hierarchy\nbegin\n"
    + "root lhipjoint rhipjoint lowerback\nlowerback upperback\nupperback thorax\n"
    + "thorax lowerneck lclavicle rclavicle\nlowerneck upperneck\nupperneck head\n"
    + "".join(
        f"{s}hipjoint {s}femur\n{s}femur {s}tibia\n{s}tibia {s}foot\n{s}foot {s}toes\n"
        f"{s}clavicle {s}humerus\n{s}humerus {s}radius\n{s}radius {s}wrist\n"
        f"{s}wrist {s}hand {s}thumb\n{s}hand {s}fingers\n"
        for s in SIDE
    )
    + "end\n"
)


def random_amc(frames, seed=0):
    rng = np.random.default_rng(seed)
    skeleton = asf_amc.parse_asf(BODY)
    lines = [":FULLY-SPECIFIED", ":DEGREES"]
    for frame in range(frames):
        lines.append(str(frame + 1))
        for name, part in skeleton.bones.items():
            if part.axes:
                count = len(part.axes) + 3 * (name == "root")
                lines.append(f"{name} {' '.join(map(str, rng.uniform(-40, 40, count)))}")
    return "\n".join(lines) + "\n"


def test_the_links_of_the_28_joints_are_rigid():
    skeleton = asf_amc.parse_asf(BODY)
    positions = asf_amc.joint_positions(skeleton, asf_amc.parse_amc(random_amc(20), skeleton))
    assert positions.dtype == np.float32
    parents = asf_amc.joint_tables()["parents"]
    lengths = np.linalg.norm(positions[:, 1:] - positions[:, parents[1:]], axis=-1)
    names = [name for name, _, _ in asf_amc.JOINTS][1:]
    soft = [
        name for name, spread in zip(names, np.ptp(lengths, axis=0), strict=True) if spread > 1e-5
    ]
    assert soft == ["chest"]
    assert lengths[:, names.index("l_elbow")] == pytest.approx(5 * UNIT, rel=1e-5)
    assert lengths[:, names.index("l_wrist")] == pytest.approx(5.1 * UNIT, rel=1e-5)


def test_joint_positions_names_a_missing_bone():
    skeleton = asf_amc.parse_asf(ARM)
    with pytest.raises(DataError, match="no bone lfemur"):
        asf_amc.joint_positions(skeleton, asf_amc.parse_amc(MOTION, skeleton))


def test_the_joint_tables():
    tables = asf_amc.joint_tables()
    assert tables["parents"].tolist() == [
        *(-1, 0, 1, 2, 3, 4, 0, 6, 7, 8, 9, 0, 11, 12, 13, 14),
        *(12, 16, 17, 18, 19, 18, 12, 22, 23, 24, 25, 24),
    ]
    assert tables["sub17"].tolist() == [0, 6, 7, 8, 1, 2, 3, 11, 12, 13, 15, 16, 17, 18, 22, 23, 24]
    assert tables["parents17"].tolist() == [-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 9, 8, 11, 12, 8, 14, 15]
    assert tables["mirror17"].tolist() == [0, 4, 5, 6, 1, 2, 3, 7, 8, 9, 10, 14, 15, 16, 11, 12, 13]
    assert tables["sub16"].tolist() == [0, 6, 7, 8, 1, 2, 3, 11, 12, 15, 16, 17, 18, 22, 23, 24]
    assert tables["parents16"].tolist() == [-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 8, 10, 11, 8, 13, 14]
    for suffix in ("", "17", "16"):
        parents, mirror = tables[f"parents{suffix}"], tables[f"mirror{suffix}"]
        assert mirror[mirror].tolist() == list(range(len(mirror)))
        assert mirror[parents[1:]].tolist() == parents[mirror[1:]].tolist()


# CMU


@pytest.fixture
def cmu(tmp_path, monkeypatch):
    """A folder with an archive of two actions of four trials."""
    trials = {"walking": "07_01 07_02 08_01 08_02", "running": "09_01 09_02 09_03 09_04"}
    monkeypatch.setattr(fetch, "TRIALS", trials)
    folder = tmp_path / "in"
    folder.mkdir()
    with zipfile.ZipFile(folder / "allasfamc.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for i, trial in enumerate(" ".join(trials.values()).split()):
            subject = f"all_asfamc/subjects/{trial[:2]}/"
            if f"{subject}{trial[:2]}.asf" not in archive.namelist():
                archive.writestr(f"{subject}{trial[:2]}.asf", BODY)
            archive.writestr(f"{subject}{trial}.amc", random_amc(5 + i, seed=i))
    return folder


def test_cmu_is_converted(cmu, tmp_path, capsys):
    fetch.fetch("cmu", tmp_path / "out", cmu, allow_unverified=True)
    assert "unconfirmed" in capsys.readouterr().out
    path = tmp_path / "out" / "skeleton" / "cmu_mocap_28j_60hz.npz"
    with np.load(path, allow_pickle=False) as z:
        assert z["seq_len"].tolist() == [3, 3, 4, 4, 5, 5, 6, 6]
        assert z["seq_start"].tolist() == [0, 3, 6, 10, 14, 19, 24, 30]
        assert z["positions"].shape == (36, 28, 3)
        assert z["action"].tolist() == ["walking"] * 4 + ["running"] * 4
        assert z["bench_split"].tolist() == ["train", "train", "val", "test"] * 2
        assert z["split"].tolist() == ["train", "train", "train", "test"] * 2
        assert len(set(z["seq_name"].tolist())) == 8
        assert z["fps"] == 60
        skeleton = asf_amc.parse_asf(BODY)
        motion = asf_amc.parse_amc(random_amc(6, seed=1), skeleton)
        every = asf_amc.joint_positions(skeleton, motion)
        np.testing.assert_array_equal(z["positions"][3:6], every[::2])
        assert z["bone_length"][0] == 0
        assert z["bone_length"][2] == pytest.approx(7.5 * UNIT, rel=1e-5)


def test_cmu_refuses_a_truncated_archive(cmu, tmp_path):
    path = cmu / "allasfamc.zip"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="not a complete zip archive"):
        fetch.fetch("cmu", tmp_path / "out", cmu, allow_unverified=True)
    assert left(tmp_path / "out") == []


def test_cmu_refuses_a_corrupt_archive(cmu, tmp_path):
    path = cmu / "allasfamc.zip"
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("all_asfamc/subjects/09/09_02.amc").header_offset
    raw = bytearray(path.read_bytes())
    raw[start + 500] ^= 0xFF
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"allasfamc\.zip: damaged"):
        fetch.fetch("cmu", tmp_path / "out", cmu, allow_unverified=True)
    assert left(tmp_path / "out") == []


def test_cmu_names_a_missing_trial(cmu, tmp_path, monkeypatch):
    monkeypatch.setitem(fetch.TRIALS, "walking", "07_01 07_02 07_03")
    with pytest.raises(DataError, match=r"trial 07_03: no file 07_03\.amc"):
        fetch.fetch("cmu", tmp_path / "out", cmu, allow_unverified=True)


def test_cmu_of_another_checksum_is_taken_on_demand_only(cmu, tmp_path):
    command = ["cmu", tmp_path / "out", cmu]
    with pytest.raises(DataError, match="checksum is unconfirmed: --allow-unverified takes"):
        fetch.fetch(*command)
    with pytest.raises(SystemExit, match="--allow-unverified"):
        fetch.main(*command)
    assert left(tmp_path / "out") == []
    fetch.main(*command, allow_unverified=True)
    assert left(tmp_path / "out") == ["cmu_mocap_28j_60hz.npz"]


def test_cmu_of_the_stated_checksum_needs_no_leave(cmu, tmp_path, monkeypatch, capsys):
    checksum = sha256((cmu / "allasfamc.zip").read_bytes())
    source = fetch.Source((), checksum, confirmed=False)
    monkeypatch.setitem(fetch.SOURCES, "cmu", {"allasfamc.zip": source})
    fetch.fetch("cmu", tmp_path / "out", cmu)
    assert "unconfirmed" not in capsys.readouterr().out


def test_no_leave_is_given_for_a_confirmed_checksum(monkeypatch, tmp_path):
    source = fetch.Source((), sha256(b"right"))
    monkeypatch.setitem(fetch.SOURCES, "mnist", {"a.gz": source})
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.gz").write_bytes(b"wrong")
    with pytest.raises(DataError, match=r"a\.gz: expected sha256"):
        fetch.fetch("mnist", tmp_path / "out", tmp_path / "in", allow_unverified=True)


def test_cmu_refuses_a_recording_that_unpacks_to_too_much(cmu, tmp_path):
    with zipfile.ZipFile(cmu / "allasfamc.zip", "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("again/07_01.amc", b"1 " * (fetch.LARGEST_TRIAL // 2 + 1))
    assert (cmu / "allasfamc.zip").stat().st_size < 10**6
    with pytest.raises(DataError, match=r"07_01\.amc unpacks to 67,108,866 bytes, expected 67,108"):
        fetch.fetch("cmu", tmp_path / "out", cmu, allow_unverified=True)
    assert left(tmp_path / "out") == []


def test_no_trial_is_in_two_splits():
    trials = " ".join(fetch.TRIALS.values()).split()
    assert len(trials) == len(set(trials)) == 40
    assert set(map(len, map(str.split, fetch.TRIALS.values()))) == {5}
