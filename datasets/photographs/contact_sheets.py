"""Contact sheets: pages that show every photograph of a class, to decide what to exclude.

Kept crops come first, in the order of the manifest, then the rejected photographs, with a red
border and the reason. To exclude one, add the name below it to exclude.txt.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count, takewhile
from pathlib import Path
from textwrap import wrap
from typing import Any

import matplotlib
import pandas as pd
from PIL import Image, ImageDraw, ImageFont, ImageOps

from datasets.photographs import CONTACT_SHEETS, SIDE
from datasets.photographs.crops import read_crop, write_image
from datasets.photographs.files import NO_CLASS, short_name
from datasets.photographs.manifest import BOX, KEPT
from datasets.photographs.pictures import UnreadableError, read_picture

COLUMNS, ROWS = 8, 10  # tiles on a page
GAP, LINE, HEADER = 8, 14, 34  # pixels
CAPTION_LINES, CAPTION_WIDTH = 4, 23  # lines, letters
TILE = SIDE + 2 * GAP, SIDE + GAP + CAPTION_LINES * LINE
REJECTED = "#c01010"
Paths = Mapping[str, Path]
Cells = dict[Hashable, Any]  # a row of the manifest


@dataclass(frozen=True)
class Tile:
    """A picture on a page, with its name and a note below it."""

    picture: Image.Image  # SIDE x SIDE
    name: str
    note: str
    rejected: bool = False


def draw_contact_sheets(table: pd.DataFrame, before: pd.DataFrame, paths: Paths, out: Path) -> None:
    """Draw the pages of every class that has changed, and remove pages that are out of date.

    Args:
        table: The manifest.
        before: The previous manifest, whose pages exist; empty if there is none.
        paths: The photographs by source.
        out: The folder of the data set.
    """
    folder = out / CONTACT_SHEETS
    folder.mkdir(exist_ok=True)
    for label in sorted({*table["label"], *before["label"]}):
        rows = table[table["label"] == label].reset_index(drop=True)
        shown = before[before["label"] == label].reset_index(drop=True)
        pages = (folder / page_name(label, number) for number in count(1))
        existing = list(takewhile(Path.exists, pages))
        if existing and rows.equals(shown):
            continue
        for page in existing:
            page.unlink()
        if len(rows):
            draw_class(label, rows, paths, out)


def page_name(label: str, number: int) -> str:
    """The file of a page of a class; photographs outside class folders share separate pages."""
    return f"{short_name(label or NO_CLASS)}.{number}.jpg"


def draw_class(label: str, rows: pd.DataFrame, paths: Paths, out: Path) -> None:
    """Draw the pages of one class."""
    rows = rows.sort_values("outcome", key=lambda outcomes: outcomes != KEPT, kind="stable")
    on_page = COLUMNS * ROWS
    pages = math.ceil(len(rows) / on_page)
    counts = rows["outcome"].value_counts()
    title = f"{label}: " + ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    for number in range(1, pages + 1):
        shown = rows[(number - 1) * on_page : number * on_page]
        tiles = [_tile(row, paths, out) for row in shown.to_dict("records")]
        page = draw_page(tiles, f"{title}  (page {number} of {pages})")
        write_image(page, out / CONTACT_SHEETS / page_name(label, number), quality=88)


def draw_page(tiles: Sequence[Tile], title: str) -> Image.Image:
    """A page of at most COLUMNS x ROWS tiles."""
    width, height = TILE
    columns = min(COLUMNS, max(4, len(tiles)))
    size = columns * width, HEADER + math.ceil(len(tiles) / columns) * height
    page = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(page)
    draw.text((GAP, GAP), title, "black", _font(16))
    for index, tile in enumerate(tiles):
        down, across = divmod(index, columns)
        left, top = across * width + GAP, HEADER + down * height
        page.paste(tile.picture, (left, top))
        colour = REJECTED if tile.rejected else "black"
        for line, text in enumerate(_caption(tile)):
            draw.text((left, top + SIDE + 2 + line * LINE), text, colour, _font(11))
    return page


def _tile(row: Cells, paths: Paths, out: Path) -> Tile:
    name = str(row["source"])
    if row["outcome"] != KEPT:
        note = f"{row['outcome']}: {row['reason']}"
        return Tile(draw_rejected(_thumbnail(row, paths)), name, note, rejected=True)
    crop = Image.fromarray(read_crop(out / str(row["crop"])))
    return Tile(crop.convert("RGB"), name, str(row["split"]))


def _thumbnail(row: Cells, paths: Paths) -> Image.Image | None:
    """The whole photograph, with a box around the face if there is one."""
    if row["outcome"] == "unreadable":
        return None
    try:
        picture = read_picture(paths[str(row["source"])]).grey
    except UnreadableError:  # the file has changed since it was read
        return None
    return draw_thumbnail(picture, None if math.isnan(row["left"]) else [row[x] for x in BOX])


def draw_thumbnail(picture: Image.Image, box: Sequence[float] | None) -> Image.Image:
    """A picture reduced to a tile, with the `box` (left, top, right, bottom) of a face."""
    thumbnail = ImageOps.contain(picture.convert("RGB"), (SIDE, SIDE))
    if box is not None:
        scaled = [side * thumbnail.width / picture.width for side in box]
        ImageDraw.Draw(thumbnail).rectangle(scaled, outline=REJECTED)
    return thumbnail


def draw_rejected(thumbnail: Image.Image | None) -> Image.Image:
    """The picture of a rejected photograph, with a red border."""
    tile = Image.new("RGB", (SIDE, SIDE), "#dddddd")
    if thumbnail:
        tile.paste(thumbnail, ((SIDE - thumbnail.width) // 2, (SIDE - thumbnail.height) // 2))
    ImageDraw.Draw(tile).rectangle((0, 0, SIDE - 1, SIDE - 1), outline=REJECTED, width=2)
    return tile


def _caption(tile: Tile) -> list[str]:
    """The name, shortened from the left, and the note."""
    most = CAPTION_LINES * CAPTION_WIDTH  # wrapping a long text takes long
    name = wrap(tile.name[-most:], CAPTION_WIDTH)
    notes = wrap(tile.note[:most], CAPTION_WIDTH)[: CAPTION_LINES - min(2, len(name))]
    return name[len(notes) - CAPTION_LINES :] + notes


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), size)
