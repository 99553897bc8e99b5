import numpy as np
import pytest
from PIL import Image

from datasets.photographs import SIDE
from datasets.photographs.crops import align_transform, box_transform, cut_crop, cut_face
from datasets.photographs.detection import Detector, Face
from datasets.photographs.options import FaceOptions
from datasets.splits import DataUnavailableError
from tests.portraits import portrait


def face_at(*points):
    return Face((0, 0, 10, 10), points, 1.0)


def moved(transform, points):
    return np.asarray(points) @ transform[:, :2].T + transform[:, 2]


def geometry(points):
    """Height of each eye, x of their midpoint, distance from there to the midpoint of the mouth."""
    points = np.asarray(points)
    eyes, mouth = points[:2].mean(0), points[3:].mean(0)
    return points[0, 1], points[1, 1], eyes[0], np.hypot(*(mouth - eyes))


def test_landmarks_are_mapped_exactly_to_the_geometry_of_lightcnn():
    for points in (
        [(30, 50), (70, 50), (50, 70), (35, 95), (65, 95)],
        [(300, 200), (380, 260), (330, 260), (260, 290), (310, 340)],  # rotated
        [(30, 50), (40, 51), (50, 70), (55, 95), (57, 95)],  # half profile
        [(70, 150), (30, 150), (50, 130), (65, 105), (35, 105)],  # upside down
    ):
        transform = align_transform(face_at(*points))
        assert np.allclose(geometry(moved(transform, points)), (48, 48, 72, 48))
        turn = transform[:, :2]
        assert np.allclose(turn @ turn.T, np.linalg.det(turn) * np.eye(2))  # nothing is distorted


@pytest.mark.parametrize(("width", "angle"), [(128, 0), (256, 0), (256, 20), (512, -12)])
def test_landmarks_of_a_portrait_are_within_two_pixels_of_the_geometry(width, angle):
    """A dot drawn at each landmark that MTCNN finds appears where LightCNN expects it."""
    picture = portrait(width).rotate(angle, resample=Image.Resampling.BICUBIC)
    [[face]] = Detector("cpu").find([picture])
    landed = [dot_on_crop(picture.size, face, point) for point in face.landmarks]
    assert np.abs(np.subtract(geometry(landed), (48, 48, 72, 48))).max() < 2
    left_eye, right_eye, nose, mouth_left, mouth_right = landed
    assert left_eye[0] + 20 < nose[0] < right_eye[0] - 20
    assert mouth_left[0] + 20 < mouth_right[0]


def dot_on_crop(size, face, point):
    """The position on the crop of a dot at a point of the photograph: the centre of its pixels."""
    across, down = np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5  # pixel centres
    distance = np.hypot(across - point[0], (down - point[1])[:, None])
    dot = Image.fromarray((255 * np.exp(-((distance / 2) ** 2))).astype(np.uint8))
    crop = cut_crop(dot, align_transform(face))
    assert crop.size == (SIDE, SIDE)
    assert crop.mode == "L"
    middles = np.indices(crop.size)[::-1].reshape(2, -1) + 0.5
    return np.average(middles, axis=1, weights=np.ravel(crop))


@pytest.mark.parametrize(("width", "angle"), [(128, 0), (256, 0), (256, 20), (512, -12)])
def test_a_face_detected_again_on_its_crop_is_upright_and_centred(width, angle):
    """On the tight crop MTCNN finds a landmark again to within 5 pixels."""
    picture = portrait(width).rotate(angle, resample=Image.Resampling.BICUBIC)
    detector = Detector("cpu")
    [[face]] = detector.find([picture])
    [[again]] = detector.find([cut_crop(picture, align_transform(face)).convert("RGB")])
    assert np.abs(np.subtract(geometry(again.landmarks), (48, 48, 72, 48))).max() < 6


def test_a_box_transform_shows_the_square_around_the_box():
    face = Face((10, 20, 30, 60), face_at().landmarks, 1.0)
    corners = moved(box_transform(face, 0.0), [(0, 20), (40, 60)])
    assert np.allclose(corners, [(0, 0), (SIDE, SIDE)])
    corners = moved(box_transform(face, 0.5), [(-10, 10), (50, 70)])
    assert np.allclose(corners, [(0, 0), (SIDE, SIDE)])


def test_a_crop_of_the_same_size_copies_the_pixels():
    pixels = np.random.default_rng(0).integers(256, size=(SIDE, SIDE), dtype=np.uint8)
    picture = Image.new("L", (300, 300))
    picture.paste(Image.fromarray(pixels), (40, 70))
    face = Face((40, 70, 40 + SIDE, 70 + SIDE), face_at().landmarks, 1.0)
    assert np.array_equal(np.asarray(cut_crop(picture, box_transform(face, 0.0))), pixels)


def test_outside_the_photograph_the_crop_is_black():
    picture = Image.new("L", (100, 100), 255)
    face = Face((-50, -50, 50, 50), face_at().landmarks, 1.0)
    crop = np.asarray(cut_crop(picture, box_transform(face, 0.0)))
    assert (crop[:70] == 0).all()
    assert (crop[74:, 74:] == 255).all()


def test_fine_patterns_are_averaged_instead_of_aliased():
    stripes = np.zeros((1200, 1200), dtype=np.uint8)
    stripes[:, ::2] = 255
    face = Face((0, 0, 1200, 1200), face_at().landmarks, 1.0)
    crop = np.asarray(cut_crop(Image.fromarray(stripes), box_transform(face, 0.0)), dtype=int)
    assert np.abs(crop[4:-4, 4:-4] - 127).max() <= 3


@pytest.mark.parametrize("side", [20_000.0, 1e6, 1e300])
@pytest.mark.parametrize("align", [True, False])
def test_a_face_larger_than_any_photograph_is_an_error(side, align):
    """Such as in a forged cache."""
    landmarks = ((0.0, 0.0), (side, 0.0), (side / 2, side / 2), (0.0, side), (side, side))
    face = Face((0.0, 0.0, side, side), landmarks, 1.0)
    with pytest.raises(DataUnavailableError, match="is larger than any photograph"):
        cut_face(Image.new("L", (200, 200)), face, FaceOptions(align=align))


def test_a_face_of_size_zero_does_not_divide_by_zero():
    point = (50.0, 50.0)
    face = Face((50, 50, 50, 50), (point,) * 5, 1.0)
    picture = Image.new("L", (100, 100), 128)
    for transform in (align_transform(face), box_transform(face, 0.0)):
        assert cut_crop(picture, transform).size == (SIDE, SIDE)
