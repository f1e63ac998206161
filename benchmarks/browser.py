"""A browser without a window, and pages opened in it: what they ask for, what they complain of, what they show."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
NO_BROWSER = (
    "needs chromium and chromedriver (Debian: chromium, chromium-driver)"
    if CHROMIUM is None or DRIVER is None
    else None
)
"""Why no browser can be started here, or None."""
SECONDS_TO_DRAW = 60.0
DRAWN = "return document.documentElement.dataset.drawn"
WIDTH, HEIGHT = 1200, 900


class Browser:
    """Opens pages and looks at them."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver
        self._log: Any = driver.get_log  # which has no types

    def open(self, page: Path, width: int = WIDTH, theme: str = "light") -> None:
        """Load a page and return when its plots are drawn."""
        self.show(width, theme)
        self.complaints()
        self.requests()
        self.driver.get(page.as_uri())
        until = time.monotonic() + SECONDS_TO_DRAW
        while self.run(DRAWN) is None:
            if time.monotonic() > until:
                raise TimeoutError(f"the plots were not drawn: {self.complaints()}")
            time.sleep(0.02)

    def show(self, width: int = WIDTH, theme: str = "light") -> None:
        """Make the window so wide, in a system of light or dark colours."""
        colours = [{"name": "prefers-color-scheme", "value": theme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": colours})
        size = {"width": width, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def run(self, script: str, *arguments: object) -> Any:
        """Return what a script returns in the page; a promise is waited for."""
        return self.driver.execute_script(script, *arguments)

    def picture(self, width: int, top: int, height: int) -> bytes:
        """Return a part of the page as PNG."""
        clip = {"x": 0, "y": top, "width": width, "height": height, "scale": 1}
        command = {"captureBeyondViewport": True, "clip": clip}
        taken: dict[str, str] = self.driver.execute_cdp_cmd("Page.captureScreenshot", command)
        return base64.b64decode(taken["data"])

    def complaints(self) -> list[str]:
        """What was written to the console since the last look."""
        return [entry["message"] for entry in self._log("browser")]

    def requests(self) -> list[str]:
        """What was asked of files or a network since the last look; what lies in the page itself is left out."""
        messages = [json.loads(entry["message"])["message"] for entry in self._log("performance")]
        asked = [
            one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"
        ]
        return [address for address in asked if not address.startswith(("data:", "blob:"))]


@contextlib.contextmanager
def open_browser() -> Iterator[Browser]:
    """Start Chromium, and end it."""
    assert CHROMIUM is not None, NO_BROWSER
    assert DRIVER is not None, NO_BROWSER
    options = Options()
    options.binary_location = CHROMIUM
    for flag in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(flag)
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # which root can't have
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        yield Browser(driver)
    finally:
        driver.quit()
