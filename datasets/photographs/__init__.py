"""Photographs: from folders of photographs to a data set of faces.

`options` is what a user can choose; `prepare` runs the steps: find the photographs (`files`),
decode them (`pictures`), detect faces (`detection`), decide which to keep (`manifest`), cut them
out (`crops`) and draw them on pages (`contact_sheets`). `loading` reads the result back.

Every command imports this file and `options`, so they import nothing slow.
"""

SIDE = 144  # pixels along a side of a crop
CROP = 128  # pixels along a side of what a network sees of it (arXiv:1511.02683)

# In a prepared folder:
MANIFEST = "manifest.csv"  # the outcome of every photograph, with the reason
CROPS = "crops"  # the kept faces, a folder for each class
CONTACT_SHEETS = "contact_sheets"  # pages that show every photograph of a class
EXCLUDED = "exclude.txt"  # written by the user: sources or crops to drop, one per line
OPTIONS = "options.json"  # the source and the options
DETECTIONS = "found.jsonl"  # cache of what was detected in each photograph
SPLIT_NAMES = ("train", "valid", "test")
