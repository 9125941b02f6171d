"""Acclaim skeletons and motions: forward kinematics worked out by hand, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cmu_files as cmu
import numpy as np
import pytest

from erd_cuda.data.amc import bone_ends, read_amc
from erd_cuda.data.asf import read_asf

# Three bones in a row; the second one's own axes are the world's turned by 90 degrees about z (its
# x is the world's y, its y the world's -x).
CHAIN = [
    ("one", "root", (1.0, 0.0, 0.0), 2.0, (0, 0, 0), "rx ry rz"),
    ("two", "one", (1.0, 0.0, 0.0), 3.0, (0, 0, 90), "rx ry rz"),
    ("three", "two", (0.0, 1.0, 0.0), 1.0, (0, 0, 0), ""),
]


def ends(
    folder: Path, root: list[float], bones: Any = CHAIN, **angles: list[float]
) -> dict[str, list[float]]:
    """Where the bones end in one frame, in the file's units, rounded."""
    (folder / "x.asf").write_text(cmu.asf_text(bones))
    turns = {name: np.array([value]) for name, value in angles.items()}
    (folder / "x_01.amc").write_text(cmu.amc_text(np.array([root]), turns, bones))
    skeleton = read_asf(folder / "x.asf")
    found = bone_ends(skeleton, read_amc(folder / "x_01.amc", skeleton))
    return {
        name: [round(float(value), 5) + 0.0 for value in end[0] / cmu.UNIT]
        for name, end in found.items()
    }


def test_the_base_pose_and_the_unit(tmp_path: Path) -> None:
    found = ends(tmp_path, [10, 20, 30, 0, 0, 0])
    assert found == {
        "root": [10, 20, 30],
        "one": [12, 20, 30],
        "two": [15, 20, 30],
        "three": [15, 21, 30],
    }
    assert read_asf(tmp_path / "x.asf").unit == pytest.approx(56.4444, abs=1e-4)


def test_a_turn_of_the_root_turns_everything(tmp_path: Path) -> None:
    # 90 degrees about z: x becomes y, y becomes -x.
    found = ends(tmp_path, [1, 0, 0, 0, 0, 90])
    assert (found["one"], found["two"], found["three"]) == ([1, 2, 0], [1, 5, 0], [0, 5, 0])


def test_rotations_are_applied_in_the_order_of_the_file(tmp_path: Path) -> None:
    # About x first: (1, 0, 0) stays. Then about z: it becomes (0, 1, 0). The other way round it
    # would be (0, 0, 1).
    assert ends(tmp_path, [0, 0, 0, 90, 0, 90])["one"] == [0, 2, 0]
    # The bone "three" along y becomes z by the first and stays z by the second.
    found = ends(tmp_path, [0, 0, 0, 90, 0, 90])
    assert np.subtract(found["three"], found["two"]).tolist() == [0, 0, 1]
    # The same for a bone of its own: x by 90 degrees, then y by 90 degrees.
    found = ends(tmp_path, [0] * 6, one=[90, 90, 0])
    assert found["one"] == [0, 0, -2]
    # y -> z by the turn about x, z -> x by the turn about y.
    assert np.subtract(found["three"], found["two"]).tolist() == [1, 0, 0]


def test_a_bone_turns_about_its_own_axes(tmp_path: Path) -> None:
    # About its own x, which is the world's y: x becomes -z.
    found = ends(tmp_path, [0] * 6, two=[90, 0, 0])
    assert (found["one"], found["two"], found["three"]) == ([2, 0, 0], [2, 0, -3], [2, 1, -3])
    # About its own y, the world's -x: the bone stays, and what hangs on it turns: y becomes -z.
    found = ends(tmp_path, [0] * 6, two=[0, 90, 0])
    assert (found["two"], found["three"]) == ([5, 0, 0], [5, 0, -1])
    # Both, its own x first: "three", along the world's y, stays y, then becomes -z.
    found = ends(tmp_path, [0] * 6, two=[90, 90, 0])
    assert np.subtract(found["three"], found["two"]).tolist() == [0, 0, -1]


def test_axes_of_a_bone_follow_its_parent(tmp_path: Path) -> None:
    # "one" turns about the world's z: x -> y. The own x of "two" was the world's y and is now -x;
    # about -x by 90 degrees, the bone (now along y) becomes -z.
    found = ends(tmp_path, [0] * 6, one=[0, 0, 90], two=[90, 0, 0])
    assert (found["one"], found["two"]) == ([0, 2, 0], [0, 2, -3])


def test_axes_are_composed_x_first(tmp_path: Path) -> None:
    # Axis 90 0 90 XYZ: own z is the world's z turned to -y by x, and from there to x by z.
    bones = [("one", "root", (0.0, 1.0, 0.0), 2.0, (90, 0, 90), "rx ry rz")]
    # Turned about the world's x, y becomes z.
    assert ends(tmp_path, [0] * 6, bones, one=[0, 0, 90])["one"] == [0, 0, 2]


def test_fewer_freedoms(tmp_path: Path) -> None:
    bones = [("one", "root", (1.0, 0.0, 0.0), 2.0, (0, 0, 0), "ry rz")]
    assert ends(tmp_path, [0] * 6, bones, one=[77, 90, 0])["one"] == [0, 0, -2]
    assert ends(tmp_path, [0] * 6, bones, one=[77, 0, 90])["one"] == [0, 2, 0]


def test_radians_and_spelling(tmp_path: Path) -> None:
    ends(tmp_path, [0, 0, 0, 0, 0, 0], two=[90, 0, 0])
    text = (tmp_path / "x.asf").read_text()
    degrees = read_asf(tmp_path / "x.asf")
    (tmp_path / "x.asf").write_text(
        text.replace("angle deg", "angle rad").replace("axis 0 0 90 ", "axis 0, 0, 1.5707963 ")
    )
    radians = read_asf(tmp_path / "x.asf")
    np.testing.assert_allclose(radians.bones["two"].axes, degrees.bones["two"].axes, atol=1e-7)
    motion = tmp_path / "x_01.amc"
    motion.write_text(motion.read_text().replace(":DEGREES", "").replace("two 90", "two 1.5707963"))
    found = bone_ends(radians, read_amc(motion, radians))["two"][0] / cmu.UNIT
    np.testing.assert_allclose(found, [2, 0, -3], atol=1e-6)


def test_bones_keep_their_lengths_and_frames_are_independent(tmp_path: Path) -> None:
    folder = cmu.cmu_folder(tmp_path, frames=30) / "subjects" / "10"
    skeleton = read_asf(folder / "10.asf")
    whole = read_amc(folder / "10_02.amc", skeleton)
    found = bone_ends(skeleton, whole)
    assert whole.frames == 30 and len(skeleton.bones) == len(cmu.BONES)
    for bone in skeleton.bones.values():
        lengths = np.linalg.norm(found[bone.name] - found[bone.parent], axis=1)
        np.testing.assert_allclose(lengths, cmu.LENGTHS[bone.name], rtol=1e-6)
    # One frame alone is where it was among the others.
    lines = (folder / "10_02.amc").read_text().splitlines()
    size = (len(lines) - 3) // 30
    (folder / "10_03.amc").write_text("\n".join(lines[3 + 7 * size : 3 + 8 * size]))
    alone = bone_ends(skeleton, read_amc(folder / "10_03.amc", skeleton))
    for name, end in found.items():
        np.testing.assert_allclose(alone[name][0], end[7], atol=1e-9)


def test_what_is_not_finite_is_a_gap(tmp_path: Path) -> None:
    folder = cmu.cmu_folder(tmp_path, frames=3) / "subjects" / "2"
    file = folder / "2_01.amc"
    lines = file.read_text().splitlines()
    size = (len(lines) - 3) // 3
    place = next(n for n, line in enumerate(lines) if line.startswith("lfemur") and n > 3 + size)
    lines[place] = "lfemur nan 1 inf"
    file.write_text("\n".join(lines))
    skeleton = read_asf(folder / "2.asf")
    found = bone_ends(skeleton, read_amc(file, skeleton))
    assert np.isnan(found["lfemur"]).all(axis=1).tolist() == [False, True, False]
    assert np.isfinite(found["rfemur"]).all()


def test_a_comment_begins_with_a_word(tmp_path: Path) -> None:
    """-1.#IND, which is how Windows writes NaN, is not -1."""
    folder = cmu.cmu_folder(tmp_path, frames=3) / "subjects" / "2"
    file = folder / "2_01.amc"
    text = file.read_text()
    line = next(line for line in text.splitlines() if line.startswith("lfemur"))
    skeleton = read_asf(folder / "2.asf")
    before = bone_ends(skeleton, read_amc(file, skeleton))["lfemur"]
    file.write_text(text.replace(line, f"{line}  # bent", 1))
    after = bone_ends(skeleton, read_amc(file, skeleton))["lfemur"]
    assert np.array_equal(after, before)
    file.write_text(text.replace(line, "lfemur 4 -1.#IND 2", 1))
    with pytest.raises(ValueError, match=r"'-1\.#IND' is no number"):
        read_amc(file, skeleton)


ASF_MISTAKES = [
    (":root", ":trunk", "it has no section :root"),
    (":bonedata", ":units", "line 17: there are two sections :units"),
    ("  length 0.45\n", "", "the section :units must say length and angle"),
    ("length 0.45", "length nan", r"line 7: length must be a number, got 'nan'"),
    ("length 0.45", "length -1", "line 7: length must be positive, got -1"),
    ("angle deg", "angle grad", "line 8: angle must be deg or rad, got grad"),
    ("TX TY TZ RX RY RZ", "TX TY TZ RX RY", "line 13: the root's order must name TX TY TZ RX RY"),
    ("   order TX TY TZ RX RY RZ\n", "", "the section :root has no order"),
    ("position 0 0 0", "position 0 1 0", "line 15: the root's position is not 0, which programs"),
    ("orientation 0 0 0", "orientation 0 0", "line 16: orientation must be 3 numbers, got '0 0'"),
    ("  begin\n     id 1 ", "  id 1", "line 18: expected 'begin', got 'id'"),
    ("  end\n:hierarchy", ":hierarchy", r"line 40: 'begin' has no 'end'"),
    ("  end\n  begin\n     id 2", "  begin\n     id 2", "line 28: 'begin' without the other"),
    ("     name one\n", "", "line 18: the bone that begins here has no name"),
    ("name two", "name one", "line 29: there are two bones called 'one'"),
    ("direction 1.000000000", "direction 1.5", "the direction of 'one' has length 1.5, not 1"),
    ("length 2.0", "length two", "line 22: length must be a number, got 'two'"),
    ("axis 0 0 90  XYZ", "axis 0 0 90", "the axis of 'two' must be three angles and an order"),
    ("axis 0 0 90  XYZ", "axis 0 0 90 XYX", "the axis of 'two' must be three angles and an order"),
    ("axis 0 0 90  XYZ", "axis 0 0 90 ZYX", "dof of 'two' are in another order than its axis, ZYX"),
    ("dof rx ry rz", "dof rx ry tz", "may be rx, ry and rz, each once; 'one' has tz"),
    ("dof rx ry rz", "dof rx rx", "may be rx, ry and rz, each once; 'one' has rx"),
    ("one two", "one four", "line 50: the hierarchy names 'four', which is no bone of the file"),
    ("two three", "two one", "line 51: 'one' has two parents in the hierarchy"),
    ("    two three\n", "", "the hierarchy does not lead from the root to 'three'"),
    ("    one two\n", "    three two\n", "the hierarchy does not lead from the root to 'three'"),
]


@pytest.mark.parametrize(("old", "new", "message"), ASF_MISTAKES, ids=lambda each: each[:24])
def test_wrong_skeletons(old: str, new: str, message: str, tmp_path: Path) -> None:
    file, text = tmp_path / "x.asf", cmu.asf_text(CHAIN)
    assert old in text
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=message) as caught:
        read_asf(file)
    assert str(caught.value).startswith(str(file)) and "\n" not in str(caught.value)


AMC_MISTAKES = [
    ("1\nroot", "first\nroot", "line 4: expected the number of the first frame, got 'first'"),
    ("2\nroot", "two\nroot", "line 8: the first frame has a second line for 'two'"),
    ("3\nroot", "5\nroot", "line 12: frame 2 is followed by 5"),
    ("3\nroot 0 0 0", "3\nroot 0 x 0", "line 13: 'x' is no number"),
    (
        "root 0 0 0 0 0 0\none 0 0 0\ntwo 0 0 0\n2",
        "root 0\none 0 0 0\ntwo 0 0 0\n2",
        "line 5: 'root'",
    ),
    ("one 0 0 0\ntwo 0 0 0\n2", "one 0 0 0\none 0 0 0\n2", "line 7: the first frame has a second"),
    ("one 0 0 0\ntwo 0 0 0\n2", "one 0 0 0\n2", "line 4: the first frame has no line for 'two'"),
    ("one 0 0 0\ntwo 0 0 0\n2", "one 0 0 0\nthree 1\n2", "line 7: 'three' is no bone that .*x.asf"),
    ("2\nroot 0 0 0 0 0 0\none 0 0 0\n", "2\nroot 0 0 0 0 0 0\n", "line 10: expected 'one' and as"),
    ("2\nroot 0 0 0 0 0 0\none 0 0 0", "2\nroot 0 0 0 0 0 0\none 0 0", "line 10: expected 'one'"),
    ("one 0 0 0\ntwo 0 0 0\n3", "one 0 0 0\ntwo 0 0 0\nthree 0\n3", "line 12: expected the number"),
]


@pytest.mark.parametrize(("old", "new", "message"), AMC_MISTAKES, ids=lambda each: each[:24])
def test_wrong_motions(old: str, new: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.asf").write_text(cmu.asf_text(CHAIN))
    file, text = tmp_path / "x_01.amc", cmu.amc_text(np.zeros((3, 6)), {}, CHAIN)
    assert old in text
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=message) as caught:
        read_amc(file, read_asf(tmp_path / "x.asf"))
    assert str(caught.value).startswith(str(file)) and "\n" not in str(caught.value)


def test_motions_that_are_cut_off_or_empty(tmp_path: Path) -> None:
    (tmp_path / "x.asf").write_text(cmu.asf_text(CHAIN))
    skeleton, file = read_asf(tmp_path / "x.asf"), tmp_path / "x_01.amc"
    text = cmu.amc_text(np.zeros((3, 6)), {}, CHAIN)
    file.write_text(text[: text.rindex("one")])
    with pytest.raises(ValueError, match=r"x_01\.amc, line 13: the file ends within frame 3"):
        read_amc(file, skeleton)
    file.write_text(":FULLY-SPECIFIED\n:DEGREES\n")
    with pytest.raises(ValueError, match=r"x_01\.amc is no Acclaim motion: it has no frames"):
        read_amc(file, skeleton)
    file.write_bytes(bytes(range(256)))
    with pytest.raises(ValueError, match=r"x_01\.amc, line 1: expected the number of the first"):
        read_amc(file, skeleton)
    with pytest.raises(FileNotFoundError, match=r"none\.amc: there is no such file"):
        read_amc(tmp_path / "none.amc", skeleton)
