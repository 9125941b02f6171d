"""The numbers that the paper prints, in mm, to stand beside ours.

Y. Kang et al., "Explicit Residual Descent for 3D Human Pose Estimation from 2D Joint Locations",
BMVC 2020. Human3.6M: MPJPE on subjects 9 and 11; HumanEva-I: P-MPJPE on the validation sequences.
"""

from __future__ import annotations

from typing import Final

#: Table 1's columns in its order, by the names of Human3.6M's actions.
ACTIONS: Final = {
    "Directions": "Dir.",
    "Discussion": "Dis.",
    "Eating": "Eat",
    "Greeting": "Gre.",
    "Phoning": "Phon.",
    "Photo": "Phot.",
    "Posing": "Pose",
    "Purchases": "Pur.",
    "Sitting": "Sit",
    "SittingDown": "SitD.",
    "Smoking": "Smo.",
    "Waiting": "Wait",
    "WalkDog": "WalkD.",
    "Walking": "Walk",
    "WalkTogether": "WalkT",
}

#: Table 1, the rows of the method: (input, root) -> the 15 actions and their mean. The table's
#: caption swaps its halves: 53.0 and 49.4 are of detected 2D.
TABLE1: Final = {
    ("DET2D", "solve"): (
        *(46.7, 50.8, 49.0, 50.7, 56.8, 66.8, 48.9, 47.8),
        *(62.7, 73.0, 52.6, 51.0, 55.0, 39.7, 43.9, 53.0),
    ),
    ("DET2D", "given"): (
        *(43.3, 47.1, 46.2, 47.9, 50.9, 62.7, 46.5, 44.0),
        *(58.0, 67.9, 49.2, 47.6, 50.4, 37.1, 41.4, 49.4),
    ),
    ("GT2D", "solve"): (
        *(34.4, 36.4, 31.2, 35.0, 37.6, 45.4, 36.4, 31.2),
        *(40.6, 42.7, 36.2, 34.8, 37.2, 27.8, 30.7, 35.8),
    ),
    ("GT2D", "given"): (
        *(34.1, 33.8, 28.8, 33.4, 35.6, 42.3, 35.1, 28.7),
        *(37.8, 39.0, 34.2, 33.2, 35.3, 26.8, 30.0, 33.9),
    ),
}

#: Table 2: (features, input) -> (lifter, refined), given root.
TABLE2: Final = {
    ("init2d", "GT2D"): (37.5, 37.3),
    ("proj2d", "GT2D"): (37.5, 37.4),
    ("concat", "GT2D"): (37.5, 35.2),
    ("residual", "GT2D"): (37.5, 33.9),
    ("init2d", "DET2D"): (53.4, 53.4),
    ("proj2d", "DET2D"): (53.4, 53.4),
    ("concat", "DET2D"): (53.4, 50.5),
    ("residual", "DET2D"): (53.4, 49.3),
}

#: Table 3: (lifter, root, input) -> (lifter, refined).
TABLE3: Final = {
    ("martinez", "given", "GT2D"): (37.5, 33.9),
    ("martinez", "given", "DET2D"): (53.4, 49.4),
    ("lcn", "given", "GT2D"): (39.1, 35.3),
    ("lcn", "given", "DET2D"): (53.5, 50.0),
    ("semgcn", "given", "GT2D"): (39.9, 36.3),
    ("semgcn", "given", "DET2D"): (57.2, 53.3),
    ("martinez", "solve", "GT2D"): (37.5, 35.8),
    ("martinez", "solve", "DET2D"): (53.4, 53.0),
    ("lcn", "solve", "GT2D"): (39.1, 37.2),
    ("lcn", "solve", "DET2D"): (53.5, 53.2),
    ("semgcn", "solve", "GT2D"): (39.9, 38.1),
    ("semgcn", "solve", "DET2D"): (57.2, 56.8),
}

#: Table 4: (action, subject) -> (lifter, refined), P-MPJPE.
TABLE4: Final = {
    ("Walking", "S1"): (19.6, 15.3),
    ("Walking", "S2"): (18.1, 12.7),
    ("Walking", "S3"): (26.3, 22.3),
    ("Jog", "S1"): (27.5, 22.8),
    ("Jog", "S2"): (16.6, 13.5),
    ("Jog", "S3"): (17.8, 14.5),
    ("Box", "S1"): (29.9, 27.7),
    ("Box", "S2"): (37.2, 35.2),
    ("Box", "S3"): (35.5, 30.7),
}

#: Section 4.4: how much worse a pose gets when its own projection is lifted again, ground-truth 2D.
#: The text as it is at hand has lost which lifter is which; this is the order of Table 3.
BACKPROJECTION: Final = {"martinez": 4.8, "lcn": 3.4, "semgcn": 4.2}
