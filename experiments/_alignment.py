"""The alignment options: aligners, comparators, searches and where they contradict each other."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from _resolve import given

from sptjax import options
from sptjax._errors import InputError
from sptjax._messages import warning
from sptjax.align import (
    ALIGNERS,
    FINE_ALIGNERS,
    Aligner,
    AlignmentSettings,
    FineAligner,
    Refine3D,
    Refine3DGrid,
    RotateTranslate3D,
    RotateTranslate3DGrid,
    RotateTranslate3DTree,
)
from sptjax.comparators import COMPARATORS

Values = Mapping[str, Any]
Say = Callable[[str], None]
_SEARCH, _SEARCH_FINE = 8, 2  # documented defaults, which give way to what an aligner states


def settings(values: Values, box: int, apix: float, say: Say) -> AlignmentSettings:
    """Everything that concerns the alignment.

    Args:
        values: every flag by name.
        box: of the raw particles.
        apix: their voxel size, angstrom.
        say: prints one line.
    """
    aligner = _aligner(values)
    fine = options.bind(options.parse(values["falign"]), FINE_ALIGNERS, "--falign")
    if values["radius"] or given("precision"):
        aligner, fine = _by_radius(values, aligner, fine, box, apix, say)
    comparator = options.bind(options.parse(values["aligncmp"]), COMPARATORS, "--aligncmp")
    if comparator is None:
        raise InputError("--aligncmp: a comparator is needed")
    fine_comparator = options.bind(options.parse(values["faligncmp"]), COMPARATORS, "--faligncmp")
    if values["npeakstorefine"] > 1:
        if aligner is None:
            raise InputError("--npeakstorefine: there is nothing to choose from with --align=None")
        if fine is None and not values["saveallpeaks"]:
            say("--npeakstorefine: without --falign only the best pose is used")
    if values["translateonly"] and aligner is None:
        raise InputError("--translateonly: there is no search with --align=None")
    copy = (values["clip"] or box) / max(values["shrink"], values["shrinkfine"], 1)
    return AlignmentSettings(
        aligner=aligner,
        fine=_with_search_fine(values, fine, say),
        comparator=comparator,
        fine_comparator=fine_comparator,
        search_vox=_search(values, aligner, copy, say),
        search_fine_vox=_search_fine(values, box),
        peaks=values["npeakstorefine"] if fine or values["saveallpeaks"] else None,
        tweak=values["tweak"],
        translate_only=values["translateonly"],
        use_start=bool(values["inixforms"]),
        randomize_wedge=values["randomizewedge"],
        break_symmetry=values["breaksym"],
        save_peaks=values["saveallpeaks"],
        apix=apix,
    )


def _aligner(values: Values) -> Aligner | None:
    """``--align``; not given, its default with everything but the shifts left to the data."""
    if values.get("skipali"):
        return None
    if not given("align"):
        return RotateTranslate3DTree()
    return options.bind(options.parse(values["align"]), ALIGNERS, "--align")


def _by_radius(
    values: Values,
    aligner: Aligner | None,
    fine: FineAligner | None,
    box: int,
    apix: float,
    say: Say,
) -> tuple[Aligner | None, FineAligner | None]:
    """Angular steps from the radius of the particle (see ``--radius``)."""
    radius, precision = values["radius"], values["precision"]
    if not precision > 0:
        raise InputError(f"--precision={precision:g}: voxels above 0 are needed")
    if not radius:
        say(warning("--precision does nothing without --radius"))
        return aligner, fine
    if radius < 2 * apix:
        raise InputError(f"--radius={radius:g}: less than two voxels of {apix:g} A")
    if aligner is None:
        raise InputError("--radius and --align=None: there is no search to set steps for")
    if radius > box * apix * 3**0.5 / 2:
        say(warning(f"--radius={radius:g} reaches out of the box of {box * apix:.0f} A"))
    if given("align") and re.search(r"delta|dphi|dalt|daz|:n=", values["align"]):
        say("--radius replaces the angular steps of --align")
    step = np.degrees(precision * apix / radius)
    delta = step * max(values["shrinkfine"], 1)
    coarse = max(4 * delta, step * max(values["shrink"], 1))
    return _coarse_step(aligner, float(coarse)), _fine_step(fine, float(delta))


def _coarse_step(aligner: Aligner, step: float) -> Aligner:
    """An aligner that searches in such steps, with the symmetry and shifts of the one given."""
    if isinstance(aligner, RotateTranslate3DGrid):
        return dataclasses.replace(aligner, dalt=step, daz=step, dphi=step)
    if isinstance(aligner, RotateTranslate3D):
        return dataclasses.replace(aligner, delta=step, dphi=step, n=None)
    reach = getattr(aligner, "maxshift", None)
    search = None if reach is None else int(reach)
    return RotateTranslate3D(search=search, sym=aligner.sym, delta=step, dphi=step)


def _fine_step(fine: FineAligner | None, step: float) -> FineAligner:
    """A fine aligner of such a spacing, within twice that of its start."""
    if isinstance(fine, Refine3D):  # has no spacing
        return fine
    if isinstance(fine, RotateTranslate3DTree):
        return dataclasses.replace(fine, maxang=2 * step)
    return dataclasses.replace(fine or Refine3DGrid(), delta=step, range=2 * step)


def _search(values: Values, aligner: Aligner | None, copy: float, say: Say) -> int | None:
    """Half width of the cube of coarse shifts, or None: what the aligner states."""
    value, most = values["search"], int(copy // 2) - 2
    stated = _stated_searches(aligner)
    if max(stated, default=0) > most + 1:
        raise InputError(
            f"--align: a search of {max(stated):g}, half of the box of the copies is"
            f" {most + 2} voxels"
        )
    if stated and given("search") and value == _SEARCH:
        say(f"--search={value} is the default: the search of --align is used")
    if stated and (not given("search") or value == _SEARCH):
        return None
    if value < 0:
        return most
    if not given("search"):
        return min(value, most)
    if value > most + 1:
        raise InputError(f"--search={value}: half of the box of the copies is {most + 2} voxels")
    return value


def _stated_searches(aligner: Aligner | FineAligner | None) -> list[float]:
    """How far to shift, where an aligner says so itself."""
    names = ("search", "searchx", "searchy", "searchz", "maxshift")
    return [x for x in (getattr(aligner, name, None) for name in names) if x is not None]


def _search_fine(values: Values, box: int) -> float:
    """How far the fine aligner moves a shift if it does not state it."""
    value = values["searchfine"]
    most = int((values["clip"] or box) / max(values["shrinkfine"], 1) // 2) - 1
    if value > most:
        raise InputError(f"--searchfine={value}: half of the box of the copies is {most + 1}")
    return float(most if value < 0 else value)


def _with_search_fine(values: Values, fine: FineAligner | None, say: Say) -> FineAligner | None:
    """The fine aligner without a search of its own where ``--searchfine`` overrides it."""
    if fine is None or not given("searchfine") or not _stated_searches(fine):
        return fine
    if values["searchfine"] == _SEARCH_FINE:
        say(f"--searchfine={_SEARCH_FINE} is the default: the search of --falign is used")
        return fine
    names = {f.name for f in dataclasses.fields(fine)}
    own = names & {"search", "searchx", "searchy", "searchz", "maxshift"}
    return dataclasses.replace(fine, **dict.fromkeys(own))
