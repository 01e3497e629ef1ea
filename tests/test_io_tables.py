"""Alignments in EMAN2's JSON, and class matrices: its own files, round trips, refusals."""

import dataclasses
import json
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from sptjax._errors import InputError
from sptjax.io import (
    ClassMatrix,
    read_alignments,
    read_classmx,
    read_extras,
    read_json,
    transform_from_json,
    write_alignments,
    write_classmx,
    write_hdf,
    write_json,
)

QUICK = settings(max_examples=15, deadline=None, database=None)


def poses(rng, count):
    matrices = np.empty((count, 3, 4), np.float32)
    matrices[:, :, :3] = Rotation.random(count, rng=rng).as_matrix()
    matrices[:, :, 3] = rng.uniform(-10, 10, (count, 3))
    return matrices


def test_golden_sptali(golden):
    matrices, scores = read_alignments(golden / "hdf" / "sptali_ir_0.json", 2)
    assert scores.tolist() == [-0.5, -0.25]
    text = "0.771281 0.613092 0.17101 1 -0.633718 0.71461 0.296198 2 0.0593912 -0.336824 0.939693 3"
    np.testing.assert_allclose(matrices[0].ravel(), np.array(text.split(), np.float32), atol=2e-6)
    rotation = matrices[0, :, :3].astype(np.float64)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=3e-7)
    np.testing.assert_array_equal(matrices[1], np.eye(3, 4))


def test_real_poses(shared_data):
    matrices, scores = read_alignments(shared_data / "real_ribosomes" / "poses.json", 40)
    assert matrices.dtype == np.float32
    np.testing.assert_allclose(np.linalg.det(matrices[:, :, :3]), 1, atol=1e-6)
    np.testing.assert_array_equal(matrices[:, :, 3], 0)
    np.testing.assert_array_equal(scores, 0)


@QUICK
@given(count=st.integers(1, 101), seed=st.integers(0, 1000))
def test_alignments_round_trip(tmp_path_factory, count, seed):
    rng = np.random.default_rng(seed)
    path = tmp_path_factory.mktemp("json") / "sptali_ir_0.json"
    matrices, scores = poses(rng, count), rng.normal(size=count)
    write_alignments(path, matrices, scores)
    found, found_scores = read_alignments(path, count)
    np.testing.assert_allclose(found[:, :, :3], matrices[:, :, :3], atol=2e-7)
    np.testing.assert_array_equal(found[:, :, 3], matrices[:, :, 3])
    np.testing.assert_array_equal(found_scores, scores)
    assert read_alignments(path)[0].shape == (count, 3, 4)
    keys = sorted(json.loads(path.read_text()))
    assert keys[0] == "subtomo_" + "0" * len(str(count))
    assert keys[-1] == f"subtomo_{count - 1:0{len(str(count))}d}"


def test_the_text_is_laid_out_like_eman2(tmp_path, golden):
    """Six digits aside, EMAN2's own file is reproduced character by character."""
    original = golden / "hdf" / "sptali_ir_0.json"
    write_json(tmp_path / "a.json", read_json(original))
    assert (tmp_path / "a.json").read_text() == original.read_text().rstrip("\n") + "\n"


def test_extras_go_to_a_second_file(tmp_path, rng):
    path = tmp_path / "sptali_rm_0_1.json"
    extra = {"class": np.array([0, 1, -1]), "weight": np.array([0.5, 1.0, 0.0])}
    write_alignments(path, poses(rng, 3), np.zeros(3), extra)
    assert (tmp_path / "sptali_rm_0_1_ext.json").exists()
    assert set(read_json(path)) == {"subtomo_0", "subtomo_1", "subtomo_2"}
    found = read_extras(path, 3)
    for name, column in extra.items():
        np.testing.assert_array_equal(found[name], column, strict=True)
    assert read_extras(tmp_path / "other.json", 3) == {}
    with pytest.raises(InputError, match="class does not have 4"):
        read_extras(path, 4)


def test_particle_parms_form(tmp_path, rng):
    matrices = poses(rng, 3)
    data = {
        f"('sets/a, b.lst', {i})": {
            "xform.align3d": {"__class__": "Transform", "matrix": matrices[i].ravel().tolist()},
            "score": -0.1 * i,
            "odd": {"__pickle__": "cos\nsystem\n(S'false'\ntR."},
        }
        for i in (2, 0, 1)
    }
    del data["('sets/a, b.lst', 1)"]["score"]
    write_json(tmp_path / "a.json", {**data, "comment": "ignored"})
    found, scores = read_alignments(tmp_path / "a.json", 3)
    np.testing.assert_allclose(found, matrices, atol=2e-6)
    assert scores[0] == 0
    assert np.isnan(scores[1])
    assert scores[2] == -0.2
    doubled = {**data, "('other.lst', 0)": data["('sets/a, b.lst', 0)"]}
    write_json(tmp_path / "b.json", doubled)
    with pytest.raises(InputError, match="more than one pose for particle 0"):
        read_alignments(tmp_path / "b.json")


def test_bad_alignments_give_a_sentence(tmp_path, rng):
    path = tmp_path / "a.json"
    matrices = poses(rng, 12)
    bent, mirror, endless = matrices.copy(), matrices.copy(), matrices.copy()
    bent[3, :, :3] *= 1.01
    mirror[4, :, 0] *= -1
    endless[5, 0, 3] = np.nan
    for bad, words in (
        (bent, "particle 3 is not rigid"),
        (mirror, "particle 4 is not rigid"),
        (endless, "particle 5 .*not finite"),
        (matrices[:7], "particle 7 is missing"),
    ):
        write_alignments(path, bad, np.zeros(len(bad)))
        with pytest.raises(InputError, match=words):
            read_alignments(path, 12)
    for text, words in (
        ("{", "not readable JSON"),
        ("[1]", "does not hold a JSON object"),
        ("{}", "no alignments"),
        ('{"subtomo_0": [1, 2]}', "particle 0 is not a transform"),
        ('{"subtomo_0": 5}', "particle 0 is not a transform"),
        ('{"subtomo_0": [{"__class__": "Transform", "matrix": "[1,2]"}, 2]}', "12 numbers"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=words):
            read_alignments(path, 1)
    with pytest.raises(InputError, match="does not exist"):
        read_alignments(tmp_path / "absent.json", 1)
    with pytest.raises(InputError, match="do not go with"):
        write_alignments(path, matrices, np.zeros(5))
    with pytest.raises(InputError, match="class has 3 of 12"):
        write_alignments(path, matrices, np.zeros(12), {"class": np.zeros(3)})
    with pytest.raises(InputError, match="no JSON form"):
        write_json(path, {"a": object()})


def test_reading_gives_the_nearest_rotation(rng):
    """A rotation rounded to a few digits comes back closer to the original, and orthogonal."""
    for rotation in Rotation.random(20, rng=rng).as_matrix():
        rounded = np.column_stack([np.round(rotation, 4), np.zeros(3)])
        found = transform_from_json({"__class__": "Transform", "matrix": rounded.ravel()}, "x")
        np.testing.assert_allclose(found[:, :3] @ found[:, :3].T, np.eye(3), atol=1e-14)
        before = np.linalg.norm(rounded[:, :3] - rotation)
        assert np.linalg.norm(found[:, :3] - rotation) <= before + 1e-12


def matrix_of(rng, classes, n_classes):
    count = len(classes)
    return ClassMatrix(
        n_classes=n_classes,
        classes=np.asarray(classes),
        weights=rng.uniform(0.1, 1, count).astype("f4"),
        scores=rng.normal(size=count).astype("f4"),
        euler_deg=rng.uniform(-180, 180, (count, 3)).astype("f4"),
        shifts_vox=rng.uniform(-5, 5, (count, 3)).astype("f4"),
    )


@QUICK
@given(classes=st.lists(st.integers(-1, 3), min_size=1, max_size=9), seed=st.integers(0, 99))
def test_classmx_round_trip(tmp_path_factory, classes, seed):
    path = tmp_path_factory.mktemp("classmx") / "classmx_0.hdf"
    n_classes = max(1, max(classes) + 1)
    matrix = matrix_of(np.random.default_rng(seed), classes, n_classes)
    write_classmx(path, matrix)
    found = read_classmx(path)
    assert found.n_classes == n_classes
    np.testing.assert_array_equal(found.classes, classes)
    member = found.classes >= 0
    for name in ("weights", "scores", "euler_deg", "shifts_vox"):
        column = getattr(found, name)
        np.testing.assert_array_equal(column[member], getattr(matrix, name)[member])
        rest = column[~member]
        assert np.isnan(rest).all() if name == "scores" else (rest == 0).all()


def test_classmx_planes_are_those_of_eman2(tmp_path, rng):
    """Plane by plane, by h5py: rows are particles, columns classes."""
    matrix: Any = matrix_of(rng, [1, 0, -1, 1, 2], 3)
    write_classmx(tmp_path / "a.hdf", matrix)
    with h5py.File(tmp_path / "a.hdf") as file:
        images: Any = file["MDF/images"]
        planes = [images[f"{k}/image"][()] for k in range(len(images))]
        assert images["0"].attrs["EMAN.classmx_format"] == b"membership"
    assert len(planes) == 10
    assert all(plane.shape == (5, 3) for plane in planes)
    np.testing.assert_array_equal(planes[0], np.eye(4)[[1, 0, 3, 1, 2], :3])
    assert planes[1][3, 1] == matrix.weights[3]
    assert [planes[k][4, 2] for k in (2, 3, 4)] == matrix.shifts_vox[4].tolist()
    assert [planes[k][0, 1] for k in (5, 6, 7)] == matrix.euler_deg[0].tolist()
    assert planes[8][1, 0] == 1
    assert planes[9][1, 0] == matrix.scores[1]
    assert all((plane[2] == 0).all() for plane in planes)


def test_wiki_form(tmp_path):
    numbers = np.array([[2], [0], [-1], [1]], np.float32)
    planes = [numbers] + [np.full((4, 1), k, np.float32) for k in range(1, 9)]
    write_hdf(tmp_path / "a.hdf", planes, 1.0)
    found: Any = read_classmx(tmp_path / "a.hdf")
    assert (found.n_classes, found.classes.tolist()) == (3, [2, 0, -1, 1])
    assert found.weights.tolist() == [1, 1, 0, 1]
    assert found.shifts_vox[0].tolist() == [2, 3, 4]
    assert found.euler_deg[3].tolist() == [5, 6, 7]
    assert np.isnan(found.scores).all()
    write_hdf(tmp_path / "b.hdf", planes[:1], 1.0)
    found = read_classmx(tmp_path / "b.hdf")
    assert (found.classes.tolist(), found.weights.tolist()) == ([2, 0, -1, 1], [1, 1, 0, 1])
    assert found.euler_deg is None
    several = [np.array([[0, 3], [2, -1]]), np.array([[0.2, 0.8], [0.1, 0.9]])]
    write_hdf(tmp_path / "c.hdf", several, 1.0)
    assert read_classmx(tmp_path / "c.hdf", "wiki").classes.tolist() == [3, 2]


def test_which_form(tmp_path):
    def guess(plane, form=None):
        write_hdf(tmp_path / "a.hdf", [np.asarray(plane, np.float32)], 1.0)
        return read_classmx(tmp_path / "a.hdf", form).classes.tolist()

    assert guess([[1, 0, 0], [0, 0, 1]]) == [0, 2]  # EMAN2's own, without our header
    assert guess([[0], [1], [0]]) == [0, 1, 0]
    assert guess([[2], [2]]) == [2, 2]
    for unclear in ([[1], [1]], [[0], [0]], [[1, 0], [0, 0]], [[1, 1], [0, 1]], [[0.5], [1.5]]):
        with pytest.raises(InputError, match="classmx_format"):
            guess(unclear)
    assert guess([[1, 0], [0, 0]], "membership") == [0, -1]
    assert guess([[1], [1]], "membership") == [0, 0]
    assert guess([[1], [1]], "wiki") == [1, 1]
    with pytest.raises(InputError, match="particle 1 is a member of more than one"):
        guess([[1, 0], [1, 1]], "membership")
    with pytest.raises(InputError, match="not integers"):
        guess([[0.5], [1]], "wiki")
    with pytest.raises(InputError, match="neither"):
        guess([[1]], "other")


def test_bad_class_matrices_give_a_sentence(tmp_path, rng):
    path = tmp_path / "a.hdf"
    good = matrix_of(rng, [0, 1], 2)
    for change, words in (
        ({"n_classes": 1}, "class numbers"),
        ({"classes": np.array([0, -2])}, "class numbers"),
        ({"classes": np.array([0.0, 1.0])}, "class numbers"),
        ({"weights": np.ones(3)}, "2 > 0 entries"),
    ):
        with pytest.raises(InputError, match=words):
            write_classmx(path, dataclasses.replace(good, **change))
    write_hdf(path, [np.ones((2, 2)), np.ones((3, 2))], 1.0)
    with pytest.raises(InputError, match="different sizes"):
        read_classmx(path)
    write_hdf(path, [], 1.0)
    with pytest.raises(InputError, match="empty"):
        read_classmx(path)
