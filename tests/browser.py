"""Headless Chromium for tests of pages; as a program it takes the README's picture of a report:

python tests/browser.py RUN docs/images/report.png
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
)


@contextmanager
def open_browser() -> Iterator[Chrome]:
    """A fresh Chromium with an empty profile, which ends with the block."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = ChromeOptions()
        options.binary_location = str(CHROMIUM)
        for flag in (*_FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        browser = Chrome(options=options, service=Service(str(DRIVER)))
        try:
            yield browser
        finally:
            browser.quit()


def resize(browser: Chrome, width: int, height: int, scale: float = 1) -> None:
    """Gives the page exactly that many CSS pixels, fewer than a window may have."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def take_picture(run: Path, out: Path) -> None:
    """A run's report with the knee point's card open, as the README shows it."""
    with tempfile.TemporaryDirectory() as folder, open_browser() as browser:
        page = Path(folder) / "report.html"
        command = [sys.executable, "-m", "smnas.cli", "report", str(run), "-o", str(page)]
        subprocess.run(command, check=True, env=os.environ, stdout=subprocess.DEVNULL)
        resize(browser, 1440, 900)
        browser.get(page.as_uri())
        browser.find_element(By.CSS_SELECTOR, "#pick button").click()
        browser.execute_script("scrollTo(0, 0)")
        browser.save_screenshot(str(out))


if __name__ == "__main__":
    take_picture(Path(sys.argv[1]), Path(sys.argv[2]))
