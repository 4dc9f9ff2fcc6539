"""Folders of labelled images in all layouts, for tests."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from stages.core.intake.sources import open_source

Rows = list[dict[str, Any]]
ROWS: Rows = [
    {
        "file_name": f"{i}.png",
        "label": "ab"[i % 2],
        "group": f"g{i // 2}",
        "serial": i,
        "note": None,
    }
    for i in range(6)
]


def picture(seed: int = 0) -> bytes:
    draws = np.random.default_rng(seed).integers(0, 256, (40, 40), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(draws).save(file, "PNG")
    return file.getvalue()


def put(folder: Path, *names: str) -> None:
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(seed))


def as_csv(rows: Rows) -> bytes:
    text: str = pd.DataFrame(rows).to_csv(index=False)
    return text.encode()


def as_jsonl(rows: Rows) -> bytes:
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()


def as_parquet(rows: Rows) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


def as_tar(members: list[tuple[str, bytes]]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in members:
            about = tarfile.TarInfo(name)
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))
    return file.getvalue()


FORMATS = {
    "metadata.csv": as_csv,
    "metadata.jsonl": as_jsonl,
    "metadata.parquet": as_parquet,
}


def by_name(folder: Path, columns: str = "label") -> dict[str, str]:
    table = open_source(folder).table
    return dict(zip(table["file_name"], table[columns], strict=True))
