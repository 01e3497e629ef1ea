"""References from the particles: the flags, the rules between them, and the making.

``refinemulti`` makes one reference per class, of a part of the particles each; ``classaverage``
makes one per half. ``binarytree``, ``hac`` and ``symsearch3d`` share the settings.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import _help
import _inputs
import _resolve
import numpy as np
from absl import flags

from sptjax import generate, io, resolution
from sptjax._errors import InputError
from sptjax._messages import about, warning
from sptjax.align import Found
from sptjax.averaging import Averaging
from sptjax.centring import Autocentre
from sptjax.outputs import pad
from sptjax.particles import Sampling
from sptjax.preprocess import Pipeline
from sptjax.symmetry import Symmetry

Values = Mapping[str, Any]
Say = Callable[[str], None]
LEAST = {"bt": 2, "hac": 3, "ssa": 1, "sgd": 2}  # particles of one reference
MOST_HAC = 64  # if nobody says how many
MOST_ALONE = 64  # of a binary tree in classaverage, likewise


@_help.group("references")
def define() -> None:
    """Define the flags of the generators."""
    f = flags
    f.DEFINE_enum(
        "refgenmethod",
        "bt",
        sorted([*MAKERS, *TOGETHER]),
        "what makes references if there is no --ref: binary tree, hierarchy, gradient"
        " descent, self-symmetry",
    )
    f.DEFINE_integer(
        "sgdseeds", 2, "independent runs of sgd; the best is used, agreement said", lower_bound=1
    )
    f.DEFINE_integer("sgdsteps", 90, "steps of a run of sgd, one batch each", lower_bound=2)
    f.DEFINE_integer("sgdbatch", 24, "particles of a step of sgd", lower_bound=1)
    f.DEFINE_integer(
        "subset4ref",
        0,
        "particles that make each reference; 0 = all (bt: the largest power of two; hac: at"
        f" most {MOST_HAC})",
        lower_bound=0,
    )
    f.DEFINE_enum(
        "refsplit",
        "interleaved",
        ["interleaved", "contiguous"],
        "particles of a reference of refinemulti: every n-th, or a block of the stack",
    )
    for name, words in (("hac", "classification"), ("ssa", "self-symmetry"), ("bt", "tree")):
        f.DEFINE_integer(
            f"{name}ref",
            0,
            f"make references by {words} of so many particles each (--refgenmethod={name})",
            lower_bound=0,
        )


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How the references of a run are made.

    Attributes:
        method: a name of ``MAKERS`` or ``TOGETHER``.
        groups: particles of every reference.
        symmetries: of every reference.
        names: of the files that they are written to.
        halves: the groups are halves: ``[2, 1, n, n, n]``.
        apart: no particle may help to make the reference of another group.
    """

    method: str
    groups: tuple[np.ndarray, ...]
    symmetries: tuple[Symmetry, ...]
    names: tuple[str, ...]
    halves: bool
    apart: bool


def recipe(
    values: Values,
    count: int,
    symmetries: tuple[Symmetry, ...],
    say: Say,
    *,
    halves: bool,
    classes: np.ndarray | None = None,
) -> Recipe:
    """What the flags ask for, checked.

    Args:
        values: every flag by name.
        count: particles.
        symmetries: of the references.
        say: prints one line.
        halves: one reference for every half, instead of one for every class.
        classes: of the particles, known beforehand; each makes its own reference.
    """
    method, number = _method(values)
    groups = [np.arange(half, count, 2) for half in (0, 1)] if halves else []
    if not halves:
        n = len(symmetries)
        if classes is not None:
            groups = [np.flatnonzero(classes == r) for r in range(n)]
        elif values["refsplit"] == "interleaved":
            groups = [np.arange(r, count, n) for r in range(n)]
        else:
            block = count // n
            groups = [np.arange(r * block, count if r == n - 1 else (r + 1) * block)
                      for r in range(n)]  # fmt: skip
    own = symmetries * 2 if halves else symmetries
    if method == "ssa" and any(len(s) == 1 for s in own):
        raise InputError(
            "--refgenmethod=ssa (--ssaref): a symmetry other than c1 is needed (--sym)"
        )
    least = LEAST[method]
    smallest = min(len(group) for group in groups)
    if smallest < least:
        raise InputError(
            f"--refgenmethod={method}: {count} particles in {len(groups)} groups leave"
            f" {smallest} for a reference, at least {least} are needed"
        )
    sizes = [
        _size(method, number, values, len(group), say, alone=len(symmetries) == 1, first=r == 0)
        for r, group in enumerate(groups)
    ]
    names = (
        ("ref_even", "ref_odd") if halves else [f"ref{pad(r, len(own))}" for r in range(len(own))]
    )
    return Recipe(
        method,
        tuple(group[:size] for group, size in zip(groups, sizes)),
        own,
        tuple(f"{name}.hdf" for name in names),
        halves,
        halves or classes is not None,
    )


def _method(values: Values) -> tuple[str, int]:
    """The generator, and the number of particles if its own flag gives one."""
    stated = {name: values[f"{name}ref"] for name in ("hac", "ssa", "bt") if values[f"{name}ref"]}
    if len(stated) > 1:
        named = " and ".join(f"--{name}ref" for name in stated)
        raise InputError(f"{named}: references are made in one way only")
    for name, number in stated.items():
        if number < LEAST[name]:
            raise InputError(f"--{name}ref={number}: at least {LEAST[name]} particles are needed")
        return name, number
    return values["refgenmethod"], 0


def _size(
    method: str, number: int, values: Values, group: int, say: Say, *, alone: bool, first: bool
) -> int:
    """Particles that make one reference."""
    wanted, flag = number, f"--{method}ref"
    if not wanted:
        wanted, flag = values["subset4ref"], "--subset4ref"
        if 0 < wanted < LEAST[method]:
            raise InputError(f"{flag}={wanted}: {method} needs at least {LEAST[method]} particles")
    if wanted > group and first:
        say(f"{flag}={wanted}: a group has {group} particles, all are used")
    if not wanted:
        wanted = group
        if method == "hac" and group > MOST_HAC:
            wanted = MOST_HAC
            if first:
                say(f"hac: the first {MOST_HAC} of {group} particles make a reference; --subset4ref"
                    " states another number")  # fmt: skip
        if method == "bt" and alone:
            wanted = MOST_ALONE
    wanted = min(wanted, group)
    return generate.largest_power_of_two(wanted) if method == "bt" else wanted


def ignored(values: Values, say: Say) -> None:
    """Say which flags do nothing because references are given."""
    for name in ("hacref", "ssaref", "btref"):
        if values[name]:
            say(warning(f"--{name}={values[name]} does nothing: references are given"))


# ---------------------------------------------------------------- making


@dataclasses.dataclass(frozen=True)
class Kitchen:
    """What every generator works with."""

    particles: _inputs.Particles
    sampling: Sampling
    pipeline: Pipeline
    averaging: Averaging
    autocentre: Autocentre | None
    search_vox: float  # voxels of the copies
    seed: int
    start: Found | None
    progress: Callable
    descent: Mapping[str, int]  # flags of sgd by name

    @property
    def poses(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Poses known beforehand, of the whole stack."""
        return None if self.start is None else (self.start.rotation[:, 0], self.start.shift[:, 0])


Make = Callable[[generate.Material, np.ndarray, Symmetry, Kitchen], generate.Generated]


def _tree(
    material: generate.Material, rows: np.ndarray, symmetry: Symmetry, kitchen: Kitchen
) -> generate.Generated:
    settings = generate.TreeSettings(
        search_vox=kitchen.search_vox, averaging=kitchen.averaging, autocentre=kitchen.autocentre
    )
    tree = generate.binary_tree(
        material, rows, settings, start=kitchen.poses, progress=kitchen.progress
    )
    return on_axes(material, generate.tree_reference(tree), symmetry, kitchen)


def _hac(
    material: generate.Material, rows: np.ndarray, symmetry: Symmetry, kitchen: Kitchen
) -> generate.Generated:
    settings = generate.HacSettings(
        search_vox=kitchen.search_vox, averaging=kitchen.averaging, autocentre=kitchen.autocentre
    )
    found = generate.classify_ascending(
        material, rows, settings, start=kitchen.poses, progress=kitchen.progress
    )
    return on_axes(material, generate.hac_reference(found), symmetry, kitchen)


def _ssa(
    material: generate.Material, rows: np.ndarray, symmetry: Symmetry, kitchen: Kitchen
) -> generate.Generated:
    settings = generate.SymmetrySettings(
        symmetry, search_vox=kitchen.search_vox, averaging=kitchen.averaging, seed=kitchen.seed
    )
    found = generate.put_on_axes(material, rows, settings, progress=kitchen.progress)
    together = generate.bring_together(material, found, settings, progress=kitchen.progress)
    return generate.symmetry_reference(together)


def on_axes(
    material: generate.Material,
    given: generate.Generated,
    symmetry: Symmetry,
    kitchen: Kitchen,
) -> generate.Generated:
    """A reference on the axes of its symmetry, if it has one."""
    if len(symmetry) == 1:
        return given
    settings = generate.SymmetrySettings(
        symmetry, search_vox=kitchen.search_vox, averaging=kitchen.averaging, seed=kitchen.seed
    )
    return generate.on_symmetry_axes(
        material, given, settings, symmetrise=not kitchen.averaging.break_symmetry
    )


MAKERS: dict[str, Make] = {"bt": _tree, "hac": _hac, "ssa": _ssa}


def _descent(recipe: Recipe, kitchen: Kitchen, say: Say) -> np.ndarray:
    """Maps by stochastic gradient descent: of every half or known class, or of all at once."""
    if len({s.name for s in recipe.symmetries}) > 1:
        raise InputError("--refgenmethod=sgd: all maps must have one symmetry (--sym)")
    material = prepared(kitchen)
    groups = recipe.groups if recipe.apart else (np.sort(np.concatenate(recipe.groups)),)
    made: list[generate.Generated] = []
    for group, name in zip(groups, recipe.names):
        settings = generate.SgdSettings(
            maps=1 if recipe.apart else len(recipe.names),
            seeds=kitchen.descent["sgdseeds"],
            seed=kitchen.seed,
            steps=kitchen.descent["sgdsteps"],
            batch=kitchen.descent["sgdbatch"],
            search_vox=kitchen.search_vox,
            symmetry=recipe.symmetries[0],
            averaging=kitchen.averaging,
        )
        rows = np.intersect1d(group, material.usable)
        found = generate.generate_sgd(material, rows, settings, progress=kitchen.progress)
        empty = [c for c, one in enumerate(found.maps) if not len(one.indices)]
        if empty:
            raise InputError(
                f"--refgenmethod=sgd: no particle chose map {empty[0]}; fewer maps (--nref), or"
                " another --seed"
            )
        say(about(name if settings.maps == 1 else "references", _said(found, kitchen)))
        made += found.maps
    if len(made) > 1:
        made = generate.in_one_frame(
            material, made, recipe.symmetries[0], kitchen.search_vox, kitchen.averaging
        )
    return np.stack([one.map for one in made])


def _said(found: generate.Descent, kitchen: Kitchen) -> str:
    """How a descent went, in one line."""
    scores = ", ".join(f"{score:.1f}" for score in found.score)
    line = f"sgd, mean scores {scores} by seed"
    if len(found.runs) == 1:
        return warning(f"{line}; one seed cannot tell whether it converged (--sgdseeds)")
    others = np.delete(np.arange(len(found.runs)), found.best)
    other = others[np.argmax(found.agreement[others])]
    if found.fsc is None:
        line += f"; adjusted Rand index of the two nearest {found.agreement[other]:.2f}"
    else:
        apix = kitchen.particles.apix
        at = resolution.resolution_angstrom(found.fsc[other], apix, 0.5)
        shown = f"{at:.0f} A" if np.isfinite(at) else "no resolution"
        line += (
            f"; in the two nearest runs {100 * found.agreement[other]:.0f} % of the particles lie"
            f" alike, and halves of them agree to {shown} (FSC 0.5)"
        )
    return line if found.converged else warning(f"{line}; the seeds do not agree: NOT CONVERGED")


# Generators that make all references in one call: recipe and kitchen to maps [c, n, n, n].
TOGETHER: dict[str, Callable[[Recipe, Kitchen, Say], np.ndarray]] = {"sgd": _descent}


def references(recipe: Recipe, folder: pathlib.Path, kitchen: Kitchen, say: Say) -> np.ndarray:
    """Make the references and write them; in a resumed run, read those that are there.

    Args:
        recipe: what to make.
        folder: of the run.
        kitchen: what to make it with.
        say: prints one line.
    """
    paths = [folder / name for name in recipe.names]
    if all(path.exists() for path in paths):
        maps = np.stack([io.read_hdf(path)[0] for path in paths])
    else:
        maps, headers = _made(recipe, kitchen, say)
        for path, volume, header in zip(paths, maps, headers):
            io.write_hdf(path, [volume], kitchen.particles.apix, [header])
    return maps[:, None] if recipe.halves else maps


def _made(recipe: Recipe, kitchen: Kitchen, say: Say) -> tuple[np.ndarray, list[dict]]:
    if recipe.method in TOGETHER:
        maps = TOGETHER[recipe.method](recipe, kitchen, say)
        return maps, [{} for _ in maps]
    material = prepared(kitchen)
    usable = set(material.usable.tolist())
    found = []
    for rows, symmetry, name in zip(recipe.groups, recipe.symmetries, recipe.names):
        rows = np.array([i for i in rows if i in usable], int)
        one = MAKERS[recipe.method](material, rows, symmetry, kitchen)
        say(about(name, one.note))
        found.append(one)
    if len({s.name for s in recipe.symmetries}) == 1 and len(found) > 1:
        found = generate.in_one_frame(
            material, found, recipe.symmetries[0], kitchen.search_vox, kitchen.averaging
        )
    return np.stack([one.map for one in found]), [header(one, kitchen) for one in found]


def prepared(kitchen: Kitchen) -> generate.Material:
    """The particles as the generators see them."""
    return generate.prepare(
        kitchen.particles.stack, kitchen.sampling, kitchen.particles.apix, kitchen.pipeline,
        progress=kitchen.progress,
    )  # fmt: skip


def header(one: generate.Generated, kitchen: Kitchen) -> dict[str, Any]:
    """Header items of a map: how many particles, and which of the input."""
    rows = kitchen.particles.rows[one.indices]
    return {
        "spt_multiplicity": len(rows),
        "ptcl_repr": len(rows),
        "spt_ptcl_indxs": sorted(int(i) for i in rows)[:16000],
    }


def kitchen(
    values: Values,
    particles: _inputs.Particles,
    sampling: Sampling,
    pipeline: Pipeline,
    start: Found | None,
    progress: Callable,
) -> Kitchen:
    """What the shared flags say.

    Args:
        values: every flag by name.
        particles: of the run.
        sampling: of the particles.
        pipeline: of the coarse copies.
        start: poses known beforehand.
        progress: wraps iterations over batches.
    """
    copy = pipeline.output(particles.stack.box, 1.0)[0]
    search = values["search"] if values["search"] >= 0 else copy // 2 - 2
    return Kitchen(
        particles=particles,
        sampling=sampling,
        pipeline=pipeline,
        averaging=_resolve.averaging(values),
        autocentre=_resolve.autocentre(values),
        search_vox=float(min(search, copy // 2 - 2)),
        seed=values["seed"],
        start=start,
        progress=progress,
        descent={name: values.get(name, 1) for name in ("sgdseeds", "sgdsteps", "sgdbatch")},
    )
