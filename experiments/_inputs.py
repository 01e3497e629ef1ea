"""What the flags name on disk: particles, references, masks, sampling, classes, poses."""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import _help
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from sptjax import io, resolution, soft_wedge, tables, wedge
from sptjax._errors import InputError
from sptjax._messages import about, warning
from sptjax.align import Found
from sptjax.particles import Sampling
from sptjax.phantom import fit_map

Say = Callable[[str], None]
_MOST_FOR_WEDGE = 400  # particles read to find the wedge


@_help.group("input")
def define_particles() -> None:
    """Define the flags that every program on particles has."""
    f = flags
    f.DEFINE_string("input", None, "stack of particles (.hdf, .mrc, .em, .lst), cubic, even box")
    f.DEFINE_integer("subset", 0, "use only the first N particles; 0 = all", lower_bound=0)
    f.DEFINE_float("apix", 0.0, "angstrom per voxel of particles and references; 0 = their headers")
    f.DEFINE_string(
        "wedge",
        "auto",
        "what particles have seen of Fourier space: auto, fit (soft edges), none, MIN,MAX[,AXIS] in"
        " degrees, or a file of weights",
    )
    f.DEFINE_bool(
        "premultiplied",
        False,
        "particles are multiplied by the CTF; --wedge names their sums of CTF squared",
    )


@dataclasses.dataclass(frozen=True)
class Particles:
    """The particles of a run: some volumes of a file, and their voxel size."""

    whole: io.Stack  # everything in the file
    rows: np.ndarray  # of the file that are used
    apix: float  # angstrom

    @functools.cached_property
    def stack(self) -> io.Stack:
        """The volumes that are used."""
        return self.whole.select(self.rows)

    def select(self, rows: np.ndarray) -> "Particles":
        """Some of them."""
        return dataclasses.replace(self, rows=self.rows[rows])


def open_particles(path: str | None, apix: float, subset: int) -> Particles:
    """All volumes of a stack, or the first ``subset``."""
    if not path:
        raise InputError("--input: a stack of particles is needed")
    stack = io.open_stack(path)
    if apix < 0:
        raise InputError(f"--apix={apix:g}: the voxel size must be positive")
    size = apix or (stack.apix or 0.0)
    if not size > 0:
        raise InputError(f"--input: {path} has no voxel size in its header, give --apix")
    if subset and not 2 <= subset <= len(stack):
        raise InputError(f"--subset={subset}: from 2 to all {len(stack)} particles can be used")
    return Particles(stack, np.arange(subset or len(stack)), float(size))


def load_references(names: str, particles: Particles, own_apix: float, say: Say) -> np.ndarray:
    """Reference maps in the box and voxel size of the particles, ``[k, n, n, n]``.

    Args:
        names: comma-separated files.
        particles: whose box and voxel size they get.
        own_apix: ``--apix`` as given, which then holds for the references too; 0 = headers.
        say: prints what was done to a map.
    """
    box, apix, maps = particles.stack.box, particles.apix, []
    for name in names.split(","):
        volume, header_apix, _ = io.read_volume(name.strip())
        size = own_apix or header_apix
        if not size or not size > 0:
            raise InputError(f"--ref: {name} has no voxel size in its header, give --apix")
        if not np.isfinite(volume).all() or np.ptp(volume) == 0:
            raise InputError(f"--ref: {name} is constant or not finite")
        if len(set(volume.shape)) != 1:
            raise InputError(f"--ref: {name} is not cubic, its shape is {volume.shape}")
        old = volume.shape[0]
        if old != box or abs(size / apix - 1) > 0.01:
            volume = fit_map(volume, size, box, apix)
            say(f"--ref: {name} resampled from {old} voxels of {size:.4g} A to {box} of {apix:.4g}")
        maps.append(_solvent_at_zero(volume))
    return np.stack(maps).astype(np.float32)


def _solvent_at_zero(volume: np.ndarray) -> np.ndarray:
    border = np.concatenate([np.take(volume, [0, -1], axis=a).ravel() for a in range(3)])
    return volume - np.median(border)


def randomised(maps: np.ndarray, resolution_a: float, apix: float, seed: int) -> np.ndarray:
    """Every map with random phases of its own beyond a resolution."""
    box = maps.shape[-1]
    shell = box * apix / resolution_a
    if shell >= box / 2:
        raise InputError(f"--refrandphase={resolution_a:g}: finer than Nyquist ({2 * apix:g} A)")
    key = jax.random.key(seed)
    return np.stack(
        [
            np.asarray(
                resolution.phase_randomise(jax.random.fold_in(key, i), jnp.asarray(v), shell)
            )
            for i, v in enumerate(maps)
        ]
    )


def find_sampling(text: str, premultiplied: bool, particles: Particles, say: Say) -> Sampling:
    """What ``--wedge`` and ``--premultiplied`` say about the particles."""
    stack, box = particles.stack, particles.stack.box
    path = pathlib.Path(text)
    if path.suffix and not re.fullmatch(r"[-+.\d,xyz]+", text):
        weights = io.open_stack(text)
        if weights.box != box:
            raise InputError(f"--wedge: {text} has box {weights.box}, the particles {box}")
        if len(weights) == 1:
            return Sampling(np.maximum(weights.read(np.array([0]))[0], 0), None, premultiplied)
        if len(weights) != len(particles.whole):
            raise InputError(
                f"--wedge: {text} has {len(weights)} grids for {len(particles.whole)} particles"
            )
        return Sampling(None, weights.select(particles.rows), premultiplied)
    if premultiplied:
        raise InputError("--premultiplied: --wedge must name the file of sums of CTF squared")
    return _one_for_all(text, stack, say)


def _one_for_all(text: str, stack: io.Stack, say: Say) -> Sampling:
    """One grid for all particles: found in their power, or stated."""
    nothing = warning("no missing wedge found, all of Fourier space counts as sampled")
    whole = Sampling(np.ones((stack.box,) * 3, np.float32))
    if text == "fit":
        fitted = soft_wedge.fit_wedge(_mean_power(stack))
        say(about("--wedge=fit", nothing if fitted is None else fitted.describe()))
        if fitted is None:
            return whole
        return Sampling(soft_wedge.region(stack.box, fitted.wedge), None, fitted.fades)
    found = wedge.estimate(_mean_power(stack)).wedge if text == "auto" else wedge.parse(text)
    if text == "auto":
        say(about("--wedge=auto", nothing if found is None else found.describe()))
    return whole if found is None else Sampling(wedge.region(stack.box, found))


def _mean_power(stack: io.Stack) -> np.ndarray:
    """Of particles spread over the stack, centred."""
    rows = np.unique(np.linspace(0, len(stack) - 1, min(_MOST_FOR_WEDGE, len(stack))).astype(int))
    total = wedge.accumulate_power(None, stack.read(rows[:32]))
    for first in range(32, len(rows), 32):
        total = wedge.accumulate_power(total, stack.read(rows[first : first + 32]))
    return wedge.to_centred(total, stack.box)


def read_classes(values: Mapping[str, Any], particles: Particles) -> io.ClassMatrix:
    """``--classmx``: classes, and poses if it has any, of the particles used; no class empty."""
    path, count = values["classmx"], len(particles.whole)
    matrix = io.read_classmx(path)
    if len(matrix.classes) != count:
        raise InputError(f"--classmx: {path} has {len(matrix.classes)} rows, {count} particles")
    matrix = dataclasses.replace(
        matrix,
        **{
            field.name: getattr(matrix, field.name)[particles.rows]
            for field in dataclasses.fields(matrix)
            if isinstance(getattr(matrix, field.name), np.ndarray)
        },
    )
    sizes = np.bincount(matrix.classes[matrix.classes >= 0], minlength=matrix.n_classes)
    if (sizes == 0).any():
        raise InputError(f"--classmx: class {int(sizes.argmin())} of {path} is empty")
    return matrix


def posed(matrix: io.ClassMatrix) -> bool:
    """Whether a class matrix holds poses."""
    return matrix.euler_deg is not None and matrix.shifts_vox is not None


def read_mask(path: str, box: int, apix: float, flag: str = "--maskfile") -> np.ndarray:
    """A mask: a volume of weights, cut or padded about its centre to a box.

    Args:
        path: the file.
        box: of the raw particles.
        apix: their voxel size, angstrom; the mask must have it too, if it states one.
        flag: that names it.
    """
    volume, size, _ = io.read_volume(path)
    if size and abs(size / apix - 1) > 0.01:
        raise InputError(f"{flag}: {path} has voxels of {size:.4g} A, the particles {apix:.4g}")
    if not np.isfinite(volume).all() or volume.min() < 0 or not volume.max() > 0:
        raise InputError(f"{flag}: {path} must hold values of zero and more, not all zero")
    out = np.zeros((box,) * 3, np.float32)
    into, source = [], []
    for edge in volume.shape:
        low = box // 2 - edge // 2
        into.append(slice(max(low, 0), min(low + edge, box)))
        source.append(slice(max(-low, 0), max(-low, 0) + into[-1].stop - into[-1].start))
    out[tuple(into)] = volume[tuple(source)]
    return out


def read_poses(path: str, particles: Particles, n_classes: int) -> Found:
    """``--inixforms``: one rigid transform per particle, particle to reference."""
    matrices, count = read_table(path, particles).matrices(), len(particles.rows)
    turn = np.repeat(matrices[:, None, :, :3], n_classes, 1).astype(np.float32)
    shift = np.repeat(matrices[:, None, :, 3], n_classes, 1).astype(np.float32)
    return Found(turn, shift, np.zeros((count, n_classes), np.float32))


def read_table(path: str, particles: Particles) -> tables.ParticleTable:
    """``--inixforms``: the particles used, from a table of any program, in their voxels.

    Rows go with the particles of the stack in order.
    """
    needed = int(particles.rows.max()) + 1
    try:
        table = tables.read(path)
        if len(table) < needed:
            raise InputError(
                f"{path}: the pose of particle {len(table)} is missing ({needed} are needed)"
            )
    except InputError as error:
        raise InputError(f"--inixforms: {error}") from error
    return table.select(particles.rows).at(particles.apix)


def describe(particles: Particles, path: str | None) -> tables.ParticleTable:
    """What is known of the particles before a run: images, voxel size, places in tomograms.

    Args:
        particles: those that are used.
        path: ``--inixforms``, whose other columns are kept.
    """
    stack, count = particles.stack, len(particles.rows)
    if path:
        table = read_table(path, particles)
    else:
        turn = np.repeat(np.eye(3)[None], count, 0)
        table = tables.ParticleTable(turn, np.zeros((count, 3))).at(particles.apix)
    if table.image is None:
        places = [stack.name(i).rpartition(" image ") for i in range(count)]
        image = tables.names([file for file, _, _ in places])
        index = np.array([int(number) for _, _, number in places])
        table = dataclasses.replace(table, image=image, image_index=index)
    items = ("ptcl_source_coord", "ptcl_source_image")
    if table.coordinate is not None or not set(items) <= set(stack.header(0)):
        return table
    headers = [stack.header(i) for i in range(count)]
    if not all(set(items) <= set(header) for header in headers):
        return table
    sizes = [header.get("ptcl_source_apix") for header in headers]
    return dataclasses.replace(
        table,
        coordinate=np.array([header[items[0]] for header in headers], float).reshape(-1, 3),
        tomogram=tables.names([header[items[1]] for header in headers]),
        coordinate_apix=None if None in sizes else np.array(sizes, float),
    )


def tomogram_x(stack: io.Stack) -> np.ndarray:
    """Position x of every particle in its tomogram, voxels (header ``ptcl_source_coord``)."""
    found, missing = np.zeros(len(stack)), []
    for i in range(len(stack)):
        value = stack.header(i).get("ptcl_source_coord")
        if value is None or len(np.atleast_1d(value)) < 1:
            missing.append(i)
        else:
            found[i] = float(np.atleast_1d(value)[0])
    if missing:
        named = ", ".join(map(str, missing[:10])) + (" ..." if len(missing) > 10 else "")
        raise InputError(
            f"--weighbytiltaxis: the header item ptcl_source_coord is missing in particles {named}"
        )
    return found
