"""Helices along z: EMAN2's name for them, their operators and their asymmetric unit.

One step of the helix turns by ``daz`` (EMAN2's azimuth: left-handed about z as a rotation of
space) and rises by ``tz`` voxels. An infinite helix looks the same after any number of steps,
so one step's worth of azimuths is enough to search, as long as shifts may follow: a pose whose
azimuth is ``j`` steps away is found ``j`` rises further along z.
"""

import dataclasses
import math
import re

import numpy as np
from scipy.spatial.transform import Rotation

from sptjax._errors import InputError


@dataclasses.dataclass(frozen=True)
class Helix:
    """A screw axis along z (EMAN2 ``HelicalSym``)."""

    count: int  # operators to average over
    turn_deg: float  # EMAN2's daz of one step
    rise_vox: float  # tz of one step
    max_tilt_deg: float = 90.0  # the axis lies within this of the particle's xy plane

    @property
    def name(self) -> str:
        """EMAN2's name for it, in one spelling."""
        text = f"h{self.count}:1:{self.turn_deg:.9g}:{self.rise_vox:.9g}"
        return text if self.max_tilt_deg == 90 else f"{text}:{self.max_tilt_deg:.9g}"

    @property
    def wrapped_deg(self) -> float:
        """Size of one step's turn, 0 to 180 degrees."""
        return abs((self.turn_deg + 180) % 360 - 180)

    @property
    def half_turn_steps(self) -> int:
        """Steps either way that bring any azimuth within half a step of zero (0 if none do)."""
        return math.ceil(180 / self.wrapped_deg - 0.5 - 1e-9) if self.wrapped_deg else 0

    @property
    def half_pitch_vox(self) -> float:
        """Shift along z either way that holds an equivalent of every pose within one step."""
        return (self.half_turn_steps + 0.5) * abs(self.rise_vox)

    def operators(self) -> tuple[np.ndarray, np.ndarray]:
        """Rotations ``[count, 3, 3]`` and shifts ``[count, 3]``, steps 0, 1, -1, 2, -2, ..."""
        index = np.arange(self.count)
        step = np.where(index % 2 == 1, (index + 1) // 2, -(index // 2))
        return self._turns(step), step[:, None] * np.array([0.0, 0.0, self.rise_vox])

    def all_turns(self) -> np.ndarray:
        """Rotations of the steps that cover all azimuths, ``[m, 3, 3]``, the identity first."""
        return self._turns(np.array(sorted(self._range(), key=abs)))

    def _range(self) -> range:
        return range(-self.half_turn_steps, self.half_turn_steps + 1)

    def _turns(self, step: np.ndarray) -> np.ndarray:
        return Rotation.from_euler("z", -self.turn_deg * step[:, None], degrees=True).as_matrix()


def parse_helix(name: str) -> Helix:
    """Helix of EMAN2's name ``h<nsym>:<nstart>:<daz>:<tz>[:<maxtilt>]``.

    ``daz`` and ``maxtilt`` are in degrees, ``tz`` in voxels. Commas may stand for all colons.

    Raises:
        InputError: a field is missing or no number, nstart is not 1, nsym below 1, maxtilt
            outside (0, 90].
    """
    number = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?"
    for mark in ":,":
        rest = mark.join([r"h(\d+)", r"([+-]?\d+)", f"({number})", f"({number})"])
        match = re.fullmatch(f"{rest}(?:{mark}({number}))?", name)
        if match is not None:
            break
    else:
        raise InputError(
            f"Helix {name!r} cannot be read; give h<nsym>:<nstart>:<daz>:<tz>[:<maxtilt>], such "
            "as h8:1:27.7:4.2 (degrees and voxels)."
        )
    count, starts = int(match[1]), int(match[2])
    turn, rise, tilt = float(match[3]), float(match[4]), float(match[5] or 90)
    if starts != 1:
        raise InputError(f"Helix {name!r} has nstart {starts}; only 1 is supported.")
    if count < 1:
        raise InputError(f"Helix {name!r} needs nsym of at least 1.")
    if not 0 < tilt <= 90:
        raise InputError(f"Helix {name!r} needs maxtilt above 0 and at most 90 degrees.")
    return Helix(count, turn, rise, tilt)
