"""The pages as a person sees them: opened in headless Chromium, no console error, screenshots kept."""

from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from raypipe.ops.sweep_page import render
from tests.lakes import stage_folder
from tests.ops.test_sweep_page import make_sweep

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
    drawn, text = opened(stage_folder(finished[0] / "root", "report") / "index.html", "report", scheme)
    assert drawn >= 8
    for word in ("ingest", "duplicate", "IFD", "PPL", "Clusters", "held-out", "PCA"):
        assert word.lower() in text.lower(), word


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_sweep_opens_without_an_error(tmp_path, scheme):
    """As above; five criteria and the sizes are drawn."""
    (tmp_path / "index.html").write_text(render(make_sweep()), encoding="utf-8")
    drawn, text = opened(tmp_path / "index.html", "sweep", scheme)
    assert drawn >= 6
    for word in ("disagree", "Silhouette", "Calinski-Harabasz", "BIC", "Stability", "k = 20", "sweep-k"):
        assert word.lower() in text.lower(), word


def opened(page_file, name, scheme):
    """Number of charts and the text of a page that complains of nothing and asks for nothing outside."""
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
        page.screenshot(path=SCREENSHOTS / f"{name}-{scheme}.png", full_page=True)
        drawn, text = page.locator("svg.main-svg").count(), page.inner_text("body")
        browser.close()
    assert complaints == []
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    return drawn, text
