"""How alike a particle and a reference are: EMAN2's comparators by name. Larger is better.

Where EMAN2's value is smaller for a better match, ours is its negative; ``negative=0`` turns the
ranking round, as it does there. Every comparator has one definition, on Fourier coefficients
(by Parseval, sums over voxels are sums over frequencies), and two uses: :func:`compare` for two
volumes, and :func:`ball_score` for half-ball coefficients, which can be mapped over many poses
and differentiated. The particle is ``a``, the reference is ``b``.

What is missing in the particle: ``ccc``, ``ccc.tomo``, ``dot`` and ``sqeuclidean`` take it as
zeros against a complete reference, as EMAN2 does. The others compare inside the region that was
sampled. ``compat=1`` restores EMAN2's rules where they rest on amplitudes or on the layout of
its transforms: thresholds in place of the known region, and the plane kx = 0 counted twice.

A score that is not defined (a constant volume, an empty overlap, NaN) is the worst of its range:
-1 of a correlation, -pi of ``phase``, and otherwise a bound that no defined score goes below.
"""

from collections.abc import Callable, Mapping

from ._compare import ball_score, compare
from ._pair import Comparator, Pair
from ._regions import CCCTomoThresh, FSCTomo, FSCTomoAuto, Matched
from ._shells import FRC, Phase
from ._voxels import CCC, CCCTomo, Dot, SqEuclidean

__all__ = (
    "CCC", "COMPARATORS", "FRC", "CCCTomo", "CCCTomoThresh", "Comparator", "Dot", "FSCTomo",
    "FSCTomoAuto", "Matched", "Pair", "Phase", "SqEuclidean", "ball_score", "compare",
)  # fmt: skip

COMPARATORS: Mapping[str, Callable[..., Comparator]] = {
    "ccc": CCC,
    "ccc.tomo": CCCTomo,
    "ccc.tomo.thresh": CCCTomoThresh,
    "dot": Dot,
    "frc": FRC,
    "fsc.tomo": FSCTomo,
    "fsc.tomo.auto": FSCTomoAuto,
    "matched": Matched,
    "phase": Phase,
    "sqeuclidean": SqEuclidean,
}
