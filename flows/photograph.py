"""A picture of the report for the front page."""

import html
import re
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

# The report's sections in the picture: none with cells, since their licence forbids them here.
SECTIONS = ("The student",)
SIZE_PX, COLOURS = (920, 995), 64


def excerpt(page: str) -> str:
    """The report's head and those of its sections that show no image of the data set."""

    def is_wanted(section: str) -> bool:
        heading = re.search(r"<h2>(.*?)</h2>", section, re.DOTALL)
        return heading is not None and html.unescape(heading[1]).startswith(SECTIONS)

    return re.sub(
        r"<section>.*?</section>",
        lambda match: match[0] if is_wanted(match[0]) else "",
        page,
        flags=re.DOTALL,
    )


def take(page: str, picture: Path, browser: str) -> None:
    """Write a picture of the report's excerpt, as `browser` shows it."""
    with tempfile.TemporaryDirectory(prefix="atelier-") as folder:
        file = Path(folder) / "excerpt.html"
        file.write_text(excerpt(page), encoding="utf-8")
        command = [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            f"--user-data-dir={folder}/profile", f"--screenshot={picture}",
            "--window-size={},{}".format(*SIZE_PX), file.as_uri(),
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, timeout=120)
    with Image.open(picture) as image:
        small = image.convert("RGB").quantize(COLOURS)
    small.save(picture, optimize=True)
