"""Lifter, stages and model files as torch modules."""

from erd_cuda.modules.checkpoint import bundled_models
from erd_cuda.modules.erd import ERD
from erd_cuda.modules.martinez import MartinezLifter
from erd_cuda.modules.packing import PackedRegressors
from erd_cuda.modules.pca import PCA
from erd_cuda.modules.regressor import ResidualRegressor

__all__ = [
    "ERD",
    "PCA",
    "MartinezLifter",
    "PackedRegressors",
    "ResidualRegressor",
    "bundled_models",
]
