"""Stages at several samplings: lists of poses, start poses, the last polish, randomisation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from alignment_setting import (
    BOX,
    C1,
    WEDGE,
    errors,
    moved,
    particles_of,
    planted,
    truth_of,
    volumes_of,
)  # fmt: skip

from sptjax import fourier, resample, rotation, simulate, symmetry
from sptjax._types import Alignment, Pose
from sptjax.align import (
    AlignmentSettings,
    Found,
    Refine3D,
    RotateTranslate3D,
    RotateTranslate3DGrid,
    View,
    align_particles,
    align_views,
)
from sptjax.align._drive import at_scale
from sptjax.align._rank import separate
from sptjax.align._views import _equivalents
from sptjax.comparators import CCC

COUNT, EXPECTED, SMALL = 6, 20.0, 16
MAP = np.asarray(simulate.phantom(BOX))[None]
POSES = simulate.random_poses(jax.random.key(3), COUNT, 2.5)
TRUTH = truth_of(POSES)
ROWS = np.arange(COUNT)
PATCH = RotateTranslate3DGrid(search=2, alt1=30, dalt=30, daz=60, dphi=60)  # misses most
GRID = RotateTranslate3D(search=2, delta=24, dphi=24, refine=False)


def smaller(volumes):
    """Fourier-cropped volumes."""
    shrink = jax.jit(jax.vmap(lambda v: fourier.fourier_resample(v, SMALL)))
    return np.asarray(shrink(jnp.asarray(volumes)))


@pytest.fixture(scope="module")
def views():
    """The same particles in boxes of 24 and 16 voxels."""
    volumes = volumes_of(MAP, np.zeros(COUNT), POSES, WEDGE)
    full = View(particles_of(volumes, WEDGE), MAP)
    coarse = View(particles_of(smaller(volumes), WEDGE, 6), smaller(MAP), BOX / SMALL)
    return coarse, full


def run(settings, coarse, fine=None, full=None, groups=(C1,), **options):
    return align_views(
        coarse, fine, full, ROWS, groups, settings, expected_score=EXPECTED, **options
    )


@pytest.fixture(scope="module")
def small(views):
    """The coarse search alone, with its list, and the same with two stages after it."""
    keep = AlignmentSettings(aligner=GRID, peaks=4, save_peaks=True)
    refined = dataclasses.replace(keep, fine=Refine3D())
    return run(keep, views[0]), run(refined, *views)


def test_poses_are_in_raw_voxels_after_every_stage(small):
    alone, refined = small
    angle, distance = errors(alone, POSES)
    assert angle.max() < 1.3 * 20.3  # of the covering radius of the grid
    assert distance.max() < 0.9 * BOX / SMALL
    angle, distance = errors(refined, POSES)
    assert angle.max() < 4
    assert distance.max() < 0.4
    assert np.linalg.norm(POSES.shift, axis=1).max() > 2  # shifts of the small box would not do


def test_peaks_are_distinct_and_the_best_is_first(small):
    alone, refined = small
    peaks = alone.peaks
    assert peaks is not None
    assert peaks.score.shape == (COUNT, 1, 4)
    np.testing.assert_array_equal(peaks.rotation[:, :, 0], alone.rotation)
    np.testing.assert_array_equal(peaks.score[:, :, 0], alone.score)
    np.testing.assert_array_equal(refined.peaks.score, peaks.score)  # of the coarse stage
    assert (np.diff(peaks.score, axis=-1) <= 0).all()
    assert np.isfinite(peaks.score).all()
    for row in jnp.asarray(peaks.rotation[:, 0]):
        apart = np.asarray(rotation.angle_deg(row[:, None], row[None]))
        assert apart[~np.eye(4, dtype=bool)].min() >= 1.5 * 24 - 0.1


def test_every_peak_is_refined_and_the_best_final_score_wins(views):
    """By hand: each pose of the list refined alone. The grid is too coarse to trust its best."""
    wide = RotateTranslate3D(search=2, delta=45, dphi=45, refine=False)
    full, settings = views[1], AlignmentSettings(aligner=wide, peaks=4, save_peaks=True)
    refined = run(dataclasses.replace(settings, fine=Refine3D()), full)
    peaks, alone = refined.peaks, AlignmentSettings(aligner=None, fine=Refine3D())
    assert peaks is not None
    scores = []
    for p in range(4):
        start = Found(peaks.rotation[:, :, p], peaks.shift[:, :, p], peaks.score[:, :, p])
        scores.append(run(alone, full, start=start).score[:, 0])
    np.testing.assert_allclose(refined.score[:, 0], np.max(scores, 0), rtol=1e-3)
    assert (np.max(scores, 0) > scores[0] + 0.1).any()  # the best of the grid does not always win


def test_distinct_poses_are_distinct_modulo_the_group():
    group = symmetry.parse("c4")
    turns = rotation.random(jax.random.key(4), 2)
    list_ = jnp.stack([turns[0], group.operators[1] @ turns[0], turns[1]])[None, None]
    found = Alignment(list_, jnp.zeros((1, 1, 3, 3)), jnp.asarray([[[3.0, jnp.nan, 1.0]]]))
    best = separate(found, group.operators, jnp.float32(5), 3)
    np.testing.assert_allclose(best.rotation[0, 0, :2], turns, atol=1e-6)
    np.testing.assert_array_equal(best.score[0, 0], [3, 1, -np.inf])


def test_a_last_polish_at_full_sampling_improves_a_shrunk_alignment(views):
    coarse, full = views
    settings = AlignmentSettings(aligner=None, fine=Refine3D())
    near = moved(TRUTH, 6, 0.8)
    small = run(settings, coarse, coarse, full, start=near)
    tweak = dataclasses.replace(settings, tweak=True)
    polished = run(tweak, coarse, coarse, full, start=near)
    before = run(AlignmentSettings(aligner=None), full, start=small)
    assert (polished.score >= before.score - 1e-4).all()  # both scored at full sampling
    assert np.median(polished.score - before.score) > 0.1
    for after, first in zip(errors(polished, POSES), errors(small, POSES)):
        assert np.sqrt((after**2).mean()) < np.sqrt((first**2).mean())
    # nothing to do where the last stage was at full sampling
    again = run(tweak, full, None, full, start=near)
    np.testing.assert_array_equal(again.score, run(settings, full, start=near).score)


# ---------------------------------------------------------------- start poses


@pytest.mark.parametrize("settings", [
    AlignmentSettings(aligner=PATCH),
    AlignmentSettings(aligner=PATCH, comparator=CCC()),
    AlignmentSettings(aligner=PATCH, fine=Refine3D()),
], ids=["grid", "ccc", "fine"])  # fmt: skip
def test_a_start_pose_never_worsens_the_result(views, settings):
    full = views[1]
    mixed = moved(TRUTH, 60, 2.0)
    mixed.rotation[::2], mixed.shift[::2] = TRUTH.rotation[::2], TRUTH.shift[::2]
    plain = run(settings, full, start=mixed)  # not used without use_start
    helped = run(dataclasses.replace(settings, use_start=True), full, start=mixed)
    fixed = dataclasses.replace(settings, aligner=None, fine=None)
    given = run(fixed, full, start=mixed)
    if settings.fine is None and settings.comparator != CCC():
        # a grid scores all of the band, and a given pose alone that of the plan
        assert errors(helped, POSES)[0][::2].max() < 0.1
    else:
        assert (helped.score >= given.score - 1e-4).all()
    assert (helped.score >= plain.score - 1e-4).all()
    assert (helped.score[::2] > plain.score[::2] + 1e-4).any()


# ---------------------------------------------------------------- randomisation


def test_random_grids_and_equivalents_leave_the_class_of_a_pose():
    group = symmetry.parse("c4")
    maps = np.asarray(jax.jit(symmetrised)(jnp.asarray(MAP[0]), group.operators))[None]
    view = planted(maps, np.zeros(COUNT), POSES)
    settings = AlignmentSettings(aligner=GRID, randomize_wedge=True)

    def found(key, rows=ROWS, **options):
        own = dataclasses.replace(settings, **options)
        return align_particles(
            view.particles, rows, maps, (group,), own, expected_score=EXPECTED, key=key
        )

    keys = [jax.random.key(k) for k in range(2)]
    drawn = [found(key) for key in keys]
    unit = []
    for result in drawn:
        angle, distance = errors(result, POSES, group=group)
        assert angle.max() < 1.3 * 20.3
        assert distance.max() < 1.2
        unit.append(symmetry.in_asymmetric_unit(jnp.asarray(result.rotation[:, 0]), group))
    assert not np.all(unit)  # operators were drawn: the search itself stays near one unit
    # the draw belongs to the particle, not to its place in the call
    np.testing.assert_allclose(found(keys[0], ROWS[3:]).rotation, drawn[0].rotation[3:], atol=1e-5)
    # without symmetrised averages equivalent poses differ: the grid is turned, nothing else
    kept = found(keys[0], break_symmetry=True)
    copies = np.asarray(group.operators)[:, None] @ kept.rotation[None, :, 0]
    apart = np.abs(copies - drawn[0].rotation[:, 0]).max((-2, -1))  # of operator, particle
    assert (apart.min(0) < 1e-4).all()
    assert (apart[0] > 0.1).any()
    with pytest.raises(ValueError, match="needs a key"):
        found(None)


def test_equivalents_are_copies_under_every_operator():
    groups = tuple(map(symmetry.parse, ("d2", "c1", "h4:1:30:2")))
    turn, shift, score = (np.repeat(x, 3, 1) for x in (TRUTH.rotation, TRUTH.shift, TRUTH.score))
    two = Found(turn, shift, score)
    chosen = _equivalents(two, np.array([0.0, 0.2, 0.3, 0.55, 0.8, 0.99]), groups)
    which = [0, 0, 1, 2, 3, 3]
    pose = Pose(jnp.asarray(TRUTH.rotation[:, 0]), jnp.asarray(TRUTH.shift[:, 0]))
    copies = symmetry.copies(pose, groups[0])
    np.testing.assert_allclose(chosen.rotation[:, 0], copies.rotation[ROWS, which], atol=1e-6)
    np.testing.assert_allclose(chosen.shift[:, 0], copies.shift[ROWS, which], atol=1e-6)
    for c in (1, 2):  # no group, and a helix, whose equivalents lie elsewhere
        np.testing.assert_array_equal(chosen.rotation[:, c], two.rotation[:, c])


def symmetrised(volume, operators):
    move = lambda r: resample.transform(volume, Pose(r, jnp.zeros(3)))  # noqa: E731
    return jnp.mean(jax.lax.map(move, operators), 0)


def test_the_grid_itself_is_turned(views):
    """Unpolished poses are entries of the grid: of another one for every key."""
    settings = AlignmentSettings(aligner=GRID, randomize_wedge=True)
    grid = np.asarray(GRID.grid(C1).rotations).reshape(-1, 9)
    rows = run(settings, views[1], key=jax.random.key(5)).rotation.reshape(-1, 9)
    apart = np.abs(rows[:, None] - grid[None]).max(-1).min(1)
    assert apart.max() > 0.02
    plain = run(dataclasses.replace(settings, randomize_wedge=False), views[1])
    rows = plain.rotation.reshape(-1, 9)
    assert np.abs(rows[:, None] - grid[None]).max(-1).min(1).max() < 1e-5


# ---------------------------------------------------------------- symmetries and sizes


def test_references_of_different_symmetry_go_apart(views):
    maps = np.repeat(MAP, 3, 0)
    view = dataclasses.replace(views[1], references=maps)
    names = ["c4", "c1", "c4"]
    found = run(AlignmentSettings(aligner=GRID), view, groups=tuple(map(symmetry.parse, names)))
    np.testing.assert_array_equal(found.rotation[:, 0], found.rotation[:, 2])
    for c, name in enumerate(names):
        grid = np.asarray(GRID.grid(symmetry.parse(name)).rotations).reshape(-1, 9)
        rows = found.rotation[:, c].reshape(-1, 9)
        assert np.abs(rows[:, None] - grid[None]).max(-1).min(1).max() < 1e-5
    assert (found.score[:, 1] >= found.score[:, 0] - 1e-4).all()  # of the larger set


def test_helices_shrink_with_the_voxels():
    helix = symmetry.parse("h3:1:40:4.5")
    small = at_scale(helix, 1.5)
    np.testing.assert_allclose(small.shifts[:, 2], np.asarray(helix.shifts)[:, 2] / 1.5)
    np.testing.assert_array_equal(small.operators, helix.operators)
    assert at_scale(helix, 1) is helix
    assert at_scale(C1, 2) is C1


def test_no_particles_are_no_poses(views):
    found = align_views(
        views[0], None, None, ROWS[:0], (C1,), AlignmentSettings(), expected_score=EXPECTED
    )
    assert found.rotation.shape == (0, 1, 3, 3)
    assert found.score.shape == (0, 1)
