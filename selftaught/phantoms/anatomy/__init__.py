"""Seven body parts: which bones, seen from where, and where anomalies can sit."""

from collections.abc import Callable

import numpy as np

from selftaught.phantoms.anatomy.arm_views import elbow, forearm, shoulder, upper_arm
from selftaught.phantoms.anatomy.hand_views import finger_view, hand, wrist
from selftaught.phantoms.anatomy.person import Person
from selftaught.phantoms.scene import Scene

BODY_PARTS = ("elbow", "finger", "forearm", "hand", "humerus", "shoulder", "wrist")
SCENES: dict[str, Callable[[Person, np.random.Generator, np.random.Generator], Scene]] = {
    "elbow": elbow,
    "finger": finger_view,
    "forearm": forearm,
    "hand": hand,
    "humerus": upper_arm,
    "shoulder": shoulder,
    "wrist": wrist,
}
# Parts whose fingers or forearm point up on the film; the others hang down.
UPWARDS = ("finger", "forearm", "hand", "wrist")
