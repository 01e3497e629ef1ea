"""Every aligner of the option language: planted truths, the limits it states, bad input."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from alignment_setting import APIX, BOX, C1, errors, moved, planted, truth_of
from scipy.spatial.transform import Rotation

from sptjax import fourier, options, orientations, rotation, simulate, symmetry
from sptjax._errors import InputError
from sptjax._types import Pose
from sptjax.align import (
    ALIGNERS,
    FINE_ALIGNERS,
    AlignmentSettings,
    Found,
    Refine3D,
    Refine3DGrid,
    RotateTranslate3D,
    align_particles,
    grid_search,
    make_plan,
    stack_tables,
)
from sptjax.align._aligners import own_shifts
from sptjax.align._grid import shift_search
from sptjax.align._local import local_scores
from sptjax.align._plan import shift_grid
from sptjax.comparators import Matched, ball_score
from sptjax.resample import SliceTable
from sptjax.score import Observations, score, slice_reference

COUNT, EXPECTED = 6, 20.0
MAP = np.asarray(simulate.phantom(BOX))[None]
POSES = simulate.random_poses(jax.random.key(3), COUNT, 2.5)
TRUTH = truth_of(POSES)


@pytest.fixture(scope="module")
def view():
    return planted(MAP, np.zeros(COUNT), POSES)


def coarse(text):
    return options.bind(options.parse(text), ALIGNERS, "--align")


def fine(text):
    return options.bind(options.parse(text), FINE_ALIGNERS, "--falign")


def run(view, settings, start=None, groups=(C1,), **options):
    return align_particles(
        view.particles, np.arange(COUNT), view.references, groups, settings,
        expected_score=EXPECTED, start=start, **options,
    )  # fmt: skip


def places(found):
    return -np.einsum("ncji,ncj->nci", found.rotation, found.shift)


def own_angle(one, other):
    return np.asarray(rotation.angle_deg(jnp.asarray(one.rotation), jnp.asarray(other.rotation)))


# ---------------------------------------------------------------- planted truths

# largest angle and distance: of grid poses those of the grid, of refined ones those of the noise
GLOBAL = {
    "rotate_translate_3d:searchx=3:searchy=4:searchz=3:delta=20:dphi=20:refine=0": (17, 1),
    "rotate_translate_3d_grid:search=3:dalt=20:daz=20:dphi=20": (17, 1),
}
LOCAL = {
    "refine_3d": (4, 0.4),
    "refine_3d_grid:delta=4": (4, 0.4),
    "refine_3d_grid:delta=4:refine=0": (7, 0.9),
    "rotate_translate_3d_tree:maxang=15": (4, 0.4),
}


@pytest.mark.parametrize("text", GLOBAL)
def test_global_aligners_find_the_planted_poses(view, text):
    found = run(view, AlignmentSettings(aligner=coarse(text)))
    for error, limit in zip(errors(found, POSES), GLOBAL[text]):
        assert error.max() < limit
    assert found.score.min() > 12


def test_a_polished_search_moves_along_the_axes_it_may():
    """Particles whose centres lie in the plane z = 0 of their boxes, and no search along z."""
    place = np.asarray(-jnp.einsum("nji,nj->ni", POSES.rotation, POSES.shift))
    place = jnp.asarray(place * [1, 1, 0], jnp.float32)
    poses = Pose(POSES.rotation, -rotation.rotate(POSES.rotation, place))
    flat = planted(MAP, np.zeros(COUNT), poses)
    text = "rotate_translate_3d:searchx=3:searchy=3:searchz=0:delta=20:dphi=20"
    found = run(flat, AlignmentSettings(aligner=coarse(text)))
    for error, limit in zip(errors(found, poses), (4, 0.4)):
        assert error.max() < limit
    np.testing.assert_allclose(places(found)[..., 2], 0, atol=1e-5)


@pytest.mark.parametrize("text", LOCAL)
def test_fine_aligners_climb_to_the_planted_poses(view, text):
    near = moved(TRUTH, 8, 1.2)
    before = run(view, AlignmentSettings(aligner=None), near)
    np.testing.assert_array_equal(before.rotation, near.rotation)  # kept as they are
    np.testing.assert_allclose(before.shift, near.shift, atol=1e-5)
    found = run(view, AlignmentSettings(aligner=None, fine=fine(text)), near)
    assert (found.score > before.score).all()
    for error, limit in zip(errors(found, POSES), LOCAL[text]):
        assert error.max() < limit


def test_the_tree_with_maxang_searches_around_the_start_only(view):
    settings = AlignmentSettings(aligner=coarse("rotate_translate_3d_tree:maxang=15:maxshift=3"))
    found = run(view, settings, moved(TRUTH, 9, 1.5))
    for error, limit in zip(errors(found, POSES), (4, 0.4)):
        assert error.max() < limit
    far = moved(TRUTH, 60, 1.0)
    assert own_angle(run(view, settings, far), far).max() < 15.1


def test_symmetry_copies_of_the_start_are_told_apart(view):
    group = symmetry.parse("c4")
    turns = np.asarray(group.operators)[np.arange(COUNT) % 4][:, None]
    start = Found(turns @ TRUTH.rotation, (turns @ TRUTH.shift[..., None])[..., 0], TRUTH.score)
    for settings, groups in (
        (AlignmentSettings(aligner=coarse("rotate_symmetry_3d:sym=c4")), (C1,)),
        (AlignmentSettings(aligner=coarse("rotate_symmetry_3d")), (group,)),
    ):
        found = run(view, settings, start, groups)
        np.testing.assert_allclose(found.rotation, TRUTH.rotation, atol=1e-5)
        np.testing.assert_allclose(found.shift, TRUTH.shift, atol=1e-5)


def test_translation_alone_keeps_the_rotation(view):
    start = moved(TRUTH, 4, 1.5)
    settings = AlignmentSettings(translate_only=True, search_vox=3, fine=Refine3DGrid())
    found = run(view, settings, start)
    np.testing.assert_array_equal(found.rotation, start.rotation)
    assert errors(found, POSES)[1].max() < 0.6
    still = run(view, settings)
    np.testing.assert_array_equal(still.rotation, np.broadcast_to(np.eye(3), (COUNT, 1, 3, 3)))


# ---------------------------------------------------------------- limits that act


def test_windows_of_shifts(view):
    """Zero along an axis, or without translation, means that nothing moves along it."""
    grid = "rotate_translate_3d_grid:dalt=30:daz=30:dphi=30"
    still = run(view, AlignmentSettings(aligner=coarse(f"{grid}:dotrans=0"), search_vox=4))
    np.testing.assert_allclose(still.shift, 0, atol=1e-5)
    box = run(view, AlignmentSettings(aligner=coarse(f"{grid}:searchx=0:searchy=1:searchz=2")))
    reached = np.abs(places(box)).max(axis=(0, 1))
    np.testing.assert_allclose(reached, [0, 1, 2], atol=1e-5)


def test_refinements_stay_within_their_bounds(view):
    start = moved(TRUTH, 12, 2.0)
    for text, angle, shift in (
        ("refine_3d:maxshift=0.3", 180, 0.3),
        ("refine_3d:maxshift=0", 180, 0),
        ("refine_3d_grid:delta=2:range=4:search=1", 4, 1.5),
        ("refine_3d_grid:delta=2:range=4:dotrans=0", 4, 0),
    ):
        found = run(view, AlignmentSettings(aligner=None, fine=fine(text)), start)
        assert own_angle(found, start).max() < angle + 0.05
        assert own_angle(found, start).max() > min(angle, 10) / 2.5
        apart = np.abs(places(found) - places(start))
        assert apart.max() < shift + 1e-3
        assert apart.max() >= shift / 2


def test_a_refinement_ends_at_the_best_pose_inside_its_bounds(view):
    """The truth lies outside: no pose near the one found, and inside, is better."""
    start = moved(TRUTH, 5, 2.0)
    found = run(view, AlignmentSettings(aligner=None, fine=fine("refine_3d:maxshift=0.6")), start)
    edge = np.abs(places(found) - places(start)).max(-1)
    assert (edge > 0.59).sum() >= COUNT - 1
    rng = np.random.default_rng(0)
    for _ in range(25):
        axis = rng.normal(0, np.radians(1.5), (COUNT, 1, 3))
        turn = Rotation.from_rotvec(axis.reshape(-1, 3)).as_matrix().reshape(COUNT, 1, 3, 3)
        turned = (turn @ found.rotation).astype(np.float32)
        move = places(found) + rng.normal(0, 0.15, (COUNT, 1, 3)) - places(start)
        place = places(start) + np.clip(move, -0.6, 0.6)
        shift = -np.einsum("ncij,ncj->nci", turned, place).astype(np.float32)
        near = run(view, AlignmentSettings(aligner=None), Found(turned, shift, found.score))
        assert (near.score < found.score + 0.003).all()


def test_resolution_limits_of_the_tree_are_limits_of_its_score(view):
    """With start poses alone the score is the matched filter of the band."""
    loaded, vectors = view.particles, view.particles.vectors
    radius = np.linalg.norm(vectors, axis=1)
    tree = coarse("rotate_translate_3d_tree:maxang=1:minres=80:maxres=30")
    found = run(view, AlignmentSettings(aligner=tree, apix=APIX), TRUTH)
    inside = (radius >= 3 - 1e-3) & (radius <= 8 + 1e-3)  # 240 A of box
    table = jax.jit(stack_tables, static_argnums=1)(jnp.asarray(MAP), 8)
    table = SliceTable(table.real[0], table.imag[0], table.half, table.pad, table.order)
    wave = jnp.asarray(vectors[inside], jnp.float32)
    noise = loaded.noise[inside]
    for i in range(2):
        turn = jnp.asarray(found.rotation[i, 0])
        model = slice_reference(table, wave, turn, jnp.asarray(places(found)[i, 0]), BOX)
        want = ball_score(
            Matched(), jnp.asarray(loaded.read(np.array([i]))[0][0, inside] / noise), model,
            jnp.asarray(loaded.mean_sampling[inside] / noise), wave, BOX, APIX,
        )  # fmt: skip
        assert found.score[i, 0] == pytest.approx(float(want), rel=1e-3)


def test_settings_come_before_the_aligner_and_dotrans_before_both(view):
    maps = jnp.asarray(MAP)

    def widths(aligner, **settings):
        chosen = AlignmentSettings(aligner=aligner, **settings)
        return make_plan(view.particles, maps, chosen, EXPECTED).half_widths

    assert widths(coarse("rotate_translate_3d:search=5")) == (5, 5, 5)
    assert widths(coarse("rotate_translate_3d:search=5"), search_vox=2) == (2, 2, 2)
    assert widths(coarse("rotate_translate_3d:searchy=5")) == (3, 5, 3)
    assert widths(coarse("rotate_translate_3d:searchy=5"), search_vox=2) == (2, 2, 2)
    assert widths(coarse("rotate_translate_3d:search=5:dotrans=0"), search_vox=2) == (0, 0, 0)
    assert widths(coarse("rotate_translate_3d_tree:maxshift=1.5")) == (1.5, 1.5, 1.5)
    assert widths(coarse("rotate_translate_3d_tree")) == (BOX // 4,) * 3
    assert own_shifts(fine("refine_3d")) is None
    assert own_shifts(fine("refine_3d_grid:search=4")) == (4, 4, 4)
    assert own_shifts(fine("refine_3d_grid:searchx=4")) == (4, 3, 3)
    start = moved(TRUTH, 0, 1.8)
    near = AlignmentSettings(aligner=None, fine=Refine3D(), search_fine_vox=0.5)
    assert np.abs(places(run(view, near, start)) - places(start)).max() < 0.51


def test_the_symmetry_of_the_aligner_restricts_the_search():
    plain = RotateTranslate3D(delta=30, dphi=30)
    whole, quarter = (plain.grid(symmetry.parse(name)) for name in ("c1", "c4"))
    assert len(quarter) < len(whole) / 3
    half = dataclasses.replace(plain, phi0=30, phi1=210).grid(C1)
    assert len(half) == len(whole) / 2


def test_a_stated_symmetry_replaces_that_of_the_run(view):
    """A search over one asymmetric unit of c4 leaves poses of c1 in that unit."""
    text = "rotate_translate_3d:search=3:delta=30:dphi=30:refine=0:sym=c4"
    found = run(view, AlignmentSettings(aligner=coarse(text)))
    unit = np.asarray(orientations.eman(30, 30, symmetry.parse("c4")).rotations).reshape(-1, 9)
    rows = found.rotation.reshape(-1, 9)
    assert np.abs(rows[:, None] - unit[None]).max(-1).min(1).max() < 1e-5


def test_directions_by_number():
    for count in (20, 150):
        grid = RotateTranslate3D(n=count, dphi=90).grid(C1)
        assert len(grid) / 4 == pytest.approx(count, rel=0.12)


# ---------------------------------------------------------------- primitives


@pytest.fixture(scope="module")
def problem(view):
    kmax = 6
    vectors = jnp.asarray(fourier.half_ball(kmax))
    seen = view.particles.observations(np.arange(3), Matched(), len(vectors))
    tables = jax.jit(stack_tables, static_argnums=1)(jnp.asarray(MAP), kmax)
    table = SliceTable(tables.real[0], tables.imag[0], tables.half, tables.pad, tables.order)
    return vectors, seen, tables, table


single = jax.jit(score, static_argnums=5)


def test_local_scores_are_the_score_at_every_turn_and_shift(problem, rng):
    vectors, seen, tables, table = problem
    wave = vectors.astype(jnp.float32)
    start = jnp.asarray(Rotation.random(6, rng=rng).as_matrix(), jnp.float32)
    start = start.reshape(3, 1, 2, 3, 3)
    position = jnp.asarray(rng.normal(size=(3, 1, 2, 3)), jnp.float32)
    turns = orientations.local(12, 8).rotations
    shifts = jnp.asarray(rng.normal(size=(600, 3)), jnp.float32)  # more than one chunk
    scores, which = jax.jit(local_scores, static_argnames="box")(
        tables, seen, wave, start, position, turns, shifts, box=BOX
    )
    assert scores.shape == (3, 1, 2, len(turns))
    for i, m, q in np.ndindex(2, 2, 3):
        row = Observations(seen.data[i : i + 1], seen.weight[:1])
        turn = turns[q] @ start[i, 0, m]
        at = jax.vmap(lambda s, i=i, m=m, row=row, turn=turn: single(
            table, row, wave, turn, position[i, 0, m] + s, BOX))(shifts)  # fmt: skip
        assert float(scores[i, 0, m, q]) == pytest.approx(float(at.max()), abs=2e-3)
        assert float(at[which[i, 0, m, q]]) == pytest.approx(float(at.max()), abs=2e-3)


def test_shifts_at_one_rotation_are_those_of_the_grid_search(problem):
    vectors, seen, tables, _ = problem
    turns = jnp.asarray(TRUTH.rotation[:3])
    window = (1, 3, 2)
    found = shift_search(tables, seen, vectors, turns, box=BOX, max_shift_vox=window)
    for i in range(3):
        row = Observations(seen.data[i : i + 1], seen.weight[:1])
        want = grid_search(tables, row, vectors, turns[i], box=BOX, max_shift_vox=window, keep=1)
        np.testing.assert_allclose(found.score[i], want.score[0], rtol=1e-5)
        np.testing.assert_allclose(found.shift[i], want.shift[0], atol=1e-5)
        place = -np.asarray(turns[i, 0]).T @ np.asarray(found.shift[i, 0, 0])
        assert (np.abs(place) <= np.array(window) + 1e-4).all()


def test_boxes_of_shifts_reach_their_sides():
    grid = shift_grid((0.0, 2.0, 4.0), 1.5)
    np.testing.assert_allclose(np.abs(grid).max(0), [0, 2, 4])
    assert np.diff(np.unique(grid[:, 2])).max() <= 1.5
    cube = shift_grid(3.0, 1.0)
    inside = np.array([v for v in np.ndindex(7, 7, 7) if np.linalg.norm(np.subtract(v, 3)) <= 3.9])
    np.testing.assert_array_equal(np.unique(cube, axis=0), np.unique(inside - 3, axis=0))


# ---------------------------------------------------------------- misuse


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rotate_translate_3d:search=3:searchx=2", "not both"),
        ("rotate_translate_3d:delta=10:n=100", "delta or n"),
        ("rotate_translate_3d:n=0", "n=0"),
        ("rotate_translate_3d:orientgen=saff", "only eman"),
        ("rotate_translate_3d:phi0=90:phi1=90", "phi0=90 must be below"),
        ("rotate_translate_3d:sym=c0", "'c0'"),
        ("rotate_translate_3d:searchy=-1", "searchy=-1"),
        ("rotate_translate_3d_grid:alt0=40:alt1=40", "alt0=40 must be below"),
        ("rotate_translate_3d_grid:az0=9:az1=9", "az0=9 must be below"),
        ("rotate_translate_3d_grid:phi0=9:phi1=9", "phi0=9 must be below"),
        ("rotate_translate_3d_grid:dalt=0", "dalt=0"),
        ("rotate_translate_3d_grid:sym=c4", "no key 'sym'"),
        ("rotate_translate_3d_tree:maxang=0", "maxang=0"),
        ("rotate_translate_3d_tree:minres=20:maxres=30", "must exceed"),
        ("rotate_translate_3d_tree:maxres=-1", "negative"),
        ("rotate_symmetry_3d:sym=q", "'q'"),
    ],
)
def test_bad_keys_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        coarse(text)


def test_bad_fine_aligners_are_refused():
    for text, message in (
        ("refine_3d:maxiter=0", "maxiter=0"),
        ("refine_3d:maxshift=-1", "maxshift=-1"),
        ("refine_3d_grid:delta=0", "delta=0"),
        ("refine_3d_grid:range=-1", "range=-1"),
        ("refine_3d_grid:search=2:searchz=2", "not both"),
    ):
        with pytest.raises(InputError, match=message):
            fine(text)
    with pytest.raises(InputError, match="needs maxang"):
        AlignmentSettings(fine=fine("rotate_translate_3d_tree"))
    with pytest.raises(InputError, match="at least one"):
        AlignmentSettings(peaks=0)


@pytest.mark.parametrize("text", ["rotate_symmetry_3d:sym=c2", "rotate_translate_3d_tree:maxang=9"])
def test_local_aligners_ask_for_their_start(view, text):
    with pytest.raises(InputError, match="starts from given poses"):
        run(view, AlignmentSettings(aligner=coarse(text)))


def test_a_band_without_frequencies_is_refused(view):
    tree = coarse("rotate_translate_3d_tree:maxang=9:minres=5:maxres=4")
    with pytest.raises(InputError, match="no frequency"):
        run(view, AlignmentSettings(aligner=tree, apix=APIX), TRUTH)
