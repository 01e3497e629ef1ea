"""Classes at fixed poses, in a part of the particle, and drawn at random at first."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from memory_stack import Memory

from sptjax import resample, rotation, simulate, symmetry
from sptjax._types import Pose
from sptjax.align import AlignmentSettings, Found
from sptjax.copies import Copies
from sptjax.particles import Sampling, load_particles
from sptjax.references import ReferenceSettings
from sptjax.refinement import RefineSettings, refine_round
from sptjax.selection import assign
from sptjax.state import initial_state

BOX, COUNT = 24, 32
C1 = symmetry.parse("c1")


def ball(x, y, z, height=1.0):
    axis = np.arange(BOX) - BOX // 2
    gz, gy, gx = np.meshgrid(axis, axis, axis, indexing="ij")
    return height * np.exp(-((gx - x) ** 2 + (gy - y) ** 2 + (gz - z) ** 2) / (2 * 1.5**2))


@dataclasses.dataclass(frozen=True)
class Setting:
    """Two independent differences: a strong one far from the mask, a weak one inside it."""

    strong: np.ndarray  # class of each particle by the strong difference
    weak: np.ndarray
    maps: np.ndarray  # [2 strong, 2 weak, n, n, n]
    mask: np.ndarray
    stack: Memory
    sampling: Sampling
    copies: Copies
    start: Found

    def round(self, maps, **options):
        state = initial_state(
            maps, COUNT, gold_standard=False, expected_score=20.0, start=self.start,
            told_apart=options.pop("told_apart", True),
        )  # fmt: skip
        alignment = AlignmentSettings(aligner=None, use_start=True)
        settings = RefineSettings(alignment, (C1, C1), 10.0, **options)
        return refine_round(state, self.copies, self.stack, self.sampling, settings)


@pytest.fixture(scope="module")
def setting():
    rng = np.random.default_rng(4)
    strong, weak = rng.permutation(np.arange(COUNT) % 2), rng.permutation(np.arange(COUNT) % 2)
    body = ball(3, 0, 0) + ball(-2, 2, 3) + ball(0, -3, -2)
    maps = np.array(
        [
            [body + ball(0, 7, 0, 1.6 * s) + ball(-6, -3, 0, 0.8 * w) for w in (0, 1)]
            for s in (0, 1)
        ],
        np.float32,
    )
    poses = simulate.random_poses(jax.random.key(1), COUNT, 1.0)
    move = jax.jit(jax.vmap(lambda v, r, t: resample.transform(v, Pose(r, t))))
    back = rotation.invert(poses)
    volumes = np.asarray(move(jnp.asarray(maps[strong, weak]), back.rotation, back.shift))
    volumes = volumes + 0.25 * rng.normal(size=volumes.shape).astype(np.float32)
    stack, sampling = Memory(volumes), Sampling(np.ones((BOX,) * 3, np.float32))
    axis = np.arange(BOX) - BOX // 2
    gz, gy, gx = np.meshgrid(axis, axis, axis, indexing="ij")
    mask = (((gx + 6) ** 2 + (gy + 3) ** 2 + gz**2) <= 16).astype(np.float32)
    copies = Copies.of(load_particles(stack, sampling, BOX // 2 - 2))
    turn, shift = (np.asarray(x)[:, None].repeat(2, 1) for x in (poses.rotation, poses.shift))
    start = Found(turn, shift, np.zeros((COUNT, 2), np.float32))
    return Setting(strong, weak, maps, mask, stack, sampling, copies, start)


def agreement(found, labels):
    right = np.mean(found == labels)
    return max(right, 1 - right)


def test_a_class_mask_sorts_by_what_is_inside(setting):
    """References that differ in both: without the mask by the strong part, with it by the weak."""
    references = np.stack([setting.maps[0, 0], setting.maps[1, 1]])
    plain = setting.round(references)
    focused = setting.round(references, class_mask=setting.mask)
    assert agreement(plain.classes, setting.strong) == 1
    assert agreement(plain.classes, setting.weak) < 0.8
    assert agreement(focused.classes, setting.weak) > 0.95
    assert np.allclose(focused.rotation, setting.start.rotation)
    assert np.allclose(focused.shift, setting.start.shift, atol=1e-5)


def test_all_classes_are_scored_at_one_pose(setting):
    """Every particle keeps the better of two different start poses for both classes."""
    turn = setting.start.rotation.copy()
    wrong = np.arange(COUNT) % 2
    turn[np.arange(COUNT), wrong] = turn[np.arange(COUNT), wrong] @ np.diag([-1.0, -1.0, 1.0])
    start = dataclasses.replace(setting.start, rotation=turn.astype(np.float32))
    references = np.stack([setting.maps[0, 0], setting.maps[0, 1]])
    other = dataclasses.replace(setting, start=start)
    found = other.round(references, class_mask=setting.mask)
    assert np.allclose(found.rotation, setting.start.rotation, atol=1e-6)
    assert agreement(found.classes, setting.weak) > 0.95


def test_classes_from_the_particles_respect_the_mask(setting):
    """From copies of one map: by the strong difference, with the mask by the weak one."""
    references = np.stack([setting.maps.mean((0, 1))] * 2)
    plain = setting.round(references, told_apart=False)
    focused = setting.round(references, told_apart=False, class_mask=setting.mask)
    assert agreement(plain.classes, setting.strong) > 0.95
    assert agreement(focused.classes, setting.weak) > 0.9


def test_a_mask_of_the_alignment_is_not_that_of_the_classes(setting):
    """Masked to align, the references lack the part that tells the classes; it counts anyway."""
    outside = np.asarray(1 - setting.mask, np.float32)
    references = np.stack([setting.maps[0, 0], setting.maps[0, 1]])
    own = ReferenceSettings(mask=outside)
    blind = setting.round(references, references=own)
    focused = setting.round(references, references=own, class_mask=setting.mask)
    assert agreement(blind.classes, setting.weak) < 0.85
    assert agreement(focused.classes, setting.weak) > 0.95


def test_classes_are_drawn_by_their_scores_and_less_and_less(rng):
    score = np.stack([np.zeros(20000), rng.normal(0, 2, 20000)], 1)
    best = np.argmax(score, 1)
    spread = np.std(score - score.mean(1, keepdims=True))
    for round_, anneal in ((0, 4), (2, 4), (3, 4)):
        temperature = (1 - round_ / anneal) * spread
        chance = 1 / (1 + np.exp(-score[:, 1] / temperature))
        drawn = assign(score, round_, anneal, seed=5)
        for low, high in ((-2.0, -1.0), (0.0, 0.5), (1.0, 2.0)):
            here = (score[:, 1] > low) & (score[:, 1] < high)
            assert np.mean(drawn[here]) == pytest.approx(chance[here].mean(), abs=0.03)
        assert np.array_equal(drawn, assign(score, round_, anneal, seed=5))
        assert not np.array_equal(drawn, assign(score, round_, anneal, seed=6))
    assert np.array_equal(assign(score, 4, 4, seed=5), best)
    assert np.array_equal(assign(score, 0, 0, seed=5), best)


def test_annealing_belongs_to_a_round(setting):
    references = np.stack([setting.maps[0, 0], setting.maps[1, 0]])
    plain, drawn = setting.round(references), setting.round(references, anneal=2, seed=3)
    assert np.allclose(plain.score, drawn.score)
    assert np.array_equal(drawn.classes, assign(plain.score, 0, 2, 3))
    assert not np.array_equal(drawn.classes, plain.classes)


def test_masks_overlap_as_they_are_meant(setting):
    """The planted weak difference lies in the mask, the strong one does not."""
    weak = np.abs(setting.maps[0, 1] - setting.maps[0, 0])
    strong = np.abs(setting.maps[1, 0] - setting.maps[0, 0])
    assert (weak * setting.mask).sum() > 0.8 * weak.sum()
    assert (strong * setting.mask).sum() < 0.01 * strong.sum()
