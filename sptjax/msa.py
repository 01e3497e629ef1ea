"""Classes of posed particles by PCA and k-means, and the files that hold them.

EMAN2's ``e2spt_refinemsa``, with components that respect missing wedges (:mod:`sptjax.pca`).
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np

from . import classify, fourier, io, masks, pca, plots, rotation
from ._errors import InputError
from ._messages import warning
from ._types import Volume
from .averaging import Assigned, Averaging, average_classes
from .io._atomic import atomic_path
from .particles import Sampling, Stack
from .processors import Processor
from .state import RefineState
from .symmetry import Symmetry

Progress = Callable[[Iterable, str], Iterable]
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, eq=False)
class MsaSettings:
    """What ``--ncls``, ``--nbasis`` and the preprocessing of coarse copies resolve to."""

    classes: int = 2
    components: int = 3
    seed: int = 0
    mask: Volume | None = None  # in which particles may differ; None: around their average
    lowpass: Processor | None = None  # frequencies beyond half of its gain are left out

    def check(self, count: int) -> None:
        """Refuse what cannot be made of so many particles.

        Raises:
            InputError: fewer than two classes or more than particles; no component or not fewer
                than particles.
        """
        if not 2 <= self.classes <= count:
            raise InputError(f"--ncls={self.classes}: from 2 to all {count} particles are possible")
        if not 1 <= self.components < count:
            raise InputError(f"--nbasis={self.components}: from 1 to {count - 1} are possible")


@dataclasses.dataclass(frozen=True)
class Posed:
    """Some particles of a stack and their poses, particle to reference."""

    indices: np.ndarray  # [m]
    rotation: np.ndarray  # [m, 3, 3]
    shift: np.ndarray  # [m, 3], voxels


@dataclasses.dataclass(frozen=True)
class Sorted:
    """Result of :func:`sort`."""

    posed: Posed
    components: pca.Components
    classes: np.ndarray  # [m], the largest class first
    maps: np.ndarray  # [1 + q, n, n, n], mean and eigenvolumes
    averages: np.ndarray  # [classes, n, n, n]


def members(state: RefineState, group: int) -> Posed:
    """Particles of a class of a refinement, those of odd gold-standard halves moved onto even.

    Args:
        state: after a round.
        group: index of the class.
    """
    rows = np.flatnonzero(state.classes == group)
    pose = rotation.pose_from_matrix34(state.odd_to_even[group])
    turn, shift = (x[rows] for x in state.pose)
    odd = rows % 2 == 1
    moved = shift @ np.asarray(pose.rotation).T + np.asarray(pose.shift)
    return Posed(
        rows,
        np.where(odd[:, None, None], np.asarray(pose.rotation) @ turn, turn).astype(np.float32),
        np.where(odd[:, None], moved, shift).astype(np.float32),
    )


def sort(
    posed: Posed,
    stack: Stack,
    sampling: Sampling,
    symmetry: Symmetry,
    averaging: Averaging,
    apix: float,
    settings: MsaSettings,
    *,
    progress: Progress = lambda items, _: items,
) -> Sorted:
    """Components, coordinates and classes of posed particles.

    Args:
        posed: which particles, and how they lie.
        stack: raw particles.
        sampling: of them.
        symmetry: of the class averages.
        averaging: of the classes.
        apix: voxel size, angstrom.
        settings: how many, where, how fine.
        progress: wraps iterations over batches.

    Raises:
        InputError: as :meth:`MsaSettings.check`.
    """
    count, box = len(posed.indices), stack.box
    settings.check(count)
    kmax = min(classify.widest_band(count, box), passed(settings.lowpass, box, apix))
    band = classify.align_band(
        stack, sampling, posed.indices, posed.rotation, posed.shift, kmax, progress=progress
    )
    vectors = fourier.half_ball(kmax)
    mask = _molecule(band, vectors, box) if settings.mask is None else settings.mask
    found = pca.fit(
        band,
        settings.components,
        key=jax.random.key(settings.seed),
        space=None if mask is None else pca.MaskedSpace(mask, kmax),
    )
    classes = pca.kmeans(found.coordinates, settings.classes, seed=settings.seed)
    assert band.scale is not None, "aligned bands know it"
    shown = np.concatenate([found.mean[None], found.basis]) / np.asarray(band.scale)
    weight = np.ones(count, np.float32)
    averages = average_classes(
        stack,
        sampling,
        Assigned(posed.indices, posed.rotation, posed.shift, classes, weight),
        (symmetry,) * settings.classes,
        averaging,
        apix,
        progress=progress,
    )
    maps = fourier.from_ball(jnp.asarray(shown, jnp.complex64), jnp.asarray(vectors), box)
    return Sorted(posed, found, classes, np.asarray(maps), np.asarray(averages.merged()))


def passed(lowpass: Processor | None, box: int, apix: float) -> int:
    """Last shell that a filter passes with at least half of its largest gain.

    Args:
        lowpass: the filter; None passes up to ``n / 2 - 2``.
        box: edge n, voxels.
        apix: angstrom per voxel.
    """
    if lowpass is None:
        return box // 2 - 2
    point = jnp.zeros((box,) * 3).at[(box // 2,) * 3].set(1.0)
    gain = fourier.shell_mean(jnp.abs(fourier.rfftn(lowpass(point, apix))), box)
    shells = np.flatnonzero(np.asarray(gain) >= 0.5 * float(gain.max()))
    return int(np.clip(shells.max(), 3, box // 2 - 2))


def _molecule(band: classify.AlignedBand, vectors: np.ndarray, box: int) -> Volume | None:
    """A mask around the average of the particles; None where nothing stands out of it."""
    mean = np.asarray(band.data.sum(0)) / (np.asarray(band.weight.sum(0)) + 1)
    whole = fourier.from_ball(jnp.asarray(mean)[None], jnp.asarray(vectors), box)[0]
    try:
        return masks.automask(whole)
    except InputError:
        return None


def write(
    found: Sorted,
    count: int,
    folder: pathlib.Path,
    apix: float,
    *,
    prefix: str = "",
    pictures: bool = True,
) -> None:
    """Basis, coordinates, class matrix, averages and pictures.

    ``msa_basis.hdf`` (image 0 the mean, then eigenvolumes with headers ``eigval`` and
    ``explvarfrac``), ``msa_projection.txt`` (index and coordinates), ``classmx_msa.hdf``,
    ``class_avgs_msa.hdf``, ``msa_scatter.png``, ``class_avgs_msa.png``.

    Args:
        found: what to write.
        count: particles in the whole stack, for the class matrix.
        folder: where to.
        apix: voxel size, angstrom.
        prefix: of every name.
        pictures: draw them.
    """
    parts, rows = found.components, found.posed.indices
    values = zip(parts.variance, parts.share)
    headers = [{}, *({"eigval": float(v), "explvarfrac": float(s)} for v, s in values)]
    io.write_hdf(folder / f"{prefix}msa_basis.hdf", list(found.maps), apix, headers)
    lines = [
        f"{i}\t" + "\t".join(f"{value:.6f}" for value in row)
        for i, row in zip(rows, parts.coordinates)
    ]
    with atomic_path(folder / f"{prefix}msa_projection.txt") as temporary:
        temporary.write_text("\n".join(lines) + "\n")
    io.write_classmx(folder / f"{prefix}classmx_msa.hdf", _matrix(found, count))
    sizes = np.bincount(found.classes, minlength=len(found.averages))
    heads = [
        {"ptcl_repr": int(size), "class_ptcl_idxs": rows[found.classes == c].tolist()}
        for c, size in enumerate(sizes)
    ]
    io.write_hdf(folder / f"{prefix}class_avgs_msa.hdf", list(found.averages), apix, heads)
    if pictures:
        names = [f"class {c} ({size})" for c, size in enumerate(sizes)]
        slices = plots.central_slices(found.averages, apix, names)
        plots.save(slices, folder / f"{prefix}class_avgs_msa.png")
        scatter = plots.coordinates(parts.coordinates, found.classes, names)
        plots.save(scatter, folder / f"{prefix}msa_scatter.png")


def _matrix(found: Sorted, count: int) -> io.ClassMatrix:
    """All particles of the stack; those that were not sorted are in no class."""
    rows = found.posed.indices
    classes = np.full(count, -1)
    weights, shifts = np.zeros(count, np.float32), np.zeros((count, 3), np.float32)
    angles = np.zeros((count, 3), np.float32)
    classes[rows], weights[rows], shifts[rows] = found.classes, 1, found.posed.shift
    turns = jnp.asarray(found.posed.rotation)
    angles[rows] = np.asarray(rotation.to_euler(turns, rotation.Convention["EMAN"]))
    return io.ClassMatrix(
        n_classes=len(found.averages),
        classes=classes,
        weights=weights,
        scores=np.zeros(count, np.float32),
        euler_deg=angles,
        shifts_vox=shifts,
    )


def write_split(
    state: RefineState,
    stack: Stack,
    sampling: Sampling,
    symmetries: tuple[Symmetry, ...],
    averaging: Averaging,
    settings: MsaSettings,
    folder: pathlib.Path,
    apix: float,
    say: Say,
    *,
    pictures: bool = True,
    progress: Progress = lambda items, _: items,
) -> None:
    """Every class of a refinement sorted further; files of class ``c`` begin with ``class<c>_``.

    Where there is one class the names have no prefix. A class of too few particles is said and
    left out.

    Args:
        state: after the last round.
        stack: raw particles.
        sampling: of the particles.
        symmetries: one per class.
        averaging: how averages are made.
        settings: how to sort.
        folder: where files go.
        apix: angstrom per voxel.
        say: prints one line.
        pictures: draw as well.
        progress: wraps the iteration over batches.
    """
    several = len(state.maps) > 1
    for c, symmetry in enumerate(symmetries):
        posed = members(state, c)
        if len(posed.indices) <= max(settings.components, settings.classes):
            count = len(posed.indices)
            say(warning(f"--ncls, --nbasis: class {c} has {count} particles, too few to sort"))
            continue
        found = sort(posed, stack, sampling, symmetry, averaging, apix, settings, progress=progress)
        prefix = f"class{c}_" if several else ""
        write(found, len(stack), folder, apix, prefix=prefix, pictures=pictures)
        sizes = ", ".join(map(str, np.bincount(found.classes)))
        share = 100 * found.components.share.sum()
        where = f"class {c}" if several else "all particles"
        say(f"PCA of {where}: {share:.1f} % of the variance, classes of {sizes}")
