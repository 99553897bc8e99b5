import numpy as np
import pytest
from PIL import Image, ImageOps

from datasets.duplicates import LIMIT, find_duplicates
from datasets.photographs import HASH_SIDE, read_picture
from tests.portraits import orl_root, scene

BITS = HASH_SIDE**2


def hashed(*ones):
    """A hash with so many ones in some places: (first, number)."""
    bits = np.zeros(BITS, dtype=np.uint8)
    for first, number in ones:
        bits[first : first + number] = 1
    return (np.packbits(bits).tobytes().hex(),)


def hash_of(path):
    return read_picture(path).hashes


def test_up_to_the_limit_pictures_are_the_same_and_beyond_it_not():
    hashes = {"a": hashed(), "near": hashed((100, LIMIT)), "far": hashed((200, LIMIT + 1))}
    assert find_duplicates(hashes, list(hashes)) == {"near": "a"}


def test_the_first_in_order_is_kept():
    hashes = {"a": hashed(), "b": hashed((0, 1)), "c": hashed((0, 2))}
    assert find_duplicates(hashes, ["a", "b", "c"]) == {"b": "a", "c": "a"}
    assert find_duplicates(hashes, ["c", "a", "b"]) == {"a": "c", "b": "c"}


def test_the_nearest_of_those_that_are_kept_is_named():
    hashes = {"a": hashed(), "b": hashed((0, LIMIT + 9)), "c": hashed((0, LIMIT))}
    assert find_duplicates(hashes, ["a", "b", "c"]) == {"c": "b"}


def test_a_duplicate_does_not_make_others_duplicates():
    hashes = {"a": hashed(), "b": hashed((0, LIMIT)), "c": hashed((0, 2 * LIMIT))}
    assert find_duplicates(hashes, ["a", "b", "c"]) == {"b": "a"}


def test_one_or_none_has_no_duplicates():
    assert find_duplicates({}, []) == {}
    assert find_duplicates({"a": hashed()}, ["a"]) == {}


@pytest.mark.parametrize("side", [120, 240, 480])
@pytest.mark.parametrize("quality", [50, 95])
def test_scenes_are_told_apart_and_their_copies_are_not(tmp_path, side, quality):
    hashes = {}
    for seed in range(6):
        scene(seed).save(tmp_path / "a.png")
        hashes[f"scene {seed}"] = hash_of(tmp_path / "a.png")
        scene(seed).resize((side, side)).save(tmp_path / "a.1.jpg", quality=quality)
        hashes[f"copy {seed}"] = hash_of(tmp_path / "a.1.jpg")
    expected = {f"copy {seed}": f"scene {seed}" for seed in range(6)}
    assert find_duplicates(hashes, sorted(hashes, reverse=True)) == expected


@pytest.mark.real_data
@pytest.mark.skipif(orl_root() is None, reason="the ORL faces are not on this machine")
def test_of_the_orl_faces_none_is_a_duplicate_and_every_copy_is(tmp_path):
    originals, copies, halves, mirrored = {}, {}, {}, {}
    for path in sorted(orl_root().rglob("*.pgm")):
        name = f"{path.parent.name}/{path.stem}"
        originals[name] = hash_of(path)
        with Image.open(path) as image:
            image.save(tmp_path / "a.1.jpg", quality=50)
            ImageOps.mirror(image).save(tmp_path / "b.jpg", quality=75)
            image.resize((image.width // 2, image.height // 2)).save(tmp_path / "a.png")
        copies[f"{name} q50"] = hash_of(tmp_path / "a.1.jpg")
        mirrored[f"{name} mirrored"] = hash_of(tmp_path / "b.jpg")
        halves[f"{name} half"] = hash_of(tmp_path / "a.png")
    assert len(originals) == 400
    assert find_duplicates(originals, list(originals)) == {}
    for some in (copies, halves, mirrored):
        found = find_duplicates(originals | some, [*originals, *some])
        assert found == {name: name.rpartition(" ")[0] for name in some}
