"""116 kinds of bad input: each is named in one line, and nothing is taken as done.

A long file, since it is one table: kind, breakage, words of the message.
"""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from stages.core.runner.errors import DataError
from tests.conftest import MakeFolder
from tests.helpers.front_door import (
    COUNT,
    DEEP,
    FLOAT,
    HEADER,
    SAMPLES,
    SHARD,
    SHOWN,
    USERS,
    WHOLE,
    Breakage,
    a_file,
    a_folder,
    accepted,
    another_encoding,
    append,
    beside,
    both,
    column,
    content,
    copied,
    cut,
    edit,
    emptied,
    frames,
    huge_header,
    in_other_case,
    in_other_form,
    into_train,
    link_to,
    link_to_folder,
    list_again,
    listed,
    metadata,
    near_copy,
    noise,
    own,
    parquet,
    quarantined,
    removed,
    renamed,
    run,
    saved,
    shard,
    shards,
    split_by_group,
    split_by_label,
    stage_process,
)

pytestmark = pytest.mark.usefixtures("quick")


# What is broken; how; the words that the message must have; what the params say instead of PARAMS.
BROKEN: dict[str, tuple[Breakage, list[str], dict[str, Any]]] = {
    # Content of a file.
    "truncated PNG": (
        cut, ["g1_1.png: not a whole image", "truncated", "save or copy it again", WHOLE], {},
    ),
    "truncated JPEG": (
        both(renamed("g1_1.jpg"), content(saved(noise(1), "JPEG")[:-300], "g1_1.jpg")),
        ["g1_1.jpg: not a whole image", "truncated", "save or copy it again"], {},
    ),
    "zero bytes": (content(b""), ["g1_1.png: an empty file (0 bytes); copy it again", WHOLE], {}),
    "text as an image": (
        content(b"not an image"), ["g1_1.png: not an image of BMP, JPEG, PNG, TIFF, WEBP"], {},
    ),
    "another format": (
        content(saved(noise(0), "GIF")), ["g1_1.png: a GIF, not an image of BMP, JPEG, PNG"], {},
    ),
    "wrong extension": (
        content(saved(noise(0), "JPEG")),
        ["g1_1.png: its content is JPEG, its name says .png; rename it", WHOLE], {},
    ),
    "a line break in the name": (
        both(renamed("g1\n1.png"), content(b"", "g1\n1.png")),
        ["g1\\n1.png: an empty file (0 bytes)"], {},
    ),
    "no extension": (
        renamed("g1_1"), ["g1_1: its content is PNG, its name says nothing; rename it"], {},
    ),
    "too many pixels": (
        content(saved(noise(0, 90), "PNG")),
        ["g1_1.png: 90 x 90 pixels; expected at most 0.005 million (validate.max_megapixels)"],
        {"max_megapixels": 0.005},
    ),
    "decompression bomb": (
        content(huge_header), ["g1_1.png: 20000 x 20000 pixels; expected at most 100 million"],
        {"max_megapixels": 100.0},
    ),
    "animated PNG": (
        content(frames("PNG")), ["g1_1.png: 2 pictures in one file; expected one: split it"], {},
    ),
    "TIFF of two pages": (
        both(renamed("g1_1.tif"), content(frames("TIFF"), "g1_1.tif")),
        ["g1_1.tif: 2 pictures in one file"], {},
    ),
    "animated WebP": (
        both(renamed("g1_1.webp"), content(frames("WEBP"), "g1_1.webp")),
        ["g1_1.webp: 2 pictures in one file"], {},
    ),
    "32-bit float TIFF": (
        both(renamed("g1_1.tif"), content(saved(FLOAT, "TIFF"), "g1_1.tif")),
        ["g1_1.tif: pixels are floats; expected 8 or 16 bits: scale them to 0 to 65535"], {},
    ),
    "32-bit integer TIFF": (
        both(renamed("g1_1.tif"), content(saved(DEEP, "TIFF"), "g1_1.tif")),
        ["g1_1.tif: pixels from 0 to 159900; expected 8 or 16 bits: scale them to 0 to 65535"], {},
    ),
    "blank": (
        content(saved(Image.new("L", (40, 40), 90), "PNG")),
        ["g1_1.png: contrast = 0.0", "at least 1 grey levels", "or lower min_contrast"], {},
    ),
    "too small": (
        content(saved(noise(0, 8), "PNG")),
        ["g1_1.png: width = 8 (expected at least 16 px: leave it out, or lower min_source_px"], {},
    ),
    # Its name.
    "path traversal": (
        edit("file_name", "../../etc/passwd"),
        ["../../etc/passwd: not a path inside the folder; name it relative to the folder", WHOLE],
        {},
    ),
    "traversal inside the name": (
        edit("file_name", "sub/../../images/g1_1.png"), ["not a path inside the folder"], {},
    ),
    "absolute path": (
        edit("file_name", "/etc/passwd"), ["/etc/passwd: not a path inside the folder"], {},
    ),
    "NUL in the name": (
        edit("file_name", "g1\0_1.png"), ["_1.png: not a path inside the folder"], {},
    ),
    "carriage return in the name": (
        metadata("metadata.jsonl", json.dumps({"file_name": "g1\r_1.png", "label": "a"})),
        ["_1.png: not a path inside the folder"], {"classes": ["a", "b"]},
    ),
    "very long name": (
        edit("file_name", "n" * 300 + ".png"), ["nnn.png: no such file (File name too long)"], {},
    ),
    "link out of the folder": (
        link_to("/etc/hostname"),
        ["g1_1.png: a link that leaves the folder; put the file itself there"], {},
    ),
    "link to a folder elsewhere": (
        link_to_folder, ["near/g1_1.png: a link that leaves the folder"], {},
    ),
    "link to itself": (
        link_to("g1_1.png"), ["g1_1.png: a link that leads to itself: delete it"], {},
    ),
    "missing file": (
        removed, ["g1_1.png: no such file; put it there, or take its row out", WHOLE], {},
    ),
    "a folder instead of a file": (a_folder, ["g1_1.png: no such file"], {}),
    "no name": (edit("file_name", ""), [": not a path inside the folder"], {}),
    "listed twice": (append("g2_1.png"), ["g2_1.png: listed twice; keep one row", WHOLE], {}),
    "listed twice, once with ./": (append("./g2_1.png"), ["g2_1.png: listed twice"], {}),
    "names that differ in case": (
        in_other_case, ["G1_1.PNG: the same name as g1_1.png but for case or Unicode form"], {},
    ),
    "names that differ in Unicode form": (
        in_other_form,
        [": the same name as cellule_é.png", "but for case or Unicode form; rename it"], {},
    ),
    "a name that is not UTF-8": (
        another_encoding,
        ["a/caf\\xe9.png: its name is not UTF-8, which DVC cannot store: rename it"], {},
    ),
    # Labels.
    "unknown label, by classes.txt": (
        both(edit("label", "broken"), beside("images/classes.txt", "functional\ndefective\n")),
        ["g1_1.png: label = broken", "one of the classes functional, defective", "classes.txt"], {},
    ),
    "unknown label, by the params": (
        edit("label", "broken"), ["g1_1.png: label = broken", "validate.classes"],
        {"classes": ["functional", "defective"]},
    ),
    "no labels at all": (
        column("label", lambda t: [""] * len(t)),
        ["found 0 classes (no label)", "at least two", "add labelled images"], {},
    ),
    "one class": (
        column("label", lambda t: ["functional"] * len(t)),
        ["found 1 class (functional); expected at least two: add labelled images"], {},
    ),
    "an empty class": (
        beside("images/classes.txt", "functional\ndefective\nburnt\n"),
        ["burnt: images = 0 (expected at least 10 images of each class", "min_per_class"], {},
    ),
    "too few images of a class": (
        lambda root: None,
        ["images = 24", "at least 25 images of each class: add some, leave the class out,"],
        {"min_per_class": 25},
    ),
    "too few groups of a class": (
        lambda root: None,
        ["groups = 8", "at least 9 groups of each class", "lower validate.min_groups_per_class"],
        {"min_groups_per_class": 9},
    ),
    "one content, two labels": (
        copied,
        ["g1_1.png: label = defective (same content: g1_1.png, g2_2.png)", "g2_2.png: label = func",
         "expected one label for one content: correct one of them"], {},
    ),
    # Metadata.
    "nothing": (emptied, ["images: found nothing; expected one of: a metadata.csv"], {}),
    "images alone": (
        lambda root: (root / "images" / "metadata.csv").unlink(),
        ["found g0_0.png, g0_1.png", "a folder per class; or *.tar shards"], {},
    ),
    "a file instead of a folder": (a_file, ["images: found no folder", "set data.dir"], {}),
    "empty metadata": (
        metadata("metadata.csv", ""), ["metadata.csv: not readable as CSV (No columns to pars"], {},
    ),
    "no rows": (metadata("metadata.csv", HEADER), ["no images; expected one row or file"], {}),
    "binary metadata": (
        metadata("metadata.csv", bytes(range(256))),
        ["metadata.csv: not readable as CSV (", "save it again as UTF-8 CSV"], {},
    ),
    "UTF-16 metadata": (
        metadata("metadata.csv", (HEADER + "g1_1.png,a\n").encode("utf-16")),
        ["metadata.csv: not readable as CSV", "save it again as UTF-8 CSV"], {},
    ),
    "open quotation mark": (
        metadata("metadata.csv", HEADER + 'g1_1.png,"a\n'), ["not readable as CSV (Error"], {},
    ),
    "no label column": (
        metadata("metadata.csv", "file_name,domain\ng1_1.png,mono\n"),
        ["metadata.csv: no column 'label'; found file_name, domain: add the column"], {},
    ),
    "semicolons": (
        metadata("metadata.csv", "file_name;label\ng1_1.png;a\n"),
        ["metadata.csv: its cells are separated by semicolons; expected commas"], {},
    ),
    "cells beyond the header": (
        metadata("metadata.csv", HEADER + "g1_1.png,a,mono\ng1_2.png,b,mono\n"),
        ["metadata.csv: the rows have more cells than the header: name them all"], {},
    ),
    "a longer row": (
        metadata("metadata.csv", HEADER + "g1_1.png,a\ng1_2.png,b,mono\n"),
        ["metadata.csv: not readable as CSV", "Expected 2 fields in line 3, saw 3"], {},
    ),
    "two metadata files": (
        beside("images/metadata.jsonl", "{}"),
        ["found metadata.csv, metadata.jsonl; expected one metadata file: keep one of them"], {},
    ),
    "metadata at two levels": (
        beside("images/sub/metadata.csv", HEADER),
        ["found metadata.csv, sub/metadata.csv; expected one metadata file"], {},
    ),
    "bad JSON line": (
        metadata("metadata.jsonl", '{"file_name": "g1_1.png", "label": "a"}\n{"file_name": \n'),
        ["metadata.jsonl: line 2: not JSON (Expecting value", "expected one object per line"], {},
    ),
    "JSON line that is no object": (
        metadata("metadata.jsonl", '["g1_1.png", "a"]\n'),
        ["metadata.jsonl: line 1: found list, expected an object"], {},
    ),
    "deep JSON": (
        metadata("metadata.jsonl", "[" * 100_000), ["metadata.jsonl: line 1: not JSON"], {},
    ),
    "half a Unicode pair": (
        metadata("metadata.jsonl", '{"file_name": "g1_1.png", "label": "\\ud800"}'),
        ["g1_1.png: label = \\ud800 (expected one of the classes a, b"], {"classes": ["a", "b"]},
    ),
    "broken parquet": (
        metadata("metadata.parquet", parquet(pd.DataFrame({"file_name": ["g1_1.png"]}))[:-9]),
        ["metadata.parquet: not readable as PARQUET", "save it again as UTF-8 PARQUET"], {},
    ),
    "parquet without labels": (
        metadata("metadata.parquet", parquet(pd.DataFrame({"file_name": ["g1_1.png"]}))),
        ["metadata.parquet: no column 'label'; found file_name: add the column"], {},
    ),
    # Shards.
    "broken shard": (
        shards(b"x" * 3000), ["train-0.tar: not readable as a tar", "write it again"], {},
    ),
    "cut shard": (
        shards(SHARD[:3000]), ["train-0.tar: not readable as a tar", "damaged or cut off"], {},
    ),
    "shard cut between two members": (
        shards(shard(dict(list(SAMPLES.items())[:5])).rstrip(b"\0").ljust(2 * 512, b"\0")),
        ["train-0.tar: not readable as a tar"], {},
    ),
    "damage in a shard's midst": (
        shards(SHARD.replace(b"2.png", b"3.png", 1)),
        ["train-0.tar: not readable as a tar (damaged or cut off at byte"], {},
    ),
    "gzipped shard": (
        shards(shard(SAMPLES, "w:gz")),
        ["train-0.tar: not readable as a tar", "expected uncompressed WebDataset shards"], {},
    ),
    "shard of another name": (
        both(emptied, beside("images/train-0.tar.gz", SHARD)),
        ["found train-0.tar.gz; expected one of", "*.tar shards"], {},
    ),
    "empty shard": (shards(shard({})), ["no images; expected one row or file per labelled"], {}),
    "shard without labels": (
        shards(shard({"1.png": saved(noise(1), "PNG")})),
        ["no label in train-0.tar; expected KEY.cls or KEY.json beside every image"],
        {"classes": ["0", "1"]},
    ),
    "bad JSON in a shard": (
        shards(shard(SAMPLES | {"2.json": b"{"})), ["train-0.tar/2.json: line 1: not JSON"], {},
    ),
    "binary label in a shard": (
        shards(shard(SAMPLES | {"2.cls": b"\xff\xfe"})),
        ["train-0.tar: 2.cls: not UTF-8 text; expected a label or JSON"], {},
    ),
    "shards beside metadata": (
        beside("images/train-0.tar", SHARD),
        ["found shards (train-0.tar) and metadata.csv; expected one layout: keep the shards"], {},
    ),
    "shards beside folders": (
        both(shards(SHARD), beside("images/cats/1.png")),
        ["found shards (train-0.tar) and cats; expected one layout"], {},
    ),
    # Classes and splits.
    "classes.txt with one class": (
        beside("images/classes.txt", "functional\n"),
        ["classes.txt: found ['functional']; expected at least two classes, each once"], {},
    ),
    "classes.txt with one class twice": (
        beside("images/classes.txt", "a\nb\na\n"), ["classes.txt: found ['a', 'b', 'a']"], {},
    ),
    "empty classes.txt": (beside("images/classes.txt"), ["classes.txt: found []"], {}),
    "binary classes.txt": (
        beside("images/classes.txt", b"\xff\xfe\x00"),
        ["classes.txt: not UTF-8 text; expected one class per line"], {},
    ),
    "symmetries.txt with another word": (
        beside("images/symmetries.txt", "flips\n"),
        ["symmetries.txt: found 'flips'; expected one word of none, mirror, rotations, all"], {},
    ),
    "empty symmetries.txt": (beside("images/symmetries.txt"), ["symmetries.txt: found ''"], {}),
    "binary symmetries.txt": (
        beside("images/symmetries.txt", b"\xff\xfea"), ["symmetries.txt: found"], {},
    ),
    "unknown split": (
        column("split", lambda t: ["train"] * 47 + ["later"]),
        ["split = 'later'; expected train, val, test or unlabelled: correct the column"], USERS,
    ),
    "empty split": (
        both(column("split", split_by_group), edit("split", "")),
        ["1 image has no split (g1_1.png); expected train, val or test", "fill the column"],
        USERS,
    ),
    "no test split": (
        column("split", lambda t: ["train"] * len(t)),
        ["no image has the split test; expected some that measure the model: rename the"], USERS,
    ),
    "split folders beside another": (
        both(emptied, beside("images/train/a/1.png"), beside("images/test/a/1.png"),
             beside("images/extra/1.png")),
        ["found the folders test, train and extra; expected folders of splits alone", "take extra"],
        {},
    ),
    "no test folder": (
        into_train,
        ["no image has the split test", "set data.dir to the one with all images"], {},
    ),
    "a class in one split only": (
        both(
            column("group", lambda t: t["group"] + t["label"]),
            column("split", split_by_label),
        ),
        ["defective in val: images = 0; defective in test: images = 0 (expected every class in",
         "every split: add groups of this class, or try another validate.seed or fold"],
        USERS,
    ),
    "too few groups for the folds": (
        column("group", lambda t: t["group"].str[1].astype(int) % 3),
        ["3 groups cannot be split into 4 folds without tearing one apart", "lower validate.folds"],
        {},
    ),
    "one group": (
        column("group", lambda t: ["g"] * len(t)),
        ["1 group cannot be split into 4 folds"], {"min_groups_per_class": 1},
    ),
    "too few images for the folds": (
        lambda root: None, ["cannot be split into 20 folds", "add images, or lower validate.folds"],
        {"split": "random", "folds": 2, "val_folds": 20},
    ),
    "an uneven hash": (
        lambda root: None,
        ["test: share = ", "expected 0.25 ± 0.0001 of the images", "try another validate.seed"],
        {"split": "hash", "max_share_error": 0.0001, "seed": 3},
    ),
    # Their backgrounds.
    "too few images for a background": (
        edit("group", "g7b", "g7_1.png"),
        ["g7: images = 5; g7b: images = 1", "expected at least 6 images of each group, to make its",
         "or lower validate.min_background_images; validate.on_small_group: keep leaves"],
        {"background": "group", "min_background_images": 6},
    ),
    "a background without groups": (
        lambda root: list_again(root, listed(root).drop(columns="group")),
        ["found no groups; expected one for each image (validate.background = both)",
         "add the column group to the metadata, or set validate.background to none"],
        {"background": "both"},
    ),
    "three channels of colour images": (
        content(saved(noise(0).convert("RGB"), "PNG")),
        ["1 colour image (g1_1.png); expected grey ones", "set it to group"],
        {"background": "both"},
    ),
    # The user's own expectations.
    "own: a row": (
        own({"type": "expect_column_values_to_be_in_set", "column": "group",
             "value_set": [f"g{g}" for g in range(7)], "expected": "the first seven groups"}),
        ["g7_0.png: group = g7;", "and 1 more (expected the first seven groups)",
         "all of them in quarantine.csv"], {},
    ),
    "own: a column": (
        own({"type": "expect_column_mean_to_be_between", "column": "width", "max_value": 30}),
        ["width = 40.0 (expected column mean to be between, max_value 30)"], {},
    ),
    "own: the whole table": (
        own({"type": COUNT, "min_value": 100, "expected": "100 images or more"}),
        ["found 48 (expected 100 images or more)"], {},
    ),
    "own: two columns": (
        both(
            edit("group", "mono"),
            own({"type": "expect_column_pair_values_a_to_be_greater_than_b", "column_A": "domain",
                 "column_B": "group", "expected": "the domain after the group"}),
        ),
        ["g1_1.png: mono, mono (expected the domain after the group)"], {},
    ),
    "own: unknown type": (
        own({"type": "expect_miracles", "column": "width"}),
        ["expectations.yaml: expectation 1 (expect_miracles): Great Expectations has no such"], {},
    ),
    "own: no type": (own({"column": "width"}), ["expectation 1 (None): Great Expectations"], {}),
    "own: unknown column": (
        own({"type": COUNT, "min_value": 1},
            {"type": "expect_column_values_to_be_unique", "column": "serial"}),
        ["expectation 2 (expect_column_values_to_be_unique): no column 'serial'; there are file_n"],
        {},
    ),
    "own: unknown one of two columns": (
        own({"type": "expect_column_pair_values_to_be_equal", "column_A": "x", "column_B": "y"}),
        ["expect_column_pair_values_to_be_equal could not be evaluated", '"x"'], {},
    ),
    "own: missing argument": (
        own({"type": "expect_column_values_to_match_regex"}),
        ["expectation 1 (expect_column_values_to_match_regex)", "column field required"], {},
    ),
    "own: unknown argument": (
        own({"type": COUNT, "least": 1}), [f"expectation 1 ({COUNT})", "least extra fields"], {},
    ),
    "own: broken YAML": (
        beside("expectations.yaml", "- type: [\n"), ["expectations.yaml: not readable as YAML"], {},
    ),
    "own: binary": (
        beside("expectations.yaml", b"\xff\xfe"), ["expectations.yaml: not readable as YAML"], {},
    ),
    "own: impossible date": (
        beside("expectations.yaml", "- 2020-99-99\n"), ["expectations.yaml: not readable as YAML"],
        {},
    ),
    "own: no list": (
        beside("expectations.yaml", "type: expect\n"),
        ["expectations.yaml: expected a list of expectations, each with its type"], {},
    ),
    # Drift.
    "drift of the brightness": (
        accepted(mean={"edges": [10.0, 20.0], "shares": [0.3, 0.4, 0.3]}),
        ["mean has drifted from the accepted data: stability index", "expected at most 0.25",
         "accept them or raise validate.drift_fail"], {},
    ),
    "drift of the classes": (
        accepted(label={"defective": 0.05, "functional": 0.95}), ["label has drifted"], {},
    ),
    "broken accepted.json": (
        beside("accepted.json", '{"data": '), ["accepted.json: found no profile of accepted data"],
        {},
    ),
    "accepted.json without a profile": (
        beside("accepted.json", '{"data": {"label": {}}}'), ["accepted.json: found no profile"], {},
    ),
    # Leaks.
    "near duplicates": (
        near_copy,
        ["near duplicates or groups in two places: g1_1.png and g2_1.png; expected none",
         "or set validate.on_leak to move"], {"on_leak": "refuse"},
    ),
    "groups that a random split tears apart": (
        lambda root: None,
        ["near duplicates or groups in two places: g", "expected none: set validate.split to anot"],
        {"split": "random", "on_leak": "refuse"},
    ),
    "near duplicates in two given splits": (
        both(near_copy, column("split", split_by_group), edit("split", "train")),
        ["near duplicates or groups in two places: g1_1.png (a near duplicate, or its group, is",
         "is in the test split)"],
        USERS | {"on_leak": "refuse"},
    ),
    "a group in two given splits": (
        both(column("split", split_by_group), edit("split", "train")),
        ["g1_1.png (a near duplicate, or its group, is in the test split); expected none: put"],
        USERS | {"on_leak": "refuse"},
    ),
    # Quarantine has a limit.
    "too much to leave out": (
        both(cut, content(b"", "g3_1.png")),
        ["2 bad images are more than validate.max_bad_fraction = 0.04 of all", "g1_1.png: not a",
         "g3_1.png: an empty file"], {"on_bad_image": "quarantine", "max_bad_fraction": 0.04},
    ),
    "own, of a whole column, in quarantine": (
        own({"type": "expect_column_mean_to_be_between", "column": "width", "max_value": 30}),
        ["width = 40.0 (expected column mean to be between, max_value 30)"],
        {"on_bad_image": "quarantine"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("docs", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("breakage", "words", "changes"), BROKEN.values(), ids=list(BROKEN))
def test_broken_input_is_named_and_stops(
    tmp_path: Path,
    image_folder: MakeFolder,
    breakage: Breakage,
    words: list[str],
    changes: dict[str, Any],
    docs: bool,
) -> None:
    image_folder()
    breakage(tmp_path)
    with pytest.raises(DataError) as caught:
        run(tmp_path, **changes)
    message = str(caught.value)
    assert [word for word in words if word not in message] == [], message
    assert "\n" not in message
    assert {p.name for p in (tmp_path / "out").iterdir()} <= SHOWN


@pytest.mark.parametrize(
    "kind", ["truncated PNG", pytest.param("bad JSON line", marks=pytest.mark.slow)]
)
def test_the_user_sees_one_line(tmp_path: Path, image_folder: MakeFolder, kind: str) -> None:
    image_folder()
    breakage, words, _ = BROKEN[kind]
    breakage(tmp_path)
    with stage_process(tmp_path) as running:
        _, errors = running.communicate(timeout=120)
    assert running.returncode == 1
    lines = errors.splitlines()
    assert len(lines) == 1, errors
    assert lines[0].startswith("error: validate: ")
    assert [word for word in words if word not in lines[0]] == []
    visible = {p.name for p in (tmp_path / "out").iterdir()}
    if kind == "truncated PNG":
        assert visible == SHOWN
        assert [row["file_name"] for row in quarantined(tmp_path / "out")] == ["g1_1.png"]
    else:
        assert visible <= SHOWN
