"""The page in a real browser: it draws, plays, turns, and shows people the right way round."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser, find_browser
from clips import make_clip

from erd_cuda.viewer import PoseSequence, write_page

Pixels = np.ndarray[Any, np.dtype[np.int64]]
DESKTOP = (1280, 800)
SCENE = "document.getElementById('scene').getBoundingClientRect()"


@pytest.fixture(scope="module")
def clip() -> PoseSequence:
    return make_clip()


@pytest.fixture(scope="module")
def page(clip: PoseSequence, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    return write_page(folder / "page.html", [clip, replace(clip, title="Blind", truth=None)])


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_browser()
    if program is None:
        pytest.skip("needs Chromium or Chrome on the PATH")
    pytest.importorskip("matplotlib.image", reason="needs matplotlib to read screenshots")
    with Browser(program, tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture
def shown(browser: Browser, page: Path) -> Iterator[Browser]:
    """The page, paused at frame 10; a test fails if the page complains on the console."""
    browser.open(page, *DESKTOP)
    go_to(browser, 10)
    yield browser
    assert browser.messages == []


def slide(browser: Browser, slider: str, value: int) -> None:
    """Move one of the two sliders, as a hand or a key would."""
    browser.evaluate(
        f"(s => {{ s.value = {value}; s.dispatchEvent(new Event('input')); }})"
        f"(document.getElementById('{slider}'))"
    )


def go_to(browser: Browser, frame: int) -> None:
    """Move the time slider, which pauses."""
    slide(browser, "scrub", frame)
    browser.wait_for(f"!erdViewer.playing && erdViewer.frame === {frame}")


def click(browser: Browser, selector: str) -> None:
    browser.evaluate(f"document.querySelector({selector!r}).click()")


def text(browser: Browser, selector: str) -> str:
    settle(browser)
    return str(browser.evaluate(f"document.querySelector({selector!r}).textContent"))


def settle(browser: Browser) -> None:
    """Wait for the view to come to rest and for two frames after that to be drawn."""
    browser.wait_for("erdViewer.settled")
    browser.evaluate(
        "window.drawn = 0; requestAnimationFrame(() => requestAnimationFrame(() => {"
        " window.drawn = 1; }))"
    )
    browser.wait_for("window.drawn === 1")


def look(browser: Browser) -> Pixels:
    """The window as (height, width, 3) integers."""
    from matplotlib import image

    settle(browser)
    pixels = image.imread(io.BytesIO(browser.screenshot()), format="png")[..., :3]
    return (pixels * 255).round().astype(np.int64)


def scene_of(browser: Browser, pixels: Pixels) -> Pixels:
    """The part of a screenshot that is the 3D view."""
    box = {k: round(browser.evaluate(f"{SCENE}.{k}")) for k in ("x", "y", "width", "height")}
    return pixels[box["y"] : box["y"] + box["height"], box["x"] : box["x"] + box["width"]]


def orange(pixels: Pixels) -> int:
    """Number of pixels in a shade of the lifter's colour."""
    red, _, blue = np.moveaxis(pixels, -1, 0)
    return int((red - blue > 90).sum())


def blue(pixels: Pixels) -> int:
    """Number of pixels in a shade of the refined pose's colour."""
    red, _, blue = np.moveaxis(pixels, -1, 0)
    return int((blue - red > 70).sum())


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize(
    "size", [(1440, 900), (900, 1000), (360, 740)], ids=["desktop", "tablet", "phone"]
)
def test_loads_and_draws(browser: Browser, page: Path, size: tuple[int, int], dark: bool) -> None:
    browser.open(page, *size, dark=dark)
    go_to(browser, 20)
    pixels = look(browser)
    scene = scene_of(browser, pixels)
    assert orange(scene) > 150
    assert blue(scene) > 400
    background = pixels[2, 2].mean()
    assert (background < 40) if dark else (background > 215)
    assert browser.evaluate("document.documentElement.scrollWidth") <= size[0]
    # Every drawing area has a size and is not blank.
    for name in ("scene", "plane", "curve"):
        kinds = browser.evaluate(
            "(c => new Set(new Uint32Array(c.getContext('2d').getImageData("
            f"0, 0, c.width, c.height).data.buffer)).size)(document.getElementById('{name}'))"
        )
        assert kinds > 20, name
    assert browser.messages == []
    assert browser.requests == [page.as_uri()]


def test_starts_playing_and_plays_in_a_loop(browser: Browser, page: Path) -> None:
    browser.open(page, *DESKTOP)
    browser.wait_for("erdViewer.frame > 5")
    go_to(browser, 37)
    click(browser, "[data-speed='2']")
    click(browser, "#play")
    browser.wait_for("erdViewer.playing && erdViewer.frame < 30")
    click(browser, "#play")
    paused = browser.evaluate("erdViewer.frame")
    settle(browser)
    assert browser.evaluate("erdViewer.frame") == paused
    assert text(browser, "#frame") == f"Frame {paused + 1} / 40"
    assert browser.messages == []


def test_space_plays_and_pauses(shown: Browser) -> None:
    shown.press(" ", 32)
    shown.wait_for("erdViewer.playing && erdViewer.frame > 12")
    shown.press(" ", 32)
    shown.wait_for("!erdViewer.playing")


def test_scrubbing_changes_the_picture(shown: Browser) -> None:
    before = scene_of(shown, look(shown))
    go_to(shown, 25)
    assert (scene_of(shown, look(shown)) != before).any(axis=-1).sum() > 1000


def test_dragging_turns_the_person(shown: Browser) -> None:
    before, start = look(shown), np.array(shown.evaluate("erdViewer.screen('truth')"))
    x, y = (shown.evaluate(f"{SCENE}.{k}") + 250 for k in ("x", "y"))
    shown.drag((x, y), (x + 30, y))
    assert (look(shown) != before).any(axis=-1).sum() > 2000
    turned = np.array(shown.evaluate("erdViewer.screen('truth')"))
    # What is in front follows the pointer to the right, what is behind goes the other way. The view
    # is from above, so that height adds to the distance: it is fitted along.
    moved = (turned - start)[:, 0]
    terms = np.column_stack((start[:, 2], start[:, 1], np.ones(len(start))))
    weights = np.linalg.lstsq(terms, moved, rcond=None)[0]
    assert weights[0] < 0
    assert np.corrcoef(terms @ weights, moved)[0, 1] > 0.95
    shown.drag((x, y), (x - 30, y))
    settle(shown)
    back = np.array(shown.evaluate("erdViewer.screen('truth')"))
    np.testing.assert_allclose(back, start, atol=1e-6)


@pytest.mark.parametrize(("key", "code"), [("ArrowLeft", 37), ("ArrowUp", 38), ("+", 187)])
def test_keys_move_the_view(shown: Browser, key: str, code: int) -> None:
    before = scene_of(shown, look(shown))
    shown.evaluate("document.getElementById('scene').focus({ focusVisible: false })")
    shown.press(key, code)
    assert (scene_of(shown, look(shown)) != before).any(axis=-1).sum() > 1000
    shown.press("Home", 36)
    settle(shown)
    np.testing.assert_array_equal(scene_of(shown, look(shown)), before)


def test_wheel_zooms(shown: Browser) -> None:
    extent = "(p => Math.max(...p.map(q => q[1])) - Math.min(...p.map(q => q[1])))"
    before = shown.evaluate(f"{extent}(erdViewer.screen('truth'))")
    x, y = (shown.evaluate(f"{SCENE}.{k}") + 200 for k in ("x", "y"))
    shown.call("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=-200)
    shown.wait_for(f"{extent}(erdViewer.screen('truth')) > {1.1 * before}")


def test_pinching_zooms_and_a_finger_turns(shown: Browser) -> None:
    extent = "(p => Math.max(...p.map(q => q[1])) - Math.min(...p.map(q => q[1])))"
    before = shown.evaluate(f"{extent}(erdViewer.screen('truth'))")
    x, y = (shown.evaluate(f"{SCENE}.{k}") + 250 for k in ("x", "y"))

    def touch(kind: str, *points: tuple[float, float]) -> None:
        fingers = [{"x": x + dx, "y": y + dy, "id": i} for i, (dx, dy) in enumerate(points)]
        shown.call("Input.dispatchTouchEvent", type=kind, touchPoints=fingers)

    touch("touchStart", (0, 0))
    touch("touchStart", (0, 0), (60, 0))
    touch("touchMove", (0, 0), (120, 0))
    touch("touchEnd")
    # Twice as far apart: twice as near, and perspective makes the person grow a little more.
    shown.wait_for(f"{extent}(erdViewer.screen('truth')) > {1.8 * before}")
    start = shown.evaluate("erdViewer.screen('truth')")
    touch("touchStart", (0, 0))
    touch("touchMove", (50, 0))
    touch("touchEnd")
    settle(shown)
    assert shown.evaluate("erdViewer.screen('truth')") != start


def test_people_stand_upright(shown: Browser, clip: PoseSequence) -> None:
    settle(shown)
    joints = np.array(shown.evaluate("erdViewer.screen('truth')"))
    names = list(clip.skeleton.joints)
    head, feet = joints[names.index("Head")], joints[[names.index("LFoot"), names.index("RFoot")]]
    assert (head[1] < feet[:, 1] - 200).all()  # y grows downwards on a screen


def test_camera_view_is_the_image(shown: Browser, clip: PoseSequence) -> None:
    # Truth through the camera must be the 2D input, moved and scaled alike in x and y: neither
    # mirrored nor upside down nor turned.
    click(shown, "[data-view=camera]")
    for frame in (3, 30):
        go_to(shown, frame)
        settle(shown)
        screen = np.array(shown.evaluate("erdViewer.screen('truth')"))[:, :2]
        image = clip.keypoints[frame].double().numpy()
        scale = np.ptp(screen[:, 1]) / np.ptp(image[:, 1])
        assert scale > 0.5
        offset = screen.mean(axis=0) - scale * image.mean(axis=0)
        np.testing.assert_allclose(screen, scale * image + offset, atol=0.5)
    click(shown, "[data-view=side]")
    settle(shown)
    assert shown.evaluate("document.querySelector('[data-view=side]').ariaPressed") == "true"


def test_numbers_are_the_errors(shown: Browser, clip: PoseSequence) -> None:
    errors = clip.errors()
    assert errors is not None
    for stage in (4, 2, 0):
        slide(shown, "stage", stage)
        assert text(shown, "[data-layer=lifter] .value") == f"{errors[0, 10]:.1f} mm"
        assert text(shown, "[data-layer=refined] .value") == f"{errors[stage, 10]:.1f} mm"
        poses = [
            np.array(shown.evaluate(f"erdViewer.screen('{n}')")) for n in ("lifter", "refined")
        ]
        assert (np.abs(poses[0] - poses[1]).max() < 1e-9) == (stage == 0)
    assert shown.evaluate("erdViewer.stage") == 0
    ticks = [f"{mean:.1f}" for mean in errors.mean(axis=1)]
    names = ["Lifter", "1", "2", "3", "4"]
    assert text(shown, "#stage-ticks") == "".join(map("".join, zip(names, ticks, strict=True)))


def test_skeletons_can_be_hidden(shown: Browser) -> None:
    colours = {"lifter": orange, "refined": blue}
    for name, count in colours.items():
        before = count(scene_of(shown, look(shown)))
        click(shown, f"[data-layer={name}]")
        # A few pixels of text may be tinted by the font's smoothing.
        assert count(scene_of(shown, look(shown))) < 0.05 * before
        assert (
            shown.evaluate(f"document.querySelector('[data-layer={name}]').ariaPressed") == "false"
        )
        click(shown, f"[data-layer={name}]")
        assert count(scene_of(shown, look(shown))) == before


def test_without_truth_the_residual_is_shown(shown: Browser) -> None:
    click(shown, "#clips button:nth-child(2)")
    shown.wait_for("document.querySelectorAll('[data-layer]').length === 2")
    assert text(shown, "[data-layer=refined] .value").endswith(" px")
    assert orange(scene_of(shown, look(shown))) > 150
