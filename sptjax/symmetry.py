"""Point groups and helices as operators, with EMAN2's axes.

For a reference invariant under the operators ``S``, the equivalents of a particle ->
reference rotation ``R`` are ``S R`` (left multiplication). The asymmetric unit used here is
the Voronoi cell of the identity: the rotations that no operator brings closer to the
identity. It is one fundamental domain of SO(3) modulo the group.

The operators of a helix also shift along z, ``x -> S x + s``, and are a finite piece of an
infinite group: averaging is over the operators as listed, in EMAN2 and here.

Axes (libEM ``symmetry.cpp``): c and d have the n-fold on z and d a 2-fold on x; tet has a
3-fold on z; oct the 4-folds on x, y, z; icos (= icos5) a 5-fold on z and a 2-fold on y;
icos2 the 2-folds on x, y, z and 5-folds at ``(0, 1, golden)``.
"""

import re

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from scipy.spatial.transform import Rotation

from sptjax import rotation
from sptjax._errors import InputError
from sptjax._helix import Helix, parse_helix
from sptjax._types import Matrices, Pose

_GOLDEN = (1 + 5**0.5) / 2
_TIE = 1e-5  # traces closer than this are one: both sides of a border are inside


class Symmetry(eqx.Module):
    """A point group or a helix: its canonical name and ``g`` operators, the identity first."""

    name: str = eqx.field(static=True)
    operators: Float[Array, "g 3 3"]  # rotations
    shifts: Float[Array, "g 3"]  # voxels, after the rotation; zero for a point group
    helix: Helix | None = eqx.field(static=True, default=None)

    def __len__(self) -> int:
        """Number of operators; the order of a point group."""
        return self.operators.shape[0]

    @property
    def redundancy(self) -> float:
        """How many times fewer orientations a search needs than without the symmetry."""
        if self.helix is None:
            return float(len(self))
        return 360 / self.helix.wrapped_deg if self.helix.wrapped_deg else 1.0


def parse(name: str) -> Symmetry:
    """Symmetry of EMAN2's name: c<n>, d<n>, tet, oct, icos (or icos5), icos2, h...; any case.

    Operators of c, d and h come in EMAN2's order. The icosahedral ones are exact (EMAN2's
    icos2 table has five digits). For helices see :func:`sptjax._helix.parse_helix`.

    Raises:
        InputError: unknown name, n below 1, or a helix that cannot be used.
    """
    key = name.strip().lower()
    key = "icos" if key == "icos5" else key
    if key in _GENERATORS:
        return _point_group(key, _closure(key))
    if re.match(r"h\d", key):
        return _helical(parse_helix(key))
    match = re.fullmatch(r"([cd])([1-9]\d*)", key)
    if match is None:
        raise InputError(
            f"Symmetry {name!r} is not known; accepted are c<n>, d<n> (n at least 1), "
            "tet, oct, icos, icos5, icos2 and h<nsym>:1:<daz>:<tz>[:<maxtilt>]."
        )
    n = int(match[2])
    turns = Rotation.from_euler("z", -360 / n * np.arange(n)[:, None], degrees=True).as_matrix()
    if match[1] == "d":
        turns = np.concatenate([turns, np.diag([1.0, -1.0, -1.0]) @ turns])
    return _point_group(f"{match[1]}{n}", turns)


def within_reach(symmetry: Symmetry, max_shift_vox: float) -> Symmetry:
    """What a search over shifts of at most ``max_shift_vox`` may use of a symmetry.

    A point group: all of it. A helix: all azimuths must be searched (EMAN2 always does) unless
    the shifts span its pitch, because an equivalent pose lies further along z.
    """
    helix = symmetry.helix
    if helix is None or helix.half_pitch_vox <= max_shift_vox:
        return symmetry
    return _helical(Helix(1, 0.0, 0.0, helix.max_tilt_deg))


def copies(pose: Pose, symmetry: Symmetry) -> Pose:
    """All equivalents ``S X`` of particle -> reference poses, ``[*batch, g]`` as :func:`orbit`.

    Args:
        pose: particle to reference, shift in voxels.
        symmetry: of the reference.
    """
    one = Pose(pose.rotation[..., None, :, :], pose.shift[..., None, :])
    return rotation.compose(Pose(symmetry.operators, symmetry.shifts), one)


def orbit(r: Matrices, symmetry: Symmetry) -> Float[Array, "*batch g 3 3"]:
    """All equivalents ``S R`` of particle -> reference rotations, in operator order.

    Args:
        r: particle to reference.
        symmetry: of ``g`` operators.
    """
    return rotation.multiply(symmetry.operators, r[..., None, :, :])


def reduce(r: Matrices, symmetry: Symmetry) -> Matrices:
    """The equivalent ``S R`` with the smallest rotation angle.

    Constant on orbits and idempotent, except on the border of the asymmetric unit, where
    several equivalents are equally near and the first operator wins. (Of a helix, whose
    operators are no group, only the smallest angle among the equivalents holds.)

    Args:
        r: particle to reference.
        symmetry: of the reference.
    """
    best = jnp.argmax(_traces(r, symmetry), axis=-1)
    return rotation.multiply(symmetry.operators[best], r)


def in_asymmetric_unit(r: Matrices, symmetry: Symmetry) -> Bool[Array, "..."]:
    """Whether no operator brings ``R`` closer to the identity; borders count as inside.

    Args:
        r: particle to reference.
        symmetry: of the reference.
    """
    traces = _traces(r, symmetry)
    return traces[..., 0] >= jnp.max(traces, axis=-1) - _TIE


def angle_deg_modulo(a: Matrices, b: Matrices, symmetry: Symmetry) -> Float[Array, "..."]:
    """Smallest angle between ``S a`` and ``b`` over the operators, in degrees.

    Args:
        a: rotations.
        b: rotations; leading axes broadcast.
        symmetry: whose operators ``S`` are tried.
    """
    return jnp.min(rotation.angle_deg(orbit(a, symmetry), b[..., None, :, :]), axis=-1)


def _point_group(name: str, operators: np.ndarray) -> Symmetry:
    turns = jnp.asarray(operators, jnp.float32)
    return Symmetry(name, turns, jnp.zeros((len(operators), 3), jnp.float32))


def _helical(helix: Helix) -> Symmetry:
    turns, shifts = (jnp.asarray(x, jnp.float32) for x in helix.operators())
    return Symmetry(helix.name, turns, shifts, helix)


def _traces(r: Matrices, symmetry: Symmetry) -> Float[Array, "*batch g"]:
    """Traces of ``S R``: one plus twice the cosine of the rotation angle."""
    flat = symmetry.operators.transpose(0, 2, 1).reshape(-1, 9)
    return jnp.matmul(r.reshape(*r.shape[:-2], 9), flat.T, precision="highest")


def _turn(axis: tuple[float, float, float], fold: int) -> np.ndarray:
    unit = np.asarray(axis) / np.linalg.norm(axis)
    return Rotation.from_rotvec(2 * np.pi / fold * unit).as_matrix()


# two or three operators that generate the group: (axis, fold)
_GENERATORS = {
    "tet": (((0, 0, 1), 3), ((0, -(2**0.5), 1), 2)),
    "oct": (((0, 0, 1), 4), ((1, 0, 0), 4)),
    "icos": (((0, 0, 1), 5), ((1, 0, _GOLDEN), 2)),
    "icos2": (((0, 1, _GOLDEN), 5), ((0, 0, 1), 2)),
}


def _closure(name: str) -> np.ndarray:
    """Group generated by ``_GENERATORS[name]``, float64, breadth first from the identity."""
    generators = [_turn(axis, fold) for axis, fold in _GENERATORS[name]]
    group = [np.eye(3)]
    for element in group:  # grows while it is read
        for generator in generators:
            product = generator @ element
            if np.abs(np.asarray(group) - product).max(axis=(1, 2)).min() > 1e-6:
                group.append(product)
    return np.asarray(group)
