"""The skeleton as a graph, for the lifters whose joints see their neighbours only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from erd_cuda.data.skeleton import Skeleton


def as_skeleton(skeleton: Skeleton | Mapping[str, Any] | str | int) -> Skeleton:
    """A skeleton from what `get_skeleton` takes, or from a `Skeleton.to_dict` of a model file.

    Raises:
        ValueError: there is no such skeleton, or the mapping describes none.
        TypeError: another type.
    """
    # Imported when a lifter is built: the readers of data sets come with it.
    from erd_cuda.data.skeleton import Skeleton, get_skeleton

    if isinstance(skeleton, Mapping):
        return Skeleton.from_dict(skeleton)
    return get_skeleton(skeleton)


def hop_distances(skeleton: Skeleton) -> list[list[int]]:
    """Number of bones on the way from each joint to each other one, J rows of J.

    Plain lists: they are made into tensors of the CPU also where a model is built without memory.
    """
    neighbours: list[list[int]] = [[] for _ in range(skeleton.num_joints)]
    for parent, child in skeleton.bones:
        neighbours[parent].append(child)
        neighbours[child].append(parent)
    rows = []
    for start in range(skeleton.num_joints):
        distance = {start: 0}
        reached = [start]
        # The list grows while it is walked: a breadth-first search.
        for joint in reached:
            for other in neighbours[joint]:
                if other not in distance:
                    distance[other] = distance[joint] + 1
                    reached.append(other)
        rows.append([distance[joint] for joint in range(skeleton.num_joints)])
    return rows
