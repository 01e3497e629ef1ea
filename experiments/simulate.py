"""Simulate sub-tomograms of known pose and class, from maps or a built-in phantom.

sptjax simulate --output=particles.hdf --nptcl=200 --box=48 --apix=10 --snr=0.05
sptjax simulate --output=particles.hdf --map=a.mrc,b.mrc --box=64 --apix=8 --snr=0.02

Beside the particles are written: ``<stem>_truth.json`` (poses in EMAN2's sptali form),
``<stem>_truth_ext.json`` (classes), ``<stem>_maps.hdf`` (the maps as simulated) and, with
``--premultiplied``, ``<stem>_weights.hdf`` (sum of CTF squared, one grid for all particles).
"""

import pathlib
import sys
from collections.abc import Sequence

import _help
import jax
import numpy as np
from absl import app, flags
from tqdm import tqdm

from sptjax import io as spt_io
from sptjax import rotation, simulate
from sptjax._errors import InputError

_BATCH = 16

with _help.group("input"):
    _MAP = flags.DEFINE_list("map", [], "map files, one per class; none = two states of a phantom")
    _MAP_APIX = flags.DEFINE_float(
        "map_apix", None, "voxel size of the maps, instead of their headers'"
    )
with _help.group("simulation"):
    _NPTCL = flags.DEFINE_integer("nptcl", 200, "number of particles", lower_bound=1)
    _BOX = flags.DEFINE_integer("box", 48, "box size in voxels, even", lower_bound=8)
    _APIX = flags.DEFINE_float("apix", 10.0, "voxel size in angstrom")
    _SNR = flags.DEFINE_float(
        "snr",
        0.05,
        "variance of a projected density over that of the image noise; 0 = no noise",
    )
    _TILTS = flags.DEFINE_list("tilts", ["-60", "60", "3"], "MIN,MAX,STEP of the series in degrees")
    _DEFOCUS = flags.DEFINE_float("defocus", 3.0, "underfocus in micrometre; 0 = no CTF")
    _MAX_SHIFT = flags.DEFINE_float(
        "max_shift", 4.0, "longest planted shift in voxels", lower_bound=0
    )
    _PREMULTIPLIED = flags.DEFINE_bool(
        "premultiplied",
        False,
        "multiply by the CTF, no ramp, and write weights (not given: phase flip and ramp)",
    )
with _help.group("output"):
    _OUTPUT = flags.DEFINE_string("output", "particles.hdf", "stack to write (.hdf)")
with _help.group("compute"):
    _SEED = flags.DEFINE_integer("seed", 0, "seed of poses, classes and noise", lower_bound=0)


def _load_map(path: str, box: int, apix: float, map_apix: float | None) -> np.ndarray:
    volume, old_apix, _ = spt_io.read_volume(path)
    old_apix = map_apix or old_apix
    if len(set(volume.shape)) != 1:
        raise InputError(f"--map: {path} is not cubic, its shape is {volume.shape}")
    if not old_apix or not old_apix > 0:
        raise InputError(f"--map: {path} has no voxel size in its header, give --map_apix")
    if volume.shape[0] == box and abs(old_apix - apix) < 1e-4 * apix:
        return volume
    print(f"{path}: {volume.shape[0]} voxels of {old_apix:.4g} A -> {box} of {apix:.4g} A")
    return simulate.fit_map(volume, old_apix, box, apix)


def run(
    *,
    output: pathlib.Path,
    maps: Sequence[str],
    map_apix: float | None,
    nptcl: int,
    box: int,
    apix: float,
    geometry: simulate.TiltSeries,
    max_shift_vox: float,
    seed: int,
    premultiplied: bool,
) -> None:
    """Simulate and write the particles, the truth, the maps and the weights."""
    if output.suffix not in (".hdf", ".h5"):
        raise InputError(f"--output: {output} must end in .hdf")
    if box % 2:
        raise InputError(f"--box: {box} is odd")
    if not apix > 0:
        raise InputError(f"--apix: {apix:g} is not positive")
    loaded = [_load_map(path, box, apix, map_apix) for path in maps]
    density = np.stack(loaded or [simulate.phantom(box, state) for state in (0, 1)])
    pose_key, noise_key = jax.random.split(jax.random.key(seed))
    poses = simulate.random_poses(pose_key, nptcl, max_shift_vox)
    classes = np.random.default_rng(seed).integers(0, len(density), nptcl)
    options = {"max_shift_vox": max_shift_vox, "premultiply": premultiplied}
    simulator = simulate.prepare(density, apix, geometry, **options)
    stem = output.with_suffix("")
    truth = f"{stem}_truth.json"
    matrices = np.asarray(rotation.pose_to_matrix34(poses))
    spt_io.write_alignments(truth, matrices, np.zeros(nptcl), {"class": classes})
    spt_io.write_hdf(f"{stem}_maps.hdf", density, apix)
    if premultiplied:
        weights = simulate.sampling_weights(box, apix, geometry)
        spt_io.write_hdf(f"{stem}_weights.hdf", weights[None], apix)
    batches = simulate.simulate_batches(simulator, classes, poses, noise_key, min(_BATCH, nptcl))
    with spt_io.HdfWriter(output, apix) as writer, tqdm(total=nptcl, unit="particle") as bar:
        for batch in batches:
            for particle in batch:
                writer.append(particle)
            bar.update(len(batch))
    print(f"{output}: {np.bincount(classes)} particles per class, truth in {truth}")


def _geometry(tilts: Sequence[str], snr: float, defocus_um: float) -> simulate.TiltSeries:
    try:
        low, high, step = (float(t) for t in tilts)
    except ValueError:
        raise InputError(f"--tilts: {','.join(tilts)} is not MIN,MAX,STEP") from None
    return simulate.TiltSeries(low, high, step, defocus_um=defocus_um, snr=snr if snr else None)


def main(argv: Sequence[str]) -> None:
    """Flags to arguments; bad input is one sentence and exit status 1."""
    try:
        if len(argv) > 1:
            raise InputError(f"unexpected argument {argv[1]}")
        run(
            output=pathlib.Path(_OUTPUT.value),
            maps=_MAP.value,
            map_apix=_MAP_APIX.value,
            nptcl=_NPTCL.value,
            box=_BOX.value,
            apix=_APIX.value,
            geometry=_geometry(_TILTS.value, _SNR.value, _DEFOCUS.value),
            max_shift_vox=_MAX_SHIFT.value,
            seed=_SEED.value,
            premultiplied=_PREMULTIPLIED.value,
        )
    except InputError as error:
        sys.exit(f"simulate.py: {error}")


if __name__ == "__main__":
    app.run(main, argv=_help.answered(sys.argv))
