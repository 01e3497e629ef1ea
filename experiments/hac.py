"""Averages and classes from particles alone, by hierarchical classification.

sptjax hac --input=particles.hdf --subset=64
sptjax hac --input=particles.hdf --minscore=0.5 --exclusive_class_min=5 --clusters=2

All particles are aligned to all others; mutually best pairs merge, round after round. Results go
to a new folder spt_hac_NN: final_avg.hdf (the largest average), its poses and those of all other
averages (hac_final.json, ali_info_<k>.json), the dendrogram (dendrogram.txt, dendrogram.png),
and of every round k the averages, the ranking and the score matrix (round<k>_averages.hdf,
ranking<k>.txt, simmx_<k>.hdf). With --groups, each block of the stack has a folder of its own.
"""

import pathlib
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

from sptjax import console, generate, io, plots, rotation, run_report, symmetry
from sptjax._errors import InputError
from sptjax._messages import about

_generator.define("spt_hac")
with _help.group("references"):
    flags.DEFINE_bool(
        "breaksym", False, "put the map on the axes of --sym but do not symmetrise it"
    )
with _help.group("classification"):
    flags.DEFINE_integer("groups", 1, "blocks of the stack, each classified apart", lower_bound=1)
    flags.DEFINE_integer(
        "clusters",
        1,
        "clusters.json: particles in so many clusters along the ranking of the first round",
        lower_bound=1,
    )
    flags.DEFINE_float(
        "minscore",
        0.0,
        "share of the best score so far that a pair needs to merge",
        lower_bound=0.0,
        upper_bound=1.0,
    )
    flags.DEFINE_integer(
        "maxmergenum",
        0,
        "two objects of more particles than this do not merge; 0 = any",
        lower_bound=0,
    )
    flags.DEFINE_integer(
        "iterstop", 0, "stop after so many rounds; 0 = when nothing merges", lower_bound=0
    )
    flags.DEFINE_bool("force", False, "classify more than 2,000 particles all the same")
with _help.group("output"):
    flags.DEFINE_integer(
        "exclusive_class_min",
        0,
        "write mutually exclusive averages of at least so many particles, from the largest on;"
        " 0 = not",
        lower_bound=0,
    )
    flags.DEFINE_bool("saveali", False, "write the aligned particles of the largest average")


@console.transcript()
def run(*, values: Mapping[str, Any], argv: Sequence[str]) -> list[generate.Dendrogram]:
    """Check everything, then classify.

    Args:
        values: every flag by name.
        argv: the command line, for the record.

    Returns:
        The classification of every group.
    """
    particles = _inputs.open_particles(values["input"], values["apix"], values["subset"])
    count, groups = len(particles.stack), values["groups"]
    if count // groups < 3:
        raise InputError(
            f"--groups={groups}: {count} particles leave {count // groups} in a group, at least 3"
            " are needed"
        )
    if values["clusters"] > count // groups:
        raise InputError(
            f"--clusters={values['clusters']}: a group has {count // groups} particles"
        )
    if count // groups > 2000 and not values["force"]:
        raise InputError(
            f"--input: {count // groups} particles are aligned all to all; more than 2000 need"
            " --force, or a --subset"
        )
    own = symmetry.parse(values["sym"])
    folder, kitchen = _generator.start("hac", values, argv, particles)
    settings = generate.HacSettings(
        search_vox=kitchen.search_vox,
        rounds=values["iterstop"],
        rules=generate.Rules(values["minscore"], values["maxmergenum"]),
        averaging=kitchen.averaging,
        autocentre=kitchen.autocentre,
        force=values["force"],
    )
    found, made, done = _generator.guarded(
        folder, lambda: _all(values, folder, kitchen, settings, own)
    )
    first = "All particles were aligned to all others; mutually best pairs merged, again and again."
    shown = [
        run_report.Shown(
            str(one.path.relative_to(folder).with_name("dendrogram.png")),
            "Dendrogram",
            "What merged with what; the number at a joint is the score of the pair. Classes that"
            " are real merge late and at low scores.",
        )
        for one in made
    ]
    sym, pictures = "c1" if values["breaksym"] else own.name, values["plots"]
    _report.of_maps(folder, kitchen, [first, *done], made, shown, sym=sym, plots=pictures)
    return found


def _all(
    values: Mapping[str, Any],
    folder: pathlib.Path,
    kitchen: _generate.Kitchen,
    settings: generate.HacSettings,
    own: symmetry.Symmetry,
) -> tuple[list[generate.Dendrogram], list[_report.Made], list[str]]:
    """The classification of every group, its map, and a sentence about it."""
    material, found, made, said = _generate.prepared(kitchen), [], [], []
    usable = material.usable
    block = len(material) // values["groups"]
    for g in range(values["groups"]):
        first, last = g * block, len(material) if g == values["groups"] - 1 else (g + 1) * block
        rows = usable[(usable >= first) & (usable < last)]
        here = folder if values["groups"] == 1 else folder / f"group{g}"
        here.mkdir(exist_ok=True)
        done = generate.classify_ascending(
            material, rows, settings, start=kitchen.poses, progress=kitchen.progress
        )
        found.append(done)
        _write_rounds(done, here, kitchen, plot=values["plots"])
        _write_classes(values, done, here, kitchen)
        result = _generate.on_axes(material, generate.hac_reference(done), own, kitchen)
        _generator.write_map(here / "final_avg.hdf", result, kitchen, plot=values["plots"])
        if values["saveali"]:
            _generator.write_aligned(here / "final_ali_stack.hdf", result, kitchen)
        console.say(about(here / "final_avg.hdf", result.note))
        made.append(_report.Made(here / "final_avg.hdf", len(result.indices)))
        said.append(f"What came out ({here.name}): {result.note}.")
    return found, made, said


def _numbers(done: generate.Dendrogram, node: generate.Node, kitchen: _generate.Kitchen) -> list:
    """Members of an object as numbered in the input."""
    return kitchen.particles.rows[done.indices[node.members]].tolist()


def _write_rounds(
    done: generate.Dendrogram, folder: pathlib.Path, kitchen: _generate.Kitchen, *, plot: bool
) -> None:
    """Dendrogram, and of every round ranking, matrix, averages and poses."""
    lines, apix, nodes = [], kitchen.particles.apix, done.nodes
    for k, one in enumerate(done.rounds):
        lines.append(f"ITERATION {k}")
        made = [nodes[i] for i in one.made]
        for node in made:
            a, b = (nodes[i].name for i in node.parents or ())
            members = ", ".join(map(str, _numbers(done, node, kitchen)))
            lines.append(
                f"{a} averaged with {b} into {node.name} with score={-node.score:.4f}"
                f" | particles in average: [{members}]"
            )
        ranking = [
            f"{nodes[a].name} vs {nodes[b].name} score={-s:.6f}"
            for (a, b), s in zip(one.pairs, one.score)
        ]
        _generator.write_lines(folder / f"ranking{k}.txt", ranking)
        matrix = _matrix(one)
        io.write_hdf(folder / f"simmx_{k}.hdf", list(matrix), apix)
        names = [nodes[i].name for i in one.living]
        _generator.write_lines(
            folder / f"simmx_{k}_PLOT_info.txt", [f"{i}\t{name}" for i, name in enumerate(names)]
        )
        ordered = [f"{i}\t{-s:.6f}" for i, s in enumerate(one.score)]
        _generator.write_lines(folder / f"simmx_{k}_PLOT.txt", ordered)
        if plot:
            plots.save(plots.ranked_scores(one.score), folder / f"simmx_{k}_PLOT.png")
        if made:
            headers = [{"spt_multiplicity": len(n), "spt_ID": f"round{k + 1}_{i}",
                        "spt_dendoID": n.name, "spt_ptcl_indxs": _numbers(done, n, kitchen)}
                       for i, n in enumerate(made)]  # fmt: skip
            volumes = [n.map for n in made if n.map is not None]
            io.write_hdf(folder / f"round{k}_averages.hdf", volumes, apix, headers)
            _write_info(folder / f"ali_info_{k}.json", done, made, kitchen)
    lines.append(f"STOPPED: {done.stopped}")
    _generator.write_lines(folder / "dendrogram.txt", lines)
    if plot:
        links = [(n.number, n.parents, n.score) for n in nodes if n.parents]
        plots.save(plots.dendrogram(len(done.indices), links), folder / "dendrogram.png")


def _matrix(one: generate.Round) -> np.ndarray:
    """EMAN2's eight planes: score, x, y, z, az, alt, phi, scale; pairs of living objects."""
    place = {number: i for i, number in enumerate(one.living)}
    planes = np.zeros((8, len(place), len(place)), np.float32)
    planes[0] = 1
    planes[7] = 1
    angles = rotation.to_euler(
        jnp.asarray(one.poses[:, :, :3], jnp.float32), rotation.Convention["EMAN"]
    )
    for (a, b), score, pose, euler in zip(one.pairs, one.score, one.poses, np.asarray(angles)):
        planes[:7, place[a], place[b]] = [-score, *pose[:, 3], *euler]
    return planes


def _write_info(
    path: pathlib.Path,
    done: generate.Dendrogram,
    nodes: Sequence[generate.Node],
    kitchen: _generate.Kitchen,
) -> None:
    """Poses of the members of averages: ``{average: {particle: Transform}}``."""
    table = {}
    for rank, node in enumerate(nodes):
        matrices = np.concatenate([node.rotation, node.shift[:, :, None]], 2)
        numbers = _numbers(done, node, kitchen)
        table[str(rank)] = {str(i): io.transform_to_json(m) for i, m in zip(numbers, matrices)}
    io.write_json(path, table)


def _write_classes(
    values: Mapping[str, Any],
    done: generate.Dendrogram,
    folder: pathlib.Path,
    kitchen: _generate.Kitchen,
) -> None:
    """Poses of what is left, clusters and mutually exclusive averages."""
    _write_info(folder / "hac_final.json", done, done.living, kitchen)
    rows = kitchen.particles.rows[done.indices]
    if values["clusters"] > 1:
        first = done.rounds[0]
        scores = dict(zip(first.pairs, first.score.tolist()))
        sets = generate.clusters(scores, len(rows), values["clusters"])
        table = {str(c): rows[members].tolist() for c, members in enumerate(sets)}
        io.write_json(folder / "clusters.json", table)
    least = values["exclusive_class_min"]
    if not least:
        return
    averages = [n for n in done.nodes if n.map is not None]
    sets = [frozenset(n.members.tolist()) for n in averages]
    target = folder / f"me_classes_{least}"
    target.mkdir(exist_ok=True)
    chosen = generate.exclusive(sets, least)
    for i, node in enumerate(averages[c] for c in chosen):
        name = f"me_class{i}_s{len(node)}.hdf"
        header = {"spt_multiplicity": len(node), "spt_ptcl_indxs": _numbers(done, node, kitchen)}
        assert node.map is not None, "averages have maps"
        io.write_hdf(target / name, [node.map], kitchen.particles.apix, [header])
    if not chosen:
        console.say(f"--exclusive_class_min={least}: no average has so many particles")


def main(argv: Sequence[str]) -> None:
    """Flags to arguments."""
    del argv
    run(values=_flags.resolved(), argv=sys.argv)


if __name__ == "__main__":
    _flags.launch(main, "hac.py")
