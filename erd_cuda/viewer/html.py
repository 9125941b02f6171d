"""Writes a motion viewer as one HTML file that needs no network, no server and no library."""

from __future__ import annotations

import base64
import html
import json
import os
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from erd_cuda._files import write_text
from erd_cuda.viewer.sequence import Floats, PoseSequence, as_array

SCRIPTS = ("geometry.js", "scene.js", "plane.js", "timeline.js", "joints.js", "page.js")
MISSING = -32768  # the 16-bit value that stands for NaN in packed arrays


def write_page(
    path: str | os.PathLike[str],
    sequences: PoseSequence | Sequence[PoseSequence],
    *,
    title: str = "Explicit Residual Descent",
    description: str = "",
    notes: Sequence[str] = (),
) -> Path:
    """Write a page that shows 3D motion, its 2D input and the error of every stage.

    Args:
        path: the HTML file to write; it is replaced as a whole or not at all.
        sequences: one clip, or several to choose from.
        title: the heading and the window's title.
        description: one sentence below the heading.
        notes: sentences for the foot of the page, such as sources and acknowledgements.

    Returns:
        The path written.

    Raises:
        ValueError: if there is no clip.
        FileNotFoundError: if the directory of ``path`` does not exist.
    """
    clips = [sequences] if isinstance(sequences, PoseSequence) else list(sequences)
    if not clips:
        raise ValueError("sequences must hold at least one PoseSequence, got none")
    data = {
        "title": title,
        "description": description,
        "notes": list(notes),
        "clips": [_clip(clip) for clip in clips],
    }
    folder = resources.files("erd_cuda.viewer") / "template"
    parts = {
        "title": html.escape(title),
        "style": (folder / "style.css").read_text(encoding="utf-8"),
        "script": "\n".join((folder / name).read_text(encoding="utf-8") for name in SCRIPTS),
        # A "<" inside the data could end its <script> element early.
        "data": json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
    }
    page = (folder / "page.html").read_text(encoding="utf-8")
    # One pass, so that text which looks like a placeholder is never replaced a second time.
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match.group(1)], page)
    write_text(path, page)
    return Path(path)


def _clip(clip: PoseSequence) -> dict[str, Any]:
    """The clip as the page's script reads it; see ``decode`` in geometry.js."""
    projections = clip.projections()
    keypoints = as_array(clip.keypoints)
    residuals = np.linalg.norm(projections - keypoints, axis=-1)
    seen = np.isfinite(residuals)
    # Mean over the joints that were seen; a frame without any has no residual.
    counts = seen.sum(axis=-1)
    sums = np.where(seen, residuals, 0.0).sum(axis=-1)
    mean_residuals = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    errors = clip.errors()
    skeleton = clip.skeleton
    return {
        "title": clip.title,
        "fps": float(clip.fps),
        "frames": clip.frames,
        "joints": list(skeleton.joints),
        "parents": [int(parent) for parent in skeleton.parents],
        "rootJoint": skeleton.root_joint,
        "left": [int(joint) for joint in skeleton.left],
        "right": [int(joint) for joint in skeleton.right],
        "stageNames": clip.stage_names,
        "keypoints": _packed(keypoints),
        "projections": _packed(projections),
        "stages": _packed(as_array(clip.stages)),
        "truth": None if clip.truth is None else _packed(as_array(clip.truth)),
        "root": _packed(as_array(clip.root)),
        "errors": None if errors is None else _rounded(errors),
        "residuals": _rounded(mean_residuals),
        "intrinsics": clip.intrinsics().tolist(),
        "image": list(clip.image_extent()),
        "axes": clip.world_axes().tolist(),
        "ground": clip.ground_height(),
    }


def _packed(values: Floats) -> dict[str, Any]:
    """Base64 of little-endian 16-bit integers and the scale that gives the values back.

    The step is 1/32767 of the largest magnitude: 0.05 mm for a pose, far below what can be seen.
    """
    finite = np.isfinite(values)
    largest = float(np.abs(values[finite]).max()) if finite.any() else 0.0
    scale = largest / 32767.0 if largest > 0 else 1.0
    integers = np.full(values.shape, MISSING, dtype="<i2")
    integers[finite] = np.rint(values[finite] / scale).astype("<i2")
    return {"scale": scale, "data": base64.b64encode(integers.tobytes()).decode("ascii")}


def _rounded(values: Floats) -> list[list[float | None]]:
    """Rows of numbers with two decimals; None (JSON has no NaN) where a value is not finite."""
    return [[round(v, 2) if np.isfinite(v) else None for v in row] for row in values.tolist()]
