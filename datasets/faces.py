"""Faces: your own data set, as prepare_faces writes it or straight from folders of photographs."""

from pathlib import Path

from datasets.splits import Images


def faces(root: Path) -> Images:
    """The kept crops of a prepared folder, or of a folder of class folders of photographs.

    Raises:
        DataUnavailableError: If there are no photographs, fewer than two classes or an empty split,
            or if the folder is damaged.
    """
    from datasets.photographs.loading import load_faces  # here: it imports pandas and Pillow

    return load_faces(root)
