"""Models of noise and signal, each off and on: poses found, and the average against the truth.

python benchmarks/models.py --out=models.json
python benchmarks/models.py --n=16 --models=wedge

wedge: particles of a tilt range, or of one with soft edges, aligned and averaged with no wedge, the
estimated one, the fitted one and the true one. noise: whitened by the radial mean of the noise
power or by its 3-D estimate. transfer: the reference as it is, with the radial transfer of the
pilot, and with that of all particles aligned so. strength: scales of 0.5 to 1.5 and B-factors of
0 to a largest one, or all alike, averaged without and with what is fitted.

All are CTF-realistic at 3 um, by steps of 3 degrees, but the soft edges, which are imposed on
white noise and map. Maps are searched against the truth, calibrated by a pilot as in a run; the
average is that of all particles at the poses found.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from _common import (
    C1,
    SEED,
    Planted,
    Volumes,
    load_map,
    plant,
    pose_error,
    refinement,
    turned_onto,
)
from _report import launch, numbers, report
from absl import flags

from sptjax import average, fourier, particle_weights, resolution, soft_wedge, symmetry, wedge
from sptjax.align import AlignmentSettings, Found, View, align_particles
from sptjax.averaging import Assigned, Averaging, average_classes
from sptjax.calibration import calibrate
from sptjax.particles import Particles, Sampling
from sptjax.refinement import RefineSettings
from sptjax.transfer import Regression, apply_transfer, radial_transfer

_N = flags.DEFINE_integer("n", 96, "particles", lower_bound=8)
_BOX = flags.DEFINE_integer("box", 32, "voxels")
_SNR = flags.DEFINE_float("snr", 0.05, "per projection; of strength and soft edges: see the code")
_MODELS = flags.DEFINE_string("models", "wedge,noise,transfer,strength", "which")
_TILTS = flags.DEFINE_string("tilts", "60,45", "ranges of sharp wedges, degrees; empty: none")
_MOST_B = flags.DEFINE_string("most_b", "500,1500", "largest B-factors, square angstrom")

MAP, APIX = "emd_3420", 15.0
SMALL, SMALL_APIX, SMALL_SNR = "trpv1", 5.0, 0.2  # where B-factors count; c4
WHITE_SNR, SOFT_VOX = 0.02, 2.0
REACH, SEARCH = 2.0, 4
TOP = 13  # last shell of the mean correlation


@dataclasses.dataclass(frozen=True)
class Aligned:
    """Particles as a search saw them, and what it found."""

    planted: Planted
    particles: Particles
    references: np.ndarray
    found: Found
    noise_share: np.ndarray


def search(planted: Planted, map_: np.ndarray, groups=C1, *, apix=APIX, radial=False) -> Aligned:
    """The search of a run: pilot, transfer, all particles."""
    particles = planted.load()
    if radial:
        particles = dataclasses.replace(particles, noise=radial_mean(particles))
    settings = AlignmentSettings(search_vox=SEARCH, apix=apix)
    pilot = calibrate(particles, map_[None], groups, settings)
    return again(planted, particles, pilot.references, pilot, groups, apix)


def again(planted, particles, references, pilot, groups=C1, apix=APIX) -> Aligned:
    """All particles against references, with the noise and the score of a pilot."""
    particles = particles.with_noise_share(pilot.noise_share)
    found = align_particles(
        particles, np.arange(len(particles)), references, groups,
        AlignmentSettings(search_vox=SEARCH, apix=apix), expected_score=pilot.expected_score,
    )  # fmt: skip
    return Aligned(planted, particles, references, found, pilot.noise_share)


def radial_mean(particles: Particles) -> np.ndarray:
    """Noise power per shell, where something is sampled."""
    shell = np.rint(np.linalg.norm(particles.vectors, axis=1)).astype(int)
    seen = particles.mean_sampling > 0
    mean = np.bincount(shell[seen], particles.noise[seen]) / np.maximum(np.bincount(shell[seen]), 1)
    return mean[shell].astype(np.float32)


def averaged(aligned: Aligned, groups=C1, *, apix=APIX, gain=None) -> np.ndarray:
    """All particles at the poses found."""
    rows, found = np.arange(len(aligned.particles)), aligned.found
    ones, none = np.ones(len(rows), np.float32), np.zeros(len(rows), int)
    assigned = Assigned(rows, found.rotation[:, 0], found.shift[:, 0], none, ones, gain)
    planted = aligned.planted
    averages = average_classes(planted.stack, planted.sampling, assigned, groups, Averaging(), apix)
    return np.asarray(averages.merged()[0])


def row(model, kind, setting, aligned, map_, groups=C1, *, apix=APIX, gain=None) -> dict:
    """Poses and average of one setting."""
    volume = averaged(aligned, groups, apix=apix, gain=gain)
    curve = np.asarray(resolution.fsc(jnp.asarray(volume), jnp.asarray(map_)))
    out = poses(model, kind, setting, aligned, groups) | against(curve, apix)
    print(", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in out.items()),
          flush=True)  # fmt: skip
    return out


def poses(model: str, kind: str, setting: str, aligned: Aligned, groups) -> dict:
    """Errors of the poses found."""
    found = aligned.found
    angle, _ = pose_error(found.rotation[:, 0], found.shift[:, 0], aligned.planted.truth, groups[0])
    return {
        "model": model,
        "set": kind,
        "setting": setting,
        "within_10_deg": np.mean(angle < 10),
        "median_deg": np.median(angle),
        "score": np.median(found.score),
    }


def against(curve: np.ndarray, apix: float) -> dict:
    """What an FSC with the truth says."""
    return {
        "fsc_half_a": resolution.resolution_angstrom(curve, apix, 0.5),
        "mean_fsc": curve[1 : TOP + 1].mean(),
        "outer_fsc": curve[TOP - 4 : TOP + 1].mean(),
    }


def power_of(stack: Volumes) -> np.ndarray:
    """Mean power of a stack, centred."""
    return wedge.to_centred(wedge.accumulate_power(None, stack.volumes), stack.box)


def wedges() -> list[dict]:
    """Ranges of tilts, sharp and soft."""
    box, rows = _BOX.value, []
    map_ = load_map(MAP, box, APIX)
    for tilt in numbers(_TILTS.value) if _TILTS.value else ():
        planted = plant(
            map_[None], _N.value, _SNR.value, REACH, apix=APIX, seed=SEED.value, tilt_deg=tilt
        )
        true = planted.sampling.grids(np.arange(1))
        rows += of_wedges(f"+-{tilt:g}", planted, map_, true)
    whole, clean = (
        plant(map_[None], _N.value, snr, REACH, apix=None, seed=SEED.value, tilt_deg=90.0)
        for snr in (WHITE_SNR, 1e9)
    )
    limits = (jnp.float32(x) for x in (-60, 60, SOFT_VOX))
    true = soft_wedge.region(box, soft_wedge.SoftWedge(*limits))
    noise = filtered(whole.stack.volumes - clean.stack.volumes, np.sqrt(true))
    # a tilt that counts less brings less signal in proportion, and less noise by the root of it
    for kind, share in (("fading", true), ("filtered", np.sqrt(true))):
        soft = Volumes(filtered(clean.stack.volumes, share) + noise)
        planted = dataclasses.replace(whole, stack=soft)
        rows += of_wedges(f"+-60, soft, {kind}", planted, map_, true)
    return rows


def filtered(volumes: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Volumes times a grid of Fourier space."""
    return np.asarray(average.apply_sampling(jnp.asarray(volumes), jnp.asarray(grid)))


def of_wedges(kind: str, planted: Planted, map_: np.ndarray, true: np.ndarray) -> list[dict]:
    """One set with every grid."""
    box, power = planted.stack.box, power_of(planted.stack)
    estimated, fitted = wedge.estimate(power).wedge, soft_wedge.fit_wedge(power)
    grids = {}
    if estimated is not None:
        print(kind, "auto:", estimated.describe())
        grids["auto"] = wedge.region(box, estimated)
    if fitted is not None:
        print(kind, "fit:", fitted.describe())
        grids["fit"] = soft_wedge.region(box, fitted.wedge)
        if fitted.fades:
            grids["fit, multiplied"] = grids["fit"]
    grids |= {"true": true, "none": np.ones((box,) * 3, np.float32)}
    return [
        row("wedge", kind, name,
            search(with_grid(planted, grid, "multiplied" in name), map_), map_)
        for name, grid in grids.items()
    ]  # fmt: skip


def with_grid(planted: Planted, grid: np.ndarray, multiplied: bool) -> Planted:
    """Particles whose sampling is taken for this grid, and they for multiplied by it or not."""
    return dataclasses.replace(planted, sampling=Sampling(grid, None, multiplied))


def noises() -> list[dict]:
    """Radial and 3-D noise power."""
    map_, planted = ribosomes()
    return [
        row("noise", "ctf", name, search(planted, map_, radial=radial), map_)
        for name, radial in (("radial", True), ("3-D", False))
    ]


def ribosomes() -> tuple[np.ndarray, Planted]:
    """The map and its particles."""
    map_ = load_map(MAP, _BOX.value, APIX)
    return map_, plant(map_[None], _N.value, _SNR.value, REACH, apix=APIX, seed=SEED.value)


def transfers() -> list[dict]:
    """No transfer, that of the pilot, that of all particles at the poses it led to."""
    map_, planted = ribosomes()
    particles = planted.load()
    pilot = calibrate(particles, map_[None], C1, AlignmentSettings(search_vox=SEARCH, apix=APIX))
    found = {
        "none": again(planted, particles, map_[None], pilot),
        "pilot": again(planted, particles, pilot.references, pilot),
    }
    better = np.argsort(-found["pilot"].found.score[:, 0])[: len(particles) // 2]
    for name, rows in (("all aligned", np.arange(len(particles))), ("better half", better)):
        sums = regression(found["pilot"], map_[None], rows)
        gain = radial_transfer(Regression(*(x.sum(0) for x in sums)))
        references = np.asarray(apply_transfer(map_[None], gain))
        found[name] = again(planted, particles, references, pilot)
    return [row("transfer", "ctf", name, aligned, map_) for name, aligned in found.items()]


def regression(aligned: Aligned, references: np.ndarray, rows: np.ndarray) -> tuple:
    """Sums of every particle against references at the poses found."""
    found = aligned.found
    sums = particle_weights.regress_view(
        View(aligned.particles, references), rows, found.rotation[rows, 0], found.shift[rows, 0],
        np.zeros(len(rows), int),
    )  # fmt: skip
    return sums.product, sums.power, sums.total


def strengths() -> list[dict]:
    """Particles of equal and of different scale and B-factor."""
    groups, out = (symmetry.parse("c4"),), []
    map_ = load_map(SMALL, _BOX.value, SMALL_APIX)
    noisy, clean = (
        plant(map_[None], _N.value, snr, REACH, apix=SMALL_APIX, seed=SEED.value)
        for snr in (SMALL_SNR, 1e9)
    )
    rng = np.random.default_rng(SEED.value)
    scale, share = rng.uniform(0.5, 1.5, _N.value), rng.uniform(0, 1, _N.value)
    sets = {"alike": (np.ones(_N.value), 0 * share)}
    for most in numbers(_MOST_B.value):
        sets[f"B to {most:g}"] = (scale, most * share)
    for kind, values in sets.items():
        true = particle_weights.Strengths(*values, (0.0, 0.0)).gain(_BOX.value, SMALL_APIX)
        signal = [
            np.asarray(fourier.radial_filter(jnp.asarray(v), jnp.asarray(g)))
            for v, g in zip(clean.stack.volumes, true)
        ]
        volumes = np.stack(signal) + noisy.stack.volumes - clean.stack.volumes
        planted = dataclasses.replace(noisy, stack=Volumes(volumes))
        aligned = search(planted, map_, groups, apix=SMALL_APIX)
        parts = regression(aligned, aligned.references, np.arange(_N.value))
        found = particle_weights.fit_strengths(Regression(*parts), _BOX.value, SMALL_APIX)
        gains = {
            "off": None,
            "fitted": found.gain(_BOX.value, SMALL_APIX),
            "true": true,
        }
        for name, gain in gains.items():
            one = row("strength", kind, name, aligned, map_, groups, apix=SMALL_APIX, gain=gain)
            if name == "fitted":
                one |= {"spread_scale": found.spread[0], "spread_b": found.spread[1]}
                if kind != "alike":
                    one["r_scale"] = np.corrcoef(values[0], found.scale)[0, 1]
                    one["r_b"] = np.corrcoef(values[1], found.b_factor)[0, 1]
            out.append(one)
        out += [in_a_run(kind, planted, map_, groups, on) for on in (False, True)]
    return out


def in_a_run(kind: str, planted: Planted, map_: np.ndarray, groups, on: bool) -> dict:
    """Two rounds from the map at low resolution; strengths come from averages that hold noise."""
    alignment = AlignmentSettings(search_vox=SEARCH, apix=SMALL_APIX)
    settings = RefineSettings(alignment, groups, SMALL_APIX, by_scale=on)
    low = np.exp(-0.5 * (np.arange(_BOX.value // 2 + 1) / 5) ** 2).astype(np.float32)
    begin = np.asarray(apply_transfer(map_[None], low))
    rounds = refinement(
        begin, planted.load(), planted.stack, planted.sampling, settings, 2, until_converged=False
    )
    state, _, _ = list(rounds)[-1]
    found = Found(state.rotation, state.shift, state.score)
    aligned = Aligned(planted, planted.load(), begin, found, state.noise_share)
    curve = np.asarray(
        resolution.fsc(jnp.asarray(turned_onto(state.maps[0], map_)), jnp.asarray(map_))
    )
    return poses("strength", kind, f"run, {'on' if on else 'off'}", aligned, groups) | against(
        curve, SMALL_APIX
    )


def main() -> None:
    """All models asked for."""
    known = {"wedge": wedges, "noise": noises, "transfer": transfers, "strength": strengths}
    rows = [one for name in _MODELS.value.split(",") for one in known[name]()]
    report({"models of noise and signal": rows})


if __name__ == "__main__":
    launch(main)
