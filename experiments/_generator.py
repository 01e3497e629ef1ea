"""What ``binarytree``, ``hac`` and ``symsearch3d`` share: flags, start, files of poses."""

import dataclasses
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import _generate
import _help
import _inputs
import _job
import _report
import _resolve
import equinox as eqx
import jax.numpy as jnp
import numpy as np
from absl import flags

from sptjax import console, generate, io, plots, resample, tables
from sptjax._errors import InputError
from sptjax._types import Pose, Volume
from sptjax.symmetry import Symmetry, copies

Values = Mapping[str, Any]

# What the shared resolving asks for and these programs have no flags for.
_ABSENT = {
    "maskfile": None, "shrinkfine": 0, "lowpassfine": "", "highpassfine": "", "preprocessfine": "",
    "procfinelikecoarse": False, "tweak": False, "automask": False, "preavgproc1": "",
    "preavgproc2": "", "breaksym": False, "resume": False, "iter": 1,
}  # fmt: skip


def define(path: str) -> None:
    """Define the shared flags.

    Args:
        path: default stem of the run folder.
    """
    f = flags
    with _help.group("input"):
        _inputs.define_particles()
        f.DEFINE_string(
            "inixforms", None, "table of poses known beforehand, composed into the result"
        )
    with _help.group("references"):
        f.DEFINE_string("sym", "c1", "symmetry of the result, such as c4, d7, icos")
    with _help.group("preprocessing"):
        _define_preprocessing()
    with _help.group("alignment"):
        f.DEFINE_integer(
            "search",
            8,
            "largest shift along each axis, voxels of the copies; negative = half the box",
        )
    with _help.group("averaging"):
        f.DEFINE_string("averager", "mean.tomo", "averager of the raw particles")
        f.DEFINE_string(
            "autocenter", "", "centre the averages: xform.centerofmass, xform.centeracf"
        )
        f.DEFINE_string("autocentermask", "", "mask processor of the copy that is centred")
        f.DEFINE_bool("autocenterpreprocess", False, "filter and shrink the copy that is centred")
    with _help.group("output"):
        f.DEFINE_string("path", path, "stem of the run folder: results go to <path>_NN")
        f.DEFINE_bool("plots", True, "draw the results (PNG)")
        f.DEFINE_integer(
            "verbose", 0, "0 quiet, 1 progress bars ... 11", lower_bound=0, upper_bound=11
        )
    with _help.group("compute"):
        f.DEFINE_integer("seed", 0, "of all random numbers", lower_bound=0)
        f.DEFINE_string("parallel", "auto", "auto, thread:N, none or gpu[:i,j]: what to compute on")
        f.DEFINE_integer("ppid", -1, "process that started this one; recorded, no other effect")


def _define_preprocessing() -> None:
    for name, words in (
        ("mask", "mask processor; a soft sphere as wide as the particles if not given"),
        ("normproc", "normalisation, such as normalize.edgemean"),
        ("threshold", "processor after normalisation"),
        ("lowpass", "low-pass filter, such as filter.lowpass.gauss:cutoff_freq=0.02 (1/angstrom)"),
        ("highpass", "high-pass filter"),
        ("preprocess", "any processor"),
    ):
        flags.DEFINE_string(name, "", words)
    flags.DEFINE_integer("shrink", 0, "shrink the copies by this factor; 0 = not", lower_bound=0)
    flags.DEFINE_integer("clip", 0, "cut the copies to this box, voxels; 0 = not", lower_bound=0)


def start(
    program: str, values: Values, argv: Sequence[str], particles: _inputs.Particles
) -> tuple[pathlib.Path, _generate.Kitchen]:
    """Resolve the shared flags and make the run folder.

    Args:
        program: name of the script.
        values: every flag by name.
        argv: the command line, for the record.
        particles: which ones.
    """
    whole = {**_ABSENT, **values}
    say, stack = console.say, particles.stack
    _job.use_devices(values["parallel"])
    pipeline = _resolve.pipelines(whole, stack.box, particles.apix, fine=False, say=say).coarse
    poses = None
    if values["inixforms"]:
        poses = _inputs.read_poses(values["inixforms"], particles, 1)
    sampling = _inputs.find_sampling(values["wedge"], values["premultiplied"], particles, say)
    progress = console.progress if values["verbose"] else console.silent
    made = _generate.kitchen(whole, particles, sampling, pipeline, poses, progress)
    folder = _job.run_folder(program, {**values, "resume": False}, argv)
    _report.begin(folder)
    return folder, made


def guarded(folder: pathlib.Path, work: Callable[[], Any]) -> Any:
    """Do the work; bad input that shows only then leaves no folder."""
    try:
        return work()
    except InputError:
        shutil.rmtree(folder)
        raise


def write_poses(
    path: pathlib.Path, indices: np.ndarray, rotation: np.ndarray, shift: np.ndarray,
    score: np.ndarray,
) -> None:  # fmt: skip
    """EMAN2's ``{subtomo_<i>: [Transform, score]}`` for some particles of the input."""
    matrices = np.concatenate([rotation, shift[:, :, None]], 2)
    width = len(str(int(indices.max()) + 1))
    table = {
        f"subtomo_{str(int(i)).zfill(width)}": [io.transform_to_json(m), -float(s)]
        for i, m, s in zip(indices, matrices, score)
    }
    io.write_json(path, table)


def write_map(
    path: pathlib.Path, one: generate.Generated, kitchen: _generate.Kitchen, *, plot: bool
) -> None:
    """A reference with its particles in the header; their poses and its slices beside it."""
    apix = kitchen.particles.apix
    io.write_hdf(path, [one.map], apix, [_generate.header(one, kitchen)])
    write_star(path.with_suffix(".star"), one, kitchen)
    if plot:
        figure = plots.central_slices(one.map[None], apix, [f"{len(one.indices)} particles"])
        plots.save(figure, path.with_suffix(".png"))


def write_star(path: pathlib.Path, one: generate.Generated, kitchen: _generate.Kitchen) -> None:
    """The poses of a reference's particles for RELION."""
    table = _inputs.describe(kitchen.particles, None).select(one.indices)
    score = np.nan_to_num(np.asarray(one.score, np.float64), posinf=0.0, neginf=0.0)
    pose = {"rotation": np.asarray(one.rotation, np.float64), "shift": np.asarray(one.shift)}
    tables.write(path, dataclasses.replace(table, **pose, score=score), "relion4")


def write_aligned(
    path: pathlib.Path,
    one: generate.Generated,
    kitchen: _generate.Kitchen,
    own: Symmetry | None = None,
) -> None:
    """The raw particles of a reference, moved; symmetrised if a symmetry is given."""
    with io.HdfWriter(path, kitchen.particles.apix) as writer:
        for i, turn, shift, score in zip(one.indices, one.rotation, one.shift, one.score):
            volume = jnp.asarray(kitchen.particles.stack.read(np.array([i]))[0])
            pose = Pose(jnp.asarray(turn, jnp.float32), jnp.asarray(shift, jnp.float32))
            matrix = np.concatenate([turn, shift[:, None]], 1)
            moved = _moved(volume, pose) if own is None else symmetrised(volume, pose, own)
            header = {
                "spt_score": float(-score),
                "spt_indx_original": int(kitchen.particles.rows[i]),
                "xform.align3d": matrix,
                "symxform": matrix,
            }
            writer.append(np.asarray(moved), header)


_moved = eqx.filter_jit(resample.transform)


def symmetrised(volume: Volume, pose: Pose, own: Symmetry) -> Volume:
    """Mean of a volume over the symmetry copies of a pose."""
    tried = copies(pose, own)
    each = [_moved(volume, Pose(r, t)) for r, t in zip(tried.rotation, tried.shift)]
    return jnp.mean(jnp.stack(each), 0)


def write_lines(path: pathlib.Path, lines: Sequence[str]) -> None:
    """A text file, whole or not at all."""
    with io.atomic_path(path) as temporary:
        pathlib.Path(temporary).write_text("\n".join(lines) + "\n")
