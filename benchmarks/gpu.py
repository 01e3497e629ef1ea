"""Particles per second end to end, and how near the search comes to what the device can do.

make bench-gpu
python benchmarks/gpu.py --n=8 --boxes=32 --references=1 --gemm=1024 --copy_mb=64

White-noise particles at unknown poses, one global search against each reference. Ceilings are
measured on the same device: a product of large bfloat16 matrices with float32 sums, and a copy.
The exhaustive search is counted as its matrix product alone (slices, phases and maxima add no
operations, only time); the local refinement as what it must read: the data and weights of a
candidate's band and the eight neighbours of every frequency in the table of the reference, once
a step. ``--chunks`` are numbers of rotations in one product; end to end it is the default.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from _common import C1, SEED, Planted, plant, pose_error
from _report import launch, report
from absl import flags

from sptjax import fourier
from sptjax._chunk import padded_batches
from sptjax.align import AlignmentSettings, align_particles
from sptjax.align._group import Group
from sptjax.align._plan import SearchPlan
from sptjax.align._search import Search, coarse_candidates, prepare, refine_candidates
from sptjax.calibration import calibrate
from sptjax.phantom import phantom
from sptjax.score import Observations

_N = flags.DEFINE_integer("n", 512, "particles", lower_bound=4)
_BOXES = flags.DEFINE_list("boxes", ["64", "128"], "voxels")
_REFERENCES = flags.DEFINE_list("references", ["1", "4"], "how many")
_CHUNKS = flags.DEFINE_list("chunks", ["512", "2048", "8192"], "rotations in one product")
_BATCH = flags.DEFINE_integer("batch", 64, "particles at a time, of the stages alone")
_SNR = flags.DEFINE_float("snr", 0.1, "variance ratio in the box")
_SEARCH = flags.DEFINE_integer("search", 8, "half width of the searched cube, voxels")
_REPEATS = flags.DEFINE_integer("repeats", 3, "timed calls, of which the fastest counts")
_GEMM = flags.DEFINE_integer("gemm", 8192, "edge of the matrices of the ceiling")
_COPY_MB = flags.DEFINE_integer("copy_mb", 2048, "size of the array that is copied")

BYTES = 8 + 4 + 8 * 8  # of a frequency in a step: datum, weight, eight neighbours in the table


def fastest(call: Callable[[], Any]) -> float:
    """Seconds of the fastest of the repeated calls, compiled before."""
    jax.block_until_ready(call())
    took = []
    for _ in range(_REPEATS.value):
        begun = time.perf_counter()
        jax.block_until_ready(call())
        took.append(time.perf_counter() - begun)
    return min(took)


def ceilings() -> tuple[float, float]:
    """Operations of the product per second, bytes of the copy per second."""
    edge = _GEMM.value
    square = jnp.ones((edge, edge), jnp.bfloat16)
    product = jax.jit(
        lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32).max()  # not written out
    )
    long = jnp.ones(_COPY_MB.value * 2**18, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    return 2 * edge**3 / fastest(lambda: product(square, square)), 2 * long.nbytes / fastest(
        lambda: copy(long)
    )


def coarse_operations(plan: SearchPlan, rotations: int, references: int) -> float:
    """Of the matrix product of one particle."""
    width = 2 * fourier.half_ball_size(plan.coarse_k)
    return 2.0 * len(plan.shifts()) * width * rotations * references


def refinement_bytes(plan: SearchPlan, references: int) -> float:
    """What the refinement of one particle must read."""
    total, candidates = 0, plan.candidates
    for stage in plan.stages:
        total += candidates * (stage.steps + 1) * fourier.half_ball_size(stage.kmax) * BYTES
        candidates = stage.keep
    return float(total * references)


@eqx.filter_jit
def _refined(search: Search, observations: Observations, rotation, shift, value):
    for stage in search.plan.stages:
        rotation, shift, value = refine_candidates(search, observations, rotation, shift, stage)
    return rotation, shift, value


def stages(planted: Planted, maps: np.ndarray, settings: AlignmentSettings, expected: float,
           share: np.ndarray) -> list[dict]:  # fmt: skip
    """Seconds per particle of the parts of the search, by chunk."""
    particles = planted.load().with_noise_share(share)
    group = Group(particles, jnp.asarray(maps), C1[0], settings, expected, 1.0, settings.aligner)
    first = group.plan()
    size = min(_BATCH.value, _N.value)
    rows = next(padded_batches(np.arange(_N.value), size))[0]
    observed = group.observe(rows, first.kmax)
    peak, stream = ceilings()
    coarse = eqx.filter_jit(coarse_candidates)
    out = []
    for chunk in map(int, _CHUNKS.value):
        plan = dataclasses.replace(first, chunk=chunk)
        search = prepare(group.maps, plan, C1[0])
        searched = fastest(lambda search=search: coarse(search, observed)) / size
        candidates = coarse(search, observed)
        refined = fastest(lambda s=search, c=candidates: _refined(s, observed, *c)) / size
        operations = coarse_operations(plan, len(search.rotations), len(maps))
        read = refinement_bytes(plan, len(maps))
        out.append(
            {
                "chunk": chunk,
                "band": plan.coarse_k,
                "rotations": len(search.rotations),
                "shifts": len(plan.shifts()),
                "coarse_ms": searched * 1e3,
                "coarse_gflops": operations / searched / 1e9,
                "of_gemm": operations / searched / peak,
                "gemm_gflops": peak / 1e9,
                "refine_ms": refined * 1e3,
                "refine_gb_s": read / refined / 1e9,
                "of_copy": read / refined / stream,
                "copy_gb_s": stream / 1e9,
            }
        )
    return out


def whole(planted: Planted, maps: np.ndarray, settings: AlignmentSettings, expected: float,
          share: np.ndarray) -> dict:  # fmt: skip
    """Volumes in host memory to poses."""
    rows = np.arange(_N.value)
    loading = fastest(planted.load)

    def call():
        loaded = planted.load().with_noise_share(share)
        return align_particles(
            loaded, rows, maps, C1 * len(maps), settings, expected_score=expected
        )

    took, found = fastest(lambda: call().score), call()
    angle, _ = pose_error(found.rotation[:, 0], found.shift[:, 0], planted.truth, C1[0])
    return {
        "particles_per_s": _N.value / took,
        "ms": took / _N.value * 1e3,
        "of_which_loading_ms": loading / _N.value * 1e3,
        "median_deg": np.median(angle),
        "gross_failures": int((angle > 10).sum()),
    }


def main() -> None:
    """All boxes and numbers of references."""
    parts, ends = [], []
    for box in map(int, _BOXES.value):
        one = phantom(box)
        planted = plant(one[None], _N.value, _SNR.value, 0.1 * box, apix=None, seed=SEED.value)
        settings = AlignmentSettings(search_vox=_SEARCH.value)
        found = calibrate(planted.load(), one[None], C1, settings)
        known = found.expected_score, found.noise_share
        for count in map(int, _REFERENCES.value):
            maps = np.repeat(np.asarray(found.references), count, 0)
            name = {"box": box, "references": count}
            parts += [name | row for row in stages(planted, maps, settings, *known)]
            ends.append(name | {"n": _N.value} | whole(planted, maps, settings, *known))
    report({"parts of the search, per particle": parts, "end to end": ends})


if __name__ == "__main__":
    launch(main)
