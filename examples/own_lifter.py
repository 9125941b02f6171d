"""Refine a lifter of your own: python own_lifter.py RUN_DIRECTORY"""

import sys

import torch

import erd_cuda
from erd_cuda.evaluation import evaluate
from erd_cuda.training import TrainConfig, train

if len(sys.argv) != 2:
    sys.exit(__doc__)
data = erd_cuda.load_dataset("synthetic", "train", stride=20)
weights = torch.linalg.lstsq(data.keypoints.flatten(1), data.pose.flatten(1)).solution


def lifter(keypoints):  # linear regression; yours is any module or function of this signature
    return (keypoints.flatten(1) @ weights).unflatten(1, (17, 3))  # (N, J, 2) px to (N, J, 3) mm


erd = train(TrainConfig(stages=2), data, sys.argv[1], lifter=lifter)
print(evaluate(erd, erd_cuda.load_dataset("synthetic", "test", stride=20)).summary())
