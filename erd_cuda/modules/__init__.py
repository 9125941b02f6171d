"""Lifter, stages and model files as torch modules."""

from erd_cuda.modules.checkpoint import bundled_models
from erd_cuda.modules.erd import ERD
from erd_cuda.modules.lcn import LCNLifter
from erd_cuda.modules.lifter import Lifter
from erd_cuda.modules.martinez import MartinezLifter
from erd_cuda.modules.packed import PackedRegressors
from erd_cuda.modules.pca import PCA
from erd_cuda.modules.regressor import ResidualRegressor
from erd_cuda.modules.semgcn import SemGCNLifter

__all__ = [
    "ERD",
    "PCA",
    "LCNLifter",
    "Lifter",
    "MartinezLifter",
    "PackedRegressors",
    "ResidualRegressor",
    "SemGCNLifter",
    "bundled_models",
]
