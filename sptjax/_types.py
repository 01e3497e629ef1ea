"""Vocabulary: array aliases and the records that travel between modules.

Conventions, said once for the whole package:

* Volumes are indexed ``[z, y, x]`` (C order). Vectors, shifts and matrices are in
  ``(x, y, z)`` order. The centre of a box of ``n`` voxels is voxel ``n // 2``.
* A :class:`Pose` maps **particle to reference**, ``x_ref = R x_particle + t``, both
  relative to the centre: EMAN2's ``xform.align3d``. ``t`` is in voxels.
* Lengths are in angstrom at the interface (``apix`` is angstrom per voxel) and in
  voxels inside. Spatial frequencies inside are Fourier pixels (cycles per box).
* A score is larger for a better match.
"""

import enum

import equinox as eqx
from jaxtyping import Array, Float

Volume = Float[Array, "z y x"]
Volumes = Float[Array, "n z y x"]
Matrices = Float[Array, "*batch 3 3"]
Vectors = Float[Array, "*batch 3"]


class Status(enum.IntEnum):
    """What happened to one particle; a failure of one never stops the others."""

    OK = 0
    NONFINITE = 1  # the particle holds NaN or infinity
    CONSTANT = 2  # the particle has no contrast


class Pose(eqx.Module):
    """Rigid transform particle to reference, ``x_ref = R x + t`` (EMAN2 ``xform.align3d``)."""

    rotation: Float[Array, "*batch 3 3"]
    shift: Float[Array, "*batch 3"]  # voxels, (x, y, z), applied after the rotation


class Alignment(eqx.Module):
    """Poses of ``n`` particles against ``c`` references, ``m`` candidate poses each, best first."""

    rotation: Float[Array, "n c m 3 3"]
    shift: Float[Array, "n c m 3"]  # voxels, as in Pose
    score: Float[Array, "n c m"]  # larger is better
