"""Masks, voxel values, resampling and centring: EMAN2's answers, and plain NumPy."""

import json
import pathlib
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from sptjax import options
from sptjax._errors import InputError
from sptjax.io import write_mrc
from sptjax.processors import (
    PROCESSORS,
    Centring,
    _auto_mask,
    _centre,
    _fourier_mask,
    _geometry,
    _local,
    _mask,
    _shrink,
    _threshold,
    _values,
)

REGISTRY = {
    name: made
    for module in (
        *(_mask, _auto_mask, _fourier_mask, _threshold, _values),
        *(_local, _shrink, _geometry, _centre),
    )
    for name, made in module.REGISTRY.items()
}
GOLDEN = pathlib.Path(__file__).parent / "golden"


def bound(text) -> Any:
    return options.bind(options.parse(text), REGISTRY, "--test")


@eqx.filter_jit
def jitted(processor, volume, apix):
    return processor(volume, apix)


@eqx.filter_jit
def jitted_shift(processor, volume):
    return processor.shift(volume, 1.0)


def run(processor, volume, apix=1.0):
    return np.asarray(jitted(processor, jnp.asarray(volume, jnp.float32), apix))


def shift_of(processor, volume):
    return np.asarray(jitted_shift(processor, jnp.asarray(volume, jnp.float32)))


def close(a, b, relative):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape
    np.testing.assert_allclose(a, b, rtol=0, atol=relative * np.nanmax(np.abs(b)), equal_nan=True)


# ------------------------------------------------------------------------- EMAN2's answers

ABSENT = {
    "math.ceil": "EMAN2 has no such name",
    "xform.transpose": "EMAN2 takes it for images only",
}
DIFFERS = {
    "math.rotationalaverage": "fix: EMAN2 averages the squares",
    "math.laplacian": "fix: EMAN2 computes something else",
}
# Where only a part can be compared: the part of the result and of EMAN2's.
PARTLY = {
    "math.fft.resample": "the Nyquist planes, of which EMAN2 keeps one half",
    "filter.bilateral": "the z edges, which EMAN2 pads with zeros",
    "xform.applysym": "the corners, where rounding decides whether EMAN2 sees the volume",
}


def below_nyquist(volume):
    n = len(volume)
    spectrum = np.fft.fftn(np.asarray(volume, np.float64))
    return spectrum[np.ix_(*[np.arange(n) != n // 2] * 3)] / n**3


def part(name, volume):
    if name == "math.fft.resample":
        return below_nyquist(volume).view(np.float64)
    if name == "filter.bilateral":
        return volume[2:-2]
    return volume[distance(volume.shape) <= 11]


def golden_rows():
    rows = json.loads((GOLDEN / "processors.json").read_text())
    families = ("mask", "threshold", "math", "xform")
    return [r for r in rows if r["name"].split(".")[0] in families or r["name"] in REGISTRY]


ROWS = golden_rows()


def from_row(row):
    keys = dict(row["params"])
    if row["name"] == "xform":
        keys = {k: keys["transform"][k] for k in ("az", "alt", "phi", "tx", "ty", "tz")}
    if row["name"] == "xform.translate.int":
        keys["trans"] = ",".join(map(str, keys["trans"]))
    if row["name"] == "math.fft.resample":
        keys["compat"] = True
    return REGISTRY[row["name"]](**keys)


@pytest.fixture(scope="module")
def answers():
    return dict(np.load(GOLDEN / "processors.npz"))


@pytest.mark.parametrize("row", ROWS, ids=lambda r: f"{r['key']}-{r['name']}")
def test_eman2(row, answers):
    name, key = row["name"], row["key"]
    if name in ABSENT:
        assert name not in PROCESSORS
        assert key is None
        return
    processor = from_row(row)
    result = run(processor, answers["vol"], 4.0)
    assert processor.output_box(24) == row["shape"][0] == result.shape[0]
    assert processor.output_apix(4.0, 24) == pytest.approx(row["apix"])
    relative = 1e-4 if name in ("xform", "xform.applysym") else 1e-5
    if name in DIFFERS:
        error = np.abs(result - answers[key]).max() / np.abs(answers[key]).max()
        assert error > 0.1
    elif name in PARTLY:
        close(part(name, result), part(name, answers[key]), relative)
    else:
        close(result, answers[key], relative)


# Mean, sigma, least, largest, and the value at x=5, y=6, z=7, as measured with EMAN2.
MEASURED = {
    "math.localsigma": (0.186129, 0.081188, 0.019704, 0.297236, 0.233398),
    "math.localmax": (0.283751, 0.634049, -0.906166, 1.148941, -0.018374),
    "xform.applysym:sym=icos": (-0.113572, 0.233834, -0.916164, 0.221728, -0.614029),
    "xform.scale:scale=1.5:clip=16": (-0.405332, 0.504248, -0.971179, 1.079728, -0.764825),
}


@pytest.mark.parametrize("text", MEASURED)
def test_measured_numbers(text):
    z, y, x = np.indices((16, 16, 16))
    result = run(bound(text), np.sin(0.1 * (x + 2 * y + 3 * z)) + 0.01 * x, 2.5).astype(np.float64)
    seen = result.mean(), result.std(ddof=1), result.min(), result.max(), result[7, 6, 5]
    np.testing.assert_allclose(seen, MEASURED[text], atol=2e-5)


# ------------------------------------------------------------------------- plain NumPy

N = 12


def field(seed, n=N):
    """Noise with some correlation, so that thresholds cut out pieces of several sizes."""
    noise = np.random.default_rng(seed).normal(size=(n, n, n))
    return (ndimage.gaussian_filter(noise, 0.7, mode="wrap") * 3).astype(np.float32)


def coordinates(shape, offset=(0, 0, 0)):
    z, y, x = (np.arange(n) - n // 2 for n in shape)
    z, y, x = np.meshgrid(z - offset[2], y - offset[1], x - offset[0], indexing="ij")
    return x.astype(float), y.astype(float), z.astype(float)


def distance(shape, offset=(0, 0, 0)):
    return np.sqrt(sum(c**2 for c in coordinates(shape, offset)))


def mirrored(i, n):
    return -i if i < 0 else 2 * n - 1 - i if i >= n else i


def over_boxes(volume, half, reduce, at_high=mirrored):
    """``reduce(box)`` for every voxel; half-widths x, y, z."""
    result = np.zeros(volume.shape)
    for index in np.ndindex(volume.shape):
        rows = [
            [at_high(i + d, n) for d in range(-h, h + 1)]
            for i, h, n in zip(index, half[::-1], volume.shape)
        ]
        result[index] = reduce(volume[np.ix_(*rows)].astype(np.float64))
    return result


def lowpass(volume, cutoff):
    k = np.fft.fftfreq(volume.shape[0])
    square = k[:, None, None] ** 2 + k[:, None] ** 2 + k**2
    return np.fft.ifftn(np.fft.fftn(volume) * np.exp(-square / cutoff**2)).real


def filtered(volume, keep):
    """Keep the coefficients where ``keep(kx, ky, kz)``, both partners alike."""
    n = len(volume)
    kz, ky, kx = np.meshgrid(*[np.fft.fftfreq(n, 1 / n)] * 3, indexing="ij")
    return np.fft.ifftn(np.where(keep(kx, ky, kz), np.fft.fftn(volume), 0)).real


def tilt_angle(across, kz):
    return np.degrees(np.arctan2(across * np.where(kz < 0, -1, 1), np.abs(kz)))


def between(angle, either_sign, low, high):
    inside = (angle >= low) & (angle <= high)
    return inside | (either_sign & (-angle >= low) & (-angle <= high))


def grown(region, layers):
    inside = np.zeros_like(region)
    inside[1:-1, 1:-1, 1:-1] = True
    for _ in range(layers):
        region = region | (ndimage.binary_dilation(region) & inside)
    return region


def labelled(region):
    labels = np.zeros(region.shape, np.int32)
    ndimage.label(region, output=labels)
    return labels


def connected(seeds, allowed):
    labels = labelled(allowed)
    hit = np.unique(labels[seeds & allowed])
    return np.isin(labels, hit[hit > 0]) | seeds


def shells_finished(region, nshells, gauss):
    made = grown(region, nshells + gauss // 2).astype(float)
    if gauss:
        made = lowpass(made, 1 / gauss)
        made[made < 0.002] = 0
    return made


def sharp(v, outer=None, inner=0.0, offset=(0, 0, 0)):
    d = distance(v.shape, offset)
    return (d >= (np.inf if outer is None else outer)) | (d < inner)


def soft(v, inner, outer, width, value):
    d = distance(v.shape)
    beyond = np.where(d > outer, d - outer, np.where(d < inner, inner - d, 0))
    return value + (v - value) * np.exp(-((beyond / width) ** 2))


def cylinder(v):
    x, y, z = coordinates(v.shape)
    x, z = x + 1, z + N // 2  # cx is 5
    rho, phi = np.hypot(x, y), np.degrees(np.arctan2(y, x))
    away = np.abs((phi - 30 + 180) % 360 - 180)
    sector = np.clip(1 - (away - 50) / 20, 0, 1)
    ends = np.minimum(np.clip((z - 1) / 4, 0, 1), np.clip((11 - z) / 4, 0, 1))
    return v * ((rho > 1) & (rho <= 3)) * sector * ends


def maxshrink(v, n, search, pick=np.max):
    size = N // n
    starts = [[slice(n * i, n * i + search) for i in index] for index in np.ndindex((size,) * 3)]
    return np.array([pick(v[tuple(s)]) for s in starts]).reshape((size,) * 3)


def edge(v, axis):
    result = np.zeros(v.shape)
    for d in np.ndindex(3, 3, 3):
        d = np.array(d) - 1
        weight = -d[axis] * (8 if np.abs(np.delete(d, axis)).sum() == 0 else 1)
        result += weight * np.roll(v, tuple(-d), (0, 1, 2))
    return result


def laplacian(v):
    kernel = ndimage.generate_binary_structure(3, 1).astype(float)
    kernel[1, 1, 1] = -6
    return ndimage.convolve(v.astype(float), kernel, mode="wrap")


def rotational_average(v):
    """By explicit loops over voxels and shells."""
    d = distance(v.shape)
    total, count = np.zeros(30), np.zeros(30)
    for r, value in zip(d.ravel(), v.ravel().astype(float)):
        for shell in (int(r), int(r) + 1):
            share = max(0.0, 1 - abs(r - shell))
            total[shell] += share * value
            count[shell] += share
    mean = total / np.maximum(count, 1e-300)
    return np.interp(d, np.arange(30), mean)


def bilateral(v):
    def once(v):
        def smooth(box):
            z, y, x = np.indices(box.shape) - 1
            near = np.exp(-(x**2 + y**2 + z**2) / (2 * 1.5**2))
            weight = near / (1 + ((box - box[1, 1, 1]) / 0.5) ** 2)
            return (weight * box).sum() / weight.sum()

        return over_boxes(
            v, (1, 1, 1), smooth, lambda i, n: -i if i < 0 else n - 1 - abs(n - 1 - i)
        )

    return once(once(v))


def transformed(v, matrix, shift=(0, 0, 0)):
    """``out(M x + t) = v(x)`` by loops over the result, EMAN2's rule at the edges."""
    n = len(v)
    result = np.zeros(v.shape)
    inverse = np.linalg.inv(matrix)
    for index in np.ndindex(v.shape):
        x = np.array(index[::-1]) - n // 2
        p = np.round((inverse @ (x - np.array(shift)) + n // 2)[::-1], 6)
        if (p < 0).any() or (p >= n).any():
            continue
        low = np.floor(p).astype(int)
        for d in np.ndindex(2, 2, 2):
            share = np.prod(np.where(d, p - low, 1 - (p - low)))
            result[index] += share * v[tuple(np.minimum(low + d, n - 1))]
    return result


def symmetrised(v):
    turns = [Rotation.from_euler("z", -120 * k, degrees=True).as_matrix() for k in range(3)]
    return np.mean([transformed(v, turn) for turn in turns], 0)


def wedge_filled(v):
    spectrum = np.fft.fftn(v.astype(float))
    kz, ky, kx = np.meshgrid(*[np.fft.fftfreq(N, 1 / N)] * 3, indexing="ij")
    radius, amplitude = np.sqrt(kx**2 + ky**2 + kz**2), np.abs(spectrum)
    shell = np.floor(radius).astype(int)
    variance = np.array([np.var(amplitude[shell == s]) for s in range(shell.max() + 1)])[shell]
    angle = np.degrees(np.arctan2(np.abs(kz), np.abs(kx)))
    gone = (amplitude**2 <= 0.7 * variance) | (radius >= N / 2) | (angle >= 60)
    return np.fft.ifftn(np.where(gone & (radius >= 3), 0, spectrum)).real


def outliers(v):
    mean, sigma = v.mean(dtype=float), v.std(ddof=1, dtype=float)
    return np.where((v < mean - 1.5 * sigma) | (v > mean + 1 * sigma), mean, v)


def hysteresis(v):
    grown = connected(v >= 1.6, v >= 0.6)
    return v * shells_finished(grown, 1, 2)


def auto(v):
    inside = np.zeros(v.shape, bool)
    inside[1:-1, 1:-1, 1:-1] = True
    level = v.mean(dtype=float) + 0.2 * v.std(ddof=1, dtype=float)
    seeds = (distance(v.shape) <= 3) & (v >= level) & inside
    return shells_finished(connected(seeds, (v > level) & inside), 1, 0)


def dusted(v):
    labels = labelled(v >= 1.0)
    small = np.bincount(labels.ravel()) <= 6
    return v * lowpass(1 - grown(small[labels] & (labels > 0), 2), 0.25)


def peaks(v):
    return v * over_boxes(v, (2, 1, 1), lambda box: (box >= box[1, 1, 2]).sum() <= 2)


ORACLES = {
    "mask.sharp:outer_radius=-2:dx=1:dz=-2:value=3": lambda v: np.where(
        sharp(v, N // 2 - 1, 0, (1, 0, -2)), 3, v
    ),
    "mask.soft:inner_radius=2:outer_radius=4:width=1.5:value=0.3": lambda v: soft(
        v, 2, 4, 1.5, 0.3
    ),
    "mask.gaussian:outer_radius=3:inner_radius=2:exponent=3": lambda v: (
        v * np.exp(-((np.maximum(distance(v.shape) - 2, 0) / 3) ** 3))
    ),
    "mask.gaussian.nonuniform:radius_x=2:radius_y=3:radius_z=4:gauss_width=0.3:dy=1": lambda v: (
        v
        * np.exp(
            -(
                np.maximum(
                    np.linalg.norm(
                        np.stack(coordinates(v.shape, (0, 1, 0))) / [[[[2]]], [[[3]]], [[[4]]]],
                        axis=0,
                    )
                    - 1,
                    0,
                )
                ** 2
            )
            / 0.09
        )
    ),
    "mask.ringmean:outer_radius=-2": lambda v: np.where(
        sharp(v, 5), v[np.abs(distance(v.shape) - 5) <= 1].mean(), v
    ),
    "mask.cylinder:inner_radius=1:outer_radius=-4:cx=5:zmin=3:zmax=9:ztriangle=2:phicen=30"
    ":phirange=50:phitriangle=1:phitrirange=20": cylinder,
    "mask.zeroedge3d:y0=2:y1=20": np.zeros_like,
    "mask.decayedge2d:width=3": lambda v: (
        v * np.outer(*[np.minimum(np.minimum(np.arange(N), np.arange(N)[::-1]) / 3, 1)] * 2)
    ),
    "mask.auto3d:sigma=0.2:radius=3:nshells=1:return_mask=1": auto,
    "mask.auto3d.thresh:threshold1=1.6:threshold2=0.6:nshells=1:nshellsgauss=2": hysteresis,
    "mask.addshells:nshells=2": lambda v: grown(v > 0, 2),
    "mask.dust3d:threshold=1.0:voxels=6": dusted,
    "mask.onlypeaks:npeaks=2:xsize=2": peaks,
    "mask.fft.wedge": lambda v: filtered(
        v, lambda kx, ky, kz: (np.abs(tilt_angle(ky, kz)) > 30) | (kx**2 + ky**2 + kz**2 < 1)
    ),
    "mask.fft.wedge:axis=y:anglemin=10:anglemax=50:rmin=2.5": lambda v: filtered(
        v,
        lambda kx, ky, kz: (
            ~between(tilt_angle(kx, kz), (np.abs(kx) == 6) | (np.abs(kz) == 6), 10, 50)
            | (kx**2 + ky**2 + kz**2 < 2.5**2)
        ),
    ),
    "mask.fft.cone:angle=40:rmin=2": lambda v: filtered(
        v,
        lambda kx, ky, kz: (
            (np.hypot(kx, ky) > np.tan(np.radians(40)) * np.abs(kz)) | (kx**2 + ky**2 + kz**2 < 4)
        ),
    ),
    "mask.wedgefill:thresh_sigma=0.7:maxtilt=60": wedge_filled,
    "threshold.binary.fourier:value=60": lambda v: (
        np.fft.ifftn(np.where(np.abs(np.fft.fftn(v)) < 60, 0, np.fft.fftn(v))).real
    ),
    "threshold.belowtozero_cut:minval=0.3": lambda v: np.where(v > 0.3, v - 0.3, 0),
    "threshold.binaryrange:low=-0.5:high=0.5": lambda v: np.abs(v) <= 0.5,
    "threshold.rangetozero:minval=-0.5:maxval=0.75": lambda v: np.where(
        (v < -0.5) | (v > 0.75), v, 0
    ),
    "threshold.clampminmax:minval=-0.5:maxval=0.5:tozero=1": lambda v: np.where(
        np.abs(v) > 0.5, 0, v
    ),
    "threshold.clampminmax:minval=-0.5:maxval=0.5:tomean=1": lambda v: np.where(
        np.abs(v) > 0.5, v.mean(), v
    ),
    "math.exp:low=-0.02:high=1": lambda v: np.exp(np.minimum(v.astype(float) / -0.02 - 1, 40)),
    "math.pow:pow=1.5": lambda v: np.maximum(v, 0) ** 1.5,
    "math.pow:pow=-3": lambda v: np.where(v == 0, np.inf, 1 / np.where(v == 0, 1, v) ** 3),
    "math.reciprocal:zero_to=5": lambda v: np.where(v == 0, 5, 1 / np.where(v == 0, 1, v)),
    "math.sigma:value1=1:value2=1.5": outliers,
    "math.submax": lambda v: v - over_boxes(v, (1, 1, 1), np.max),
    "math.localmax:xsize=2:ysize=0": lambda v: over_boxes(v, (2, 0, 1), np.max),
    "math.localminabs": lambda v: over_boxes(v, (1, 1, 1), lambda box: np.abs(box).min()),
    "math.localsigma:radius=2": lambda v: over_boxes(v, (2, 2, 2), np.std),
    "eman1.filter.median:zsize=2": lambda v: over_boxes(v, (1, 1, 2), np.median),
    "math.edge.xgradient": lambda v: edge(v, 2),
    "math.edge.ygradient": lambda v: edge(v, 1),
    "math.edge.zgradient": lambda v: edge(v, 0),
    "math.laplacian": laplacian,
    "math.rotationalaverage": rotational_average,
    "filter.bilateral:distance_sigma=1.5:value_sigma=0.5:niter=2:half_width=1": bilateral,
    "math.maxshrink:n=3:search=4": lambda v: maxshrink(v, 3, 4),
    "math.minshrink:n=5:search=2": lambda v: maxshrink(v, 5, 2, np.min),
    "math.meanshrink:n=5": lambda v: maxshrink(v, 5, 5, np.mean),
    "xform:alt=90:tx=2:tz=-1.5": lambda v: transformed(
        v, Rotation.from_euler("x", -90, degrees=True).as_matrix(), (2, 0, -1.5)
    ),
    "xform.applysym:sym=c3": symmetrised,
}
SLACK = {"math.exp": 3e-4, "math.pow": 1e-5}  # an exponent of 40 loses six bits


@pytest.mark.parametrize("text", ORACLES)
def test_plain_numpy(text):
    """The jitted map over two volumes against the definition, one by one."""
    volumes = np.stack([field(1), field(2)])
    volumes[:, 3, 4, 5] = 0
    processor = bound(text)
    mapped = jax.jit(jax.vmap(lambda v: processor(v, 2.0)))(jnp.asarray(volumes))
    for volume, result in zip(volumes, mapped):
        expected = ORACLES[text](volume)
        assert result.dtype == jnp.float32
        assert result.shape == (processor.output_box(N),) * 3
        finite = np.isfinite(expected)
        np.testing.assert_array_equal(finite, np.isfinite(result))
        name = text.split(":")[0]
        close(np.asarray(result)[finite], expected[finite], SLACK.get(name, 2e-5))


ODD = ["xform.flip:axis=y", "xform.mirror:axis=y", "xform.reverse:axis=y"]


@pytest.mark.parametrize("text", ODD)
def test_reflections_of_odd_boxes_keep_the_centre_and_every_plane(text):
    volume = field(3, 7)
    np.testing.assert_array_equal(run(bound(text), volume), volume[:, ::-1])


def test_origin_of_odd_boxes():
    volume = field(3, 7)
    corner = run(bound("xform.phaseorigin.tocorner"), volume)
    np.testing.assert_array_equal(corner, np.fft.ifftshift(volume))
    np.testing.assert_array_equal(run(bound("xform.phaseorigin.tocenter"), corner), volume)


def test_flood_follows_a_path_longer_than_the_box():
    """A snake through every second plane, with a branch that touches it only at an edge."""
    volume = np.zeros((12, 12, 12), np.float32)
    for k, row in enumerate(range(1, 11, 2)):
        volume[6, row, 1:11] = 1
        volume[6, row + 1, 1 if k % 2 else 10] = 1
    volume[7, 2, 2] = 1  # shares an edge with the snake, not a face
    seed = volume.copy()
    seed[6, 1, 1] = 2
    made = run(_auto_mask.Auto3d(threshold=0.5, nmaxseed=1, return_mask=True), seed)
    np.testing.assert_array_equal(made, np.where(np.arange(12)[:, None, None] == 7, 0, volume))


def test_shells_about_one_voxel():
    """Layers of six-neighbours are the octahedra |x| + |y| + |z|."""
    steps = sum(np.abs(c) for c in coordinates((12, 12, 12)))
    solid = run(bound("mask.addshells:nshells=3"), steps == 0)
    np.testing.assert_array_equal(solid, steps <= 3)
    edge = run(bound("mask.addshells.gauss:val1=1:val2=2"), steps == 0)
    beyond = np.maximum(steps - 1, 0)
    close(edge, np.where(beyond <= 2, np.exp(-((beyond / 2) ** 2)), 0), 1e-6)


def test_wedge_fraction_is_that_of_the_tilt_range():
    """White noise in a cube loses the share tan(30) / 2 to the wedge of +-60 degrees."""
    noise = np.random.default_rng(5).normal(size=(24, 24, 24))
    noise -= noise.mean()
    for axis in "xy":
        kept = run(bound(f"mask.fft.wedge:axis={axis}"), noise)
        assert (kept**2).sum() / (noise**2).sum() == pytest.approx(
            1 - np.tan(np.pi / 6) / 2, abs=0.01
        )


# ------------------------------------------------------------------------- files and noise


def test_a_mask_from_a_file(tmp_path):
    volume, mask = field(1), np.round(np.abs(field(2)))
    path = str(tmp_path / "mask.mrc")
    write_mrc(path, mask, 2.0)
    for key in ("filename", "image"):
        close(run(bound(f"mask.fromfile:{key}={path}"), volume), volume * mask, 1e-6)
    chosen = bound(f"mask.fromfile:filename={path}:maskset=2")
    np.testing.assert_array_equal(run(chosen, volume), volume * (mask == 2))
    mapped = eqx.filter_jit(jax.vmap(lambda v: chosen(v, 2.0)))(jnp.asarray([volume]))
    np.testing.assert_array_equal(mapped[0], volume * (mask == 2))
    with pytest.raises(InputError, match=r"\(12, 12, 12\).*\(8, 8, 8\)"):
        run(chosen, field(1, 8))
    with pytest.raises(InputError, match="either filename or image"):
        bound("mask.fromfile:maskset=1")


def test_wedge_filled_from_another_volume():
    """What is replaced and what is kept add up: filling with itself changes nothing."""
    volume, other = field(1), field(2)
    zeros = run(_fourier_mask.WedgeFill(maxtilt=50.0), volume)
    same = run(_fourier_mask.WedgeFill(fillsource=volume, maxtilt=50.0), volume)
    filled = run(_fourier_mask.WedgeFill(fillsource=other, maxtilt=50.0), volume)
    close(same, volume, 1e-5)
    assert np.abs(zeros - volume).max() > 0.1
    spectra = [np.fft.rfftn(v) for v in (zeros, volume, other, filled)]
    replaced = np.abs(spectra[0] - spectra[1]) > 1e-3
    expected = np.where(replaced, spectra[2], spectra[1])
    np.testing.assert_allclose(spectra[3], expected, atol=2e-3)


def test_noise_has_its_mean_and_spread_and_follows_the_seed():
    volume = field(1, 24)
    sigma = volume.std(ddof=1)
    for text, scale in (("math.addnoise:noise=0.8", 1), ("math.addsignoise:noise=0.8", sigma)):
        added = run(bound(text), volume) - volume
        assert added.mean() == pytest.approx(0.8 * scale, rel=0.03)
        assert added.std() == pytest.approx(0.4 * scale, rel=0.03)
        np.testing.assert_array_equal(added, run(bound(text), volume) - volume)
        assert np.abs(run(bound(text + ":seed=1"), volume) - volume - added).max() > 0.1


def test_noise_outside_a_mask():
    volume = field(1, 24)
    result = run(bound("mask.noise:outer_radius=8:seed=3"), volume)
    outside = sharp(volume, 8)
    np.testing.assert_array_equal(result[~outside], volume[~outside])
    assert result[outside].mean() == pytest.approx(volume.mean(), abs=0.05)
    assert result[outside].std() == pytest.approx(volume.std(), rel=0.05)
    assert np.abs(result - run(bound("mask.noise:outer_radius=8"), volume)).max() > 0.1


def test_finite():
    volume = field(1)
    volume[0, 0, :3] = np.nan, np.inf, -np.inf
    expected = volume.copy()
    expected[0, 0, :3] = 2
    np.testing.assert_array_equal(run(bound("math.finite:to=2"), volume), expected)


def test_a_constant_volume_has_no_slope_and_is_its_own_average():
    constant = np.full((9, 9, 9), -2.0)
    close(run(bound("math.rotationalaverage"), constant), constant, 1e-6)
    for text in ("math.laplacian", "math.edge.xgradient"):
        assert np.abs(run(bound(text), constant)).max() < 1e-6


# ------------------------------------------------------------------------- resampling


@pytest.mark.parametrize(("box", "n"), [(12, 1.5), (12, 0.75), (13, 1.5), (16, 3.2)])
def test_fourier_resample_samples_the_same_function(box, n):
    """A band-limited function about the centre voxel, at the old and the new sampling."""

    def wave(size):
        x, y, z = (c / size for c in coordinates((size,) * 3))
        return 1.5 + np.cos(2 * np.pi * (x - z) + 0.3) + np.sin(2 * np.pi * (x + y) + 1)

    processor = bound(f"math.fft.resample:n={n}")
    new = processor.output_box(box)
    assert new == int(np.floor(box / n + 0.5))
    close(run(processor, wave(box)), wave(new), 1e-5)
    assert processor.output_apix(2.0, box) * new == pytest.approx(2.0 * box)


# ------------------------------------------------------------------------- centring


def blob(centre, n=24, width=2.0):
    """A Gaussian at ``centre`` (x, y, z) from the centre voxel."""
    return np.exp(-(distance((n,) * 3, centre) ** 2) / (2 * width**2))


CENTRINGS = ["xform.centerofmass", "xform.centeracf", "xform.phasecenterofmass"]


@pytest.mark.parametrize("text", CENTRINGS)
@pytest.mark.parametrize("centre", [(3, -2, 1), (-3, 0, 2)])
def test_centring_brings_a_blob_to_the_centre(text, centre):
    volume = jnp.asarray(blob(centre), jnp.float32)
    processor = bound(text)
    assert isinstance(processor, Centring)
    np.testing.assert_array_equal(shift_of(processor, volume), -np.array(centre))
    moved = np.roll(np.asarray(volume), tuple(-c for c in centre[::-1]), (0, 1, 2))
    for axis, c in zip((2, 1, 0), centre):  # zeros come in, nothing wraps
        rows = np.arange(24)
        keep = (rows + c >= 0) & (rows + c < 24)
        moved = moved * keep.reshape([24 if a == axis else 1 for a in range(3)])
    np.testing.assert_array_equal(run(processor, volume), moved)


@pytest.mark.parametrize("name", ["xform.centerofmass", "xform.phasecenterofmass"])
def test_centring_by_parts_of_a_voxel(name):
    volume = jnp.asarray(blob((2.3, -1.6, 0.4)), jnp.float32)
    processor = bound(f"{name}:int_shift_only=0")
    np.testing.assert_allclose(shift_of(processor, volume), (-2.3, 1.6, -0.4), atol=2e-3)
    again = shift_of(processor, run(processor, volume))
    np.testing.assert_allclose(again, np.zeros(3), atol=2e-3)


def test_mass_is_weighted_and_thresholded():
    volume = np.zeros((16, 16, 16))
    volume[8, 8, 12], volume[8, 8, 4] = 3, 1
    seen = {
        text: shift_of(bound(f"xform.centerofmass{text}"), volume)[0]
        for text in (":int_shift_only=0", ":powercenter=1:int_shift_only=0", ":threshold=2")
    }
    np.testing.assert_allclose(list(seen.values()), (-2, -3.2, -4), atol=1e-6)


@pytest.mark.parametrize("name", ["xform.centerofmass", "xform.centeracf"])
def test_a_constant_volume_stays(name):
    flat = jnp.full((12, 12, 12), 0.0, jnp.float32)
    shift = shift_of(bound(name), flat)
    assert np.isfinite(shift).all()
    if name == "xform.centerofmass":
        np.testing.assert_array_equal(shift, np.zeros(3))


def test_a_blob_across_the_border_has_a_periodic_centre():
    volume = np.roll(blob((0, 0, 0)), (0, 0, 11), (0, 1, 2))  # half of it beyond the box in x
    shift = shift_of(bound("xform.phasecenterofmass"), volume)
    np.testing.assert_array_equal(shift, (-11, 0, 0))


# ------------------------------------------------------------------------- contracts

SMOOTH = [
    "mask.soft:outer_radius=3",
    "mask.ringmean:outer_radius=3",
    "mask.fft.wedge",
    "math.exp:low=2",
    "math.sqrt",
    "math.laplacian",
    "math.localsigma",
    "math.rotationalaverage",
    "math.meanshrink:n=2",
    "math.fft.resample:n=1.5",
    "xform:az=20:alt=30:tx=0.4",
]


@pytest.mark.parametrize("text", SMOOTH)
def test_gradients(text):
    """Reverse-mode derivative along a direction against a central difference in the volume."""
    processor = bound(text)
    rng = np.random.default_rng(11)
    volume = jnp.asarray(np.abs(field(4)) + 0.5)
    direction = jnp.asarray(rng.normal(size=(N, N, N)), jnp.float32)
    weight = jnp.asarray(rng.normal(size=(processor.output_box(N),) * 3), jnp.float32)

    @jax.jit
    def value_and_gradient(v):
        return jax.value_and_grad(lambda u: (processor(u, 1.0) * weight).sum())(v)

    slope = float((value_and_gradient(volume)[1] * direction).sum())
    step = 2e-2
    ahead, behind = (float(value_and_gradient(volume + s * step * direction)[0]) for s in (1, -1))
    assert slope == pytest.approx((ahead - behind) / (2 * step), rel=1e-2, abs=1e-2)


def test_every_processor_is_compared_with_something():
    eman2 = {r["name"] for r in ROWS} - set(DIFFERS) - set(PARTLY)
    numpy = {text.split(":")[0] for text in ORACLES}
    here = {
        *("math.addnoise", "math.addsignoise", "mask.noise", "math.finite", "mask.fromfile"),
        *("math.fft.resample", "xform.phasecenterofmass", "mask.addshells.gauss"),
    }
    assert set(REGISTRY) <= eman2 | numpy | here
    assert set(REGISTRY) <= set(PROCESSORS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mask.sharp", "outer_radius"),
        ("mask.sharp:outer_radius=big", "a number"),
        ("mask.shap:outer_radius=3", "did you mean 'mask.sharp'"),
        ("mask.soft:outer_radius=4:width=0", "width must be positive"),
        ("mask.auto3d:threshold=1", "radius or nmaxseed"),
        ("mask.auto3d:radius=3", "either threshold or sigma"),
        ("mask.auto3d:threshold=1:radius=3:nshells=-1", "nshells"),
        ("mask.zeroedge3d:x0=-1", "must not be negative"),
        ("mask.fft.wedge:axis=z", "axis must be x or y"),
        ("mask.fft.wedge:anglemin=40", "anglemin < anglemax"),
        ("threshold.clampminmax:minval=2", "above maxval"),
        ("threshold.clampminmax:tomean=1:tozero=1", "exclude"),
        ("math.linear:scale=2", "needs 'shift'"),
        ("math.meanshrink:n=1", "at least 2"),
        ("math.meanshrink:n=1.5", "whole number"),
        ("math.fft.resample:n=0", "positive"),
        ("math.localmax:radius=-1", "must not be negative"),
        ("filter.bilateral:niter=0", "niter >= 1"),
        ("xform.flip:axis=w", "x, y or z"),
        ("xform.applysym:sym=q3", "not known"),
        ("xform.applysym:averager=median", "averager must be mean"),
        ("xform.translate.int:trans=1,2", "three whole numbers"),
        ("xform.scale:scale=0", "positive"),
    ],
)
def test_bad_parameters_are_named(text, message):
    with pytest.raises(InputError, match=message):
        bound(text)
