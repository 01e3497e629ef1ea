"""Simulated sub-tomograms with planted poses, made the way a microscope makes them.

The tilt axis is y and the beam z (EMAN2's convention). At tilt ``a`` the detector axes are
``u = (cos a, 0, sin a)`` and ``y``; the image is the projection of the particle
``V(x) = map(R x + t)`` onto them, taken as a central slice of the map's transform
(projection theorem). Images are larger than the box, so that after back-projection every
corner of the box holds full noise. The order of events is: projection, contrast transfer,
white noise, then either *phase flip and ramp filter* (an ordinary tomogram: sampled
frequencies keep the map's amplitude times ``|CTF|``) or *premultiplication by the CTF without
ramp* (the particle is then ``W F`` plus noise of variance proportional to ``W``, with ``W``
from :func:`sampling_weights`), then back-projection into the box.

**Signal-to-noise ratio.** One noise level serves the whole set, as one electron dose does:
variance of the projected density over the ``n x n`` image of the box, before the CTF, averaged
over maps, tilts and directions, divided by ``snr``. It does not depend on the defocus.

Every particle is a function of (key, its index) alone, whatever the batches.
"""

from collections.abc import Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Complex, Float, Int, PRNGKeyArray

from sptjax import fourier, resample, rotation
from sptjax._errors import InputError
from sptjax._types import Pose, Volumes
from sptjax.phantom import fit_map as fit_map
from sptjax.phantom import phantom as phantom
from sptjax.tilt_series import TiltSeries as TiltSeries
from sptjax.tilt_series import ctf_1d as ctf_1d
from sptjax.tilt_series import half_region as half_region
from sptjax.tilt_series import sampled_region as sampled_region
from sptjax.tilt_series import sampling_weights as sampling_weights

_HIGHEST = lax.Precision.HIGHEST
_OVERSAMPLING = 4  # detector samples per voxel for the interpolation of back-projection
_SLICE_ORDER = 2
_CALIBRATION_DIRECTIONS = 8


class Simulator(eqx.Module):
    """Everything :func:`simulate_batch` needs that does not depend on the particle."""

    tables: resample.SliceTable  # one per map
    points: Float[Array, "a v h 3"]  # (kx, ky, kz) of every image sample, Fourier pixels of the box
    transfer: Float[Array, "v h"]  # CTF, zero past Nyquist
    gain: Float[Array, "v h"]  # phase flip and ramp, or CTF
    noise: Float[Array, "v h"]  # standard deviation of a coefficient's real part
    synthesis_y: Complex[Array, "v y"]
    synthesis_u: Float[Array, "u g"]  # real and imaginary parts to detector samples
    base: Int[Array, "a p"]  # detector sample left of every (z, x)
    fraction: Float[Array, "a p"]
    region: Float[Array, "z y h"] | None  # wedge of a premultiplied particle
    noise_sigma: float  # standard deviation of an image pixel, density summed over voxels
    box: int = eqx.field(static=True)


def _image_size(box: int, max_shift_vox: float) -> int:
    size = int(np.ceil(box * np.sqrt(2)) + 2 * np.ceil(max_shift_vox)) + 6
    return size + size % 2


def _image_grid(image: int) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies (ky full, ku half) of an image, cycles per image."""
    ky, ku = np.meshgrid(np.fft.fftfreq(image, 1 / image), np.arange(image // 2), indexing="ij")
    return ky, ku


def _points(image: int, box: int, geometry: TiltSeries) -> np.ndarray:
    ky, ku = _image_grid(image)
    angle = np.radians(geometry.angles_deg)[:, None, None]
    axes = (ku * np.cos(angle), ky + 0 * angle, ku * np.sin(angle))
    return np.stack(axes, -1) * (box / image)


def _gain(image: int, ctf: np.ndarray, geometry: TiltSeries, premultiply: bool) -> np.ndarray:
    _, ku = _image_grid(image)
    if premultiply:
        return ctf
    ramp = np.where(ku == 0, 2 / np.pi**2, ku) / image  # Ram-Lak, its sum over the finite image
    return np.sign(ctf) * ramp * np.radians(geometry.step_deg)


def _synthesis_u(image: int, positions: np.ndarray, sharpen: bool) -> np.ndarray:
    """Matrix from (real, imaginary) half-axis coefficients to real samples at ``positions``."""
    ku = np.arange(image // 2)
    weight = np.where(ku == 0, 1.0, 2.0) / image
    if sharpen:  # undo the low-pass of linear interpolation
        weight = weight / np.sinc(ku / (image * _OVERSAMPLING)) ** 2
    angle = 2 * np.pi / image * positions[:, None] * ku
    return np.concatenate([weight * np.cos(angle), -weight * np.sin(angle)], 1)


def _back_projection(box: int, geometry: TiltSeries) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Detector positions (voxels), left sample and fraction for every tilt and (z, x)."""
    reach = int(np.ceil(box / np.sqrt(2))) + 1
    positions = np.arange(-reach * _OVERSAMPLING, reach * _OVERSAMPLING + 1) / _OVERSAMPLING
    axis = np.arange(box) - box // 2
    angle = np.radians(geometry.angles_deg)[:, None, None]
    u = axis[None, None, :] * np.cos(angle) + axis[None, :, None] * np.sin(angle)
    place = ((u + reach) * _OVERSAMPLING).reshape(len(angle), -1)
    base = np.floor(place)
    return positions, base.astype(np.int32), place - base


def prepare(
    maps: Float[Array, "c z y x"] | np.ndarray,
    apix: float,
    geometry: TiltSeries,
    *,
    max_shift_vox: float = 0.0,
    premultiply: bool = False,
) -> Simulator:
    """Tables, filters and the noise level for particles of these maps.

    Args:
        maps: ``[c, n, n, n]``, density zero outside the particle.
        apix: angstrom per voxel.
        geometry: tilt series, defocus and noise.
        max_shift_vox: largest length of a planted shift.
        premultiply: multiply images by the CTF and leave out the ramp, instead of flipping.

    Raises:
        InputError: maps not cubic or of odd box; voxel size not positive.
    """
    maps = jnp.asarray(maps, jnp.float32)
    if maps.ndim != 4 or len(set(maps.shape[1:])) != 1 or maps.shape[-1] % 2:
        raise InputError(f"maps of shape {maps.shape}: cubic boxes of one even size are needed")
    if not apix > 0:
        raise InputError(f"voxel size {apix:g} A is not positive")
    box = maps.shape[-1]
    image = _image_size(box, max_shift_vox)
    ky, ku = _image_grid(image)
    freq = np.hypot(ky, ku) / image  # cycles per voxel
    ctf = ctf_1d(freq / apix, geometry)
    positions, base, fraction = _back_projection(box, geometry)
    rows = np.arange(box) - box // 2
    tables = _slice_tables(maps)
    points = jnp.asarray(_points(image, box, geometry), jnp.float32)
    dft_y = np.exp(2j * np.pi / image * ky[:, :1] * rows) / image
    pixel = _synthesis_u(image, rows, sharpen=False)
    synthesis_y = jnp.asarray(dft_y, jnp.complex64)
    inside = jnp.asarray(freq <= 0.5, jnp.float32)
    sigma = 0.0
    if geometry.snr is not None:
        pixel_u = jnp.asarray(pixel, jnp.float32)
        power = _projection_variance(tables, points, inside, synthesis_y, pixel_u, box)
        sigma = float(np.sqrt(float(power) / geometry.snr))
    scale = 1 / box if premultiply else 1.0
    noise = sigma * image / np.sqrt(2) * np.where(ku == 0, np.sqrt(2), 1)
    return Simulator(
        tables=tables,
        points=points,
        transfer=jnp.asarray(ctf, jnp.float32) * inside,
        gain=jnp.asarray(scale * _gain(image, ctf, geometry, premultiply), jnp.float32),
        noise=jnp.asarray(noise, jnp.float32),
        synthesis_y=synthesis_y,
        synthesis_u=jnp.asarray(_synthesis_u(image, positions, sharpen=True), jnp.float32),
        base=jnp.asarray(base),
        fraction=jnp.asarray(fraction, jnp.float32),
        region=jnp.asarray(half_region(box, geometry)) if premultiply else None,
        noise_sigma=sigma,
        box=box,
    )


@eqx.filter_jit
def _slice_tables(maps: Float[Array, "c z y x"]) -> resample.SliceTable:
    return lax.map(lambda m: resample.slice_table(m, maps.shape[-1] / 2, _SLICE_ORDER), maps)


def _slices(
    table: resample.SliceTable, points: Array, box: int, turn: Array, shift: Array
) -> tuple[Float[Array, "a v h"], Float[Array, "a v h"]]:
    """Real and imaginary part of ``F(R k) exp(2 pi i R k.t / n)``: that of ``map(R x + t)``."""
    turned = jnp.matmul(points.reshape(-1, 3), turn.T, precision=_HIGHEST)
    real, imag = resample.sample(table, turned)
    angle = (2 * jnp.pi / box) * (turned * shift[None, :]).sum(-1)
    c, s, shape = jnp.cos(angle), jnp.sin(angle), points.shape[:-1]
    return (real * c - imag * s).reshape(shape), (real * s + imag * c).reshape(shape)


def _synthesise(spectra: Complex[Array, "a v h"], y: Array, u: Array) -> Float[Array, "a u y"]:
    """Images, transposed: rows are detector positions, columns the y of the box."""
    rows = jnp.einsum("avh,vy->ahy", spectra, y, precision=_HIGHEST)
    parts = jnp.concatenate([rows.real, rows.imag], 1)
    return jnp.einsum("ug,agy->auy", u, parts, precision=_HIGHEST)


@eqx.filter_jit
def _projection_variance(
    tables: resample.SliceTable, points: Array, inside: Array, y: Array, u: Array, box: int
) -> Float[Array, ""]:
    """Mean variance, over the image of the box, of the projected density."""
    turns = rotation.random(jax.random.key(0), _CALIBRATION_DIRECTIONS)

    def one(arguments):
        table, turn = arguments
        real, imag = _slices(table, points, box, turn, jnp.zeros(3, jnp.float32))
        spectra = lax.complex(real * inside[None], imag * inside[None])
        return _synthesise(spectra, y, u).var(axis=(1, 2)).mean()

    return lax.map(lambda t: lax.map(lambda r: one((t, r)), turns), tables).mean()


def _back_project(images: Array, base: Array, fraction: Array, box: int) -> Float[Array, "z y x"]:
    def add(total, tilt):
        image, left, f = tilt
        return total + (1 - f)[:, None] * image[left] + f[:, None] * image[left + 1], None

    total, _ = lax.scan(add, jnp.zeros((box * box, box), jnp.float32), (images, base, fraction))
    return total.reshape(box, box, box).transpose(0, 2, 1)


def _filter(volume: Float[Array, "z y x"], gain: Float[Array, "z y h"]) -> Float[Array, "z y x"]:
    spectrum = fourier.rfftn(volume)
    return fourier.irfftn(spectrum * gain.astype(spectrum.dtype), volume.shape[-1])


def _particle(simulator: Simulator, class_index: Array, pose: Pose, key: PRNGKeyArray) -> Array:
    s = simulator
    tables = s.tables
    table = eqx.tree_at(
        lambda t: (t.real, t.imag), tables, (tables.real[class_index], tables.imag[class_index])
    )
    real, imag = _slices(table, s.points, s.box, pose.rotation, pose.shift)
    noise = jax.random.normal(key, (2, *real.shape), jnp.float32) * s.noise[None, None]
    transfer, gain = s.transfer[None], s.gain[None]
    spectra = lax.complex((real * transfer + noise[0]) * gain, (imag * transfer + noise[1]) * gain)
    images = _synthesise(spectra, s.synthesis_y, s.synthesis_u)
    particle = _back_project(images, s.base, s.fraction, s.box)
    if s.region is None:
        return particle
    return _filter(particle, s.region)


@eqx.filter_jit
def simulate_batch(
    simulator: Simulator,
    classes: Int[Array, " b"],
    poses: Pose,
    key: PRNGKeyArray,
    indices: Int[Array, " b"],
) -> Volumes:
    """Particles ``[b, n, n, n]``; their noise depends on their indices in the set.

    Args:
        simulator: maps and geometry, prepared.
        classes: which map each particle shows.
        poses: particle to reference, voxels.
        key: of the noise.
        indices: of the particles in the set.
    """

    def one(arguments):
        class_index, pose, index = arguments
        return _particle(simulator, class_index, pose, jax.random.fold_in(key, index))

    return lax.map(one, (classes, poses, indices))


def simulate_batches(
    simulator: Simulator, classes: np.ndarray, poses: Pose, key: PRNGKeyArray, batch_size: int = 16
) -> Iterator[np.ndarray]:
    """Stream the particles, at most ``batch_size`` at a time; one compilation for all batches.

    Args:
        simulator: from :func:`prepare`.
        classes: ``int[N]``, which map each particle shows.
        poses: ``N`` poses, particle to reference.
        key: noise of particle ``i`` comes from ``fold_in(key, i)``.
        batch_size: memory grows with it, results do not depend on it.

    Yields:
        float32 ``[b, n, n, n]`` on the host.

    Raises:
        InputError: a class without a map, or lengths that differ.
    """
    classes = np.asarray(classes, np.int32)
    number = len(classes)
    maps = simulator.tables.real.shape[0]
    if poses.rotation.shape[0] != number:
        raise InputError(f"{number} classes but {poses.rotation.shape[0]} poses")
    wrong = np.flatnonzero((classes < 0) | (classes >= maps))
    if len(wrong):
        raise InputError(
            f"particle {wrong[0]} is of class {classes[wrong[0]]}, but there are {maps} maps"
        )
    batch_size = min(batch_size, number)
    turns, shifts = np.asarray(poses.rotation), np.asarray(poses.shift)
    for first in range(0, number, max(batch_size, 1)):
        rows = np.minimum(np.arange(first, first + batch_size), number - 1)
        pose = Pose(jnp.asarray(turns[rows]), jnp.asarray(shifts[rows]))
        index = jnp.asarray(rows, jnp.int32)
        batch = simulate_batch(simulator, jnp.asarray(classes[rows]), pose, key, index)
        yield np.asarray(batch)[: number - first]


def simulate(
    maps: Float[Array, "c z y x"] | np.ndarray,
    classes: np.ndarray,
    poses: Pose,
    apix: float,
    geometry: TiltSeries,
    key: PRNGKeyArray,
    *,
    premultiply: bool = False,
    batch_size: int = 16,
) -> np.ndarray:
    """All particles at once, float32 ``[N, n, n, n]``: prepare, then simulate_batches.

    Args:
        maps: solvent at 0.
        classes: int ``[N]``, which map each particle shows.
        poses: particle to reference, voxels.
        apix: angstrom per voxel.
        geometry: tilts, contrast transfer and noise.
        key: of the noise.
        premultiply: multiply particles by their contrast transfer.
        batch_size: particles at a time.
    """
    reach = float(np.linalg.norm(np.asarray(poses.shift), axis=-1).max(initial=0.0))
    simulator = prepare(maps, apix, geometry, max_shift_vox=reach, premultiply=premultiply)
    return np.concatenate(list(simulate_batches(simulator, classes, poses, key, batch_size)))


def projections(
    volume: Float[Array, "z y x"] | np.ndarray, pose: Pose, geometry: TiltSeries
) -> Float[Array, "a y u"]:
    """Projected density of one particle at every tilt (sum over voxels along the beam).

    Args:
        volume: map ``[n, n, n]``; the particle is ``V(x) = map(R x + t)``.
        pose: one pose, particle to reference.
        geometry: only its tilt angles are used: no CTF, no noise.
    """
    box = volume.shape[-1]
    image = _image_size(box, float(np.linalg.norm(np.asarray(pose.shift))))
    ky, ku = _image_grid(image)
    rows = np.arange(box) - box // 2
    y = jnp.asarray(np.exp(2j * np.pi / image * ky[:, :1] * rows) / image, jnp.complex64)
    u = jnp.asarray(_synthesis_u(image, rows, sharpen=False), jnp.float32)
    points = jnp.asarray(_points(image, box, geometry), jnp.float32)
    inside = jnp.asarray(np.hypot(ky, ku) <= image / 2, jnp.float32)
    return _density_images(jnp.asarray(volume, jnp.float32), pose, points, inside, y, u)


@eqx.filter_jit
def _density_images(volume: Array, pose: Pose, points: Array, inside: Array, y: Array, u: Array):
    box = volume.shape[-1]
    table = resample.slice_table(volume, box / 2, _SLICE_ORDER)
    real, imag = _slices(table, points, box, pose.rotation, pose.shift)
    spectra = lax.complex(real * inside[None], imag * inside[None])
    return _synthesise(spectra, y, u).transpose(0, 2, 1)


# ---------------------------------------------------------------- simple route, poses, phantom


def white_wedge_particles(
    maps: Float[Array, "c z y x"],
    classes: Int[Array, " n"],
    poses: Pose,
    geometry: TiltSeries,
    key: PRNGKeyArray,
) -> Volumes:
    """Benchmark particles: rotated map plus white noise in the box, times the binary wedge.

    Here ``geometry.snr`` is the variance of the maps over the box divided by that of the noise,
    both before the wedge; only the tilt range and ``snr`` of the geometry are used.

    Args:
        maps: solvent at 0.
        classes: which map each particle shows.
        poses: particle to reference, voxels.
        geometry: tilt range and ``snr``.
        key: of the noise.
    """
    variance = maps.var(axis=(1, 2, 3)).mean()
    sigma = jnp.zeros_like(variance) if geometry.snr is None else jnp.sqrt(variance / geometry.snr)
    region = jnp.asarray(half_region(maps.shape[-1], geometry))
    return _white_particles(maps, classes, poses, sigma, region, key)


@eqx.filter_jit
def _white_particles(
    maps: Array, classes: Array, poses: Pose, sigma: Array, region: Array, key: PRNGKeyArray
) -> Volumes:
    def one(arguments):
        index, class_index, pose = arguments
        signal = resample.transform(maps[class_index], rotation.invert(pose))
        noise = jax.random.normal(jax.random.fold_in(key, index), signal.shape, jnp.float32)
        return _filter(signal + sigma * noise, region)

    return lax.map(one, (jnp.arange(classes.shape[0]), classes, poses))


def random_poses(key: PRNGKeyArray, n: int, max_shift_vox: float) -> Pose:
    """Uniform rotations; shifts uniform in the ball of radius ``max_shift_vox``.

    Pose ``i`` depends on (key, i) alone.

    Args:
        key: of the draws.
        n: how many.
        max_shift_vox: voxels.
    """
    return _random_poses(key, jnp.arange(n), jnp.asarray(max_shift_vox, jnp.float32))


@eqx.filter_jit
def _random_poses(key: PRNGKeyArray, indices: Int[Array, " n"], reach: Float[Array, ""]) -> Pose:
    def one(index):
        turn_key, way_key, length_key = jax.random.split(jax.random.fold_in(key, index), 3)
        way = jax.random.normal(way_key, (3,), jnp.float32)
        length = reach * jnp.cbrt(jax.random.uniform(length_key, (), jnp.float32))
        return Pose(rotation.random(turn_key, 1)[0], way * length / jnp.linalg.norm(way))

    return jax.vmap(one)(indices)
