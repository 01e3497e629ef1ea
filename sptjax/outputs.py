"""The files of a run folder, in EMAN2's forms and names, plus pictures.

Scores in EMAN2's files are negated (there, smaller is better). Iterations are numbered from 0
and padded to the digits of their number, as EMAN2 does.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from . import io, plots, resolution, rotation, tables
from ._types import Pose, Volume
from .align import Found
from .io._atomic import atomic_path
from .particles import Stack
from .state import CURVES, RefineState

THRESHOLDS = (0.143, 0.5)


@dataclasses.dataclass(frozen=True)
class OutputSettings:
    """Where and what to write."""

    folder: pathlib.Path
    program: str  # "refinemulti" or "classaverage"
    apix: float
    iterations: int
    gold_standard: bool
    average_name: str  # of the final class averages, inside the folder
    result_matrix: str | None = None
    uncertainty: bool = False  # write covariances and modes of the poses
    save_steps: bool = False
    save_aligned: bool = False
    save_all_aligned: bool = False  # aligned particles of every round
    pose_tag: str = ""  # takes the place of the iteration in the names of pose files
    rows: np.ndarray | None = None  # [n], of the input file; all in order if None
    table: tables.ParticleTable | None = None  # what is known of the particles; None: no STAR file
    plots: bool = True

    def original(self, index: int) -> int:
        """Number of a particle in the input file."""
        return int(index if self.rows is None else self.rows[index])


def pad(number: int, count: int) -> str:
    """Decimal number padded to the digits of ``count``."""
    return str(number).zfill(len(str(count)))


def tag(state: RefineState, settings: OutputSettings) -> str:
    """Iteration tag of a round.

    Args:
        state: after the round.
        settings: of the files.
    """
    return pad(state.round, settings.iterations)


def write_round(state: RefineState, settings: OutputSettings) -> None:
    """Poses, class matrix, averages, FSC curves, scores and pictures of one round.

    Args:
        state: after the round.
        settings: of the files.
    """
    folder, it = settings.folder, tag(state, settings)
    _write_poses(state, settings, it)
    write_class_matrix(folder / f"classmx_{it}.hdf", state)
    if state.modes is not None and settings.uncertainty:
        for form in ("hdf", "json"):
            io.write_pose_table(folder / f"uncertainty_{it}.{form}", state.modes)
    _write_averages(state, settings, it)
    _write_curves(state, settings, it)
    _write_scores(state, settings, it)
    if settings.program == "refinemulti":
        _write_membership(state, settings)
    if settings.plots:
        _write_pictures(state, settings, it)


def write_mean_scores(means: list[float], settings: OutputSettings) -> None:
    """Mean score of every round, in the order of the rounds.

    Args:
        means: one per round.
        settings: of the files.
    """
    lines = [f"{i}\t{-mean:.6f}" for i, mean in enumerate(means)]
    _write_text(settings.folder / "spt_meanccc.txt", lines)


def write_recomputed(state: RefineState, settings: OutputSettings) -> None:
    """Averages and FSC of given poses and classes (EMAN2 ``--recompute``).

    Args:
        state: with its averages.
        settings: of the files.
    """
    folder, apix = settings.folder, settings.apix
    io.write_hdf(folder / "recomp_avg.hdf", list(state.maps), apix, class_headers(state))
    for half, name in enumerate(("even", "odd")):
        io.write_hdf(folder / f"recomp_avg_{name}.hdf", list(state.halves[:, half]), apix)
    several = len(state.maps) > 1
    for c, curves in enumerate(state.fsc):
        name = f"recompute_fsc_{c}.txt" if several else "recompute_fsc.txt"
        _write_curve(folder / name, curves[0], apix)


def _matrices(state: RefineState, column: np.ndarray | int) -> np.ndarray:
    row = np.arange(len(state.classes))
    pose = Pose(jnp.asarray(state.rotation[row, column]), jnp.asarray(state.shift[row, column]))
    return np.asarray(rotation.pose_to_matrix34(pose))


def _write_poses(state: RefineState, settings: OutputSettings, it: str) -> None:
    folder = settings.folder
    margin = np.where(np.isfinite(state.margin), state.margin, -1.0)
    it = settings.pose_tag or it
    extra = {
        "class": state.classes,
        "used": state.used.astype(int),
        "weight": state.weight.astype(float),
        "half": np.arange(len(state.classes)) % 2,
        "margin": margin,
    }
    if state.strength is not None:
        extra |= {"scale": state.strength[:, 0], "b_factor": state.strength[:, 1]}
    if settings.program == "classaverage":
        path = folder / f"sptali_ir_{it}.json"
        io.write_alignments(path, _matrices(state, 0), -state.score[:, 0], extra)
        if state.peaks is not None:
            _write_peaks(folder / f"sptali_ir_coarse_allpeaks_{it}.json", state.peaks, 0)
        if settings.gold_standard:
            link = folder / f"sptali_ir_{it}_oddali2even.json"
            io.write_alignments(link, state.odd_to_even[:1], np.zeros(1))
        return
    count = state.score.shape[1]
    for c in range(count):
        path = folder / f"sptali_rm_{it}_{pad(c, count)}.json"
        io.write_alignments(path, _matrices(state, c), -state.score[:, c], extra)
        if state.peaks is not None:
            name = f"sptali_rm_coarse_allpeaks_{it}_{pad(c, count)}.json"
            _write_peaks(folder / name, state.peaks, c)


def _write_peaks(path: pathlib.Path, peaks: Found, c: int) -> None:
    """Coarse poses against one reference, with scores and how far they stand out."""
    n, count = peaks.score.shape[0], peaks.score.shape[2]
    pose = Pose(jnp.asarray(peaks.rotation[:, c]), jnp.asarray(peaks.shift[:, c]))
    matrices = np.asarray(rotation.pose_to_matrix34(pose))
    table = {}
    for i in range(n):
        score = peaks.score[i, c]
        z = (score - score.mean()) / max(score.std(), 1e-12)
        for p in range(count):
            key = f"subtomo_{pad(i, n)}_peak_{pad(p, count)}"
            table[key] = [
                io.transform_to_json(matrices[i, p]),
                f"ccc={-score[p]:.6g}",
                f"zscore={-z[p]:.6g}",
            ]
    io.write_json(path, table)


def write_class_matrix(path: pathlib.Path, state: RefineState) -> None:
    """Membership, weight and pose of every particle in its class.

    Args:
        path: of the file.
        state: after a round.
    """
    turn, shift = state.pose
    angles = rotation.to_euler(jnp.asarray(turn), rotation.Convention["EMAN"])
    own = np.maximum(state.classes, 0)
    matrix = io.ClassMatrix(
        n_classes=state.score.shape[1],
        classes=state.classes,
        weights=state.weight,
        scores=-state.score[np.arange(len(own)), own],
        euler_deg=np.asarray(angles),
        shifts_vox=shift,
    )
    io.write_classmx(path, matrix)


def class_headers(state: RefineState) -> list[dict]:
    """Header items of the class averages.

    Args:
        state: after a round.
    """
    headers = []
    for c in range(len(state.maps)):
        members = np.flatnonzero(state.classes == c)
        kept = np.flatnonzero((state.classes == c) & state.used)
        header = {"spt_multiplicity": len(members), "ptcl_repr": len(kept)}
        header |= {"origin_x": 0.0, "origin_y": 0.0, "origin_z": 0.0}
        if 0 < len(members) <= 16000:
            header |= {"class_ptcl_idxs": members.tolist(), "spt_ptcl_indxs": kept.tolist()}
        headers.append(header)
    return headers


def _write_averages(state: RefineState, settings: OutputSettings, it: str) -> None:
    folder, apix = settings.folder, settings.apix
    headers = class_headers(state)
    io.write_hdf(folder / settings.average_name, list(state.maps), apix, headers)
    if settings.program == "classaverage":
        stem = pathlib.Path(settings.average_name).stem
        for half, name in enumerate(("even", "odd")):
            io.write_hdf(folder / f"{stem}_{name}.hdf", list(state.halves[:, half]), apix)
    if not settings.save_steps:
        return
    if settings.program == "refinemulti":
        io.write_hdf(folder / f"class_avgs_iter{it}.hdf", list(state.maps), apix, headers)
        for c, volume in enumerate(state.maps):
            append_image(folder / f"class_{c}.hdf", volume, state.round, apix, headers[c])
        return
    append_image(folder / "class_0.hdf", state.maps[0], state.round, apix, headers[0])
    for half, name in enumerate(("even", "odd")):
        append_image(folder / f"avgs_{name}.hdf", state.halves[0, half], state.round, apix, {})


def append_image(
    path: pathlib.Path, volume: np.ndarray | Volume, index: int, apix: float, header: dict
) -> None:
    """Image ``index`` of a growing stack; what a resumed run left beyond it is dropped.

    Args:
        path: of the stack, HDF.
        volume: ``[n, n, n]``.
        index: its place, at most the number of whole images.
        apix: angstrom per voxel.
        header: further items.
    """
    volumes, headers = [], []
    if path.exists() and index:
        with io.HdfReader(path) as reader:
            for i in range(min(len(reader), index)):
                volumes.append(reader.read(i))
                headers.append({})
    io.write_hdf(path, [*volumes, np.asarray(volume)], apix, [*headers, header])


def _write_curves(state: RefineState, settings: OutputSettings, it: str) -> None:
    folder = settings.folder
    several = settings.program == "refinemulti"
    for c, curves in enumerate(state.fsc):
        for name, curve in zip(CURVES, curves):
            parts = ["fsc", it, *([str(c)] if several else [])]
            parts += [] if name == "unmasked" else [name]
            _write_curve(folder / ("_".join(parts) + ".txt"), curve, settings.apix)
    path = folder / "resolution.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    known[str(state.round)] = resolutions(state, settings.apix)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(known, indent=1))


def _write_curve(path: pathlib.Path, curve: np.ndarray, apix: float) -> None:
    """``frequency in 1/angstrom<TAB>FSC`` from shell 1 on."""
    shells = len(curve) - 1
    frequency = np.arange(1, shells + 1) / (2 * shells * apix)
    lines = [f"{s:.6f}\t{v:.6f}" for s, v in zip(frequency, np.nan_to_num(curve[1:]))]
    _write_text(path, lines)


def resolutions(state: RefineState, apix: float) -> dict[str, dict[str, dict[str, float | None]]]:
    """``{class: {curve: {threshold: angstrom}}}``; None where a curve claims nothing.

    Args:
        state: after a round, with its FSC curves.
        apix: angstrom per voxel.
    """
    table: dict = {}
    for c, curves in enumerate(state.fsc):
        rows = {}
        for name, curve in zip(CURVES, curves):
            values = {str(t): resolution.resolution_angstrom(curve, apix, t) for t in THRESHOLDS}
            rows[name] = {t: v if np.isfinite(v) else None for t, v in values.items()}
        table[str(c)] = rows
    return table


def _write_scores(state: RefineState, settings: OutputSettings, it: str) -> None:
    """``index<TAB>score`` sorted best first, per class or per half."""
    own = np.maximum(state.classes, 0)
    score = state.score[np.arange(len(own)), own]
    groups = {str(c): state.classes == c for c in range(state.score.shape[1])}
    if settings.program == "classaverage":
        parity = np.arange(len(own)) % 2
        groups = {n: groups["0"] & (parity == h) for h, n in enumerate(("even", "odd"))}
    for name, member in groups.items():
        rows = np.flatnonzero(member)
        rows = rows[np.argsort(-score[rows], kind="stable")]
        lines = [f"{i}\t{score[i]:.6f}" for i in rows]
        _write_text(settings.folder / f"spt_cccs_{it}_{name}.txt", lines)


def _write_membership(state: RefineState, settings: OutputSettings) -> None:
    """EMAN2's ``class_membership.txt``: an asterisk follows particles new to a class."""
    path = settings.folder / "class_membership.txt"
    before = path.read_text().split("ITERATION ")[1:] if path.exists() else []
    before = before[: state.round]
    last = _members(before[-1]) if before else None
    lines = []
    for c in range(state.score.shape[1]):
        rows = np.flatnonzero(state.classes == c)
        fresh = set() if last is None else set(rows.tolist()) - last.get(c, set())
        lines.append(f"CLASS {c}: " + ",".join(f"{i}*" if i in fresh else f"{i}" for i in rows))
    block = f"{state.round}\n" + "\n".join(lines) + "\n"
    text = "".join(f"ITERATION {part}" for part in [*before, block])
    _write_text(path, text.splitlines())


def _members(block: str) -> dict[int, set[int]]:
    found = {}
    for line in block.splitlines()[1:]:
        head, _, rows = line.partition(":")
        if head.startswith("CLASS"):
            found[int(head.split()[1])] = {
                int(x.rstrip("*")) for x in rows.strip().split(",") if x.strip()
            }
    return found


def _write_text(path: pathlib.Path, lines: list[str]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n")


def _write_pictures(state: RefineState, settings: OutputSettings, it: str) -> None:
    folder, box = settings.folder, state.maps.shape[-1]
    own = np.maximum(state.classes, 0)
    score = state.score[np.arange(len(own)), own]
    several = len(state.maps) > 1
    counts = np.bincount(state.classes[state.classes >= 0], minlength=len(state.maps))
    names = [f"class {c} ({counts[c]})" for c in range(len(state.maps))] if several else None
    plots.save(plots.central_slices(state.maps, settings.apix, names), folder / "slices.png")
    frequency = np.arange(1, box // 2 + 1) / (box * settings.apix)
    table = resolutions(state, settings.apix)
    if several:
        curves = {f"class {c}": state.fsc[c, 0, 1:] for c in range(len(state.maps))}
        found = {f"class {c}": table[str(c)]["unmasked"]["0.143"] for c in range(len(state.maps))}
    else:
        curves = {str(name): curve for name, curve in zip(CURVES, state.fsc[0, :, 1:])}
        found = {name: table["0"][name]["0.143"] for name in CURVES}
    found = {name: value for name, value in found.items() if value is not None}
    plots.save(plots.fsc_curves(frequency, curves, found), folder / f"fsc_{it}.png")
    groups = [score[state.classes == c] for c in range(len(state.maps))]
    plots.save(plots.score_histogram(groups), folder / f"spt_cccs_{it}.png")


def write_occupancy(counts: np.ndarray, changed: np.ndarray, settings: OutputSettings) -> None:
    """Picture of the class sizes and of the share of particles that changed class, by round.

    Args:
        counts: particles ``[rounds, classes]``.
        changed: fraction ``[rounds]``.
        settings: of the files.
    """
    figure = plots.class_occupancy(counts, changed)
    plots.save(figure, settings.folder / "class_occupancy.png")


def write_aligned(
    state: RefineState,
    stack: Stack,
    settings: OutputSettings,
    transform: Callable[[Volume, Pose], Volume],
    *,
    every_round: bool,
) -> None:
    """Rotated raw particles of every class (or half), rejected ones included.

    Args:
        state: poses and classes.
        stack: raw particles.
        settings: where to write.
        transform: moves one volume by a pose.
        every_round: name the files by round.
    """
    suffix = f"_{tag(state, settings)}" if every_round else ""
    groups = {f"class{c}_ptcl{suffix}.hdf": state.classes == c for c in range(len(state.maps))}
    if settings.program == "classaverage":
        parity = np.arange(len(state.classes)) % 2
        groups = {
            f"aliptcls_{name}{suffix}.hdf": (state.classes == 0) & (parity == half)
            for half, name in enumerate(("even", "odd"))
        }
    turn, shift = state.pose
    own = np.maximum(state.classes, 0)
    for name, member in groups.items():
        rows = np.flatnonzero(member)
        if not len(rows):
            continue
        matrices = _matrices(state, own)
        with io.HdfWriter(settings.folder / name, settings.apix) as writer:
            for i in rows:
                pose = Pose(jnp.asarray(turn[i]), jnp.asarray(shift[i]))
                volume = np.asarray(transform(jnp.asarray(stack.read(np.array([i]))[0]), pose))
                header = {
                    "spt_score": float(-state.score[i, own[i]]),
                    "spt_indx_original": settings.original(int(i)),
                    "spt_used": int(state.used[i]),
                    "spt_weight": float(state.weight[i]),
                    "xform.align3d": matrices[i],
                }
                writer.append(volume, header)


def write_final(state: RefineState, settings: OutputSettings) -> None:
    """What is written once, after the last round.

    Args:
        state: after the last round.
        settings: of the files.
    """
    if settings.result_matrix:
        write_class_matrix(settings.folder / settings.result_matrix, state)
    if settings.table is not None:
        own = np.maximum(state.classes, 0)
        pose = _matrices(state, own).astype(np.float64)
        score = state.score[np.arange(len(own)), own].astype(np.float64)
        table = dataclasses.replace(
            settings.table,
            rotation=pose[..., :3],
            shift=pose[..., 3],
            classes=state.classes + 1,
            half=np.arange(len(own)) % 2 + 1,
            score=np.where(np.isfinite(score), score, 0.0),
        )
        path = settings.folder / f"particles_{tag(state, settings)}.star"
        tables.write(path, table, "relion5" if table.centred else "relion4")
