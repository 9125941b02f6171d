"""What an exported model takes: which of a call's arguments become its inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

from .._definitions import CAMERA_MODELS, ROOTS, check_choice

if TYPE_CHECKING:
    from ..modules import ERD


class ExportOptions(TypedDict, total=False):
    """What an exported ERD is to take; every format has these options.

    Attributes:
        root: "given", "solve" or "solve_each_stage"; by default the ERD's own.
        camera_model: "pinhole", the default, "opencv" or "h36m".
        confidence: whether it takes confidences; it then knows missing joints.
        pose: whether it takes the poses that it is to refine instead of lifting them. By default
            only if the ERD has no lifter.
        bone_length: whether it takes the person's size, see `erd_cuda.ERD.forward`.
    """

    root: str | None
    camera_model: str
    confidence: bool
    pose: bool | None
    bone_length: bool


@dataclass(frozen=True)
class Signature:
    """The inputs of an exported ERD, in the order of `erd_cuda.ERD.forward`.

    Attributes:
        joints: J.
        root: "given", "solve" or "solve_each_stage".
        camera_model: "pinhole", "opencv" or "h36m".
        confidence, pose, bone_length: whether the exported model takes one.

    Raises:
        ValueError: an unknown word.
    """

    joints: int
    root: str
    camera_model: str
    confidence: bool
    pose: bool
    bone_length: bool

    def __post_init__(self) -> None:
        check_choice("root", self.root, ROOTS)
        check_choice("camera_model", self.camera_model, list(CAMERA_MODELS))

    @classmethod
    def of(
        cls,
        erd: ERD,
        *,
        root: str | None = None,
        camera_model: str = "pinhole",
        confidence: bool = False,
        pose: bool | None = None,
        bone_length: bool = False,
    ) -> Signature:
        """Of the `ExportOptions` of an export.

        Raises:
            ValueError: an unknown word, the model is in train mode, or it lacks the lifter or the
                skeleton that the export would need.
        """
        if erd.training:
            raise ValueError("erd is in train mode, expected eval mode: call erd.eval() first.")
        root = erd.root if root is None else root
        if pose is None:
            pose = erd.lifter is None
        if not pose and erd.lifter is None:
            raise ValueError("pose is False, expected True, because this model has no lifter.")
        if bone_length and erd.skeleton is None:
            raise ValueError(
                "bone_length is True, expected False, because this model has no skeleton that says "
                "where its bones are."
            )
        return cls(erd.num_joints, root, camera_model, confidence, pose, bone_length)

    def inputs(self) -> list[str]:
        """Names of the inputs."""
        asked = {
            "distortion": self.camera_model != "pinhole",
            "root": self.root == "given",
            "confidence": self.confidence,
            "pose": self.pose,
            "bone_length": self.bone_length,
        }
        return ["keypoints", "intrinsics", *(name for name, wanted in asked.items() if wanted)]

    def described(self) -> list[tuple[str, str, str]]:
        """Name, shape and meaning of each input, and last of the result, for people to read."""
        distortion = {"opencv": "k1, k2, p1, p2, k3", "h36m": "k1, k2, k3, p1, p2"}
        meanings = {
            "keypoints": "px",
            "intrinsics": "fx, fy, cx, cy in px",
            "distortion": distortion.get(self.camera_model, ""),
            "root": "mm in the camera's frame",
            "confidence": "0 marks a missing joint",
            "pose": "mm relative to the root",
            "bone_length": "mm, 0 where unknown",
        }
        shapes = {name: sample_shape(name, self.joints) for name in self.inputs()}
        found = [(name, _with_batch(shape), meanings[name]) for name, shape in shapes.items()]
        return [
            *found,
            ("refined", _with_batch(sample_shape("pose", self.joints)), meanings["pose"]),
        ]


def sample_shape(name: str, joints: int) -> tuple[int, ...]:
    """What one sample has of an input."""
    return {
        "keypoints": (joints, 2),
        "intrinsics": (4,),
        "distortion": (5,),
        "root": (3,),
        "confidence": (joints,),
        "pose": (joints, 3),
        "bone_length": (),
    }[name]


def _with_batch(shape: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, ('N', *shape)))}{'' if shape else ','})"
