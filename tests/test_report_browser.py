"""The report as a person sees it: opened in headless Chromium, no console error, a screenshot kept."""

from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from tests.lakes import stage_folder

SCREENSHOTS = Path(__file__).parent / "screenshots"
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_opens_without_an_error(finished, scheme):
    """A report with a broken chart is worse than none: its reader cannot tell."""
    page_file = stage_folder(finished[0] / "root", "report") / "index.html"
    complaints, asked = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme=scheme)
        page.on(
            "console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(page_file.as_uri(), wait_until="load")
        page.wait_for_timeout(1500)
        SCREENSHOTS.mkdir(exist_ok=True)
        page.screenshot(path=SCREENSHOTS / f"report-{scheme}.png", full_page=True)
        drawn = page.locator("svg.main-svg").count()
        text = page.inner_text("body")
        browser.close()
    assert complaints == []
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert drawn >= 8
    for word in ("ingest", "duplicate", "IFD", "PPL", "Clusters", "held-out", "PCA"):
        assert word.lower() in text.lower(), word
