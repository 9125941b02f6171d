"""What the viewers write: checked sequences, packed numbers, a page on its own, a picture."""

from __future__ import annotations

import base64
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clips import make_clip

from erd_cuda.evaluation import mpjpe
from erd_cuda.viewer import PoseSequence, write_page, write_picture
from erd_cuda.viewer.gravity import estimate_up
from erd_cuda.viewer.picture import COLOURS, FIELD, INK, MUTED


@pytest.fixture(scope="module")
def clip() -> PoseSequence:
    return make_clip()


def page_data(path: Path) -> dict[str, Any]:
    match = re.search(
        r'<script type="application/json" id="data">(.*?)</script>', path.read_text("utf-8")
    )
    assert match is not None
    data: dict[str, Any] = json.loads(match.group(1))
    return data


def unpacked(field: dict[str, Any], *shape: int) -> np.ndarray:
    integers = np.frombuffer(base64.b64decode(field["data"]), dtype="<i2").reshape(shape)
    return np.where(integers == -32768, np.nan, integers * field["scale"])


def test_page_holds_the_numbers(clip: PoseSequence, tmp_path: Path) -> None:
    path = write_page(tmp_path / "page.html", clip)
    (shown,) = page_data(path)["clips"]
    stages, frames, joints = clip.stages.shape[:3]
    assert clip.truth is not None
    # A step is 1/32767 of the largest value: 0.05 mm and 0.02 px here.
    for name, tensor, atol in (
        ("stages", clip.stages, 0.05),
        ("truth", clip.truth, 0.05),
        ("keypoints", clip.keypoints, 0.02),
        ("root", clip.root, 0.2),
    ):
        found = unpacked(shown[name], *tensor.shape)
        np.testing.assert_allclose(found, tensor.numpy(), rtol=0, atol=atol)
    expected = mpjpe(clip.stages, clip.truth.expand_as(clip.stages))
    np.testing.assert_allclose(shown["errors"], expected.numpy(), atol=0.006)
    assert (shown["frames"], len(shown["stageNames"])) == (frames, stages)
    # The keypoints are the truth's projection, so that stage errors and residuals fall together.
    projected = unpacked(shown["projections"], stages, frames, joints, 2)
    residuals = np.linalg.norm(projected - clip.keypoints.numpy(), axis=-1).mean(axis=-1)
    np.testing.assert_allclose(shown["residuals"], residuals, atol=0.05)


def test_missing_keypoints_stay_missing(clip: PoseSequence, tmp_path: Path) -> None:
    keypoints = clip.keypoints.clone()
    keypoints[3] = torch.nan
    keypoints[5, 2] = torch.nan
    path = write_page(tmp_path / "page.html", replace(clip, keypoints=keypoints))
    (shown,) = page_data(path)["clips"]
    found = unpacked(shown["keypoints"], *keypoints.shape)
    np.testing.assert_array_equal(np.isnan(found), torch.isnan(keypoints).numpy())
    assert [row[3] for row in shown["residuals"]] == [None] * len(clip.stages)
    assert None not in [row[5] for row in shown["residuals"]]


def test_page_needs_nothing_from_elsewhere(clip: PoseSequence, tmp_path: Path) -> None:
    text = write_page(tmp_path / "page.html", clip).read_text("utf-8")
    code = re.sub(r'"data">.*?</script>', "", text)  # base64 may hold anything
    assert not re.findall(r"https?:|\"//|@import|url\(|\b(?:src|href)=\"(?!data:)", code)
    assert "default-src 'none'" in text
    assert "{{" not in text


def test_text_cannot_end_its_element_or_be_taken_for_a_placeholder(
    clip: PoseSequence, tmp_path: Path
) -> None:
    hostile = "</script><script>alert(1)</script> {{data}} & more"
    path = write_page(tmp_path / "page.html", replace(clip, title=hostile), title=hostile)
    data = page_data(path)
    assert data["title"] == data["clips"][0]["title"] == hostile
    assert "<title>&lt;/script&gt;" in path.read_text("utf-8")
    assert path.read_text("utf-8").count("alert(1)</script>") == 0


def test_without_truth_there_are_no_errors(clip: PoseSequence, tmp_path: Path) -> None:
    (shown,) = page_data(write_page(tmp_path / "page.html", replace(clip, truth=None)))["clips"]
    assert shown["truth"] is None
    assert shown["errors"] is None
    assert len(shown["residuals"]) == len(clip.stages)


def test_ground_lies_under_the_feet_and_up_is_up(clip: PoseSequence) -> None:
    assert clip.truth is not None
    points = (clip.truth + clip.root[:, None]).double().numpy() @ clip.world_axes().T
    names = list(clip.skeleton.joints)
    head, feet = points[:, names.index("Head"), 1], points[:, [3, 6], 1]
    assert (head > feet.max(axis=1) + 1000).all()
    assert abs(points[..., 1].min() - clip.ground_height()) < 60
    np.testing.assert_allclose(clip.world_axes() @ clip.world_axes().T, np.eye(3), atol=1e-12)
    assert np.linalg.det(clip.world_axes()) == pytest.approx(1.0)


@pytest.mark.parametrize("degrees", [-5.0, 0.0, 12.0])
def test_gravity_is_found_from_a_walk(degrees: float) -> None:
    # Feet of somebody walking away from a camera that looks down by some degrees.
    frames = torch.arange(120)
    step = (frames // 15)[:, None] * 0.3 + torch.tensor([0.0, 0.15])
    feet = torch.stack((torch.tensor([-0.1, 0.1]).expand(120, 2), step * 0, 4 + step), dim=-1)
    head = feet.mean(dim=1, keepdim=True) - torch.tensor([0.0, 1.6, 0.0])
    world = 1000 * torch.cat((feet, head), dim=1) + torch.tensor([0.0, 1500.0, 0.0])
    angle = torch.tensor(degrees).deg2rad()
    tilt = torch.tensor([[1, 0, 0], [0, angle.cos(), -angle.sin()], [0, angle.sin(), angle.cos()]])
    up = estimate_up(world @ tilt.T, 30.0)
    expected = tilt.double() @ torch.tensor([0.0, -1.0, 0.0], dtype=torch.float64)
    assert torch.rad2deg(torch.acos((up * expected).sum().clamp(max=1))) < 1.0


def test_gravity_without_contacts_is_a_level_camera() -> None:
    falling = torch.linspace(0, 3000, 30)[:, None, None].expand(30, 4, 3)
    for points in (falling, falling[:1]):
        assert estimate_up(points, 30.0).tolist() == [0.0, -1.0, 0.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keypoints": torch.zeros(17, 2)}, r"keypoints must be \(T, J, 2\), got \(17, 2\)"),
        ({"root": torch.zeros(4, 3)}, r"root must be \(40, 3\) .* got \(4, 3\)"),
        ({"stages": torch.zeros(1, 40, 17, 3)}, r"stages must be \(2, 40, 17, 3\)"),
        ({"truth": torch.zeros(40, 16, 3)}, r"truth must be \(40, 17, 3\)"),
        ({"up": torch.zeros(2)}, r"up must be \(3,\)"),
        ({"fps": 0.0}, r"fps must be above 0, got 0.0"),
    ],
)
def test_bad_sequences(clip: PoseSequence, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(clip, **changes)


def test_a_camera_cannot_look_straight_down(clip: PoseSequence) -> None:
    with pytest.raises(ValueError, match="up must be a direction away from"):
        replace(clip, up=torch.tensor([0.0, 0.0, -1.0])).world_axes()


def test_page_errors(clip: PoseSequence, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one PoseSequence"):
        write_page(tmp_path / "page.html", [])
    with pytest.raises(FileNotFoundError, match="there is no directory"):
        write_page(tmp_path / "nowhere" / "page.html", clip)
    assert list(tmp_path.iterdir()) == []


def test_picture_shows_all_three(clip: PoseSequence, tmp_path: Path) -> None:
    image = pytest.importorskip("matplotlib.image")
    path = write_picture(tmp_path / "picture.png", clip, [0, 20, 39], title="Walking")
    pixels = (image.imread(path)[..., :3] * 255).round().astype(int)
    assert pixels.shape[1] > pixels.shape[0] * 0.8
    # Each of the three rows of axes holds its own colours and not the others'.
    thirds = np.array_split(pixels[int(0.11 * len(pixels)) : int(0.96 * len(pixels))], 3)
    counts = {
        name: [sum((row == _rgb(c)).all(-1).sum() for c in colours) for row in thirds]
        for name, colours in COLOURS.items()
    }
    for row, name in enumerate(("input", "lifter", "refined")):
        assert counts[name][row] > 500, counts
        assert counts[name][row] > 4 * (sum(counts[name]) - counts[name][row]), counts
    assert list(tmp_path.iterdir()) == [path]


def test_picture_and_page_share_their_colours() -> None:
    style = Path(sys.modules["erd_cuda.viewer"].__path__[0], "template", "style.css").read_text()
    light = style[: style.index("@media")]
    for name, colours in COLOURS.items():
        for suffix, colour in zip(("-left", "", "-right"), colours, strict=True):
            assert f"--{name}{suffix}: {colour};" in light
    for name, colour in (("field", FIELD), ("ink", INK), ("muted", MUTED)):
        assert f"--{name}: {colour};" in light


@pytest.mark.parametrize(
    ("frames", "changes", "message"),
    [
        ([], {}, "frames must be one or more numbers"),
        ([40], {}, r"frames must be in 0\.\.39 for 'Walking': 40"),
        ([0], {"truth": None}, "'Walking' has none"),
    ],
)
def test_picture_errors(
    clip: PoseSequence, tmp_path: Path, frames: list[int], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_picture(tmp_path / "picture.png", replace(clip, **changes), frames)


def test_picture_says_that_matplotlib_is_missing(
    clip: PoseSequence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"needs matplotlib; install it with: pip install"):
        write_picture(tmp_path / "picture.png", clip, [0])


def _rgb(colour: str) -> list[int]:
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
