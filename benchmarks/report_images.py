"""The pictures of reports in docs/images/: `python -m benchmarks.report_images LEARNED LIVED RUN_DIR...`.

Of the first run what it learned is shown, in light and on a narrow screen; of the second what it lived through, in
dark; and the page of the others. Chromium and chromedriver are needed.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from pathlib import Path

from PIL import Image

from benchmarks.browser import NO_BROWSER, Browser, open_browser
from benchmarks.page import ROOT
from lowmem_seq.files import write_text, writing
from lowmem_seq.report.page import page_of
from lowmem_seq.runs.folder import RunFolder

FOLDER = ROOT / "docs" / "images"
WIDE, NARROW = 1180, 375
LARGEST_BYTES = 300_000
COLOURS = 256
"""Of a picture that is too large with all of its own. Shades of a colour bar are the first that are lost."""
TOP_OF = "return document.getElementById(arguments[0]).getBoundingClientRect().top + scrollY"
HEIGHT_OF_PAGE = "return document.documentElement.scrollHeight"


def take(browser: Browser, name: str, width: int, height: int, begin: str = "") -> None:
    """Put a picture of the page that is shown, from the top of an element on, into the folder."""
    top = round(browser.run(TOP_OF, begin)) - 12 if begin else 0
    most = int(browser.run(HEIGHT_OF_PAGE)) - top
    picture = Image.open(io.BytesIO(browser.picture(width, top, min(height, most)))).convert("RGB")
    written = as_png(picture)
    if len(written) > LARGEST_BYTES:
        written = as_png(picture.quantize(COLOURS, kmeans=2, dither=Image.Dither.NONE))
    if len(written) > LARGEST_BYTES:
        raise SystemExit(f"{name} has {len(written):,} bytes, more than {LARGEST_BYTES:,}")
    with writing(FOLDER / name) as file:
        file.write(written)


def as_png(picture: Image.Image) -> bytes:
    """Return the file of a picture."""
    buffer = io.BytesIO()
    picture.save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def main() -> None:
    """Make the pages, and the pictures of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("learned", type=Path, help="a run that was tested")
    parser.add_argument("lived", type=Path, help="a run with crashes and changes of its setting")
    parser.add_argument("several", nargs="+", type=Path, help="runs to compare")
    options = parser.parse_args()
    if NO_BROWSER is not None:
        raise SystemExit(NO_BROWSER)
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, open_browser() as browser:
        page = Path(folder) / "report.html"
        write_text(page, page_of([RunFolder(options.learned)]))
        browser.open(page, WIDE)
        take(browser, "report-light.png", WIDE, 1200)
        take(browser, "report-test.png", WIDE, 1500, begin="test")
        browser.open(page, NARROW)
        take(browser, "report-narrow.png", NARROW, 1500)
        write_text(page, page_of([RunFolder(options.lived)]))
        browser.open(page, WIDE, "dark")
        take(browser, "report-dark.png", WIDE, 1600, begin="machine")
        write_text(page, page_of([RunFolder(path) for path in options.several]))
        browser.open(page, WIDE)
        take(browser, "report-several.png", WIDE, 1200)


if __name__ == "__main__":
    main()
