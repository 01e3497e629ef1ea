"""Calibration of pose covariances and mode probabilities on particles with known poses.

python benchmarks/uncertainty.py --out=uncertainty.json --picture=uncertainty.png
python benchmarks/uncertainty.py --n=32 --boxes=32 --white=0.1 --ctf= --tilts=60

A search with its pilot calibration (with --from_truth a refinement of the planted poses), then the
table that --uncertainty writes. Of the particles whose most probable mode is the right one (within
20 degrees and 3 voxels of the truth), the share whose truth lies in the 68 % and 95 % regions: of
the whole pose (chi-square with 6 degrees of freedom), of the rotation and of the shift (3). And the
share of right modes against their stated probability. White noise: variance of the map over that
of the noise in the box; CTF-realistic: 3 um defocus, per projection. The tilt range is symmetric,
by steps of 3 degrees. Every case has poses and noise of its own.
"""

import dataclasses
import itertools
import time

import jax.numpy as jnp
import numpy as np
from _common import C1, SEED, load_map, local, plant
from _report import launch, numbers, report
from absl import flags
from matplotlib.figure import Figure
from scipy import stats

from sptjax import rotation
from sptjax.align import AlignmentSettings, View, align_particles
from sptjax.calibration import calibrate
from sptjax.uncertainty import pose_table

_N = flags.DEFINE_integer("n", 96, "particles", lower_bound=16)
_BOXES = flags.DEFINE_string("boxes", "32,48", "voxels")
_WHITE = flags.DEFINE_string("white", "0.1,0.03,0.01", "variance ratios in the box; empty: none")
_CTF = flags.DEFINE_string("ctf", "0.1,0.05,0.03", "per projection; empty: none")
_TILTS = flags.DEFINE_string("tilts", "60,40", "last tilt, degrees")
_MAP = flags.DEFINE_string("map", "emd_3420", "name of a map")
_MODES = flags.DEFINE_integer("modes", 8, "of every particle", lower_bound=1)
_PLANTED = flags.DEFINE_bool("from_truth", False, "no search: refine the planted poses")
_PICTURE = flags.DEFINE_string("picture", None, "draw coverage and reliability here, PNG")

EXTENT = 670.7  # angstrom, edge of the box
RIGHT_DEG, RIGHT_VOX = 20.0, 3.0
SHIFT, SEARCH = 2.0, 4
LEVELS = (0.68, 0.95)
FEWEST = 5  # modes in a bin that is drawn


@dataclasses.dataclass(frozen=True)
class Case:
    """One set of particles."""

    noise: str  # white or ctf
    snr: float
    tilt: float
    box: int
    seed: int


def errors(table, truth) -> tuple[np.ndarray, np.ndarray]:
    """Turn in degrees and move in voxels from every mode to the truth, ``[n, m, 6]``; if right."""
    turn = table.rotation
    known = np.broadcast_to(truth.rotation[:, :1], turn.shape)
    away = np.degrees(np.asarray(rotation.log(jnp.asarray(known @ turn.swapaxes(-1, -2)))))
    place = -np.einsum("nmji,nmj->nmi", turn, table.shift)
    wanted = -np.einsum("nji,nj->ni", truth.rotation[:, 0], truth.shift[:, 0])
    error = np.concatenate([away, wanted[:, None] - place], -1)
    right = np.linalg.norm(error[..., :3], axis=-1) < RIGHT_DEG
    return error, right & (np.linalg.norm(error[..., 3:], axis=-1) < RIGHT_VOX)


def distances(error: np.ndarray, covariance: np.ndarray) -> dict[str, np.ndarray]:
    """Squared Mahalanobis distances of poses, rotations and shifts."""
    out = {}
    for name, part in (("pose", slice(0, 6)), ("rotation", slice(0, 3)), ("shift", slice(3, 6))):
        e, c = error[:, part], covariance[:, part, part].astype(float)
        out[name] = np.einsum("ni,nij,nj->n", e, np.linalg.inv(c), e)
    return out


def measure(case: Case) -> tuple[dict, np.ndarray]:
    """The row of a case, and (probability, right) of all modes."""
    apix = EXTENT / case.box
    map_ = load_map(_MAP.value, case.box, apix)[None]
    planted = plant(
        map_, _N.value, case.snr, SHIFT, apix=apix if case.noise == "ctf" else None,
        seed=case.seed, tilt_deg=case.tilt,
    )  # fmt: skip
    particles = planted.load()
    settings = AlignmentSettings(search_vox=SEARCH, peaks=_MODES.value, save_peaks=True)
    found = calibrate(particles, map_, C1, settings)
    particles = particles.with_noise_share(found.noise_share)
    rows, expected = np.arange(_N.value), found.expected_score
    if _PLANTED.value:
        settings = AlignmentSettings(search_vox=SEARCH)
        poses = local(particles, found.references, settings, expected, planted.truth)
    else:
        poses = align_particles(
            particles, rows, found.references, C1, settings, expected_score=expected
        )
    begun = time.perf_counter()
    table = pose_table(
        View(particles, found.references), rows, poses, C1, settings,
        expected_score=expected, modes=_MODES.value,
    )  # fmt: skip
    seconds = time.perf_counter() - begun
    error, right = errors(table, planted.truth)
    top = right[:, 0]
    d = distances(error[top, 0], table.covariance[top, 0])
    row = {**dataclasses.asdict(case), "n": _N.value, "right": top.mean()}
    row["expected_score"], row["right_any"] = expected, right.any(1).mean()
    row["stated"] = table.probability[:, 0].mean()
    for name, freedom in (("pose", 6), ("rotation", 3), ("shift", 3)):
        for level in LEVELS:
            inside = d[name] <= stats.chi2.ppf(level, freedom)
            row[f"{name}_{100 * level:.0f}"] = inside.mean()
        row[f"{name}_chi2"] = d[name].mean() / freedom
    row["sigma_deg"] = np.median(
        np.sqrt(np.trace(table.covariance[:, 0, :3, :3], axis1=1, axis2=2))
    )
    row["error_deg"] = np.median(np.linalg.norm(error[top, 0, :3], axis=1))
    row["entropy"], row["seconds"] = table.entropy.mean(), seconds
    alive = table.classes >= 0
    return row, np.stack([table.probability[alive], right[alive]], 1)


def cases() -> list[Case]:
    """All of them."""
    noises = [("white", x) for x in _known(_WHITE.value)] + [("ctf", x) for x in _known(_CTF.value)]
    sets = itertools.product(numbers(_BOXES.value), numbers(_TILTS.value), noises)
    return [
        Case(noise, snr, tilt, int(box), SEED.value + i)
        for i, (box, tilt, (noise, snr)) in enumerate(sets)
    ]


def _known(text: str) -> list[float]:
    return numbers(text) if text else []


def reliability(modes: np.ndarray) -> list[dict]:
    """Stated against true shares, in bins of probability."""
    edges = np.array([0, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98, 1.0001])
    rows = []
    for low, high in itertools.pairwise(edges):
        own = modes[(modes[:, 0] >= low) & (modes[:, 0] < high)]
        if len(own):
            prior = (own[:, 1].sum() + 1) / (len(own) + 2)  # one of each added (Laplace)
            rows.append(
                {
                    "from": low,
                    "to": min(high, 1.0),
                    "modes": len(own),
                    "stated": own[:, 0].mean(),
                    "right": own[:, 1].mean(),
                    "standard_error": np.sqrt(prior * (1 - prior) / (len(own) + 2)),
                }
            )
    return rows


def draw(rows: list[dict], bins: list[dict], path: str) -> None:
    """Coverage of the regions case by case, and the reliability diagram."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.7, 1))
    names = [f"{r['noise']} {r['snr']:g}, {r['box']:.0f}³, ±{r['tilt']:.0f}°" for r in rows]
    for level, colour, band in ((68, "#0072B2", (0.64, 0.72)), (95, "#D55E00", (0.93, 0.97))):
        left.axhspan(*band, color=colour, alpha=0.15, linewidth=0)
        for part, marker in (("pose", "o"), ("rotation", "^"), ("shift", "s")):
            values = [r[f"{part}_{level}"] for r in rows]
            left.plot(values, marker, color=colour, fillstyle="none", label=f"{part}, {level} %")
    left.set_xticks(range(len(rows)), names, rotation=90, fontsize=7)
    left.set(ylabel="share of truths inside", ylim=(0.3, 1.02))
    left.legend(fontsize=7, ncols=2, loc="lower right")
    right.plot([0, 1], [0, 1], color="0.6", linewidth=0.8)
    bins = [b for b in bins if b["modes"] >= FEWEST]
    stated, true, error = (
        np.array([b[x] for b in bins]) for x in ("stated", "right", "standard_error")
    )
    right.errorbar(stated, true, 2 * error, fmt="o", color="#009E73", capsize=3)
    right.set(
        xlabel="stated probability of a mode", ylabel="share that is right", xlim=(-0.02, 1.02)
    )
    right.set_ylim(-0.02, 1.02)
    figure.savefig(path, dpi=150)


def main() -> None:
    """All cases."""
    rows, modes = [], []
    for case in cases():
        row, own = measure(case)
        print(
            ", ".join(
                f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()
            ),
            flush=True,
        )
        rows.append(row)
        modes.append(own)
    bins = reliability(np.concatenate(modes))
    report({"coverage": rows, "reliability": bins})
    if _PICTURE.value:
        draw(rows, bins, _PICTURE.value)


if __name__ == "__main__":
    launch(main)
