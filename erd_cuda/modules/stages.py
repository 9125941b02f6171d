"""The learnt stages of Explicit Residual Descent, and how a pose goes through them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from erd_cuda import ops
from erd_cuda._definitions import FEATURES
from erd_cuda._shapes import as_limit, limit_setting, seen_features
from erd_cuda.modules.arguments import (
    ROOTS,
    as_keypoints,
    check_choice,
    check_count,
    check_joints,
)
from erd_cuda.modules.features import confidence_where, stage_features
from erd_cuda.modules.normalization import mean_and_std, scale_of
from erd_cuda.modules.packed import PackedRegressors
from erd_cuda.modules.packing import pack_regressors
from erd_cuda.modules.pca import PCA
from erd_cuda.modules.regressor import ResidualRegressor
from erd_cuda.modules.weight_cache import PackingModule

if TYPE_CHECKING:
    from erd_cuda.camera import Camera
    from erd_cuda.data.skeleton import Skeleton

__all__ = ["ResidualStages"]


class ResidualStages(PackingModule):
    """What `erd_cuda.ERD` is without lifter and files: the base class that refines given poses.

    Arguments and attributes are those of `erd_cuda.ERD`.
    """

    mean2d: Tensor
    std2d: Tensor
    mean3d: Tensor | None
    std3d: Tensor | None
    # Models that were pickled before there were these have neither.
    _confidence_weights = True
    _residual_limit: float | None = None
    _packing_sources = ("regressors", "pca", "mean2d", "std2d", "mean3d", "std3d")

    def __init__(
        self,
        num_joints: int,
        stages: int,
        width: int,
        block: str,
        features: str,
        pca: int | None,
        root: str,
        dropout: float,
        skeleton: Skeleton | None,
        confidence_weights: bool,
        residual_limit: float | None,
    ) -> None:
        super().__init__()
        check_count("num_joints", num_joints)
        check_count("stages", stages)
        check_choice("features", features, FEATURES)
        check_choice("root", root, ROOTS)
        if skeleton is not None and skeleton.num_joints != num_joints:
            raise ValueError(
                f"skeleton {skeleton.name!r} has {skeleton.num_joints} joints, expected "
                f"num_joints = {num_joints}."
            )
        self.num_joints = num_joints
        self.width = width
        self.block = block
        self.features = features
        self.root = root
        self.dropout = dropout
        self.skeleton = skeleton
        self.confidence_weights = confidence_weights
        self.residual_limit = residual_limit
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

    # Both are packed with the weights: a new value makes packed ones old.

    @property
    def confidence_weights(self) -> bool:
        """Whether confidences weigh the joints."""
        return self._confidence_weights

    @confidence_weights.setter
    def confidence_weights(self, value: bool) -> None:
        self._confidence_weights = value
        self._cache = None

    @property
    def residual_limit(self) -> float | None:
        """Px, the most that each coordinate of a residual counts; None for any."""
        return self._residual_limit

    @residual_limit.setter
    def residual_limit(self, value: float | None) -> None:
        self._residual_limit = limit_setting(value)
        self._cache = None

    @property
    def root_joint(self) -> int | None:
        """Index of the joint that poses are relative to; None if that point is no joint (h36m14),
        joint 0 if the model has no skeleton."""
        return 0 if self.skeleton is None else self.skeleton.root_joint

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

    def joint_weights(self, confidence: Tensor | None) -> Tensor | None:
        """Confidences (..., J) as residual and root solve take them: 0 and 1 without
        ``confidence_weights``; None is None."""
        if confidence is None or self.confidence_weights:
            return confidence
        return (confidence > 0).to(confidence)

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

    def _pose_statistics(self) -> tuple[Tensor, Tensor] | None:
        if self.mean3d is None or self.std3d is None:
            return None
        return self.mean3d, self.std3d

    def _refined_by_layers(
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

    def _refined_by_op(
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
