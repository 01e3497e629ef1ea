"""Sets of orientations to search, with their spacing, covering radius and neighbours.

All sets hold particle -> reference rotations. A set made for a symmetry covers one
asymmetric unit: its equivalents ``S R`` cover all rotations. The tables are made once, in
float64 on the host; the record enters jitted code as an argument.

``uniform`` is the default: super-Fibonacci spirals (Alexa 2022, CVPR, "Super-Fibonacci
spirals: fast, low-discrepancy sampling of SO(3)"). ``eman`` reproduces EMAN2's rings, with
their uneven gaps and doubled pole. ``local`` is a lattice around the identity.
"""

import functools

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy.spatial import KDTree
from scipy.spatial.transform import Rotation

from sptjax._errors import InputError
from sptjax._helix import Helix
from sptjax.symmetry import Symmetry

_N_NEIGHBOURS = 14
_MAX_ROTATIONS = 4_000_000
_PSI = 1.533751168755204288118041  # positive root of psi^4 = psi + 4


class OrientationSet(eqx.Module):
    """Orientations ``[q, 3, 3]``, particle -> reference.

    ``spacing_deg`` is nominal. Every rotation lies within ``covering_deg`` of an entry,
    modulo the symmetry (for a local set: every rotation of its ball); measured, good to about
    1 %. ``neighbours`` lists the entries nearest to each one modulo the symmetry, nearest
    first; where the set has fewer others, the entry's own index fills the row.
    """

    rotations: Float[Array, "q 3 3"]
    spacing_deg: float = eqx.field(static=True)
    covering_deg: float = eqx.field(static=True)
    neighbours: Int[Array, "q m"]

    def __len__(self) -> int:
        """Number of orientations."""
        return self.rotations.shape[0]


def uniform(delta_deg: float, symmetry: Symmetry | None = None) -> OrientationSet:
    """About ``8 pi^2 / delta^3 / g`` rotations, evenly spread over one asymmetric unit.

    A super-Fibonacci spiral over all rotations, of which those nearest to the identity
    among their ``g`` equivalents are kept (the whole spiral without symmetry). Of a helix: one
    step about z, and only axes within its largest tilt of the particle's xy plane.

    Raises:
        InputError: ``delta_deg`` is not in (0, 180] or asks for more than 4 million rotations.
    """
    n = round(8 * np.pi**2 / np.radians(_checked(delta_deg, "delta")) ** 3)
    _check_count(n, delta_deg)
    rotations = _super_fibonacci(n)
    group = _group(symmetry)
    # traces of S R: one plus twice the cosine of the angle to the identity
    by_operator = group.as_matrix().transpose(0, 2, 1).reshape(-1, 9).T
    traces = rotations.as_matrix().reshape(-1, 9) @ by_operator
    tilt = _max_tilt_deg(symmetry)
    kept = rotations[(traces.argmax(axis=1) == 0) & _tilted_within(rotations.as_quat(), tilt)]
    if not len(kept):
        kept = Rotation.identity(1) if tilt == 90 else Rotation.from_euler("x", [90], degrees=True)
    return _with_tables(kept, delta_deg, group, max_tilt_deg=tilt)


def eman(
    delta_deg: float,
    dphi_deg: float,
    symmetry: Symmetry | None = None,
    *,
    phi_deg: tuple[float, float] = (0.0, 360.0),
) -> OrientationSet:
    """EMAN2's orientation generator "eman" with ``inc_mirror=1``, times phi in a range.

    EMAN2 lists rotations ``g = (az, alt, phi)`` that turn the *reference* into the
    particle's orientation; the entries here are their transposes, in EMAN2's order (phi
    fastest, as in its ``rotate_translate_3d``). Loop counters are float32, and alt = 180
    yields two directions, both as in EMAN2. icos2, where EMAN2 fails, is derived from icos. Of a
    helix, one step of azimuths and both polarities are listed, where EMAN2 has all azimuths and
    only one polarity.

    Args:
        delta_deg: between neighbouring directions.
        dphi_deg: step of the turn about the direction.
        symmetry: restricts directions to an asymmetric unit.
        phi_deg: first and last turn.

    Raises:
        InputError: a step is not in (0, 180], or more than 4 million rotations.
    """
    delta, dphi = _checked(delta_deg, "delta"), _checked(dphi_deg, "dphi")
    _check_count(round(720 / np.pi / delta * 180 / delta * 360 / dphi), delta)
    az, alt = _eman_directions(delta, symmetry).T
    phi = _counter(dphi, phi_deg[1], inclusive=False, start=phi_deg[0])
    if not len(phi):
        raise InputError(f"phi from {phi_deg[0]:g} up to {phi_deg[1]:g} degrees: none.")
    angles = np.stack(np.broadcast_arrays(az[:, None], alt[:, None], phi[None]), axis=-1)
    # EMAN's matrix is the inverse of the intrinsic z, x, z turns: its transpose is those turns
    rotations = Rotation.from_euler("ZXZ", angles.reshape(-1, 3), degrees=True)
    if symmetry is not None and symmetry.name == "icos2":
        rotations = Rotation.from_euler("ZX", [90, _ICOS_5_TO_2], degrees=True).inv() * rotations
    tilt = _max_tilt_deg(symmetry)
    return _with_tables(rotations, delta_deg, _group(symmetry), max_tilt_deg=tilt)


def eman_spacing_deg(directions: int, symmetry: Symmetry | None = None) -> float:
    """The ``delta`` at which EMAN2's generator "eman" comes nearest to so many directions.

    Args:
        directions: how many are wanted.
        symmetry: restricts directions to an asymmetric unit.

    Returns:
        Degrees.

    Raises:
        InputError: fewer than one direction.
    """
    if directions < 1:
        raise InputError(f"n={directions}: at least one direction is needed.")
    fine, coarse = 0.5, 180.0
    for _ in range(30):  # the count falls with delta, but for small jumps
        middle = (fine * coarse) ** 0.5
        if len(_eman_directions(middle, symmetry)) > directions:
            fine = middle
        else:
            coarse = middle
    far = [abs(len(_eman_directions(x, symmetry)) - directions) for x in (fine, coarse)]
    return fine if far[0] < far[1] else coarse


def euler_grid(
    az_deg: tuple[float, float, float],
    alt_deg: tuple[float, float, float],
    phi_deg: tuple[float, float, float],
) -> OrientationSet:
    """All combinations of EMAN's angles (EMAN2 ``rotate_translate_3d_grid``), phi fastest.

    Particle -> reference rotations by ``(az, alt, phi)``, which crowd at the poles.

    Args:
        az_deg: first, last (excluded) and step.
        alt_deg: first, last (included) and step.
        phi_deg: first, last (excluded) and step.

    Raises:
        InputError: a step is not in (0, 180], a range is empty, or more than 4 million rotations.
    """
    count, axes = 1.0, []
    for name, (start, stop, step) in (("az", az_deg), ("alt", alt_deg), ("phi", phi_deg)):
        count *= max((stop - start) / _checked(step, f"d{name}"), 1)
        _check_count(round(min(count, 1e9)), step)
        axes.append(_counter(step, stop, inclusive=name == "alt", start=start))
        if not len(axes[-1]):
            raise InputError(f"{name} from {start:g} to {stop:g} degrees: none.")
    alt, az, phi = np.meshgrid(axes[1], axes[0], axes[2], indexing="ij")
    angles = np.stack([az, alt, phi], axis=-1).reshape(-1, 3)
    rotations = Rotation.from_euler("ZXZ", angles, degrees=True).inv()
    step = max(az_deg[2], alt_deg[2], phi_deg[2])
    return _with_tables(rotations, step, _group(None))


def local(range_deg: float, delta_deg: float) -> OrientationSet:
    """Rotations within ``range_deg`` of the identity, nearest first, the identity included.

    Apply them to a pose from the left, ``entry @ R``. They are the exponentials of a
    body-centred cubic lattice of rotation vectors with one point per ``delta^3``; the
    exponential map never increases distances, so the lattice's covering radius,
    0.704 delta, holds up to that distance from the ball's border, where it is coarser.

    Args:
        range_deg: largest angle, degrees.
        delta_deg: spacing, degrees.

    Raises:
        InputError: a value is not in (0, 180], or more than 4 million rotations.
    """
    radius, delta = _checked(range_deg, "range"), _checked(delta_deg, "delta")
    _check_count(round(4.19 * (radius / delta) ** 3), delta)
    cell = 2 ** (1 / 3) * delta
    steps = np.arange(-int(radius / cell) - 1, int(radius / cell) + 2)
    corners = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    vectors = cell * np.concatenate([corners, corners + 0.5])
    length = np.linalg.norm(vectors, axis=1)
    vectors = vectors[np.argsort(length, kind="stable")][: np.sum(length <= radius)]
    rotations = Rotation.from_rotvec(vectors, degrees=True)
    return _with_tables(rotations, delta_deg, _group(None), radius)


def _checked(degrees: float, name: str) -> float:
    if not 0 < degrees <= 180:
        raise InputError(f"{name} must be above 0 and at most 180 degrees, not {degrees}.")
    return float(degrees)


def _check_count(n: int, delta_deg: float) -> None:
    if n > _MAX_ROTATIONS:
        raise InputError(
            f"delta={delta_deg} asks for {n} rotations; the limit is {_MAX_ROTATIONS}: search "
            "coarser and refine, or search locally."
        )


def _group(symmetry: Symmetry | None) -> Rotation:
    """Rotations that make orientations equivalent, the identity first."""
    if symmetry is None:
        return Rotation.identity(1)
    if symmetry.helix is not None:
        return Rotation.from_matrix(symmetry.helix.all_turns())
    return Rotation.from_matrix(np.asarray(symmetry.operators, np.float64))


def _max_tilt_deg(symmetry: Symmetry | None) -> float:
    return 90.0 if symmetry is None or symmetry.helix is None else symmetry.helix.max_tilt_deg


def _tilted_within(quaternions: np.ndarray, max_tilt_deg: float) -> np.ndarray:
    """Whether the reference's z axis lies within that of the particle's xy plane."""
    along = 1 - 2 * (quaternions[:, 0] ** 2 + quaternions[:, 1] ** 2)
    return np.abs(along) <= np.sin(np.radians(max_tilt_deg)) + 1e-9


def _super_fibonacci(n: int) -> Rotation:
    s = np.arange(n) + 0.5
    inner, outer = np.sqrt(s / n), np.sqrt(1 - s / n)
    alpha, beta = 2 * np.pi * s / np.sqrt(2), 2 * np.pi * s / _PSI
    waves = [
        inner * np.sin(alpha),
        inner * np.cos(alpha),
        outer * np.sin(beta),
        outer * np.cos(beta),
    ]
    return Rotation.from_quat(np.stack(waves, axis=-1))


# ---------------------------------------------------------------- EMAN2's rings

_ICOS_5_TO_2 = float(np.degrees(np.arctan(2 / (1 + 5**0.5))))  # from a 5-fold to a 2-fold axis
_ALT_MAX = {
    "c": 180.0,
    "d": 90.0,
    "tet": float(np.degrees(np.arccos(1 / 3))),
    "oct": float(np.degrees(np.arccos(1 / 3**0.5))),
    "icos": float(np.degrees(np.arccos(((1 + 2 / 5**0.5) / 3) ** 0.5))),
}
_AZ_MAX = {"tet": 120.0, "oct": 90.0, "icos": 72.0}
_AZ_OFFSET = {"icos": 234.0}


def _counter(step: float, stop: float, *, inclusive: bool, start: float = 0.0) -> np.ndarray:
    """``start, start + step, ...`` summed in float32, up to ``stop``."""
    values, value = [], np.float32(start)
    while value < stop or (inclusive and value <= np.float32(stop)):
        values.append(value)
        value = np.float32(value + np.float32(step))
    return np.asarray(values, np.float64)


def _eman_directions(delta: float, symmetry: Symmetry | None) -> np.ndarray:
    """(az, alt) in degrees of EMAN2's directions over the asymmetric unit and its mirror."""
    if symmetry is not None and symmetry.helix is not None:
        return _helix_directions(delta, symmetry.helix)
    name = "c1" if symmetry is None else symmetry.name
    name = "icos" if name == "icos2" else name
    family = name if name in _AZ_MAX else name[0]
    az_max = _AZ_MAX[family] if family in _AZ_MAX else 360.0 / int(name[1:])
    directions = []
    for alt in _counter(delta, _ALT_MAX[family], inclusive=True):
        for az in _ring(alt, delta, az_max, name):
            if family not in _AZ_MAX or alt <= _platonic_alt(az, az_max, _ALT_MAX[family]) + 1e-5:
                directions.append((az + _AZ_OFFSET.get(family, 0.0), alt))
    return np.asarray(directions)


def _helix_directions(delta: float, helix: Helix) -> np.ndarray:
    """Rings from the largest tilt on one side to that on the other, one step of azimuths each."""
    start, stop = 90 - helix.max_tilt_deg, 90 + helix.max_tilt_deg
    az_max = helix.wrapped_deg or 360.0
    rings = _counter(delta, stop, inclusive=True, start=start)
    return np.asarray([(az, alt) for alt in rings for az in _ring(alt, delta, az_max, "h")])


def _ring(alt: float, delta: float, az_max: float, name: str) -> np.ndarray:
    """Azimuths of one ring, in EMAN2's loop."""
    if alt == 0:
        return np.zeros(1)
    step = delta / np.abs(np.sin(np.radians(alt)))
    if az_max / step < 2.8:
        step = az_max / 2.1
    if name[0] == "d" and alt == 90:
        if int(name[1:]) % 2 == 0:
            return _counter(step, az_max / 2, inclusive=True)
        first = _counter(step, az_max / 4, inclusive=True)
        start = first[-1] + step + az_max / 2
        return np.concatenate([first, _counter(step, az_max, inclusive=True, start=start)])
    return _counter(step, az_max - step / 4, inclusive=True)


def _platonic_alt(az: float, az_max: float, alt_max: float) -> float:
    """Upper altitude of a platonic asymmetric unit and its mirror half at an azimuth."""
    sigma, a = np.radians(az_max), np.radians(min(az, az_max - az))
    half_dihedral = np.arccos(np.cos(sigma) / (1 - np.cos(sigma))) / 2
    rise = np.sin(sigma / 2 - a) / np.tan(half_dihedral) + np.sin(a) / np.tan(np.radians(alt_max))
    return float(np.degrees(np.arctan(np.sin(sigma / 2) / rise)))


# ---------------------------------------------------------------- tables


def _with_tables(
    rotations: Rotation,
    delta_deg: float,
    group: Rotation,
    limit_deg: float = 180.0,
    max_tilt_deg: float = 90.0,
) -> OrientationSet:
    """The record of a set: nearest neighbours and covering radius from one tree.

    Rounds search the same sets again, so the last few tables are kept.
    """
    quaternions, operators = rotations.as_quat(), group.as_quat()
    covering, neighbours = _tables(
        quaternions.tobytes(), operators.tobytes(), limit_deg, max_tilt_deg
    )
    return OrientationSet(
        rotations=jnp.asarray(rotations.as_matrix(), jnp.float32),
        spacing_deg=float(delta_deg),
        covering_deg=covering,
        neighbours=jnp.asarray(neighbours),
    )


@functools.lru_cache(maxsize=4)
def _tables(
    rotations: bytes, group: bytes, limit_deg: float, max_tilt_deg: float
) -> tuple[float, np.ndarray]:
    """Covering radius and neighbours of quaternions, given as their bytes.

    The tree holds the quaternions of all equivalents, both signs; the chord between two
    quaternions is ``2 sin(angle / 4)``, so nearest in the tree is nearest in angle.
    """
    quaternions, operators = (np.frombuffer(x).reshape(-1, 4) for x in (rotations, group))
    own = Rotation.from_quat(quaternions)
    equivalents = np.concatenate([(Rotation.from_quat(q) * own).as_quat() for q in operators])
    tree = KDTree(np.concatenate([equivalents, -equivalents]))
    covering = _covering_deg(tree, len(quaternions), limit_deg, max_tilt_deg)
    return covering, _neighbours(tree, quaternions).astype(np.int32)


def _neighbours(tree: KDTree, quaternions: np.ndarray) -> np.ndarray:
    """Indices ``[q, m]`` of the nearest distinct other entries, own index as filling."""
    q, m = len(quaternions), _N_NEIGHBOURS
    table = np.tile(np.arange(q)[:, None], (1, m))
    rows, k = np.arange(q), min(m + 1, tree.n)
    while len(rows):
        found = np.asarray(tree.query(quaternions[rows], k)[1]).reshape(len(rows), k) % q
        repeated = found == rows[:, None]
        for j in range(1, k):
            repeated[:, j] |= (found[:, :j] == found[:, j : j + 1]).any(axis=1)
        done = ((~repeated).sum(axis=1) >= min(m, q - 1)) | (k == tree.n)
        order = np.argsort(repeated, axis=1, kind="stable")[:, :m]
        nearest = np.take_along_axis(np.where(repeated, rows[:, None], found), order, axis=1)
        table[rows[done], : nearest.shape[1]] = nearest[done]
        rows, k = rows[~done], min(2 * k, tree.n)
    return table


def _covering_deg(tree: KDTree, n_entries: int, limit_deg: float, max_tilt_deg: float) -> float:
    """Largest distance from the set of a rotation within the limits (angle, tilt of z).

    Random rotations, twelve an entry, then a random climb from the 200 worst; fixed seed.
    """
    rng = np.random.default_rng(20)
    n_samples = int(np.clip(12 * n_entries, 20_000, 400_000))
    sample = _random_within(limit_deg, n_samples, rng)
    worst, distance = _worst(tree, sample[_tilted_within(sample, max_tilt_deg)], 200)
    step = distance[0]
    for _ in range(24):
        moved = np.repeat(worst, 4, axis=0) + rng.normal(scale=step / 4, size=(4 * len(worst), 4))
        moved /= np.linalg.norm(moved, axis=1, keepdims=True)
        inside = np.abs(moved[:, 3]) >= np.cos(np.radians(limit_deg) / 2)
        inside &= _tilted_within(moved, max_tilt_deg)
        worst, distance = _worst(tree, np.concatenate([worst, moved[inside]]), 200)
        step *= 0.8
    return float(np.degrees(4 * np.arcsin(distance[0] / 2)))


def _worst(tree: KDTree, quaternions: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    distance, _ = tree.query(quaternions)
    order = np.argsort(-distance)[:n]
    return quaternions[order], distance[order]


def _random_within(limit_deg: float, n: int, rng: np.random.Generator) -> np.ndarray:
    """Quaternions (scalar last) of rotations uniform in a ball around the identity."""
    if limit_deg == 180:
        return Rotation.random(n, rng=rng).as_quat()
    angle = np.radians(limit_deg) * np.cbrt(rng.uniform(size=n))  # flat in rotation vectors
    axis = rng.normal(size=(n, 3))
    axis *= (np.sin(angle / 2) / np.linalg.norm(axis, axis=1))[:, None]
    return np.concatenate([axis, np.cos(angle / 2)[:, None]], axis=1)
