"""The pages as a person sees them: opened in headless Chromium, no console error, screenshots kept."""

import json
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from raypipe.ops import comparison_page
from raypipe.ops.sweep_page import render
from tests.lakes import stage_folder
from tests.ops.test_comparison_page import make_comparison
from tests.ops.test_sweep_page import make_sweep

SCREENSHOTS = Path(__file__).parent / "screenshots"
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser():
    """One Chromium for all pages: to start it takes longer than to look at one. A page shares nothing with another."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_opens_without_an_error(finished, browser, scheme):
    """A report with a broken chart is worse than none: its reader cannot tell."""
    drawn, text = opened(browser, stage_folder(finished[0] / "root", "report") / "index.html", "report", scheme)
    assert drawn >= 8
    for word in ("ingest", "duplicate", "IFD", "PPL", "Clusters", "held-out", "PCA"):
        assert word.lower() in text.lower(), word


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_sweep_opens_without_an_error(tmp_path, browser, scheme):
    """As above; five criteria and the sizes are drawn."""
    (tmp_path / "index.html").write_text(render(make_sweep()), encoding="utf-8")
    drawn, text = opened(browser, tmp_path / "index.html", "sweep", scheme)
    assert drawn >= 6
    for word in ("disagree", "Silhouette", "Calinski-Harabasz", "BIC", "Stability", "k = 20", "sweep-k"):
        assert word.lower() in text.lower(), word


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_comparison_opens_without_an_error(tmp_path, browser, scheme):
    """As above; a chart for each figure."""
    (tmp_path / "index.html").write_text(comparison_page.render(make_comparison()), encoding="utf-8")
    drawn, text = opened(browser, tmp_path / "index.html", "comparison", scheme)
    assert drawn >= len(comparison_page.FIGURES)
    for word in ("night@0.3", "docstrings", "What each run keeps"):
        assert word.lower() in text.lower(), word


def test_a_reader_looks_around(finished, browser):
    """Filters that lie, or a click that opens another sample, would be found out by a user only."""
    folder = stage_folder(finished[0] / "root", "report")
    report = json.loads((folder / "report.json").read_text())
    samples = {one["sample_id"]: one for one in report["samples"]}
    kept = [one for one in samples.values() if one["reason"] == "selected"]
    with watched(browser, folder / "index.html", "light") as page:
        rows = page.locator("#samples tbody tr:not(.detail)")
        assert page.inner_text("#found") == f"{len(samples)} of {len(samples)} samples" and rows.count() == 20
        page.select_option("#pick-kept", "kept")
        assert page.inner_text("#found").startswith(f"{len(kept)} of")
        assert set(page.locator("#samples tbody .badge").all_inner_texts()) == {"kept"}
        page.click("button[data-cluster='1']")
        mine = [one for one in kept if one["cluster_id"] == 1]
        assert page.inner_text("#found").startswith(f"{len(mine)} of")
        drawn = page.evaluate(
            "document.getElementById('map').data.filter((t) => t.visible).map((t) => [t.meta.cluster, t.meta.kept, t.x.length])"
        )
        assert drawn == [[1, True, sum("x" in one for one in mine)]]
        page.click("#samples th[data-key='ifd'] button")
        shown = [float(text) for text in page.locator("#samples tbody td:nth-child(4)").all_inner_texts()]
        assert shown == [round(one, 3) for one in sorted((one["ifd"] for one in mine), reverse=True)[:20]]
        page.fill("#find", mine[0]["sample_id"])
        assert page.inner_text("#found").startswith("1 of") and rows.count() == 1
        page.click("#samples tbody button.open")
        texts = page.locator("#samples tr.detail pre").all_inner_texts()
        assert [text.strip() for text in texts] == [mine[0]["instruction"].strip(), mine[0]["response"].strip()]
        page.fill("#find", "no such words anywhere")
        assert page.inner_text("#found").startswith("0 of") and rows.count() == 0
        page.fill("#find", "")
        page.select_option("#pick-cluster", "")
        page.select_option("#pick-kept", "")
        pages = -(-len(samples) // 20)
        page.click("#next")
        assert page.inner_text("#page") == f"page 2 of {pages}"


def test_a_click_on_the_map_opens_its_sample(finished, browser):
    """A point's text is what a reader asks for; another's would mislead."""
    folder = stage_folder(finished[0] / "root", "report")
    samples = json.loads((folder / "report.json").read_text())["samples"]
    with watched(browser, folder / "index.html", "dark") as page:
        page.evaluate("document.getElementById('map').scrollIntoView({block: 'center'})")
        place = page.evaluate("document.getElementById('map').data.at(-1).customdata[0]")
        spot = page.evaluate("""(() => { const map = document.getElementById('map'), box = map.getBoundingClientRect(), last = map.data.at(-1);
            const layout = map._fullLayout;
            return [box.left + layout.xaxis._offset + layout.xaxis.d2p(last.x[0]), box.top + layout.yaxis._offset + layout.yaxis.d2p(last.y[0])]; })()""")
        page.mouse.move(*spot)
        page.wait_for_selector("#map .hovertext")
        hover = page.locator("#map .hovertext").first.text_content()
        page.mouse.click(*spot)
        page.wait_for_selector("#samples tr.pinned")
        assert page.locator("#samples tr.detail code").first.inner_text() == samples[place]["sample_id"]
        assert samples[place]["instruction"].split()[0] in hover and f"cluster {samples[place]['cluster_id']}" in hover


def test_on_paper(finished, browser):
    """Whoever prints a report gets charts and tables in ink on white, and no buttons."""
    with watched(browser, stage_folder(finished[0] / "root", "report") / "index.html", "dark") as page:
        page.emulate_media(media="print")
        assert not page.locator("#pick-cluster").is_visible() and not page.locator("#next").is_visible()
        assert page.locator("#samples").is_visible()
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert page.pdf(format="A4").startswith(b"%PDF")


def opened(browser, page_file, name, scheme):
    """Number of charts and the text of a page; a screenshot is kept."""
    with watched(browser, page_file, scheme) as page:
        SCREENSHOTS.mkdir(exist_ok=True)
        page.screenshot(path=SCREENSHOTS / f"{name}-{scheme}.png", full_page=True)
        return page.locator("svg.main-svg").count(), page.inner_text("body")


@contextmanager
def watched(browser, page_file, scheme):
    """A page in Chromium that must complain of nothing and ask for nothing outside."""
    complaints, asked = [], []
    page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme=scheme)
    page.on(
        "console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(page_file.as_uri(), wait_until="load")
    page.wait_for_function("[...document.querySelectorAll('.chart')].every((one) => one.querySelector('svg.main-svg'))")
    page.wait_for_timeout(200)  # for what is said late
    yield page
    page.close()
    assert complaints == []
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
