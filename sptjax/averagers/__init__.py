"""EMAN2's averagers of aligned volumes, as mergeable accumulators.

An averager is a frozen record of settings, bound from the option language by
``options.bind(spec, AVERAGERS, "--averager")``. The running sums are a state of their own::

    state = averager.start(box, groups)
    state = averager.add(state, volumes, group, weight)  # any number of batches
    maps = averager.finish(state)  # [groups, z, y, x]

States of batches, devices or runs are joined by ``merge``. A volume of group -1 (or any group
that does not exist) or of weight 0 is skipped, whatever its voxels are: padding and NaN. A
group without volumes is zero.

Weights are divided out per voxel, so they never dim a map; EMAN2 divides by the number of
volumes. ``median`` and ``minmax`` only tell weight 0 from the others. ``mean``, ``sigma``,
``minmax`` and ``mean.tomo:compat=1`` accumulate on the device and can be jitted; ``median`` and
``localweight`` need every volume at the end and keep them all on the host, ``4 n box^3`` bytes.
EMAN2's other averagers are for images only.
"""

from collections.abc import Callable, Mapping

from ._base import Averager
from ._kept import KeptVolumes, LocalWeight, Median
from ._minmax import Extremes, MinMax
from ._moments import Mean, Moments, Sigma, merge_moments, variance
from ._tomo import MeanTomo, ThresholdSums

__all__ = (
    "AVERAGERS", "Averager", "Extremes", "KeptVolumes", "LocalWeight", "Mean", "MeanTomo",
    "Median", "MinMax", "Moments", "Sigma", "ThresholdSums", "merge_moments", "variance",
)  # fmt: skip

AVERAGERS: Mapping[str, Callable[..., Averager]] = {
    "mean": Mean,
    "mean.tomo": MeanTomo,
    "sigma": Sigma,
    "median": Median,
    "minmax": MinMax,
    "localweight": LocalWeight,
}
