"""Wedge-weighted averages in Fourier space, as mergeable partial sums.

For the particles ``i`` of a group, with pose ``(R_i, t_i)``, weight ``w_i`` and known sampling
``W_i`` (wedge, CTF squared, dose), and for every frequency ``q`` inside the Nyquist sphere,

    numerator(q) = sum_i w_i g_i(|q|) F_i(R_i^T q) exp(-2 pi i q.t_i / n)
    weight(q)    = sum_i w_i g_i(|q|)^2 W_i(R_i^T q)
    average(q)   = numerator(q) / weight(q)

with ``g_i = 1`` unless the amplitude of the signal is known to differ between particles.

``F_i`` is the transform of the particle **as given**: a particle whose missing frequencies are
zero, or which was multiplied by its weight. A group is a class, a half set or both. Partial
sums of batches, devices or runs are merged by addition, and only :func:`finish` divides.

Each particle is interpolated once: its zero-padded transform is gathered at the rotated
frequencies by a B-spline (see :mod:`sptjax.resample`), nothing is scattered. EMAN2's
``mean.tomo`` guesses ``W_i`` from amplitudes; here it is known. Without sampling, ``W = 1``,
the average is EMAN2's ``mean``.
"""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Complex, Float, Int

from . import fourier, resample
from ._errors import InputError
from ._types import Pose, Volume, Volumes

Axes = tuple[Float[Array, " k"], Float[Array, " k"], Float[Array, " k"]]  # qx, qy, qz


class FourierSums(eqx.Module):
    """Partial sums of ``g`` groups on the half grid of :func:`sptjax.fourier.rfftn`.

    The origin is at the centre voxel. Both sums are zero outside the Nyquist sphere.
    """

    numerator: Complex[Array, "g z y h"]
    weight: Float[Array, "g z y h"]
    count: Int[Array, " g"]  # particles added with a weight other than 0


def empty(box: int, groups: int = 1) -> FourierSums:
    """Sums over no particle, for maps of ``box`` voxels.

    Args:
        box: edge n, voxels.
        groups: how many, g.
    """
    shape = (groups, box, box, box // 2 + 1)
    return FourierSums(
        jnp.zeros(shape, jnp.complex64),
        jnp.zeros(shape, jnp.float32),
        jnp.zeros(groups, jnp.int32),
    )


def merge(a: FourierSums, b: FourierSums) -> FourierSums:
    """Sums over the particles of both, ``a`` and ``b``, which have the same groups and box."""
    return FourierSums(a.numerator + b.numerator, a.weight + b.weight, a.count + b.count)


def add(
    sums: FourierSums,
    particles: Volumes,
    poses: Pose,
    groups: Int[Array, " n"],
    weights: Float[Array, " n"] | None = None,
    sampling: Float[Array, "z y x"] | Volumes | None = None,
    gain: Float[Array, "n s"] | None = None,
    order: int = 2,
    *,
    reuse: bool = False,
) -> FourierSums:
    """Add posed particles to the sums of their groups, one after the other.

    The result does not depend on how the particles are cut into batches.

    Args:
        sums: where to add; the input is left as it was, unless ``reuse``.
        particles: ``[n, z, y, x]``, cubic, solvent level near 0.
        poses: of the ``n`` particles, particle to reference, shifts in voxels.
        groups: group of every particle; one outside ``0 ... g - 1`` drops the particle.
        weights: ``w_i >= 0`` of every particle, default 1. Weight 0 drops the particle, at
            no cost and whatever its voxels are (padding of a ragged batch, NaN).
        sampling: ``W_i`` on a centred Fourier grid (zero frequency at voxel ``n // 2``), one
            for all ``[z, y, x]`` or one per particle ``[n, z, y, x]``; default 1 everywhere.
        gain: ``g_i`` at the shells 0 ... ``n // 2``, linear between them; default 1.
        order: B-spline order of the interpolation, 1 to 3.
        reuse: the memory of ``sums``, which are lost.

    Raises:
        InputError: the boxes of particles, sampling, gain and sums differ.
    """
    box = sums.numerator.shape[1]
    number = particles.shape[0]
    if particles.shape[1:] != (box,) * 3:
        raise InputError(
            f"Particles of {particles.shape[1:]} voxels do not fit averages of box {box}."
        )
    if sampling is not None and sampling.shape not in ((box,) * 3, (number, *(box,) * 3)):
        raise InputError(
            f"Sampling of shape {sampling.shape} fits neither one nor {number} grids of box {box}."
        )
    if gain is not None and gain.shape != (number, box // 2 + 1):
        raise InputError(f"Gain of shape {gain.shape} fits no {number} particles of box {box}.")
    if weights is None:
        weights = jnp.ones(number, jnp.float32)
    inside = _inside_nyquist(box)
    work = _add_in_place if reuse else _add
    return work(sums, particles, poses, groups, weights, sampling, gain, inside, order)


def _added(
    sums, particles, poses, groups, weights, sampling, gain, inside, order: int
) -> FourierSums:
    box = particles.shape[-1]
    number = sums.count.shape[0]
    points = _frequencies(inside, box)
    shared = sampling if sampling is not None and sampling.ndim == 3 else None
    own = sampling if sampling is not None and sampling.ndim == 4 else None
    used = (weights != 0) & (groups >= 0) & (groups < number)
    radius = jnp.sqrt(sum(p * p for p in points))
    shells = jnp.arange(box // 2 + 1, dtype=jnp.float32)

    def contribution(particle, pose, weight, grid, amplitude):
        value, part = _posed(particle, pose, shared if grid is None else grid, points, order)
        if amplitude is not None:
            known = jnp.interp(radius, shells, amplitude)
            value, part = value * known.astype(value.dtype), part * known * known
        return value * weight.astype(value.dtype), weight * part

    def nothing(particle, pose, weight, grid, amplitude):
        zero = jnp.zeros_like(points[0])
        return lax.complex(zero, zero), zero

    def step(carry, item):
        *particle, group, use = item
        parts = lax.cond(use, contribution, nothing, *particle)
        return tuple(c.at[group].add(p) for c, p in zip(carry, parts)), None

    carry = tuple(x.reshape(number, -1)[:, inside] for x in (sums.numerator, sums.weight))
    items = (particles, poses, weights, own, gain, jnp.where(used, groups, 0), used)
    (numerator, weight), _ = lax.scan(step, carry, items)
    count = sums.count.at[jnp.where(used, groups, number)].add(1, mode="drop")
    return FourierSums(
        _on_half_grid(numerator, inside, box),
        _on_half_grid(weight, inside, box),
        count,
    )


_add = jax.jit(_added, static_argnames="order")
_add_in_place = jax.jit(_added, static_argnames="order", donate_argnums=0)


def _posed(particle, pose, grid, points: Axes, order: int) -> tuple[Array, Array]:
    """Transform of the moved particle at given frequencies, and its sampling there."""
    box = particle.shape[-1]
    turned = _rotate(points, pose.rotation)
    real, imag = _sample_wrapped(particle, turned, order)
    cos, sin = _shift_phase(points, pose.shift, box)
    # one complex output: two real ones would each repeat all the gathers
    value = lax.complex(real * cos - imag * sin, real * sin + imag * cos)
    return value, jnp.ones_like(real) if grid is None else _trilinear(grid, turned)


@partial(jax.jit, static_argnames="order")
def posed_coefficients(
    particles: Volumes,
    poses: Pose,
    sampling: Float[Array, "z y x"] | Volumes,
    vectors: Float[Array, "k 3"],
    order: int = 2,
) -> tuple[Complex[Array, "n k"], Float[Array, "n k"]]:
    """Transform of every moved particle, and its sampling, at frequencies (kx, ky, kz).

    The terms of the sums of :func:`add`, particle by particle.

    Args:
        particles: ``[n, z, y, x]``.
        poses: particle to reference, voxels.
        sampling: centred grid, one for all or one per particle.
        vectors: frequencies, Fourier pixels.
        order: of the B-spline.
    """
    points = (vectors[:, 0], vectors[:, 1], vectors[:, 2])
    one_grid = sampling.ndim == 3

    def one(item):
        particle, pose, own = item
        return _posed(particle, pose, sampling if own is None else own, points, order)

    return lax.map(one, (particles, poses, None if one_grid else sampling))


@jax.jit
def apply_sampling(particles: Volumes, sampling: Float[Array, "z y x"] | Volumes) -> Volumes:
    """Particles multiplied by their sampling (centred grids) in Fourier space.

    Args:
        particles: ``[n, z, y, x]``.
        sampling: zero frequency at voxel ``n // 2``; one for all or one per particle.
    """
    half = fourier.half_from_centred(sampling)
    spectra = fourier.rfftn(particles)
    half = half if half.ndim == spectra.ndim else half[None]
    return fourier.irfftn(spectra * half.astype(spectra.dtype), particles.shape[-1])


@partial(jax.jit, static_argnames="floor")
def finish(
    sums: FourierSums, floor: float = 0.1, noise_to_signal: Float[Array, "g s"] | None = None
) -> Volumes:
    """Average maps ``numerator / max(weight, floor * mean weight of the shell)``.

    Frequencies that no particle sampled are zero, and so is everything beyond Nyquist.

    Args:
        sums: partial sums of ``g`` groups.
        floor: least weight of a frequency as a fraction of the mean weight of its shell, so
            that directions seen by few particles are damped instead of amplified.
        noise_to_signal: if given, ``1 / SSNR`` per shell 0 ... n // 2 of every average: the
            divisor is ``weight + noise_to_signal * mean weight``, a Wiener filter that trusts
            every direction by how well it was sampled (Scheres 2012, J. Mol. Biol. 415:406).

    Returns:
        ``[g, z, y, x]``; a group without particles is zero.
    """
    if noise_to_signal is None:
        return jax.vmap(partial(_divided, floor=floor))(sums.numerator, sums.weight)
    divide = partial(_divided, floor=floor)
    return jax.vmap(divide)(sums.numerator, sums.weight, noise_to_signal=noise_to_signal)


def _divided(
    numerator: Complex[Array, "z y h"],
    weight: Float[Array, "z y h"],
    floor: float,
    noise_to_signal: Float[Array, " s"] | None = None,
) -> Volume:
    box = numerator.shape[0]
    inside = _inside_nyquist(box)
    shell = fourier.shell_index(box).ravel()[inside]
    share = fourier.hermitian_count(box).ravel()[inside]
    total = np.bincount(shell, share).astype(np.float32)
    values, weight = numerator.reshape(-1)[inside], weight.reshape(-1)[inside]
    mean = jnp.zeros(total.shape).at[shell].add(weight * share) / total
    sampled = weight > 0
    if noise_to_signal is None:
        whole = jnp.maximum(weight, floor * mean[shell])
    else:
        whole = weight + noise_to_signal[np.minimum(shell, box // 2)] * mean[shell]
    divisor = jnp.where(sampled, whole, 1)
    parts = (jnp.where(sampled, v / divisor, 0) for v in (values.real, values.imag))
    return _to_map(_on_half_grid(lax.complex(*parts)[None], inside, box)[0], box)


def shifted(sums: FourierSums, shifts: Float[Array, "g 3"]) -> FourierSums:
    """Sums whose averages are translated by ``shifts`` (x, y, z), voxels.

    Args:
        sums: of ``g`` groups.
        shifts: one per group, added to the positions in the average.
    """
    moved = _shifted(sums.numerator, shifts, _inside_nyquist(sums.numerator.shape[1]))
    return FourierSums(moved, sums.weight, sums.count)


@jax.jit
def _shifted(numerators, shifts, inside):
    box = numerators.shape[1]
    points = _frequencies(inside, box)

    def one(item):
        values, shift = item
        cos, sin = _shift_phase(points, shift, box)
        return values.reshape(-1)[inside] * lax.complex(cos, sin)

    return _on_half_grid(lax.map(one, (numerators, shifts)), inside, box)


def symmetrise(
    sums: FourierSums,
    operators: Float[Array, "m 3 3"] | np.ndarray,
    shifts: Float[Array, "m 3"] | np.ndarray | None = None,
    floor: float = 0.1,
) -> FourierSums:
    """Sums as if every particle had been added once per symmetry operator.

    Operators that map the grid onto itself (entries 0 and +-1) permute frequencies and are
    exact. The others interpolate once more: the weight trilinearly, and the numerator as the
    rotated average (cubic B-spline) times the rotated weight. An average is smooth where the
    numerator jumps, at the edges of wedges, so this is more accurate than interpolating the
    numerator, and no worse than composing the operators into the poses. The last two shells
    before Nyquist lose by it.

    Args:
        sums: partial sums; ``count`` stays the number of particles.
        operators: rotations of the symmetry, the identity included, as concrete numbers.
        shifts: voxels that each operator moves after its rotation (a helix); default none.
        floor: of that average, as in :func:`finish`.
    """
    box = sums.numerator.shape[1]
    matrices = np.asarray(operators, np.float32)
    moves = np.zeros((len(matrices), 3)) if shifts is None else np.asarray(shifts)
    moves = moves.astype(np.float32)
    on_grid = np.abs(matrices - np.rint(matrices)).max((1, 2)) < 1e-5
    exact = Pose(jnp.asarray(np.rint(matrices[on_grid])), jnp.asarray(moves[on_grid]))
    other = Pose(jnp.asarray(matrices[~on_grid]), jnp.asarray(moves[~on_grid]))
    numerator, weight = _symmetrise(
        sums.numerator, sums.weight, exact, other, _inside_nyquist(box), floor
    )
    return FourierSums(numerator, weight, sums.count)


@partial(jax.jit, static_argnames="floor")
def _symmetrise(numerators, weights, exact, other, inside, floor: float):
    box = numerators.shape[1]
    points = _frequencies(inside, box)

    def one(sums):
        numerator, weight = sums
        carry = (
            jnp.zeros(inside.shape, jnp.complex64),
            jnp.zeros(inside.shape, jnp.float32),
        )

        def permute(carry, operator):
            turned = _rotate(points, operator.rotation)
            kx, ky, kz = (k.astype(jnp.int32) for k in turned)
            index, mirrored = _half_index(kx, ky, kz, box)
            value = numerator.reshape(-1)[index]
            value = jnp.where(mirrored, jnp.conj(value), value)
            value *= lax.complex(*_shift_phase(points, operator.shift, box))
            return (carry[0] + value, carry[1] + weight.reshape(-1)[index]), None

        def interpolate(carry, operator):
            turned = _rotate(points, operator.rotation)
            real, imag = _sample_wrapped(volume, turned, 3)
            part = _trilinear(grid, turned)
            value = lax.complex(real * part, imag * part)
            value *= lax.complex(*_shift_phase(points, operator.shift, box))
            return (carry[0] + value, carry[1] + part), None

        carry, _ = lax.scan(permute, carry, exact)
        if other.shift.shape[0]:
            volume = _divided(numerator, weight, floor)
            grid = _centred_grid(weight, box)
            carry, _ = lax.scan(interpolate, carry, other)
        return carry

    numerator, weight = lax.map(one, (numerators, weights))
    return _on_half_grid(numerator, inside, box), _on_half_grid(weight, inside, box)


def _inside_nyquist(box: int) -> np.ndarray:
    """Flat half-grid indices of the frequencies ``|q| <= n / 2``, int32."""
    axis = np.rint(np.fft.fftfreq(box, 1 / box)).astype(np.int32) ** 2
    square = axis[:, None, None] + axis[None, :, None] + axis[None, None, : box // 2 + 1]
    return np.flatnonzero(4 * square <= box * box).astype(np.int32)


def _frequencies(index: Int[Array, " k"], box: int) -> Axes:
    """Frequencies of flat half-grid indices."""
    row, kx = jnp.divmod(index, box // 2 + 1)
    kz, ky = jnp.divmod(row, box)
    ky, kz = (jnp.where(2 * k >= box, k - box, k) for k in (ky, kz))
    return kx.astype(jnp.float32), ky.astype(jnp.float32), kz.astype(jnp.float32)


def _half_index(kx: Array, ky: Array, kz: Array, box: int) -> tuple[Array, Array]:
    """Flat half-grid index of integer frequencies, and whether it holds the conjugate."""
    mirrored = kx < 0
    kx, ky, kz = (jnp.where(mirrored, -k, k) for k in (kx, ky, kz))
    return ((kz % box) * box + ky % box) * (box // 2 + 1) + kx, mirrored


def _on_half_grid(values: Array, index: Array | np.ndarray, box: int) -> Array:
    flat = jnp.zeros((values.shape[0], box * box * (box // 2 + 1)), values.dtype)
    flat = flat.at[:, index].set(values, unique_indices=True, indices_are_sorted=True)
    return flat.reshape(-1, box, box, box // 2 + 1)


def _centred_grid(weight: Float[Array, "z y h"], box: int) -> Float[Array, "z y x"]:
    """Full grid of a half-grid quantity with Friedel symmetry, zero frequency at ``n // 2``."""
    axis = jnp.arange(box) - box // 2
    z, y, x = jnp.meshgrid(axis, axis, axis, indexing="ij")
    index, _ = _half_index(x, y, z, box)
    return weight.reshape(-1)[index]


def _to_map(coefficients: Complex[Array, "z y h"], box: int) -> Volume:
    """Inverse transform of half-grid coefficients with the origin at the centre voxel."""
    turns = np.arange(box) * (box // 2) % box / box
    phase = jnp.asarray(np.exp(-2j * np.pi * turns), jnp.complex64)
    half = phase[None, None, : box // 2 + 1]
    return fourier.irfftn(coefficients * phase[:, None, None] * phase[None, :, None] * half, box)


def _rotate(points: Axes, rotation: Float[Array, "3 3"]) -> Axes:
    """``R^T q``, written out: it fuses, and no device lowers its precision."""
    x, y, z = points
    r = rotation
    return (
        r[0, 0] * x + r[1, 0] * y + r[2, 0] * z,
        r[0, 1] * x + r[1, 1] * y + r[2, 1] * z,
        r[0, 2] * x + r[1, 2] * y + r[2, 2] * z,
    )


def _shift_phase(
    points: Axes, shift: Float[Array, " 3"], box: int
) -> tuple[Float[Array, " k"], Float[Array, " k"]]:
    """Real and imaginary part of ``exp(-2 pi i q.t / n)``."""
    x, y, z = points
    angle = (-2 * jnp.pi / box) * (x * shift[0] + y * shift[1] + z * shift[2])
    return jnp.cos(angle), jnp.sin(angle)


def _sample_wrapped(
    volume: Volume, points: Axes, order: int
) -> tuple[Float[Array, " k"], Float[Array, " k"]]:
    """Transform of a volume (origin at the centre voxel) at any ``|q| <= n / 2``.

    The table is the real transform of the volume padded to twice its box, used as it comes:
    indices wrap instead of the array being shifted, and points with ``qx < 0`` read the
    conjugate. One more plane at either end of the half axis serves taps that leave it. This
    is several times faster than :func:`sptjax.resample.slice_table` and reaches Nyquist.
    """
    box = volume.shape[-1]
    padded = resample.padded_box(box, 2.0)
    spectrum = fourier.rfftn(_padded_at_corner(volume, padded, order))
    before, after = (
        jnp.conj(jnp.roll(spectrum[::-1, ::-1, k], (1, 1), (0, 1)))[..., None]
        for k in (1, padded // 2 - 1)
    )
    table = jnp.concatenate([before, spectrum, after], -1)
    real, imag = table.real.reshape(-1), table.imag.reshape(-1)

    mirrored = points[0] < 0
    position = [jnp.where(mirrored, -p, p) * (padded / box) for p in points]
    base = [jnp.round(p) if order == 2 else jnp.floor(p) for p in position]
    ix, iy, iz = (b.astype(jnp.int32) for b in base)
    side = padded // 2 + 3
    taps = [resample._bspline(p - b, order) for p, b in zip(position, base)]
    wx, wy, wz = ([weight for _, weight, _ in axis] for axis in taps)
    offsets = [offset for offset, *_ in taps[0]]
    rows = [(iy + o) % padded * side + ix + 1 for o in offsets]
    planes = [(iz + o) % padded * (padded * side) for o in offsets]
    # without the barrier a compiler repeats all of this for every tap
    wx, wy, wz, rows, planes = lax.optimization_barrier((wx, wy, wz, rows, planes))
    re = jnp.zeros_like(points[0])
    im = jnp.zeros_like(re)
    for az, plane in zip(wz, planes):
        for ay, row in zip(wy, rows):
            for ax, offset in zip(wx, offsets):
                weight = az * ay * ax
                re += weight * resample._gather(real, plane + row + offset)
                im += weight * resample._gather(imag, plane + row + offset)
    return re, jnp.where(mirrored, -im, im)


def _padded_at_corner(volume: Volume, padded: int, order: int) -> Volume:
    """Apodisation-corrected volume in a larger box, its centre voxel moved to voxel 0."""
    box = volume.shape[-1]
    window = jnp.asarray(1 / resample._apodisation(box, padded, order), volume.dtype)
    volume = volume * window[:, None, None] * window[None, :, None] * window[None, None, :]
    for axis in range(3):
        low, high = jnp.split(volume, [box // 2], axis)
        gap = [(0, padded - box) if i == axis else (0, 0) for i in range(3)]
        volume = jnp.concatenate([jnp.pad(high, gap), low], axis)
    return volume


def _trilinear(grid: Float[Array, "z y x"], points: Axes) -> Float[Array, " k"]:
    """Trilinear, periodic samples of a centred Fourier grid."""
    box = grid.shape[-1]
    flat = grid.reshape(-1)
    base = [jnp.floor(p) for p in points]
    weights = [[1 - (p - b), p - b] for p, b in zip(points, base)]
    index = [b.astype(jnp.int32) + box // 2 for b in base]
    steps = [[(k + o) % box * box**i for o in (0, 1)] for i, k in enumerate(index)]
    weights, steps = lax.optimization_barrier((weights, steps))
    value = jnp.zeros_like(points[0])
    for az, plane in zip(weights[2], steps[2]):
        for ay, row in zip(weights[1], steps[1]):
            for ax, column in zip(weights[0], steps[0]):
                value += az * ay * ax * resample._gather(flat, plane + row + column)
    return value
