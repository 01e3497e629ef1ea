"""A first map from particles alone, by a binary tree of pairwise averages.

sptjax binarytree --input=particles.hdf
sptjax binarytree --input=particles.hdf --nseedlimit=64 --sym=c4 --savesteps

Results go to a new folder spt_bt_NN: final_avg.hdf and its slices (final_avg.png), the poses of
its particles (bt_poses.json), and with --savesteps the nodes of every level (seedtree_<level>.hdf;
level 0 are the particles).
With --iterstop, final_avg.hdf is the first node of that level and final_nodes.hdf holds all.
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
import numpy as np
from absl import flags

from sptjax import console, generate, io, symmetry
from sptjax._errors import InputError
from sptjax._messages import about, warning

_generator.define("spt_bt")
with _help.group("input"):
    flags.DEFINE_integer("nseedlimit", 0, "use at most so many particles; 0 = all", lower_bound=0)
    flags.DEFINE_integer(
        "btshuffle", None, "seed of a random order of the particles; none: as stored"
    )
with _help.group("references"):
    flags.DEFINE_bool(
        "breaksym", False, "put the map on the axes of --sym but do not symmetrise it"
    )
with _help.group("alignment"):
    flags.DEFINE_integer("iterstop", 0, "stop after this level; 0 = at the root", lower_bound=0)
with _help.group("output"):
    flags.DEFINE_bool("savesteps", False, "write the nodes of every level")


@console.transcript()
def run(*, values: Mapping[str, Any], argv: Sequence[str]) -> generate.Generated:
    """Check everything, then grow the tree.

    Args:
        values: every flag by name.
        argv: the command line, for the record.
    """
    particles = _inputs.open_particles(values["input"], values["apix"], values["subset"])
    own = symmetry.parse(values["sym"])
    if len(particles.stack) < 2:
        raise InputError("--input: a binary tree needs at least 2 particles")
    if values["nseedlimit"] == 1:
        raise InputError("--nseedlimit=1: a binary tree needs at least 2 particles")
    if values["breaksym"] and len(own) == 1:
        console.say(warning("--breaksym: without symmetry there is nothing to break"))
    folder, kitchen = _generator.start("binarytree", values, argv, particles)
    settings = generate.TreeSettings(
        search_vox=kitchen.search_vox,
        seeds=values["nseedlimit"],
        levels=values["iterstop"],
        shuffle=values["btshuffle"],
        averaging=kitchen.averaging,
        autocentre=kitchen.autocentre,
    )

    def work() -> generate.Generated:
        material = _generate.prepared(kitchen)
        tree = generate.binary_tree(
            material, material.usable, settings, keep_maps=values["savesteps"],
            start=kitchen.poses, progress=kitchen.progress,
        )  # fmt: skip
        result = _generate.on_axes(material, generate.tree_reference(tree), own, kitchen)
        last, path = tree.levels[-1], folder / "bt_poses.json"
        if last.count > 1:
            io.write_hdf(folder / "final_nodes.hdf", _maps(last), particles.apix)
        if values["savesteps"]:
            first = [particles.stack.read(np.array([i]))[0] for i in tree.indices]
            io.write_hdf(folder / "seedtree_0.hdf", first, particles.apix)
            for i, level in enumerate(tree.levels[1:], 1):
                io.write_hdf(folder / f"seedtree_{i}.hdf", _maps(level), particles.apix)
        rows, score = particles.rows[tree.indices], last.score[last.node]
        turn, shift = np.array(last.rotation), np.array(last.shift)
        if last.count == 1:
            turn, shift = result.rotation, result.shift
        _generator.write_poses(path, rows, turn, shift, score)
        _generator.write_map(folder / "final_avg.hdf", result, kitchen, plot=values["plots"])
        return result

    result = _generator.guarded(folder, work)
    path = folder / "final_avg.hdf"
    console.say(about(path, result.note))
    done = [
        "Pairs of particles were aligned and averaged, then pairs of these averages, and so on.",
        f"What came out: {result.note}.",
    ]
    made = [_report.Made(path, len(result.indices))]
    sym = "c1" if values["breaksym"] else own.name
    _report.of_maps(folder, kitchen, done, made, (), sym=sym, plots=values["plots"])
    return result


def _maps(level: generate.Level) -> np.ndarray:
    assert level.maps is not None, "kept for every level that is written"
    return level.maps


def main(argv: Sequence[str]) -> None:
    """Flags to arguments."""
    del argv
    run(values=_flags.resolved(), argv=sys.argv)


if __name__ == "__main__":
    _flags.launch(main, "binarytree.py")
