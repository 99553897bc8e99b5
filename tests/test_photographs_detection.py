import re

import numpy as np
import pytest
from PIL import Image

from datasets.photographs.detection import (
    Detection,
    Detector,
    Face,
    detection_lines,
    read_detections,
)
from datasets.photographs.pictures import read_picture
from tests.portraits import flower, orl_root, portrait, scene


@pytest.fixture(scope="module")
def detector():
    return Detector("cpu")


def test_the_face_of_a_portrait_is_located(detector):
    [[face]] = detector.find([portrait()])
    left_eye, right_eye, nose, mouth_left, mouth_right = face.landmarks
    assert face.confidence > 0.99
    assert np.allclose(left_eye, (111, 96), atol=4)
    assert np.allclose(right_eye, (155, 93), atol=4)
    assert mouth_left[0] < nose[0] < mouth_right[0]
    assert right_eye[1] < nose[1] < mouth_left[1]
    left, top, right, bottom = face.box
    assert left < left_eye[0] < right_eye[0] < right
    assert top < left_eye[1] < mouth_left[1] < bottom
    assert face.size == right - left
    assert face.area == (right - left) * (bottom - top)


def test_batches_of_mixed_sizes_give_the_same_faces_as_single_pictures(detector):
    pictures = [portrait(), flower(), portrait(200), portrait().rotate(5), Image.new("RGB", (9, 9))]
    together = detector.find(pictures)
    alone = [detector.find([picture])[0] for picture in pictures]
    assert [len(faces) for faces in together] == [1, 0, 1, 1, 0]
    for batched, single in zip(together, alone, strict=True):
        for face, other in zip(batched, single, strict=True):
            assert np.allclose(face.landmarks, other.landmarks, atol=0.1)
            assert abs(face.confidence - other.confidence) < 1e-4


def test_a_line_of_the_cache_that_has_changed_is_not_believed(tmp_path):
    faces = (Face((1.0, 2.0, 30.0, 40.0), ((1.0, 2.0),) * 5, 0.99),)
    hashes = ("a" * 144,)
    known = [Detection(f"a/{n}.png", "a", (1, n), "0f", hashes, 64, 48, faces) for n in range(3)]
    content, path = detection_lines(known), tmp_path / "found.jsonl"
    path.write_bytes(content)
    assert list(read_detections(path).values()) == known
    lost = 0
    for place in range(0, 8 * len(content), 5):
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        path.write_bytes(changed)
        found = read_detections(path)
        assert all(detection in known for detection in found.values())
        lost += len(found) < len(known)
    assert lost > 1000


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999"])
def test_a_cached_face_that_is_nowhere_is_not_believed(tmp_path, value):
    face = Face((1.0, 2.0, 3.0, 4.0), ((1.0, 2.0),) * 5, 0.5)
    found = Detection("a/1.png", "a", (1, 2), "0" * 32, (), 10, 10, (face,))
    line = detection_lines([found]).strip().rpartition(b"\t")[0]
    path = tmp_path / "found.jsonl"
    path.write_bytes(line)
    assert read_detections(path) == {"a/1.png": found}
    path.write_bytes(line.replace(b"3.0", value.encode()))
    assert read_detections(path) == {}


def test_a_cache_without_checksums_is_read(tmp_path):
    known = Detection("a/1.png", "a", (1, 2))
    path = tmp_path / "found.jsonl"
    path.write_bytes(re.sub(rb"\t[0-9a-f]{8}", b"", detection_lines([known])))
    assert list(read_detections(path).values()) == [known]


def test_the_largest_of_several_faces_comes_first(detector):
    picture = Image.new("RGB", (400, 240), "grey")
    picture.paste(portrait(100), (10, 20))
    picture.paste(portrait(180), (190, 10))
    large, small = detector.find([picture])[0]
    assert large.area > small.area
    assert large.box[0] > 190 > small.box[2]


def test_a_face_is_scaled_with_its_picture(detector):
    [[face]] = detector.find([portrait()])
    twice = face.scaled(2, 3)
    assert twice.landmarks[0] == (2 * face.landmarks[0][0], 3 * face.landmarks[0][1])
    assert twice.box[3] == 3 * face.box[3]
    assert twice.confidence == face.confidence


def test_every_scene_of_these_tests_has_one_face(detector):
    assert [len(faces) for faces in detector.find([scene(seed) for seed in range(12)])] == [1] * 12


@pytest.mark.real_data
@pytest.mark.skipif(orl_root() is None, reason="the ORL faces are not on this machine")
def test_every_face_of_orl_is_found(detector):
    paths = sorted(orl_root().rglob("*.pgm"))
    found = detector.find([read_picture(path).resized for path in paths])
    assert len(found) == 400
    assert sum(bool(faces) and faces[0].confidence > 0.9 for faces in found) == 400
