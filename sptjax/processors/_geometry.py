"""Rotation, symmetry, reflection, scale and shift in real space (EMAN2 ``xform.*``)."""

import jax.numpy as jnp
from jax import lax

from .. import rotation, symmetry
from .._errors import InputError
from .._types import Pose, Volume
from . import _trilinear
from ._base import Processor, key


class Xform(Processor):
    """Rotate by EMAN2's ``az, alt, phi`` (degrees), then shift by ``tx, ty, tz`` (voxels).

    EMAN2: ``xform``. About the centre voxel, by trilinear interpolation; zeros come in.
    """

    az: float = key(default=0.0)
    alt: float = key(default=0.0)
    phi: float = key(default=0.0)
    tx: float = key(default=0.0)
    ty: float = key(default=0.0)
    tz: float = key(default=0.0)

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        angles = jnp.asarray((self.az, self.alt, self.phi), jnp.float32)
        turn = rotation.from_euler(angles, rotation.Convention.EMAN)
        shift = jnp.asarray((self.tx, self.ty, self.tz), jnp.float32)
        return _trilinear.move(volume, Pose(turn, shift))


class ApplySymmetry(Processor):
    """Mean of the volume under all operators of a symmetry (``xform.applysym``).

    Each operator is applied by trilinear interpolation. Of EMAN2's averagers only ``mean`` is
    known here.
    """

    sym: str = key(default="c1")
    averager: str = key(default="mean")

    def __check_init__(self):
        if self.averager != "mean":
            raise InputError(f"averager must be mean, not {self.averager!r}.")
        symmetry.parse(self.sym)

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        group = symmetry.parse(self.sym)

        def add(total: Volume, operator: Pose):
            return total + _trilinear.move(volume, operator), None

        operators = Pose(group.operators, group.shifts)
        total, _ = lax.scan(add, jnp.zeros_like(volume), operators)
        return total / len(group)


_AXES = {"x": 2, "y": 1, "z": 0}


def _check_axis(axis: str) -> None:
    if axis not in _AXES:
        raise InputError(f"axis must be x, y or z, not {axis!r}.")


def _mirrored(volume: Volume, axis: int) -> Volume:
    """Reflected about voxel ``n // 2``; plane 0 of an even box is its own image."""
    flipped = jnp.flip(volume, axis)
    return flipped if volume.shape[axis] % 2 else jnp.roll(flipped, 1, axis)


class Mirror(Processor):
    """Reflect an axis about voxel ``n // 2`` (``xform.mirror``); inverts the handedness.

    Plane 0 of an even box stays.
    """

    axis: str = key()

    def __check_init__(self):
        _check_axis(self.axis)

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        return _mirrored(volume, _AXES[self.axis])


class Flip(Processor):
    """As ``xform.mirror``, but plane 0 of an even box becomes 0 (``xform.flip``)."""

    axis: str = key()

    def __check_init__(self):
        _check_axis(self.axis)

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        axis = _AXES[self.axis]
        mirrored = _mirrored(volume, axis)
        if volume.shape[axis] % 2:
            return mirrored
        first = tuple(slice(0, 1) if a == axis else slice(None) for a in range(3))
        return mirrored.at[first].set(0.0)


class Reverse(Processor):
    """Reverse the order along an axis (``xform.reverse``); moves the centre of an even box."""

    axis: str = key()

    def __check_init__(self):
        _check_axis(self.axis)

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        return jnp.flip(volume, _AXES[self.axis])


class Scale(Processor):
    """Enlarge about the centre voxel by trilinear interpolation (``xform.scale``).

    Around the volume are zeros.

    Attributes:
        scale: above 1 enlarges the molecule; the voxel size becomes ``apix / scale``.
        clip: box of the result; ``floor(scale * N)`` by default.
    """

    scale: float = key()
    clip: int | None = key(default=None)

    def __check_init__(self):
        if self.scale <= 0:
            raise InputError(f"scale must be positive, not {self.scale:g}.")
        if self.clip is not None and self.clip < 1:
            raise InputError(f"clip must be at least 1, not {self.clip}.")

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        matrix = jnp.eye(3, dtype=jnp.float32) / self.scale
        box = self.output_box(volume.shape[-1])
        return _trilinear.pull(volume, matrix, jnp.zeros(3, jnp.float32), box, fade=True)

    def output_box(self, box: int) -> int:
        """The box asked for."""
        return int(self.scale * box) if self.clip is None else self.clip

    def output_apix(self, apix: float, box: int) -> float:
        """Smaller where the molecule is enlarged."""
        return apix / self.scale


class TranslateInt(Processor):
    """Shift by whole voxels (``xform.translate.int``); zeros come in.

    Attributes:
        trans: ``x,y,z``, such as ``2,-3,0``.
    """

    trans: str = key()

    def __check_init__(self):
        self._steps()

    def _steps(self) -> list[int]:
        try:
            steps = [int(word) for word in self.trans.split(",")]
        except ValueError:
            steps = []
        if len(steps) != 3:
            raise InputError(f"trans must be three whole numbers x,y,z, not {self.trans!r}.")
        return steps

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        return _trilinear.move_whole(volume, jnp.asarray(self._steps(), jnp.int32))


class OriginToCorner(Processor):
    """Voxel ``n // 2`` becomes voxel 0, periodic (``xform.phaseorigin.tocorner``)."""

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        return jnp.roll(volume, [-(n // 2) for n in volume.shape], (0, 1, 2))


class OriginToCentre(Processor):
    """Voxel 0 becomes voxel ``n // 2``, periodic (``xform.phaseorigin.tocenter``)."""

    def __call__(self, volume: Volume, apix: float, *, mask: Volume | None = None) -> Volume:
        return jnp.roll(volume, [n // 2 for n in volume.shape], (0, 1, 2))


REGISTRY = {
    "xform": Xform,
    "xform.applysym": ApplySymmetry,
    "xform.mirror": Mirror,
    "xform.flip": Flip,
    "xform.reverse": Reverse,
    "xform.scale": Scale,
    "xform.translate.int": TranslateInt,
    "xform.phaseorigin.tocorner": OriginToCorner,
    "xform.phaseorigin.tocenter": OriginToCentre,
}
