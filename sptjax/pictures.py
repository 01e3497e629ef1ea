"""Pictures at the end of a refinement, beside those of every round."""

from collections.abc import Sequence

import numpy as np

from . import coverage, io, plots
from .averaging import Assigned
from .outputs import OutputSettings, pad
from .particles import Sampling
from .run_report import Shown
from .state import RefineState
from .symmetry import Symmetry


def draw(
    state: RefineState,
    sampling: Sampling,
    symmetries: tuple[Symmetry, ...],
    settings: OutputSettings,
) -> None:
    """Projections, directions, coverage; with several classes also margins and their flow.

    Args:
        state: the last round.
        sampling: of the particles.
        symmetries: that the averages have, one per class.
        settings: where to.
    """
    folder, save = settings.folder, plots.save
    names = [f"class {c}" for c in range(len(state.maps))]
    counts = np.bincount(state.classes[state.classes >= 0], minlength=len(names))
    counted = [f"{name} ({count})" for name, count in zip(names, counts)]
    if state.round < 0:  # given classes were averaged: no round drew them
        slices = plots.central_slices(state.maps, settings.apix, counted)
        save(slices, folder / "slices.png")
    save(plots.projections(state.maps, settings.apix, counted), folder / "projections.png")
    rows = np.flatnonzero(state.used)
    turn, shift = (x[rows] for x in state.pose)
    own = Assigned(rows, turn, shift, state.classes[rows], state.weight[rows])
    seen = [
        beam_directions(turn[own.classes == c], symmetry) for c, symmetry in enumerate(symmetries)
    ]
    save(plots.viewing_directions(seen, names), folder / "directions.png")
    weights = coverage.sampled(own, sampling, symmetries, state.maps.shape[-1])
    save(plots.fourier_coverage(weights, settings.apix, names), folder / "coverage.png")
    if len(state.maps) > 1 and state.round >= 0:
        save(plots.margins(state.margin, state.classes, names), folder / "margins.png")
        save(plots.class_flow(classes_by_round(state, settings), names), folder / "class_flow.png")


def beam_directions(rotation: np.ndarray, symmetry: Symmetry) -> np.ndarray:
    """The beam (z of every particle) as seen from the map, and its symmetry copies, ``[m, 3]``.

    Args:
        rotation: particle to reference, ``[n, 3, 3]``.
        symmetry: of the map.
    """
    beam = np.asarray(rotation)[:, :, 2]
    return np.einsum("gij,nj->gni", np.asarray(symmetry.operators), beam).reshape(-1, 3)


def classes_by_round(state: RefineState, settings: OutputSettings) -> np.ndarray:
    """Classes after every round, ``[rounds, n]``, from the class matrices of the run.

    Args:
        state: after the last round.
        settings: of the files.
    """
    paths = [
        settings.folder / f"classmx_{pad(i, settings.iterations)}.hdf" for i in range(state.round)
    ]
    before = [io.read_classmx(path).classes for path in paths if path.exists()]
    return np.stack([*before, state.classes])


def captions(it: str, classes: int, *, gold_standard: bool) -> Sequence[Shown]:
    """The pictures of a refinement in the order to look at them.

    Args:
        it: tag of the last round.
        classes: how many there are.
        gold_standard: whether the halves never shared a reference.
    """
    curves = (
        "Halves of the particles with references of their own (gold standard)."
        if gold_standard
        else "Halves of the particles that share their references: the curves are optimistic."
    )
    found = [
        Shown(
            "slices.png",
            "Central slices",
            "Unfiltered averages; grey from mean - 3 to mean + 3 standard deviations.",
        ),
        Shown("projections.png", "Projections", "The same maps summed along z, y and x."),
        Shown(f"fsc_{it}.png", "Fourier shell correlation", curves),
        Shown(
            f"spt_cccs_{it}.png",
            "Scores",
            "Of every particle against its own average. A second peak at low scores is a group of"
            " particles that are something else, or wrongly aligned.",
        ),
    ]
    if classes > 1:
        found += [
            Shown(
                "margins.png",
                "Margins",
                "By how much the best class of a particle beats the second best. Particles near 0"
                " could as well be in another class.",
            ),
            Shown(
                "class_occupancy.png", "Class sizes", "By round, and the share that changed class."
            ),
            Shown(
                "class_flow.png",
                "Flow between classes",
                "Which class the particles of a class went to. Classes that have settled send thin"
                " ribbons to the others.",
            ),
        ]
    return [
        *found,
        Shown(
            "directions.png",
            "Viewing directions",
            "From where the beam met the particle, in the frame of the map. Empty regions of the"
            " sphere are seen by no particle.",
        ),
        Shown(
            "coverage.png",
            "Sampling of Fourier space",
            "Share of the particles whose wedge holds a frequency. What hardly any particle has"
            " sampled is missing from the map, which is smeared along that direction.",
        ),
    ]
