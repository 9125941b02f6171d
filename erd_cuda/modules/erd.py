"""Explicit Residual Descent: a lifter and the stages that refine its poses (paper section 3)."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from erd_cuda import ops
from erd_cuda._refine_arguments import PRECISIONS
from erd_cuda._shapes import as_limit, seen_features
from erd_cuda.body_size import scaled_to
from erd_cuda.modules.arguments import (
    ROOTS,
    as_bone_length,
    as_keypoints,
    as_root,
    check_choice,
    check_confidence,
    check_count,
    check_joints,
)
from erd_cuda.modules.features import confidence_where, stage_features
from erd_cuda.modules.missing import placed
from erd_cuda.modules.normalization import mean_and_std, scale_of
from erd_cuda.modules.packing import FEATURES, PackedRegressors, pack_regressors
from erd_cuda.modules.pca import PCA
from erd_cuda.modules.pretrained import load_erd, save_erd
from erd_cuda.modules.regressor import ResidualRegressor
from erd_cuda.modules.weight_cache import PackingModule

if TYPE_CHECKING:
    from collections.abc import Callable

    from erd_cuda.camera import Camera
    from erd_cuda.data.skeleton import Skeleton


class ERD(PackingModule):
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
            any.
        skeleton: names and parents of the joints; its root is the root joint, else joint 0. Where
            poses are relative to a point that is no joint (h36m14), there is none.

    Attributes:
        regressors: the K stages.
        mean2d, std2d: buffers (J, 2), px.
        mean3d, std3d: buffers (J, 3), mm, with "residual+pose"; else None.
        pca: PCA or None.
        notes: what the training wants kept with the model, saved as JSON.
    """

    mean2d: Tensor
    std2d: Tensor
    mean3d: Tensor | None
    std3d: Tensor | None
    _packing_sources = ("regressors", "pca", "mean2d", "std2d", "mean3d", "std3d")

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
        super().__init__()
        if lifter is not None and not callable(lifter):
            raise TypeError(
                f"lifter is a {type(lifter).__name__}, expected a module, a callable or None."
            )
        check_count("num_joints", num_joints)
        check_count("stages", stages)
        check_choice("features", features, FEATURES)
        check_choice("root", root, ROOTS)
        if skeleton is not None and skeleton.num_joints != num_joints:
            raise ValueError(
                f"skeleton {skeleton.name!r} has {skeleton.num_joints} joints, expected "
                f"num_joints = {num_joints}."
            )
        self.lifter = lifter
        self.num_joints = num_joints
        self.width = width
        self.block = block
        self.features = features
        self.root = root
        self.dropout = dropout
        self.skeleton = skeleton
        self.confidence_weights = confidence_weights
        as_limit(residual_limit)
        self.residual_limit = residual_limit
        self.notes: dict[str, Any] = {}
        self.register_buffer("mean2d", torch.zeros(num_joints, 2))
        self.register_buffer("std2d", torch.ones(num_joints, 2))
        # A buffer that is None is in no state dict: models that see no pose are stored without.
        sees_pose = features == "residual+pose"
        self.register_buffer("mean3d", torch.zeros(num_joints, 3) if sees_pose else None)
        self.register_buffer("std3d", torch.ones(num_joints, 3) if sees_pose else None)
        self.pca = None if pca is None else PCA(pca, 2 * num_joints)
        num_features = seen_features(features, num_joints, pca)
        self.regressors = nn.ModuleList(
            ResidualRegressor(num_features, num_joints, width, dropout, block)
            for _ in range(stages)
        )

    @property
    def stages(self) -> int:
        """K."""
        return len(self.regressors)

    @property
    def root_joint(self) -> int | None:
        """Index of the joint that poses are relative to; None if that point is no joint (h36m14),
        joint 0 if the model has no skeleton."""
        return 0 if self.skeleton is None else self.skeleton.root_joint

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

    @torch.no_grad()
    def fit_normalization(self, keypoints: Tensor, pose: Tensor | None = None) -> None:
        """Take mean2d, std2d and the PCA from the training keypoints, mean3d and std3d from poses.

        Args:
            keypoints: (..., J, 2), px.
            pose: the true poses (..., J, 3), mm, for features="residual+pose"; the other kinds have
                no statistics of poses and do not look at it.

        Raises:
            ValueError: wrong shape, no pose, a NaN or infinity, or pose is missing.
        """
        check_joints("keypoints", keypoints, self.num_joints, 2)
        if self.mean3d is not None and self.std3d is not None:
            if pose is None:
                raise ValueError(
                    "pose is missing, expected the training poses (..., J, 3) in mm, because "
                    'features="residual+pose" z-scores them.'
                )
            check_joints("pose", pose, self.num_joints, 3)
            mean3d, std3d = mean_and_std("pose", pose.reshape(-1, self.num_joints, 3))
        mean, std = mean_and_std("keypoints", keypoints.reshape(-1, self.num_joints, 2))
        self.mean2d.copy_(mean)
        self.std2d.copy_(std)
        if self.mean3d is not None and self.std3d is not None:
            self.mean3d.copy_(mean3d)
            self.std3d.copy_(std3d)
        if self.pca is not None:
            z = (keypoints - self.mean2d) / scale_of(self.std2d)
            self.pca.fit(z.reshape(-1, 2 * self.num_joints))

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
            stages = self._run_layers(keypoints, pose, root, camera, confidence)
            refined = torch.stack(stages[1:]) if return_stages else stages[-1]
        else:
            refined = self._run_fused(
                keypoints, pose, root, camera, confidence, return_stages, precision
            )
        if return_stages:
            return torch.cat((pose.expand_as(refined[0])[None], refined))
        return refined

    def lift(self, keypoints: Tensor, confidence: Tensor | None = None) -> Tensor:
        """The lifter's pose (..., J, 3) in mm; missing joints enter it where
        `erd_cuda.modules.missing.placed` puts them.

        Raises:
            ValueError: there is no lifter, or its answer has another shape.
        """
        if self.lifter is None:
            raise ValueError(
                "pose is missing, expected a tensor (..., J, 3) in mm, because this model has no "
                "lifter."
            )
        if confidence is not None:
            keypoints = placed(keypoints, confidence, self.mean2d)
        pose = self.lifter(keypoints)
        expected = (*keypoints.shape[:-1], 3)
        if not isinstance(pose, Tensor) or tuple(pose.shape) != expected:
            found = tuple(pose.shape) if isinstance(pose, Tensor) else type(pose).__name__
            raise ValueError(f"the lifter returned {found}, expected a pose of shape {expected}.")
        # A lifter may answer in 16 bits, on its own or under autocast.
        return pose.to(self.mean2d.dtype)

    def joint_weights(self, confidence: Tensor | None) -> Tensor | None:
        """Confidences (..., J) as residual and root solve take them: 0 and 1 without
        ``confidence_weights``; None is None."""
        if confidence is None or self.confidence_weights:
            return confidence
        return (confidence > 0).to(confidence)

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

    def resolve_root(
        self,
        keypoints: Tensor,
        pose: Tensor,
        camera: Camera | Tensor,
        confidence: Tensor | None = None,
        how: str | None = None,
    ) -> Tensor:
        """Least-squares root (..., 3) in mm, as the stages use it.

        Where it cannot be solved its depth is not positive, and `stage` leaves such a pose as it
        is.

        Args:
            keypoints, pose, camera, confidence: as in `forward`.
            how: "solve" sets the pose's root joint, if it has one, to 0 first, "solve_each_stage"
                takes the pose as it is. By default the model's own ``root``, or "solve" if that is
                "given".
        """
        if (how or self.root) != "solve_each_stage":
            pose = pose.clone()
            if self.root_joint is not None:
                pose[..., self.root_joint, :] = 0.0
        return ops.solve_root(keypoints, pose, camera, self.joint_weights(confidence))

    def features_of(
        self,
        keypoints: Tensor,
        pose: Tensor,
        root: Tensor,
        camera: Camera | Tensor,
        confidence: Tensor | None = None,
    ) -> Tensor:
        """What a stage's regressor sees, (..., F): z-scored, flattened joint-major, PCA'd."""
        confidence = self.joint_weights(confidence)
        statistics = (self.mean2d, self.std2d, self.pca, self._pose_statistics())
        return stage_features(
            self.features,
            keypoints,
            pose,
            root,
            camera,
            confidence,
            *statistics,
            residual_limit=self.residual_limit,
        )

    def stage(
        self,
        k: int,
        keypoints: Tensor,
        pose: Tensor,
        root: Tensor,
        camera: Camera | Tensor,
        confidence: Tensor | None = None,
    ) -> Tensor:
        """The pose after stage ``k`` (from 0) through the torch layers, from the one before it.

        With the model's ``root`` not "given", ``root`` is `resolve_root`'s.

        Raises:
            IndexError: there is no stage ``k``.
            ValueError: a shape does not fit.
        """
        if not 0 <= k < self.stages:
            raise IndexError(f"k is {k}, expected a stage from 0 to {self.stages - 1}.")
        keypoints = as_keypoints(keypoints, self.mean2d)
        check_joints("pose", pose, self.num_joints, 3)
        return self._advance(k, keypoints, pose, root, camera, confidence, self.root != "given")

    def packed(
        self, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> PackedRegressors:
        """The stages' weights for `erd_cuda.refine`, folded with BatchNorm's running statistics.

        Args:
            dtype: float32 or float64; the model's by default.
            device: the model's by default.
        """
        packed = pack_regressors(
            self.regressors,
            self.features,
            self.mean2d,
            self.std2d,
            self.pca,
            self._pose_statistics(),
            dtype=self.mean2d.dtype if dtype is None else dtype,
            device=self.mean2d.device if device is None else device,
        )
        return replace(
            packed,
            confidence_weights=self.confidence_weights,
            residual_limit=as_limit(self.residual_limit),
        )

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

    def _pose_statistics(self) -> tuple[Tensor, Tensor] | None:
        if self.mean3d is None or self.std3d is None:
            return None
        return self.mean3d, self.std3d

    def _run_layers(
        self,
        keypoints: Tensor,
        pose: Tensor,
        root: Tensor | str,
        camera: Camera | Tensor,
        confidence: Tensor | None,
    ) -> list[Tensor]:
        how = root if isinstance(root, str) else "given"
        if how == "solve":
            root = self.resolve_root(keypoints, pose, camera, confidence, how)
        stages = [pose]
        for k in range(self.stages):
            if how == "solve_each_stage":
                root = self.resolve_root(keypoints, pose, camera, confidence, how)
            assert isinstance(root, Tensor)
            pose = self._advance(k, keypoints, pose, root, camera, confidence, how != "given")
            stages.append(pose)
        return stages

    def _advance(
        self,
        k: int,
        keypoints: Tensor,
        pose: Tensor,
        root: Tensor,
        camera: Camera | Tensor,
        confidence: Tensor | None,
        solved: bool,
    ) -> Tensor:
        if not solved:
            features = self.features_of(keypoints, pose, root, camera, confidence)
            return pose + self._increment(k, features)
        usable = root[..., 2] > 0
        confidence = confidence_where(usable, confidence, pose)
        # Zeros keep what is projected without a root out of BatchNorm's statistics.
        features = self.features_of(keypoints, pose, root, camera, confidence)
        features = torch.where(usable[..., None], features, 0.0)
        increment = self._increment(k, features)
        return torch.where(usable[..., None, None], pose + increment, pose)

    def _increment(self, k: int, features: Tensor) -> Tensor:
        return self.regressors[k](features).unflatten(-1, (self.num_joints, 3))

    def _run_fused(
        self,
        keypoints: Tensor,
        pose: Tensor,
        root: Tensor | str,
        camera: Camera | Tensor,
        confidence: Tensor | None,
        return_stages: bool,
        precision: str,
    ) -> Tensor:
        usable = None
        if isinstance(root, str) and root == "solve":
            root = self.resolve_root(keypoints, pose, camera, confidence, root)
            usable = root[..., 2] > 0
            if torch.is_grad_enabled():
                confidence = confidence_where(usable, confidence, pose)
        weights = self._cached_weights()
        refined = ops.refine(
            keypoints,
            pose,
            root,
            camera,
            weights,
            confidence,
            return_stages=return_stages,
            precision=precision,
        )
        return refined if usable is None else torch.where(usable[..., None, None], refined, pose)
