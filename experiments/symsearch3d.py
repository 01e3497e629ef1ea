"""Particles on the axes of their own symmetry, and their average.

sptjax symsearch3d --input=particles.hdf --sym=c4 --average
sptjax symsearch3d --input=particles.hdf --sym=d7 --average --keep=0.8 --avgiter=3

Results go to a new folder symsearch_NN: the moved particles (aliptcls.hdf), their poses and
scores (symxform.json). With --average the particles are also brought into one frame among those
that the symmetry allows, and averaged (final_avg.hdf, its slices in final_avg.png,
final_xform.json); with --ref, into the frame of that map.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import _flags
import _generate
import _generator
import _help
import _inputs
import _report
import jax.numpy as jnp
import numpy as np
from absl import flags

from sptjax import console, generate, io, options, resample, symmetry
from sptjax._errors import InputError
from sptjax._messages import about, step
from sptjax._types import Pose
from sptjax.comparators import COMPARATORS, Comparator, compare
from sptjax.selection import Selection

LEAST_ALIKE = 0.15  # mean correlation of --ref with its turned copies; off the axes at most 0.1

_generator.define("symsearch")
with _help.group("references"):
    flags.DEFINE_string(
        "ref",
        None,
        "map on the axes of --sym, with which particles are compared in place of their average;"
        " any box and voxel size",
    )
    flags.DEFINE_bool("breaksym", False, "do not symmetrise the average")
with _help.group("alignment"):
    flags.DEFINE_integer("steps", 10, "starts that are refined, of every particle", lower_bound=1)
    flags.DEFINE_string(
        "cmp",
        "",
        "comparator of the symmetrised with the moved particle that is reported and orders them,"
        " such as ccc",
    )
with _help.group("averaging"):
    flags.DEFINE_bool("average", False, "bring the particles into one frame and average them")
    flags.DEFINE_integer("avgiter", 1, "rounds of averaging with --keep, at most", lower_bound=1)
    flags.DEFINE_float("keep", 1.0, "best-scoring fraction that is averaged")
    flags.DEFINE_bool("keepsig", False, "--keep in standard deviations below the mean score")
with _help.group("output"):
    flags.DEFINE_bool("symmetrize", False, "write the particles symmetrised")
    flags.DEFINE_bool("mirror", False, "write the mirror image of the average too")
    flags.DEFINE_bool("savesteps", False, "write the particles kept in every round")


@console.transcript()
def run(
    *, values: Mapping[str, Any], argv: Sequence[str]
) -> tuple[generate.OnAxes, generate.Together | None]:
    """Check everything, then search.

    Args:
        values: every flag by name.
        argv: the command line, for the record.

    Returns:
        The particles on their axes, and what --average made of them.
    """
    particles = _inputs.open_particles(values["input"], values["apix"], values["subset"])
    own = symmetry.parse(values["sym"])
    if len(own) == 1:
        raise InputError(f"--sym={values['sym']}: a symmetry other than c1 is needed")
    if not values["keepsig"] and not 0 < values["keep"] <= 1:
        raise InputError(f"--keep={values['keep']:g}: a fraction above 0 and up to 1 is needed")
    for name in ("mirror", "keepsig", "savesteps", "breaksym", "ref"):
        if values[name] and not values["average"]:
            raise InputError(f"--{name} does nothing without --average")
    comparator = options.bind(options.parse(values["cmp"]), COMPARATORS, "--cmp")
    reference = None
    if values["ref"]:
        reference = _reference(values, particles, own)
    folder, kitchen = _generator.start("symsearch3d", values, argv, particles)
    settings = generate.SymmetrySettings(
        own,
        steps=values["steps"],
        search_vox=kitchen.search_vox,
        rounds=values["avgiter"],
        selection=Selection(keep=values["keep"], in_sigma=values["keepsig"]),
        averaging=kitchen.averaging,
        seed=values["seed"],
    )

    def work() -> tuple[generate.OnAxes, generate.Together | None]:
        material = _generate.prepared(kitchen)
        found = generate.put_on_axes(material, material.usable, settings, progress=kitchen.progress)
        if comparator is not None:
            found = _scored(found, particles, own, comparator)
        rows = particles.rows[found.indices]
        pose = (rows, found.rotation, found.shift, found.score)
        _generator.write_poses(folder / "symxform.json", *pose)
        one = generate.Generated(np.zeros(0), found.indices, *pose[1:])
        _generator.write_star(folder / "symxform.star", one, kitchen)
        shown = own if values["symmetrize"] else None
        _generator.write_aligned(folder / "aliptcls.hdf", one, kitchen, shown)
        if not values["average"]:
            return found, None
        together = generate.bring_together(
            material, found, settings, reference=reference, progress=kitchen.progress
        )
        _write_average(values, folder, together, kitchen)
        return found, together

    found, together = _generator.guarded(folder, work)
    median = f"median score {np.median(found.score):.3f}"
    console.say(step(f"{folder / 'symxform.json'}: {median}"))
    done = [f"Every particle was brought onto the axes of its own {own.name} symmetry ({median})."]
    made = []
    if together is not None:
        result = generate.symmetry_reference(together)
        done.append(f"Then all were brought into one frame and averaged: {result.note}.")
        made = [_report.Made(folder / "final_avg.hdf", len(result.indices))]
    name = "c1" if values["breaksym"] else own.name
    _report.of_maps(folder, kitchen, done, made, (), sym=name, plots=values["plots"])
    return found, together


def _reference(
    values: Mapping[str, Any], particles: _inputs.Particles, own: symmetry.Symmetry
) -> np.ndarray:
    """``--ref``, once it is sure that it has the symmetry."""
    maps = _inputs.load_references(values["ref"], particles, values["apix"], console.say)
    if len(maps) != 1:
        raise InputError(f"--ref={values['ref']}: one map is needed, not {len(maps)}")
    alike = _alike(maps[0], own)
    if not alike > LEAST_ALIKE:
        raise InputError(
            f"--ref: {values['ref']} does not lie on the axes of {own.name}: its mean correlation"
            f" with its turned copies is {alike:.2f}, {LEAST_ALIKE:g} is needed"
        )
    return maps[0]


def _alike(volume: np.ndarray, own: symmetry.Symmetry) -> float:
    """Mean correlation of a map with its copies under the symmetry, the identity left out.

    What is alike under any turn is taken away first: the mean of every ring about z, or, where
    the axes point many ways, of every sphere about the centre.
    """
    z, y, x = np.indices(volume.shape) - volume.shape[0] // 2
    inside = x**2 + y**2 + z**2 < (volume.shape[0] // 2) ** 2
    one_axis = own.name[0] in "cdh"
    radius = np.rint(np.sqrt(x**2 + y**2 + (0 if one_axis else z**2))).astype(int)
    bins = radius + (z - z.min()) * (radius.max() + 1) if one_axis else radius
    bins = np.unique(bins[inside], return_inverse=True)[1]
    rest = np.zeros(volume.shape, np.float32)
    means = np.bincount(bins, volume[inside]) / np.bincount(bins)
    rest[inside] = volume[inside] - means[bins]
    here = Pose(jnp.eye(3), jnp.zeros(3))
    mean = np.asarray(_generator.symmetrised(jnp.asarray(rest), here, own))
    share = np.sum(mean * rest, dtype=float) / max(np.sum(rest**2, dtype=float), 1e-30)
    return float((len(own) * share - 1) / (len(own) - 1))


def _scored(
    found: generate.OnAxes,
    particles: _inputs.Particles,
    own: symmetry.Symmetry,
    comparator: Comparator,
) -> generate.OnAxes:
    """The same poses with the comparator's score."""
    scores = []
    for i, turn, shift in zip(found.indices, found.rotation, found.shift):
        volume = jnp.asarray(particles.stack.read(np.array([i]))[0])
        pose = Pose(jnp.asarray(turn, jnp.float32), jnp.asarray(shift, jnp.float32))
        moved = resample.transform(volume, pose)
        mean = _generator.symmetrised(volume, pose, own)
        scores.append(float(compare(comparator, moved, mean, apix=particles.apix)))
    return generate.OnAxes(found.indices, found.rotation, found.shift, np.array(scores))


def _write_average(values, folder, together: generate.Together, kitchen: _generate.Kitchen) -> None:
    result, rows = generate.symmetry_reference(together), kitchen.particles.rows
    poses = together.poses
    _generator.write_poses(
        folder / "final_xform.json", rows[poses.indices], poses.rotation, poses.shift, poses.score
    )
    _generator.write_map(folder / "final_avg.hdf", result, kitchen, plot=values["plots"])
    if values["mirror"]:
        mirrored = np.roll(result.map[:, :, ::-1], 1, 2)  # x -> -x about the centre voxel
        io.write_hdf(folder / "final_avg_mirror.hdf", [mirrored], kitchen.particles.apix)
    if values["savesteps"]:
        for k, kept in enumerate(together.rounds):
            io.write_json(folder / f"kept_ptcls_{k}.json", {"kept": rows[kept].tolist()})
    console.say(about(folder / "final_avg.hdf", result.note))


def main(argv: Sequence[str]) -> None:
    """Flags to arguments."""
    del argv
    run(values=_flags.resolved(), argv=sys.argv)


if __name__ == "__main__":
    _flags.launch(main, "symsearch3d.py")
