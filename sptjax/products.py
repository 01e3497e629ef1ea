"""What a run can write besides its averages: processed maps, variance maps, prepared copies."""

import dataclasses
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np

from . import average, averagers, io
from ._chunk import padded_batches
from ._messages import warning
from ._types import Pose, Volume
from .averaging import Averaging, aligned_volumes
from .bootstrap import Batch, bootstrap
from .copies import Copies, Copy
from .msa import MsaSettings
from .outputs import OutputSettings, class_headers, pad, tag
from .particles import Sampling, Stack
from .preprocess import prepare_stack
from .processors import PROCESSORS, Processor
from .state import RefineState

Progress = Callable[[Iterable, str], Iterable]
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Extras:
    """Which of them are wanted."""

    postprocess: Processor | None = None
    normalise: Processor | None = None  # before it, inside the sphere of its mask
    variance: bool = False
    bootstrap: int = 0  # replicates
    prepared: bool = False  # copies of particles and references
    msa: MsaSettings | None = None  # sort the particles of every class further, by PCA


def postprocessed(
    volume: Volume, apix: float, processor: Processor, normalise: Processor | None
) -> Volume:
    """A map normalised in a sphere, masked by it, and processed (EMAN2 ``--postprocess``).

    Args:
        volume: ``[n, n, n]``.
        apix: angstrom per voxel.
        processor: applied last.
        normalise: applied first, if any.
    """
    mask = PROCESSORS["mask.sharp"](outer_radius=-2)(jnp.ones_like(volume), apix)
    if normalise is not None:
        volume = normalise(volume, apix, mask=mask)
    return processor(volume * mask, apix)


def write_postprocessed(
    state: RefineState, extras: Extras, output: OutputSettings, *, every_round: bool
) -> None:
    """Processed maps next to the unprocessed ones; they never serve as references.

    Args:
        state: with its averages.
        extras: holds the processor.
        output: where files go.
        every_round: put the round into the name.
    """
    processor = extras.postprocess
    if processor is None:
        return
    suffix = f"_iter{tag(state, output)}" if every_round else ""

    def write(name: str, maps: np.ndarray) -> None:
        done = [
            np.asarray(postprocessed(jnp.asarray(v), output.apix, processor, extras.normalise))
            for v in maps
        ]
        io.write_hdf(output.folder / f"{name}_postproc{suffix}.hdf", done, output.apix)

    stem = output.average_name.removesuffix(".hdf")
    write(stem, state.maps)
    if output.program == "classaverage":
        write(f"{stem}_even", state.halves[:, 0])
        write(f"{stem}_odd", state.halves[:, 1])


def write_variance(
    state: RefineState,
    stack: Stack,
    averaging: Averaging,
    output: OutputSettings,
    *,
    batch: int = 16,
    progress: Progress = lambda items, _: items,
) -> None:
    """Voxel variance over the aligned particles of every class, ``class<c>_varmap.hdf``.

    Args:
        state: poses and classes.
        stack: raw particles.
        averaging: what is done to particles before.
        output: where files go.
        batch: particles at a time.
        progress: wraps the iteration over batches.
    """
    averager, n_classes = averagers.Mean(), len(state.maps)
    moments = averager.start(stack.box, n_classes)
    rows = np.flatnonzero(state.used)
    turn, shift = state.pose
    for here, real in progress(list(padded_batches(rows, batch)), "variance maps"):
        pose = Pose(jnp.asarray(turn[here]), jnp.asarray(shift[here]))
        volumes = jnp.asarray(stack.read(here))
        volumes = aligned_volumes(volumes, pose, averaging.before, output.apix)
        group = np.where(np.arange(len(here)) < real, state.classes[here], -1)
        weight = jnp.asarray(state.weight[here])
        moments = averager.add(moments, volumes, jnp.asarray(group), weight)
    maps = np.asarray(averagers.variance(moments))
    for c, header in enumerate(class_headers(state)):
        path = output.folder / f"class{c}_varmap.hdf"
        io.write_hdf(path, [maps[c]], output.apix, [header])


def write_bootstrap(
    state: RefineState,
    stack: Stack,
    sampling: Sampling,
    replicates: int,
    seed: int,
    output: OutputSettings,
    say: Say,
    *,
    batch: int = 16,
) -> None:
    """Mean and variance over averages of resampled particles, with the poses as they are.

    Args:
        state: poses and classes.
        stack: raw particles.
        sampling: of the particles.
        replicates: how often particles are drawn.
        seed: of the draws.
        output: where files go.
        say: prints one line.
        batch: particles at a time.
    """
    turn, shift = state.pose
    for c in range(len(state.maps)):
        members = (state.classes == c) & state.used
        if members.sum() < 3:
            count = members.sum()
            say(warning(f"--resample: class {c} has {count} particles, at least 3 are needed"))
            continue
        rows = np.flatnonzero(members)

        def batches(rows=rows) -> Iterable[Batch]:
            for here, real in padded_batches(rows, batch):
                grids = jnp.asarray(sampling.grids(here))
                volumes = jnp.asarray(stack.read(here))
                if not sampling.premultiplied:
                    volumes = average.apply_sampling(volumes, grids)
                index = np.where(np.arange(batch) < real, here, -1)
                pose = Pose(jnp.asarray(turn[here]), jnp.asarray(shift[here]))
                yield Batch(index, volumes, grids, pose)

        key = jax.random.fold_in(jax.random.key(seed), c)
        spread = bootstrap(key, members, batches, stack.box, replicates, weights=state.weight)
        for name, volume in (("bootmean", spread.mean), ("bootvar", spread.variance)):
            path = output.folder / f"class{c}_{name}.hdf"
            io.write_hdf(path, [np.asarray(volume)], output.apix)


def write_prepared(
    stack: Stack, name: str, copies: Copies, apix: float, output: OutputSettings
) -> None:
    """The particles as the coarse and, if it differs, the fine alignment sees them.

    Args:
        stack: raw particles.
        name: of the input, from which those of the files follow.
        copies: how they are prepared.
        apix: angstrom per voxel of the raw particles.
        output: where files go.
    """
    _write_copy(stack, copies.coarse, apix, output, f"{name}_preproc.hdf")
    if copies.fine is not None and copies.fine is not copies.coarse:
        _write_copy(stack, copies.fine, apix, output, f"{name}_preprocfine.hdf")


def _write_copy(stack: Stack, copy: Copy, apix: float, output: OutputSettings, name: str) -> None:
    prepared = prepare_stack(stack, copy.pipeline, apix)
    with io.HdfWriter(output.folder / name, apix * copy.scale) as writer:
        for here, real in padded_batches(np.arange(len(stack)), 16):
            for i, volume in zip(here[:real], prepared.read(here)[:real]):
                writer.append(np.asarray(volume), {"spt_indx_original": output.original(int(i))})


def write_prepared_references(
    references: np.ndarray, copies: Copies, apix: float, output: OutputSettings
) -> None:
    """References preprocessed like the particles, ``ref<r>_preproc[fine].hdf``.

    Args:
        references: ``[r, n, n, n]``.
        copies: how they are prepared.
        apix: angstrom per voxel.
        output: where files go.
    """
    for copy, name in ((copies.coarse, "preproc"), (copies.fine, "preprocfine")):
        if copy is None or (name == "preprocfine" and copy is copies.coarse):
            continue
        maps = copy.pipeline(jnp.asarray(references), apix)
        for r, volume in enumerate(maps):
            path = output.folder / f"ref{pad(r, len(maps))}_{name}.hdf"
            io.write_hdf(path, [np.asarray(volume)], apix * copy.scale)
