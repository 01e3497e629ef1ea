"""Copies for the alignment: order of the steps, what moves, what is sampled, what is refused."""

import itertools
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from sptjax import options, phantom, wedge
from sptjax._errors import InputError
from sptjax._types import Status
from sptjax.particles import Sampling, load_particles
from sptjax.preprocess import (
    Pipeline,
    PreparedStack,
    automask_reference,
    match_spectra,
    mean_power,
    prepare_stack,
    prepared_sampling,
)
from sptjax.processors import PROCESSORS, Processor, radial_power

BOX = 24
APIX = 5.0


def step(text) -> Any:
    return options.bind(options.parse(text), PROCESSORS, "--test")


class Memory:
    """A stack in memory that records what is read."""

    def __init__(self, volumes):
        self.volumes = np.asarray(volumes, np.float32)
        self.reads = []

    @property
    def box(self):
        return self.volumes.shape[-1]

    def __len__(self):
        return len(self.volumes)

    def name(self, index):
        return f"memory image {index}"

    def read(self, indices):
        self.reads.append(list(indices))
        return self.volumes[indices]


# ------------------------------------------------------------------------- NumPy definitions


def radius(box):
    return np.sqrt(sum(a**2 for a in np.indices((box,) * 3) - box // 2))


def cut(volume, box):
    """Same centre voxel, zeros outside."""
    n = len(volume)
    result = np.zeros((box,) * 3)
    r = np.arange(-min(n, box) // 2, min(n, box) - min(n, box) // 2)
    result[np.ix_(r + box // 2, r + box // 2, r + box // 2)] = volume[
        np.ix_(r + n // 2, r + n // 2, r + n // 2)
    ]
    return result


def centred_fft(volume):
    return np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(volume)))


def shrunk(volume, box):
    """Even boxes: the Nyquist planes are left out."""
    full = centred_fft(volume)
    n = len(volume)
    spectrum = np.zeros((box,) * 3, complex)
    r = np.arange(1 - box // 2, box // 2)
    spectrum[np.ix_(r + box // 2, r + box // 2, r + box // 2)] = full[
        np.ix_(r + n // 2, r + n // 2, r + n // 2)
    ]
    return np.fft.fftshift(np.fft.ifftn(np.fft.ifftshift(spectrum))).real * (box / n) ** 3


def gauss(volume, cutoff_freq, apix, high):
    n = len(volume)
    gain = np.exp(-((radius(n) / (n * apix) / cutoff_freq) ** 2))
    spectrum = centred_fft(volume) * (1 - gain if high else gain)
    return np.fft.fftshift(np.fft.ifftn(np.fft.ifftshift(spectrum))).real


def image(box):
    """M of the tests: a sphere times a volume that is not symmetric, 0 in a corner."""
    inside = radius(box) < box / 2 - 1
    return inside * cut(MASK_VOLUME, box)


MASK_VOLUME = np.maximum(1 + 0.5 * np.sin(np.indices((BOX + 3,) * 3)[2] / 4), 0)
MASK_VOLUME[:14] = 0


def normalise(v, apix):
    inside = image(len(v)) != 0
    return (v - v[inside].mean()) / v[inside].std(), apix


def multiply(v, apix):
    return v * image(len(v)), apix


def threshold(v, apix):
    return np.where(v < 0.3, 0, v), apix


def lowpass(v, apix):
    return gauss(v, 0.05, apix, high=False), apix


def highpass(v, apix):  # any processor will do; a filter would commute with the low-pass
    return v**2, apix


def preprocess(v, apix):
    return gauss(v, 0.01, apix, high=True), apix


def clip(v, apix):
    v = cut(v, 28)
    beyond = np.maximum(radius(28) - (28 / 2 - 3), 0)
    return v * np.exp(-((beyond / 4) ** 2)), apix


def shrink(v, apix):
    small = 2 * int(len(v) / 2 / 2 + 0.5)
    return shrunk(v, small), apix * len(v) / small


ORDER = [normalise, multiply, threshold, lowpass, highpass, preprocess, clip, shrink]


def in_order(volume, steps):
    volume, apix = np.asarray(volume, np.float64), APIX
    for one in steps:
        volume, apix = one(volume, apix)
    return volume, apix


WHOLE = Pipeline(
    mask=step("mask.sharp:outer_radius=-2"),
    mask_volume=MASK_VOLUME,
    normalise=step("normalize.mask"),
    threshold=step("threshold.belowtozero:minval=0.3"),
    lowpass=step("filter.lowpass.gauss:cutoff_freq=0.05"),
    highpass=step("math.squared"),
    preprocess=step("filter.highpass.gauss:cutoff_freq=0.01"),
    clip=28,
    shrink=2,
)


@pytest.fixture
def noisy(rng):
    return (rng.normal(size=(3, BOX, BOX, BOX)) + 3 * phantom.phantom(BOX) + 1).astype(np.float32)


# ------------------------------------------------------------------------- the order


def test_the_steps_come_in_their_order_and_no_other(noisy):
    copies = np.asarray(WHOLE(noisy, APIX))
    assert WHOLE.output(BOX, APIX) == (14, 10.0)
    size = np.abs(copies).max()
    for volume, copy in zip(noisy, copies):
        wanted, apix = in_order(volume, ORDER)
        assert apix == 10.0
        np.testing.assert_allclose(copy, wanted, rtol=0, atol=3e-5 * size)
    for i, j in itertools.combinations(range(len(ORDER)), 2):
        other = list(ORDER)
        other[i], other[j] = ORDER[j], ORDER[i]
        wanted, _ = in_order(noisy[0], other)
        worst = np.abs(wanted - copies[0]).max() if wanted.shape == copies[0].shape else size
        assert worst > 3e-3 * size, f"{ORDER[i].__name__} and {ORDER[j].__name__} can be swapped"


def test_the_mask_reaches_normalize_mask_and_multiplies(noisy):
    pipeline = Pipeline(mask=step("mask.sharp:outer_radius=6"), normalise=step("normalize.mask"))
    copies = np.asarray(pipeline(noisy, APIX))
    inside = radius(BOX) < 6
    for volume, copy in zip(noisy.astype(np.float64), copies):
        wanted = (volume - volume[inside].mean()) / volume[inside].std() * inside
        np.testing.assert_allclose(copy, wanted, atol=1e-4)
    whole = np.asarray(Pipeline(normalise=step("normalize.mask"))(noisy, APIX))
    np.testing.assert_allclose(whole.mean((1, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(whole.std((1, 2, 3)), 1, atol=1e-5)


def test_references_may_only_be_resized(noisy):
    resized = np.asarray(WHOLE.resize_only()(noisy, APIX))
    masked = np.asarray(WHOLE.resize_only(mask_volume=MASK_VOLUME)(noisy, APIX))
    for volume, one, other in zip(noisy, resized, masked):
        wanted, _ = in_order(volume, [clip, shrink])
        np.testing.assert_allclose(one, wanted, atol=2e-5)
        wanted, _ = in_order(volume * cut(MASK_VOLUME, BOX), [clip, shrink])
        np.testing.assert_allclose(other, wanted, atol=2e-5)


class HostRank(Processor):
    """Ranks of the voxels, by SciPy."""

    host: ClassVar[bool] = True

    def __call__(self, volume, apix, *, mask=None):
        ranks = np.argsort(np.argsort(np.asarray(volume).ravel())).reshape(volume.shape)
        return jnp.asarray(ranks, jnp.float32)


def test_processors_of_the_host_run_outside_jit(noisy):
    pipeline = Pipeline(threshold=HostRank(), shrink=2)
    copies = np.asarray(prepare_stack(Memory(noisy), pipeline, APIX).read(np.arange(3)))
    for volume, copy in zip(noisy, copies):
        ranks = np.argsort(np.argsort(volume.ravel())).reshape(volume.shape)
        np.testing.assert_allclose(copy, shrunk(ranks, 12), rtol=0, atol=0.05)


# ------------------------------------------------------------------------- boxes and poses


@pytest.mark.parametrize(
    ("box", "clip", "shrink", "small"),
    [
        (24, 0, 0, 24),
        (24, 0, 1, 24),
        (24, 0, 2, 12),
        (26, 0, 2, 14),  # 13 is as near to 12 as to 14
        (64, 0, 3, 22),  # 21.3
        (64, 0, 4, 16),
        (50, 0, 3, 16),  # 16.7
        (64, 48, 0, 48),
        (64, 47, 2, 24),
        (24, 40, 3, 14),  # 13.3
    ],
)
def test_boxes_are_even_and_voxels_follow(box, clip, shrink, small):
    pipeline = Pipeline(clip=clip, shrink=shrink)
    raw = pipeline.clip or box
    assert pipeline.clip % 2 == 0
    assert pipeline.clip - clip == clip % 2
    assert pipeline.output(box, 3.5) == (small, pytest.approx(3.5 * raw / small))
    assert pipeline.scale(box) == pytest.approx(raw / small)


def phase_shift(a, b):
    """Voxels (x, y, z) by which ``b`` is moved against ``a``: slope of the phases at low ``k``."""
    cross = centred_fft(b) * np.conj(centred_fft(a))
    n = len(a)
    k = np.stack(np.meshgrid(*[np.arange(n) - n // 2] * 3, indexing="ij"), -1)
    low = (np.linalg.norm(k, axis=-1) <= 3) & (np.linalg.norm(k, axis=-1) > 0)
    weight = np.abs(cross[low])
    slope, *_ = np.linalg.lstsq(
        k[low] * weight[:, None], -np.angle(cross[low]) * weight * n / (2 * np.pi), rcond=None
    )
    return slope[::-1]


@pytest.mark.parametrize(("clip", "shrink"), [(0, 2), (24, 0), (22, 2), (34, 2)])
def test_shifts_of_copies_are_shifts_of_particles_over_the_scale(clip, shrink):
    box, moved = 26, np.array([1.3, -0.6, 0.8])  # x, y, z
    grid = np.stack(np.meshgrid(*[np.arange(box) - box // 2.0] * 3, indexing="ij"), -1)[..., ::-1]
    centres = np.array([[0, 0, 0], [3, 1, 0], [-1, 2, -3]])
    blob, other = (
        sum(np.exp(-((grid - c - t) ** 2).sum(-1) / 4) for c in centres) for t in (0, moved)
    )
    pipeline = Pipeline(clip=clip, shrink=shrink)
    a, b = np.asarray(pipeline(np.stack([blob, other]).astype(np.float32), APIX), np.float64)
    found = phase_shift(a, b)
    np.testing.assert_allclose(found * pipeline.scale(box), moved, atol=0.03)


@pytest.mark.parametrize("shrink", [0, 2])
@pytest.mark.parametrize("clip", [24, 30])
def test_the_centre_voxel_stays_and_the_density_too(clip, shrink):
    box = 26
    delta = np.zeros((1, box, box, box), np.float32)
    delta[0, box // 2, box // 2, box // 2] = 1
    copy = np.asarray(Pipeline(clip=clip, shrink=shrink)(delta, APIX))[0]
    small = len(copy)
    assert np.unravel_index(copy.argmax(), copy.shape) == (small // 2,) * 3
    flat = np.asarray(Pipeline(shrink=shrink)(np.ones_like(delta), APIX))
    np.testing.assert_allclose(flat, 1, atol=1e-5)


# ------------------------------------------------------------------------- stacks


def test_a_pipeline_that_does_nothing_is_left_out(noisy):
    raw = Memory(noisy)
    assert Pipeline(shrink=1).trivial
    assert prepare_stack(raw, Pipeline(shrink=1), APIX) is raw
    changes = [
        {"clip": BOX},
        {"shrink": 2},
        {"mask_volume": np.ones((BOX,) * 3)},
        {"mask_volume": 2 * np.ones((BOX,) * 3)},
        {"mask": step("mask.sharp:outer_radius=5")},
        {"normalise": step("normalize")},
        {"threshold": step("normalize")},
        {"lowpass": step("normalize")},
        {"highpass": step("normalize")},
        {"preprocess": step("normalize")},
    ]
    for change in changes:
        assert not Pipeline(**change).trivial
    assert len({Pipeline(**change) for change in changes + changes}) == len(changes)


def test_copies_are_made_when_they_are_read(noisy):
    raw = Memory(noisy)
    stack = prepare_stack(raw, WHOLE, APIX)
    assert isinstance(stack, PreparedStack)
    assert raw.reads == []
    assert (stack.box, len(stack), stack.apix) == (14, 3, 10.0)
    assert stack.name(2) == "memory image 2"
    some = stack.read(np.array([2, 0]))
    assert raw.reads == [[2, 0]]
    np.testing.assert_allclose(some, np.asarray(WHOLE(noisy[[2, 0]], APIX)), atol=1e-4)
    assert some.dtype == np.float32
    assert stack.read(np.array([], int)).shape == (0, 14, 14, 14)


def test_long_reads_are_cut_into_batches(rng):
    volumes = rng.normal(size=(37, 12, 12, 12)).astype(np.float32)
    raw = Memory(volumes)
    stack = prepare_stack(raw, Pipeline(threshold=step("math.squared")), APIX)
    order = rng.permutation(37)
    np.testing.assert_allclose(stack.read(order), volumes[order] ** 2, rtol=1e-6)
    assert {len(indices) for indices in raw.reads} == {32}


def test_what_is_wrong_with_a_particle_shows_in_its_copy(noisy):
    volumes = np.concatenate([noisy, noisy[:1]])
    volumes[1] = 7.0  # the mask alone would look like a particle
    volumes[2, 12, 12, 12] = np.nan  # a threshold would hide it
    pipeline = Pipeline(
        mask=step("mask.sharp:outer_radius=9"), threshold=step("threshold.binary:value=1"), shrink=2
    )
    stack = prepare_stack(Memory(volumes), pipeline, APIX)
    grid = np.ones((BOX,) * 3, np.float32)
    particles = load_particles(stack, prepared_sampling(Sampling(grid), pipeline, BOX), 5)
    assert particles.status.tolist() == [Status.OK, Status.CONSTANT, Status.NONFINITE, Status.OK]
    assert particles.box == 12
    assert np.array_equal(*particles.read(np.array([0, 3]))[0])
    assert np.isfinite(particles.read(np.arange(len(particles)))[0]).all()


# ------------------------------------------------------------------------- sampling


TILTS = wedge.Wedge(-60, 50)
INNER = (slice(1, None),) * 3


def test_shrunk_sampling_is_the_wedge_of_the_small_box():
    whole = wedge.region(32, TILTS)
    small = prepared_sampling(Sampling(whole, premultiplied=True), Pipeline(shrink=2), 32)
    assert small.premultiplied
    assert small.shared is not None
    np.testing.assert_array_equal(small.shared[INNER], wedge.region(16, TILTS)[INNER])
    planes = np.ones((16,) * 3, bool)
    planes[INNER] = False
    assert not small.shared[planes].any()


@pytest.mark.parametrize(
    ("clip", "shrink", "small"), [(20, 0, 20), (48, 0, 48), (40, 0, 40), (24, 2, 12)]
)
def test_clipped_sampling_is_the_wedge_but_for_its_border(clip, shrink, small):
    pipeline = Pipeline(clip=clip, shrink=shrink)
    found = prepared_sampling(Sampling(wedge.region(32, TILTS)), pipeline, 32).shared
    assert found is not None
    assert found.shape == (small,) * 3
    wanted = wedge.region(small, TILTS)
    # a frequency further than one raw Fourier voxel from the border is certain
    reach = 2 * int(np.ceil(clip / 32)) + 1
    low = ndimage.minimum_filter(wanted, reach, mode="wrap")
    high = ndimage.maximum_filter(wanted, reach, mode="wrap")
    certain = (low == high)[INNER]
    assert certain.mean() > 0.4
    np.testing.assert_allclose(found[INNER][certain], wanted[INNER][certain], atol=1e-6)
    assert np.abs(found - wanted)[INNER].mean() < 0.08
    assert found.min() >= 0
    assert found.max() < 1 + 1e-6
    inner = found[INNER]
    np.testing.assert_allclose(inner, inner[::-1, ::-1, ::-1], atol=1e-6)  # Friedel


def test_clipped_sampling_is_linear_between_frequencies():
    ramp = np.broadcast_to(np.abs(np.arange(-16, 16.0)), (32,) * 3).astype(np.float32)
    found = prepared_sampling(Sampling(ramp), Pipeline(clip=20), 32).shared
    assert found is not None
    wanted = np.broadcast_to(np.abs(np.arange(-10, 10.0)) * 1.6, (20,) * 3)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_sampling_of_each_particle_is_read_lazily(rng):
    grids = Memory(rng.normal(1, 1, (5, 16, 16, 16)))
    pipeline = Pipeline(clip=20)
    found = prepared_sampling(Sampling(None, grids, True), pipeline, 16)
    assert found.premultiplied
    assert grids.reads == []
    assert found.stack is not None
    assert (found.stack.box, len(found.stack)) == (20, 5)
    got = found.grids(np.array([3, 1]))
    assert grids.reads == [[3, 1]]
    for index, grid in zip((3, 1), got):
        shared = Sampling(np.maximum(grids.volumes[index], 0))
        one = prepared_sampling(shared, pipeline, 16).shared
        assert one is not None
        np.testing.assert_allclose(grid, one, atol=1e-5)
    same = Sampling(None, grids)
    assert prepared_sampling(same, Pipeline(normalise=step("normalize")), 16) is same


# ------------------------------------------------------------------------- references


def test_references_take_the_power_of_the_particles(noisy):
    bad = np.concatenate([np.full_like(noisy, 2.0), noisy, noisy])
    bad[3:6, 0, 0, 0] = np.inf
    power = np.asarray(mean_power(Memory(bad), np.arange(9), batch=4))
    wanted = np.mean([np.asarray(radial_power(jnp.asarray(v))) for v in noisy], 0)
    np.testing.assert_allclose(power, wanted, rtol=1e-4)
    references = np.stack([phantom.phantom(BOX), phantom.phantom(BOX, 1)])
    matched = np.asarray(match_spectra(jnp.asarray(references), jnp.asarray(power)))
    for before, after in zip(references, matched):
        reached = np.asarray(radial_power(jnp.asarray(after)))
        np.testing.assert_allclose(reached[1 : BOX // 2], power[1 : BOX // 2], rtol=0.03)
        low = radius(BOX) <= 5
        phases = np.angle(centred_fft(after)[low] * np.conj(centred_fft(before)[low]))
        np.testing.assert_allclose(phases, 0, atol=0.02)


def test_matching_leaves_the_solvent_level():
    """Particles have mean 0; that of a reference whose solvent is 0 must not follow."""
    reference = phantom.phantom(BOX)
    power = np.asarray(radial_power(jnp.asarray(3 * reference))).copy()
    power[0] = 0
    matched = np.asarray(match_spectra(jnp.asarray(reference)[None], jnp.asarray(power)))[0]
    np.testing.assert_allclose(matched, 3 * reference, atol=0.01 * 3 * reference.max())


def test_automask_holds_the_molecule(rng):
    box = 32
    clean = phantom.phantom(box)
    far = np.zeros_like(clean)
    far[2:5, 2:5, 2:5] = 0.35  # dust, apart from the molecule and dimmer
    noisy = clean + far + 0.02 * rng.normal(size=clean.shape).astype(np.float32)
    mask = np.asarray(automask_reference(jnp.asarray(noisy), 10.0))
    assert mask[clean > 0.1].min() > 0.9
    assert mask[2:5, 2:5, 2:5].max() < 0.2
    assert 0.1 < (mask > 0.5).mean() < 0.6
    # by definition: flood, grow by (g - 2) + g // 2 layers, smooth
    gain = np.exp(-((radius(box) / (box * 10.0) * 40) ** 2))
    smooth = np.fft.fftshift(np.fft.ifftn(np.fft.ifftshift(centred_fft(noisy) * gain))).real
    dense = smooth > smooth.mean() + 0.2 * smooth.std(ddof=1)
    core = np.pad(np.ones((box - 2,) * 3, bool), 1)
    labels = np.zeros(dense.shape, np.int32)
    ndimage.label(dense & core, output=labels)
    brightest = np.argsort(smooth.ravel())[-10:]
    kept = np.isin(labels, np.setdiff1d(np.unique(labels.ravel()[brightest]), 0))
    grown = ndimage.binary_dilation(kept, iterations=3 + 2, mask=core | kept)
    edge = np.exp(-((radius(box) / box * 5) ** 2))
    wanted = np.fft.fftshift(np.fft.ifftn(np.fft.ifftshift(centred_fft(grown) * edge))).real
    np.testing.assert_allclose(mask, np.where(wanted < 0.002, 0, wanted), atol=3e-3)


# ------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clip": -1}, "clip"),
        ({"shrink": -2}, "shrink"),
        ({"mask_volume": np.zeros((8, 8, 8))}, "zero everywhere"),
        ({"mask_volume": np.linspace(-0.1, 1, 512).reshape(8, 8, 8)}, "negative"),
        ({"mask_volume": np.full((8, 8, 8), np.nan)}, "NaN"),
        ({"preprocess": step("xform.centerofmass")}, "preprocess"),
    ],
)
def test_pipelines_that_cannot_work_are_not_made(arguments, message):
    with pytest.raises(InputError, match=message):
        Pipeline(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clip": 10}, "box of 10"),
        ({"shrink": 3}, "box of 8"),
        ({"clip": 20, "shrink": 2}, "box of 10"),
        ({"preprocess": step("math.meanshrink:n=2")}, "preprocess"),
        ({"mask": step("mask.sharp:inner_radius=100")}, "mask is zero"),
        ({"mask_volume": np.pad(np.zeros((BOX,) * 3), 4, constant_values=1)}, "mask is zero"),
        ({"normalise": step("normalize.circlemean:radius=40")}, "outside a box"),
    ],
)
def test_copies_that_cannot_be_made_are_refused_before_reading(noisy, arguments, message):
    raw = Memory(noisy)
    with pytest.raises(InputError, match=message):
        prepare_stack(raw, Pipeline(**arguments), APIX)
    assert raw.reads == []


def test_foreign_boxes_are_refused(noisy):
    grid = np.ones((20,) * 3, np.float32)
    with pytest.raises(InputError, match="box of 20"):
        prepared_sampling(Sampling(grid), Pipeline(shrink=2), BOX)
    with pytest.raises(InputError, match="box of 24"):
        prepared_sampling(Sampling(None, Memory(noisy)), Pipeline(shrink=2), 32)
    with pytest.raises(InputError, match="usable"):
        mean_power(Memory(np.zeros((2, 12, 12, 12))), np.arange(2))
    with pytest.raises(InputError, match="none of 0"):
        mean_power(Memory(noisy), np.arange(0))
