"""Explicit Residual Descent: a lifter and the stages that refine its poses (paper section 3)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from erd_cuda._refine_arguments import PRECISIONS
from erd_cuda.body_size import scaled_to
from erd_cuda.modules.arguments import (
    as_bone_length,
    as_keypoints,
    as_root,
    check_choice,
    check_confidence,
    check_joints,
)
from erd_cuda.modules.missing import place_missing_joints
from erd_cuda.modules.pretrained import load_erd, save_erd
from erd_cuda.modules.stages import ResidualStages

if TYPE_CHECKING:
    from collections.abc import Callable

    from erd_cuda.camera import Camera
    from erd_cuda.data.skeleton import Skeleton


class ERD(ResidualStages):
    """Lifts 2D poses to 3D and refines them: y_k = y_{k-1} + R_k(features of x and y_{k-1}).

    In eval mode all stages run in one call of `erd_cuda.refine`, with weights that are folded
    once and folded again when a parameter or buffer has changed. That call has gradients for
    keypoints, pose, root and camera but none for the stages' weights, and calls no hooks of the
    stages. In train mode, and in `stage`, the stages are plain torch layers.

    A compiled or exported graph cannot look for changes: it uses the weights of the last
    ``eval()``, ``to()`` or ``load_state_dict()`` on the ERD. After writing to parameters in eval
    mode by other means, call ``eval()`` again; outside such graphs too if the write was the replay
    of a CUDA graph that holds an optimizer's step, or went through ``.data``, which leave no trace.

    Args:
        lifter: module or callable from keypoints (..., J, 2) in px to a root-relative pose
            (..., J, 3) in mm; None if every call brings its own pose.
        num_joints: J.
        stages: K, 4 in the paper.
        width: width of the stages' hidden layers.
        block: "linear" (the paper's) or "relu", see `ResidualRegressor`.
        features: what a stage sees (paper table 2): "residual" (x - projection), "init2d" (x),
            "proj2d" (projection) or "concat" (both), each z-scored with mean2d and std2d; or, not
            in the paper, "residual+pose": the residual and beside it the pose before the stage,
            z-scored with mean3d and std3d.
        pca: number of principal components the z-scored features are reduced to (each half of
            "concat" separately, of "residual+pose" the residual alone); None for no PCA.
        root: "given" (the caller has the root), "solve" (least squares from the initial pose,
            its root joint set to 0, kept for all stages) or "solve_each_stage" (from the current
            pose before each stage). A pose whose root cannot be solved stays as it is.
        dropout: dropout probability in the stages.
        confidence_weights: whether confidences weigh the joints in residual and root solve. False:
            they only say which joints are missing, and all others count alike (the paper knows no
            confidences).
        residual_limit: px, the most that each coordinate of a residual counts, so that a joint
            found in the wrong place cannot pull the whole pose along; None, as in the paper, for
            any. Features without a residual know no limit.
        skeleton: names and parents of the joints; its root is the root joint, else joint 0. Where
            poses are relative to a point that is no joint (h36m14), there is none.

    Attributes:
        regressors: the K stages.
        mean2d, std2d: buffers (J, 2), px.
        mean3d, std3d: buffers (J, 3), mm, with "residual+pose"; else None.
        pca: PCA or None.
        notes: what the training wants kept with the model, saved as JSON.
    """

    def __init__(
        self,
        lifter: nn.Module | Callable[[Tensor], Tensor] | None = None,
        num_joints: int = 17,
        stages: int = 4,
        width: int = 256,
        block: str = "linear",
        features: str = "residual",
        pca: int | None = None,
        root: str = "given",
        dropout: float = 0.25,
        skeleton: Skeleton | None = None,
        confidence_weights: bool = True,
        residual_limit: float | None = None,
    ) -> None:
        if lifter is not None and not callable(lifter):
            raise TypeError(
                f"lifter is a {type(lifter).__name__}, expected a module, a callable or None."
            )
        super().__init__(
            num_joints=num_joints,
            stages=stages,
            width=width,
            block=block,
            features=features,
            pca=pca,
            root=root,
            dropout=dropout,
            skeleton=skeleton,
            confidence_weights=confidence_weights,
            residual_limit=residual_limit,
        )
        self.lifter = lifter
        self.notes: dict[str, Any] = {}

    def config(self) -> dict[str, Any]:
        """The constructor's arguments but lifter and skeleton, as a model file keeps them."""
        return {
            "num_joints": self.num_joints,
            "stages": self.stages,
            "width": self.width,
            "block": self.block,
            "features": self.features,
            "pca": None if self.pca is None else self.pca.components,
            "root": self.root,
            "dropout": self.dropout,
            "confidence_weights": self.confidence_weights,
            "residual_limit": self.residual_limit,
        }

    def forward(
        self,
        keypoints: Tensor,
        camera: Camera | Tensor,
        root: Tensor | str | None = None,
        confidence: Tensor | None = None,
        pose: Tensor | None = None,
        return_stages: bool = False,
        *,
        bone_length: Tensor | float | None = None,
        precision: str = "auto",
    ) -> Tensor:
        """Refined pose (..., J, 3), mm, root-relative. Batch dimensions broadcast.

        Args:
            keypoints: (..., J, 2), px.
            camera: `Camera`, or pinhole intrinsics (..., 4) fx, fy, cx, cy in px.
            root: (..., 3), mm, camera frame. "solve" or "solve_each_stage" takes the place of
                the model's own ``root`` in this call. Required if that is "given".
            confidence: (..., J); a joint with confidence 0 is missing, the others weigh as much as
                theirs is, or all alike without ``confidence_weights``.
            pose: initial pose (..., J, 3) in mm, instead of the lifter's.
            return_stages: return the initial pose and every stage's, (K + 1, ..., J, 3).
            bone_length: the person's size where it is known, (...) or a number: the total length
                of the skeleton's bones in mm, see `erd_cuda.bone_length`. The initial pose is
                scaled to it before the root is solved. Not positive: unknown.
            precision: arithmetic of the fused op in eval mode, see `erd_cuda.refine`. In train
                mode it has no effect: the layers run in the model's own dtype.

        Raises:
            ValueError: root or pose is missing, a shape does not fit, bone_length is given to a
                model without a skeleton, or precision is an unknown word or, in eval mode, none
                for these tensors.
            TypeError: a dtype does not fit.
        """
        check_choice("precision", precision, PRECISIONS)
        keypoints = as_keypoints(keypoints, self.mean2d)
        root = as_root(root, self.root, keypoints)
        check_confidence(confidence, self.num_joints)
        if pose is None:
            pose = self.lift(keypoints, confidence)
        else:
            check_joints("pose", pose, self.num_joints, 3)
        if bone_length is not None:
            pose = self.scaled(pose, bone_length)
        if self.training:
            stages = self._refined_by_layers(keypoints, pose, root, camera, confidence)
            refined = torch.stack(stages[1:]) if return_stages else stages[-1]
        else:
            refined = self._refined_by_op(
                keypoints, pose, root, camera, confidence, return_stages, precision
            )
        if return_stages:
            return torch.cat((pose.expand_as(refined[0])[None], refined))
        return refined

    def lift(self, keypoints: Tensor, confidence: Tensor | None = None) -> Tensor:
        """The lifter's pose (..., J, 3) in mm; missing joints enter it where
        `erd_cuda.modules.missing.place_missing_joints` puts them.

        Raises:
            ValueError: there is no lifter, or its answer has another shape.
        """
        if self.lifter is None:
            raise ValueError(
                "pose is missing, expected a tensor (..., J, 3) in mm, because this model has no "
                "lifter."
            )
        if confidence is not None:
            keypoints = place_missing_joints(keypoints, confidence, self.mean2d)
        pose = self.lifter(keypoints)
        expected = (*keypoints.shape[:-1], 3)
        if not isinstance(pose, Tensor) or tuple(pose.shape) != expected:
            found = tuple(pose.shape) if isinstance(pose, Tensor) else type(pose).__name__
            raise ValueError(f"the lifter returned {found}, expected a pose of shape {expected}.")
        # A lifter may answer in 16 bits, on its own or under autocast.
        return pose.to(self.mean2d.dtype)

    def scaled(self, pose: Tensor, bone_length: Tensor | float) -> Tensor:
        """The pose (..., J, 3) made the size of a person whose bones are ``bone_length`` mm long.

        Args:
            pose, bone_length: as in `forward`.

        Raises:
            TypeError: bone_length is neither a number nor a floating point tensor.
            ValueError: the model has no skeleton, or a shape does not fit.
        """
        if self.skeleton is None:
            raise ValueError(
                "bone_length is given, but this model has no skeleton that says where its bones "
                "are: build it with one."
            )
        return scaled_to(pose, as_bone_length(bone_length, pose), self.skeleton)

    def save(
        self, path: str | os.PathLike[str], *, half: bool = False, include_lifter: bool = True
    ) -> None:
        """Write the model to one safetensors file.

        Args:
            path: the file to write; it is replaced in one step.
            half: store the layers' matrices as float16. Biases, BatchNorm, normalisation and PCA
                keep their precision.
            include_lifter: False leaves the lifter out; the loaded model then has none.

        Raises:
            TypeError: the lifter is not one of erd_cuda's.
            ValueError: ``notes`` are not JSON, or a weight does not fit into 16 bits.
        """
        save_erd(self, path, half=half, include_lifter=include_lifter)

    @classmethod
    def from_pretrained(
        cls, name: str | os.PathLike[str], device: torch.device | str = "cpu"
    ) -> ERD:
        """Load a model in eval mode from a file, or a bundled one by its name.

        Raises:
            FileNotFoundError: there is neither such a file nor such a bundled model.
            ValueError: the file is truncated, foreign, damaged or of another format version.
        """
        return load_erd(cls, name, device)

    def extra_repr(self) -> str:
        return f"stages={self.stages}, features={self.features!r}, root={self.root!r}"
