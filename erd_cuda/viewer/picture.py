"""A picture of some frames: 2D input, lifter against truth, refined pose against truth."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from erd_cuda._files import replacing
from erd_cuda.viewer.sequence import Floats, PoseSequence, as_array

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The page's light colours (template/style.css), by side of the body: left, middle, right.
FIELD, INK, MUTED, GRID, TRUTH = "#fbfcfd", "#171c24", "#596575", "#d5dbe3", "#d3d8df"
SHADOW = "#1c2a3c"
COLOURS = {
    "input": ("#262d37", "#6a7482", "#b2bac4"),
    "lifter": ("#a83a05", "#cc560f", "#ee8d4a"),
    "refined": ("#0a4f9c", "#1673c9", "#58aaf0"),
}
AZIMUTH, ELEVATION, DISTANCE = 0.72, 0.24, 5.0  # the page's first view, from a little further


def write_picture(
    path: str | os.PathLike[str],
    sequences: PoseSequence | Sequence[PoseSequence],
    frames: Sequence[int],
    *,
    title: str = "",
) -> Path:
    """Draw one column per frame: 2D input, lifter and truth, refined pose and truth.

    Args:
        path: the PNG or SVG file to write; it is replaced as a whole or not at all.
        sequences: the clip the frames are of, or one clip per frame. All need a truth.
        frames: frame numbers, at least one.
        title: heading of the picture.

    Returns:
        The path written.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: for no frames, a frame that does not exist, a clip without truth, or another
            number of clips than frames.
        FileNotFoundError: if the directory of ``path`` does not exist.
    """
    clips = [sequences] * len(frames) if isinstance(sequences, PoseSequence) else list(sequences)
    if not frames or len(clips) != len(frames):
        raise ValueError(
            f"frames must be one or more numbers, one per sequence: got {len(frames)} frames for "
            f"{len(clips)} sequences"
        )
    for clip, frame in zip(clips, frames, strict=True):
        if not 0 <= frame < clip.frames:
            raise ValueError(f"frames must be in 0..{clip.frames - 1} for {clip.title!r}: {frame}")
        if clip.truth is None:
            raise ValueError(
                f"sequences must have a truth to compare with: {clip.title!r} has none"
            )
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "drawing the picture needs matplotlib; install it with: pip install 'erd-cuda[viewer]'"
        ) from error

    figure = Figure(figsize=(2.9 * len(clips) + 0.5, 9.4), dpi=150, facecolor=FIELD)
    FigureCanvasAgg(figure)
    axes = figure.subplots(3, len(clips), squeeze=False)
    figure.subplots_adjust(
        left=0.035, right=0.985, bottom=0.045, top=0.89 if title else 0.94, wspace=0.06, hspace=0.14
    )
    for column, (clip, frame) in enumerate(zip(clips, frames, strict=True)):
        errors = clip.errors()
        assert errors is not None
        last = clip.stages.shape[0] - 1
        _draw_input(axes[0][column], clip, frame)
        _draw_world(axes[1][column], clip, frame, 0, "lifter")
        _draw_world(axes[2][column], clip, frame, last, "refined")
        axes[0][column].set_title(clip.title, fontsize=12, fontweight="bold", color=INK, pad=8)
        before, after = errors[0, frame], errors[last, frame]
        change = f"  ({100 * (after / before - 1):+.0f} %)" if before > 0 else ""
        for row, text, colour in (
            (1, f"lifter {before:.1f} mm", COLOURS["lifter"][1]),
            (2, f"refined {after:.1f} mm{change}", COLOURS["refined"][1]),
        ):
            axes[row][column].set_title(text, fontsize=10.5, color=colour, pad=3)
    for row, text in enumerate(("2D input", "lifter, truth in grey", "refined, truth in grey")):
        axes[row][0].set_ylabel(text, fontsize=10, color=MUTED, labelpad=8)
    if title:
        figure.suptitle(title, x=0.035, y=0.975, ha="left", fontsize=14, color=INK)
    figure.text(
        0.985, 0.016, "MPJPE of the frame; left limbs darker than right ones",
        ha="right", fontsize=8.5, color=MUTED,
    )  # fmt: skip
    with replacing(path) as temporary:
        figure.savefig(temporary, format=temporary.suffix[1:], facecolor=FIELD)
    return Path(path)


def _draw_input(axes: Axes, clip: PoseSequence, frame: int) -> None:
    """The 2D keypoints in the image plane, y down as in the image."""
    points = as_array(clip.keypoints)[frame]
    seen = np.isfinite(points).all(axis=-1)
    for parent, joint, side in _bones(clip):
        if seen[parent] and seen[joint]:
            axes.plot(
                *points[[parent, joint]].T, color=COLOURS["input"][side + 1],
                linewidth=3.2, solid_capstyle="round",
            )  # fmt: skip
    axes.plot(
        *points[seen].T, "o", markersize=4.6, markerfacecolor=FIELD, markeredgecolor=INK,
        markeredgewidth=1.1, zorder=3,
    )  # fmt: skip
    if seen.any():
        middle = (points[seen].min(axis=0) + points[seen].max(axis=0)) / 2
        half = 0.6 * float(np.ptp(points[seen], axis=0).max())
        axes.set_xlim(middle[0] - half, middle[0] + half)
        axes.set_ylim(middle[1] + half, middle[1] - half)
    axes.set_aspect("equal")
    axes.set_facecolor(FIELD)
    axes.grid(color=GRID, linewidth=0.6)
    axes.locator_params(nbins=4)
    axes.tick_params(labelsize=7, labelcolor=MUTED, length=0, pad=2)
    for spine in axes.spines.values():
        spine.set_color(GRID)


def _draw_world(axes: Axes, clip: PoseSequence, frame: int, stage: int, name: str) -> None:
    """One stage's pose over the pale truth, on the ground, from the page's first viewpoint."""
    assert clip.truth is not None
    root = as_array(clip.root)[frame]
    rotation, ground = clip.world_axes(), np.array([0.0, clip.ground_height(), 0.0])
    truth, pose = (
        ((as_array(points) + root) @ rotation.T - ground) / 1000
        for points in (clip.truth[frame], clip.stages[stage, frame])
    )
    middle = (truth.min(axis=0) + truth.max(axis=0)) / 2
    middle[1] = 0.85
    grid = np.linspace(-1.0, 1.0, 5)
    for offset in grid:
        for ends in ([(offset, -1), (offset, 1)], [(-1, offset), (1, offset)]):
            line = np.array([[x + middle[0], 0.0, z + middle[2]] for x, z in ends])
            axes.plot(*_look(line, middle)[:, :2].T, color=GRID, linewidth=0.7, zorder=0)

    bones = _bones(clip)
    shadow = truth * [1, 0, 1]
    for width in (15, 11, 7):
        _stroke(axes, _look(shadow, middle), bones, SHADOW, width, alpha=0.05, zorder=1)
    _stroke(axes, _look(truth, middle), bones, TRUTH, 11, zorder=2)
    points = _look(pose, middle)
    style: dict[str, Any] = {"solid_capstyle": "round", "dash_capstyle": "butt"}
    # From far to near, so that nearer limbs lie on top.
    for order, (parent, joint, side) in enumerate(
        sorted(bones, key=lambda bone: -points[[bone[0], bone[1]], 2].sum())
    ):
        segment = points[[parent, joint], :2].T
        zorder = 3 + order / 100
        axes.plot(*segment, color=FIELD, linewidth=4.6, zorder=zorder, **style)
        axes.plot(
            *segment, color=COLOURS[name][side + 1], linewidth=3 if name == "refined" else 2.4,
            linestyle=(0, (2.2, 0.9)) if name == "lifter" else "-", zorder=zorder + 0.004,
            marker="o", markersize=3.6, **style,
        )  # fmt: skip
    axes.set_xlim(-1.15, 1.15)
    axes.set_ylim(-1.33, 0.97)
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_facecolor(FIELD)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _stroke(
    axes: Axes,
    points: Floats,
    bones: list[tuple[int, int, int]],
    colour: str,
    width: float,
    zorder: float,
    alpha: float = 1.0,
) -> None:
    """All bones as one path, so that crossing strokes do not darken each other."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Strokes

    ends = np.concatenate([points[[parent, joint], :2] for parent, joint, _ in bones])
    path = Strokes(ends, [Strokes.MOVETO, Strokes.LINETO] * len(bones))
    axes.add_patch(
        PathPatch(
            path, fill=False, edgecolor=colour, linewidth=width, alpha=alpha, zorder=zorder,
            capstyle="round", joinstyle="round",
        )
    )  # fmt: skip


def _look(points: Floats, middle: Floats) -> Floats:
    """Perspective view of world points (n, 3) in m: x, y in units of the middle's plane, depth."""
    backward = np.array(
        [
            np.cos(ELEVATION) * np.sin(AZIMUTH),
            np.sin(ELEVATION),
            np.cos(ELEVATION) * np.cos(AZIMUTH),
        ]
    )
    right = np.array([np.cos(AZIMUTH), 0.0, -np.sin(AZIMUTH)])
    seen = (points - middle) @ np.stack([right, np.cross(backward, right), backward]).T
    depth = DISTANCE - seen[:, 2]
    return np.column_stack([seen[:, :2] * (DISTANCE / depth)[:, None], depth])


def _bones(clip: PoseSequence) -> list[tuple[int, int, int]]:
    """(parent, joint, side) of every bone; side is -1 left, 0 middle, 1 right."""
    skeleton = clip.skeleton
    return [
        (parent, joint, -1 if joint in skeleton.left else 1 if joint in skeleton.right else 0)
        for joint, parent in enumerate(skeleton.parents)
        if parent >= 0
    ]
