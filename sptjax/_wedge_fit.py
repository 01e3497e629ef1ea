"""Fit of a tilt range to the mean power of a stack, for one tilt axis.

The mean ``|F|^2`` is divided by its mean over every ring about the tilt axis, which takes out
whatever depends on the distance from the axis and the height along it: CTF, envelope, coloured
noise, the 1/k of an unfiltered back-projection. What is left depends on the tilt angle; its average
along the axis is a plane image of two levels, whose logarithm is fitted by least squares. The edge
is sharp where a wedge was imposed in the Fourier space of the box, blurred by the power spectrum
of a window, ``sinc^2``, in particles cut out of a larger tomogram, and by that of a Hann window,
``sinc^2 / (1 - d^2)^2``, where they were tapered: the best of the three is taken.

Power is viewed as ``[kz, axis, across]``, centred, so that the tilt axis is always the second.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

_FLOOR = 0.02  # below this share of the mean, power counts as none
_NARROWEST_RANGE = 30.0  # degrees
_NARROWEST_WEDGE = 6.0
_FORMS = ("sharp", "cut", "tapered")
_SHARP_VOX = 0.25  # width of a sharp edge, so that the fit varies smoothly
LOWEST, HIGHEST = 0.125, 0.45  # cycles per voxel: from the tilt axis, from the origin


@dataclass(frozen=True, eq=False)
class Points:
    """Frequencies across the tilt axis, with the power averaged along it."""

    radius: np.ndarray  # Fourier voxels from the axis
    angle: np.ndarray  # radians, -90 to 90 degrees
    power: np.ndarray  # relative to the mean of the ring
    weight: np.ndarray  # how many frequencies were averaged, sum 1

    def mean(self, values: np.ndarray) -> float:
        """Weighted mean over the points."""
        return float((values * self.weight).sum())


@dataclass(frozen=True)
class Fit:
    """Sampled range and how well two levels describe the power."""

    low: float  # degrees
    high: float
    form: str  # of the edges, one of _FORMS
    explained: float  # share of the variance of log power
    contrast: float = 0.0  # 1 - power in the wedge / power outside, 0 to 1


def plane(box: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ring number, distance from the axis and angle modulo 180 degrees across the tilt axis."""
    k = np.arange(box) - box // 2
    radius = np.hypot(k[:, None], k[None, :])
    angle = np.arctan2(k[:, None], k[None, :])
    return np.rint(radius).astype(int), radius, (angle + np.pi / 2) % np.pi - np.pi / 2


def layers(view: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Every height along the axis: power above plus below, and where it is used."""
    box = len(view)
    _, radius, _ = plane(box)
    for height in range(int(HIGHEST * box) + 1):
        layer = view[:, box // 2 + height] + view[:, box // 2 - height]
        near = np.hypot(radius, height) <= HIGHEST * box
        yield height, layer, near & (radius >= LOWEST * box)


def normalised(view: np.ndarray) -> Points:
    """Power relative to its rings, averaged along the tilt axis."""
    box = len(view)
    ring, radius, angle = plane(box)
    total, count = np.zeros((2, box, box))
    for _, layer, used in layers(view):
        rings = ring[used]
        mean = np.bincount(rings, layer[used]) / np.maximum(np.bincount(rings), 1)
        used[used] = mean[rings] > 0
        total[used] += layer[used] / mean[ring[used]]
        count += used
    keep = (count > 0) & (np.arange(box) >= box // 2)[None, :]  # Friedel mates are equal
    return Points(
        radius[keep], angle[keep], total[keep] / count[keep], count[keep] / count[keep].sum()
    )


def _edge(distance: np.ndarray, form: str) -> np.ndarray:
    """From 0 to 1 across an edge, ``distance`` in voxels: the integral of the window's power."""
    if form == "sharp":
        return np.clip(distance / _SHARP_VOX + 0.5, 0, 1)
    d = np.linspace(-40, 40, 3202)  # an even number of points leaves 0 and 1 out
    power = np.sinc(d) ** 2
    if form == "tapered":
        power = power / (1 - d * d) ** 2
    integral = np.cumsum(power) - 0.5 * power
    return np.interp(distance, d, integral / power.sum())


def sampled(radius: np.ndarray, angle: np.ndarray, fit: Fit) -> np.ndarray:
    """Model of the sampled range, 1 inside, at angles between -90 and 90 degrees."""
    first = _edge(radius * np.sin(angle - np.radians(fit.low)), fit.form)
    return first * _edge(radius * np.sin(np.radians(fit.high) - angle), fit.form)


def fit_range(points: Points) -> Fit:
    """Best two-level step with any form of edge, in steps of 4 degrees down to 1/4."""
    best = Fit(-90, 90, "sharp", -1.0)
    for form in _FORMS:
        fit = _search(points, np.arange(-88, 61, 4.0), np.arange(-60, 89, 4.0), form)
        for step in (1.0, 0.25):
            near = step * np.arange(-4, 5)
            fit = _search(points, fit.low + near, fit.high + near, form)
        best = max(best, fit, key=lambda f: f.explained)
    inside = sampled(points.radius, points.angle, best)
    spread = inside - points.mean(inside)
    slope = points.mean(spread * points.power) / max(points.mean(spread**2), 1e-30)
    base = points.mean(points.power) - slope * points.mean(inside)
    return replace(best, contrast=float(np.clip(slope / max(base + slope, 1e-30), 0, 1)))


def _search(points: Points, lows: np.ndarray, highs: np.ndarray, form: str) -> Fit:
    """Limits that explain most of the variance of log power; the middle of equals."""
    lows, highs = lows[lows >= -90], highs[highs <= 90]
    weight, values = points.weight, np.log(_FLOOR + points.power)
    values = values - (weight * values).sum()
    radius, angle = points.radius[None, :], points.angle[None, :]
    first = _edge(radius * np.sin(angle - np.radians(lows)[:, None]), form)
    last = _edge(radius * np.sin(np.radians(highs)[:, None] - angle), form)
    explained = np.zeros((len(lows), len(highs)))
    for i, low in enumerate(lows):
        step = np.log(_FLOOR + first[i] * last)
        variance = np.maximum((step * step) @ weight - (step @ weight) ** 2, 1e-9)
        covariance = np.maximum(step @ (weight * values), 0)
        span = highs - low
        allowed = (span >= _NARROWEST_RANGE) & (span <= 180 - _NARROWEST_WEDGE)
        explained[i] = np.where(allowed, covariance**2 / variance, 0)
    i, j = np.nonzero(explained >= explained.max() * (1 - 1e-4))
    share = explained.max() / max(float((weight * values**2).sum()), 1e-30)
    return Fit(float(lows[i].mean()), float(highs[j].mean()), form, float(share))


def misfit(view: np.ndarray, fit: Fit) -> float:
    """Mean square difference of log power from the model, rings times wedge, over frequencies.

    Unlike the fit, which averages along its own axis, this can be compared between the two axes:
    it is taken where both are far away, and the floor is a share of the spherical mean.
    """
    box = len(view)
    ring, radius, angle = plane(box)
    level = 1 - fit.contrast * (1 - sampled(radius, angle, fit))
    kz = np.broadcast_to(np.arange(box)[:, None] - box // 2, (box, box))
    parts = []
    for height, layer, used in layers(view):
        rings = ring[used]
        scale = np.bincount(rings, layer[used]) / np.maximum(np.bincount(rings, level[used]), 1e-30)
        shell = np.rint(np.hypot(radius[used], height)).astype(int)
        far = (np.hypot(kz, height) >= LOWEST * box)[used]
        parts.append((shell, layer[used], scale[rings] * level[used], far))
    shell, power, model, far = (np.concatenate(p) for p in zip(*parts))
    mean = np.bincount(shell, power) / np.maximum(np.bincount(shell), 1)
    floor = np.maximum(_FLOOR * mean[shell], 1e-30)
    return float(np.mean(np.log((power + floor) / (model + floor))[far] ** 2))


def profile(points: Points, angles_deg: np.ndarray) -> np.ndarray:
    """Mean power about every angle, Gaussian of 1.5 degrees."""
    away = points.angle[None, :] - np.radians(angles_deg)[:, None]
    away = np.degrees((away + np.pi / 2) % np.pi - np.pi / 2)
    weight = points.weight[None, :] * np.exp(-0.5 * (away / 1.5) ** 2)
    return (weight * points.power[None, :]).sum(1) / np.maximum(weight.sum(1), 1e-30)
