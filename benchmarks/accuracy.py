"""Accuracy of poses against noise, wedge, symmetry and box, for three programs and the oracle.

python benchmarks/accuracy.py --out=accuracy.json --picture=accuracy.png
python benchmarks/accuracy.py --n=8 --n_slow=2 --panels=groel:d7:32:60 --snr=0.1

The same particles go to

* sptjax: the search that the scripts run by default, with its pilot calibration;
* exhaustive: an EMAN-like search, every direction and turn of EMAN2's grid and every whole voxel
  by ccc.tomo.thresh, then a local grid of finer steps, without any polish;
* acryo, where it is installed: its ZNCC alignment over a uniform set of rotations, then over a
  local set around the best;
* the oracle: refined from the planted pose, by the score of sptjax.

Angle (modulo symmetry) and shift: median and 90th percentile, and the share of successes: within
10 degrees and 2 voxels. Of two maps (50S D and E) both are references, every particle belongs to
the one that it fits better, and a success is the right one. The distance between a curve and that
of the oracle is what its search loses. White noise, variance of the map over that of the noise in
the box; wedge of a tilt range that is symmetric about zero. The exhaustive searches are slow: they
get fewer particles, and boxes of 32 only; acryo one map with a small asymmetric unit. Every result
goes to --out at once, and those that are there are not computed again.
"""

import dataclasses
import importlib
import importlib.util
import json
import os
import pathlib
from collections.abc import Callable

import numpy as np
from _common import SEED, Planted, load_map, local, plant, pose_error
from _report import launch, numbers, report
from absl import flags
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.spatial.transform import Rotation

from sptjax import orientations, symmetry
from sptjax._errors import InputError
from sptjax.align import (
    AlignmentSettings,
    Found,
    Refine3DGrid,
    RotateTranslate3D,
    align_particles,
)
from sptjax.calibration import Calibration, calibrate
from sptjax.comparators import CCCTomoThresh
from sptjax.particles import Particles
from sptjax.symmetry import Symmetry

_N = flags.DEFINE_integer("n", 32, "particles of sptjax and the oracle", lower_bound=4)
_SLOW = flags.DEFINE_integer("n_slow", 8, "particles of the exhaustive searches", lower_bound=1)
_PANELS = flags.DEFINE_list(
    "panels",
    "emd_3420:c1:32:60,emd_3420:c1:48:60,emd_3420:c1:32:40,groel:d7:32:60,50S_D+50S_E:c1:32:60",
    "map, symmetry, box and last tilt, colons between",
)
_SNR = flags.DEFINE_string("snr", "0.1,0.03,0.01,0.003,0.001", "variance ratios in the box")
_PROGRAMS = flags.DEFINE_list("programs", "sptjax,exhaustive,acryo", "beside the oracle")
_STEP = flags.DEFINE_float("step", 12.0, "of the exhaustive search, degrees")
_ACRYO_STEP = flags.DEFINE_float("acryo_step", 18.0, "of acryo's search, degrees")
_ACRYO_MOST = flags.DEFINE_integer(
    "acryo_rotations", 1000, "leave acryo out where its list is longer (20 ms of CPU a rotation)"
)
_PICTURE = flags.DEFINE_string("picture", None, "draw the curves here, PNG")

EXTENT = {"emd_3420": 670.7, "groel": 266.7, "50S_D+50S_E": 419.2}  # angstrom, edge of the box
SUCCESS_DEG, SUCCESS_VOX = 10.0, 2.0
SHIFT, SEARCH = 2.0, 3
SLOW_BOX = 32
FINE_DEG = 3.0  # of the exhaustive search, within one coarse step
LABELS = {
    "success": f"within {SUCCESS_DEG:.0f}°, {SUCCESS_VOX:.0f} voxels",
    "deg": "angle, degrees",
    "vox": "shift, voxels",
}
LINES = {
    "oracle": ("0.25", "--", "o"),
    "sptjax": ("#0072B2", "-", "o"),
    "exhaustive": ("#D55E00", "-", "s"),
    "acryo": ("#009E73", "-", "^"),
}


@dataclasses.dataclass(frozen=True)
class Panel:
    """Everything but the noise."""

    map: str
    symmetry: str
    box: int
    tilt: float

    @classmethod
    def of(cls, text: str) -> "Panel":
        """From the text of an option."""
        parts = text.split(":")
        if len(parts) != 4 or parts[0] not in EXTENT:
            raise InputError(f"--panels={text}: map:symmetry:box:tilt, maps {', '.join(EXTENT)}")
        return cls(parts[0], parts[1], int(parts[2]), float(parts[3]))

    @property
    def title(self) -> str:
        """For pictures."""
        what = "class D or E" if "+" in self.map else self.symmetry.upper()
        return f"{what}, {self.box}³, ±{self.tilt:.0f}°"


@dataclasses.dataclass(frozen=True)
class Task:
    """Particles, what is known of them, and the reference."""

    maps: np.ndarray  # [c, n, n, n]
    planted: Planted
    particles: Particles
    calibration: Calibration
    group: Symmetry
    tilt: float

    @property
    def groups(self) -> tuple[Symmetry, ...]:
        """Of every map."""
        return (self.group,) * len(self.maps)


Poses = tuple[np.ndarray, np.ndarray, np.ndarray]  # rotations, shifts, maps of the first particles


def of(found: Found) -> Poses:
    """Against the reference that fits best."""
    best = found.score.argmax(1)
    rows = np.arange(len(best))
    return found.rotation[rows, best], found.shift[rows, best], best


def sptjax(task: Task, n: int) -> Poses:
    """The default search."""
    settings, known = AlignmentSettings(search_vox=SEARCH), task.calibration
    return of(
        align_particles(
            task.particles, np.arange(n), known.references, task.groups, settings,
            expected_score=known.expected_score,
        )
    )  # fmt: skip


def oracle(task: Task, n: int) -> Poses:
    """Refined from the truth."""
    settings, known = AlignmentSettings(search_vox=SEARCH), task.calibration
    truth = task.planted.truth
    each = lambda x: np.repeat(x, len(task.maps), 1)  # noqa: E731
    start = Found(each(truth.rotation), each(truth.shift), each(truth.score))
    found = local(
        task.particles, known.references, settings, known.expected_score, start,
        symmetries=task.groups,
    )  # fmt: skip
    turn, shift, best = of(found)
    return turn[:n], shift[:n], best[:n]


def exhaustive(task: Task, n: int) -> Poses:
    """Grid poses alone."""
    settings = AlignmentSettings(
        aligner=RotateTranslate3D(search=SEARCH, delta=_STEP.value, dphi=_STEP.value, refine=False),
        fine=Refine3DGrid(delta=FINE_DEG, range=_STEP.value, search=1, refine=False),
        comparator=CCCTomoThresh(),
    )
    rows = np.arange(n)
    return of(
        align_particles(task.particles, rows, task.maps, task.groups, settings, expected_score=0.0)
    )


def acryo(task: Task, n: int) -> Poses:
    """Its ZNCC alignment over the asymmetric unit, then around the best."""
    step = _ACRYO_STEP.value
    wide = _acryo_model(task, np.asarray(orientations.uniform(step, task.group).rotations, float))
    near = np.asarray(orientations.local(2 * step / 3, step / 4).rotations, float)
    rotations, places = [], []
    for volume in task.planted.stack.volumes[:n]:
        turn, _ = _acryo_pose(wide, volume)
        turn, place = _acryo_pose(_acryo_model(task, near @ turn), volume)
        rotations.append(turn)
        places.append(place)
    rotation = np.array(rotations, np.float32)
    move = -np.einsum("nij,nj->ni", rotation, np.array(places, np.float32))
    return rotation, move, np.zeros(n, int)


def _acryo_model(task: Task, turns: np.ndarray):
    """Of rotations ``[q, 3, 3]``; in (z, y, x) order its own turn the reference to the particle."""
    own = Rotation.from_matrix(turns.swapaxes(-1, -2)[:, ::-1, ::-1])
    model = importlib.import_module("acryo.alignment").ZNCCAlignment
    everywhere, tilts = np.ones_like(task.maps[0]), (-task.tilt, task.tilt)
    return model(task.maps[0], mask=everywhere, rotations=own, tilt=tilts)


def _acryo_pose(model, volume: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotation, and place of the reference's centre from the centre voxel, (x, y, z)."""
    result = model.align(volume, max_shifts=(SEARCH,) * 3)
    turn = Rotation.from_quat(result.quat).as_matrix()[::-1, ::-1].T
    # it turns about the middle of the box, half a voxel before the centre voxel
    return turn, result.shift[::-1] - 0.5 + turn.T @ np.full(3, 0.5)


PROGRAMS: dict[str, Callable[[Task, int], Poses]] = {
    "oracle": oracle,
    "sptjax": sptjax,
    "exhaustive": exhaustive,
    "acryo": acryo,
}


def prepared(panel: Panel, snr: float) -> Task:
    """Particles of one panel and noise, calibrated."""
    group = symmetry.parse(panel.symmetry)
    apix = EXTENT[panel.map] / panel.box
    maps = np.stack([load_map(name, panel.box, apix) for name in panel.map.split("+")])
    planted = plant(maps, _N.value, snr, SHIFT, apix=None, seed=SEED.value, tilt_deg=panel.tilt)
    particles = planted.load()
    groups = (group,) * len(maps)
    found = calibrate(particles, maps, groups, AlignmentSettings(search_vox=SEARCH))
    particles = particles.with_noise_share(found.noise_share)
    return Task(maps, planted, particles, found, group, panel.tilt)


def errors(task: Task, program: str, n: int) -> dict:
    """The numbers of one program."""
    turn, shift, best = PROGRAMS[program](task, n)
    known = task.planted.truth
    truth = Found(known.rotation[:n], known.shift[:n], known.score[:n])
    angle, move = pose_error(turn, shift, truth, task.group)
    right = (angle < SUCCESS_DEG) & (move < SUCCESS_VOX)
    if len(task.maps) > 1:
        right = best == task.planted.classes[:n]
    return {
        "success": np.mean(right),
        "median_deg": np.median(angle),
        "p90_deg": np.percentile(angle, 90),
        "median_vox": np.median(move),
        "p90_vox": np.percentile(move, 90),
    }


def programs(panel: Panel) -> dict[str, int]:
    """Those asked for that are there, with their numbers of particles."""
    for name in _PROGRAMS.value:
        if name not in PROGRAMS:
            raise InputError(f"--programs={name}: known are {', '.join(PROGRAMS)}")
    slow = {name for name in ("exhaustive", "acryo") if panel.box <= SLOW_BOX}
    order = len(symmetry.parse(panel.symmetry))
    count = 8 * np.pi**2 / np.radians(_ACRYO_STEP.value) ** 3 / order
    if importlib.util.find_spec("acryo") is None or count > _ACRYO_MOST.value or "+" in panel.map:
        slow.discard("acryo")
    few = min(_SLOW.value, _N.value)
    wanted = {name: few for name in _PROGRAMS.value if name in slow}
    return dict.fromkeys(("oracle", "sptjax"), _N.value) | wanted


def measure(panel: Panel, snr: float, rows: list[dict]) -> None:
    """Add what is not there yet."""
    task = None
    for name, n in programs(panel).items():
        row = {**dataclasses.asdict(panel), "snr": snr, "program": name}
        if any(row.items() <= other.items() for other in rows):
            continue
        task = task or prepared(panel, snr)
        rows.append({**row, "n": n, **errors(task, name, n)})
        keep(rows)
        done = {k: v for k, v in rows[-1].items() if k not in row}
        text = ", ".join(f"{k} {v:.3g}" for k, v in done.items())
        print(f"{panel.title} at {snr:g}, {name}: {text}", flush=True)


def before() -> list[dict]:
    """Rows of an earlier run."""
    path = pathlib.Path(flags.FLAGS.out or "")
    return json.loads(path.read_text())["tables"]["accuracy"] if path.is_file() else []


def keep(rows: list[dict]) -> None:
    """Write what there is."""
    if flags.FLAGS.out:
        part = pathlib.Path(f"{flags.FLAGS.out}.part")
        part.write_text(json.dumps({"tables": {"accuracy": rows}}, default=float))
        os.replace(part, flags.FLAGS.out)


def draw(rows: list[dict], path: str) -> None:
    """Successes, angles and shifts below each other; a column for each panel."""
    panels = [Panel.of(text) for text in _PANELS.value]
    figure = Figure(figsize=(2.0 * len(panels) + 0.8, 6), layout="constrained")
    grid = figure.subplots(3, len(panels), squeeze=False, sharex=True, sharey="row")
    for column, panel in zip(grid.T, panels):
        own = [r for r in rows if dataclasses.asdict(panel).items() <= r.items()]
        for axes, part in zip(column, LABELS):
            _lines(axes, own, part)
            axes.grid(alpha=0.3, linewidth=0.5)
            axes.tick_params(labelsize=8)
        column[0].set_title(panel.title, fontsize=9)
    for axes, (part, label) in zip(grid[:, 0], LABELS.items()):
        axes.set_ylabel(label, fontsize=9)
        axes.set_yscale("linear" if part == "success" else "log")
    grid[0, 0].set_ylim(-0.04, 1.04)
    grid[0, 0].set_xscale("log")
    grid[0, 0].xaxis.set_major_formatter("{x:g}")
    grid[1, 0].yaxis.set_major_formatter("{x:g}")
    grid[2, 0].yaxis.set_major_formatter("{x:g}")
    figure.supxlabel("variance of the map over that of the noise", fontsize=9)
    figure.legend(handles=_legend(), loc="outside upper center", ncols=len(LINES) + 1, fontsize=9)
    figure.savefig(path, dpi=150)


def _legend() -> list[Line2D]:
    """All programs, and what a thin line is."""
    lines = [
        Line2D([], [], color=c, linestyle=s, marker=m, markersize=4, label=name)
        for name, (c, s, m) in LINES.items()
    ]
    return [*lines, Line2D([], [], color="0.5", linestyle=":", label="90th percentile")]


def _lines(axes, rows: list[dict], part: str) -> None:
    """Curves of all programs; medians full, 90th percentiles thin."""
    for name, (colour, style, marker) in LINES.items():
        own = sorted((r for r in rows if r["program"] == name), key=lambda r: r["snr"])
        x, middle = [r["snr"] for r in own], part if part == "success" else f"median_{part}"
        axes.plot(x, [r[middle] for r in own], style, marker=marker, color=colour, markersize=4)
        if part != "success":
            axes.plot(x, [r[f"p90_{part}"] for r in own], ":", color=colour, linewidth=1)


def main() -> None:
    """All panels at all noise levels."""
    rows = before()
    for text in _PANELS.value:
        for snr in numbers(_SNR.value):
            measure(Panel.of(text), snr, rows)
    report({"accuracy": rows})
    if _PICTURE.value:
        draw(rows, _PICTURE.value)


if __name__ == "__main__":
    launch(main)
