"""The lifting networks by the names that training and model files call them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from erd_cuda._definitions import LIFTER_SIZES, check_choice
from erd_cuda.modules.lcn import LCNLifter
from erd_cuda.modules.lifter import Lifter
from erd_cuda.modules.martinez import MartinezLifter
from erd_cuda.modules.semgcn import SemGCNLifter

if TYPE_CHECKING:
    from erd_cuda.data.skeleton import Skeleton

# A model file names the lifter's class, and only these are ever built from a file.
LIFTER_CLASSES: dict[str, type[Lifter]] = {
    kind.__name__: kind for kind in (MartinezLifter, LCNLifter, SemGCNLifter)
}


def is_known_lifter(lifter: object) -> bool:
    """Whether a model file can hold the lifter; one of a subclass could not be rebuilt."""
    return type(lifter) in LIFTER_CLASSES.values()


def new_lifter(
    name: str,
    skeleton: Skeleton,
    width: int | None = None,
    blocks: int | None = None,
    dropout: float = 0.25,
    pca: int | None = None,
) -> Lifter:
    """An untrained lifter.

    Args:
        name: "martinez", "lcn", "semgcn" or "semgcn-nonlocal".
        skeleton: the joints, and for all but "martinez" the bones.
        width, blocks: its size; None for the network's own default.
        dropout: dropout probability; SemGCN has no dropout.
        pca: number of principal components of the input, "martinez" only; None for no PCA.

    Raises:
        ValueError: an unknown name, a bad size, or a PCA for a network that looks at joints.
    """
    check_choice("lifter", name, tuple(LIFTER_SIZES))
    check_pca(name, pca)
    own_width, own_blocks = LIFTER_SIZES[name]
    width = own_width if width is None else width
    blocks = own_blocks if blocks is None else blocks
    if name == "martinez":
        return MartinezLifter(skeleton.num_joints, width, blocks, dropout, pca)
    if name == "lcn":
        return LCNLifter(skeleton, width, blocks, dropout=dropout)
    return SemGCNLifter(skeleton, width, blocks, non_local=name == "semgcn-nonlocal")


def check_pca(name: str, pca: int | None) -> None:
    """Raise ValueError if the lifter called ``name`` cannot take principal components."""
    if pca is not None and name != "martinez":
        raise ValueError(
            f"pca is {pca}, expected None with the lifter {name!r}: it looks at joints, which "
            "principal components mix."
        )


def check_lifter_fits(lifter: object, skeleton: Skeleton, name: str) -> None:
    """Raise ValueError if a lifter is known to be made for other joints than a data set has.

    Args:
        lifter: any lifter, or None; what it does not say is not checked.
        skeleton: the data set's.
        name: what to call the data set.
    """
    joints = getattr(lifter, "num_joints", skeleton.num_joints)
    if joints != skeleton.num_joints:
        raise ValueError(
            f"the given lifter has {joints} joints but the dataset has {skeleton.num_joints}"
        )
    own = getattr(lifter, "skeleton", skeleton)
    if (own.joints, own.parents) != (skeleton.joints, skeleton.parents):
        raise ValueError(
            f"the given lifter was made for the skeleton {own.name!r}, but the dataset {name!r} "
            f"has {skeleton.name!r}, whose joints or bones are others"
        )
