"""The pages in a real browser: quiet, offline, drawn, and no wider than a phone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sample_runs import bare_run, heart_run, many_run

from hansa.reporting.comparison import render_comparison
from hansa.reporting.report import render_report

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
EMPTY_PATHS = """() => [...document.querySelectorAll('.plot path.line, .plot path.area')]
    .filter(path => { const box = path.getBoundingClientRect(); return box.width + box.height < 5 }).length"""
OUTSIDE = """() => [...document.querySelectorAll('.chart')].filter(chart => {
    const box = chart.getBoundingClientRect();
    return box.left < 0 || box.right > document.documentElement.clientWidth + 1 }).length"""


def attacked() -> dict[str, Any]:
    run = heart_run()
    for row in run["summary"]["metrics"]["per_client"]:
        row["client"] += "'\"><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
    return run


PAGES: dict[str, tuple[Callable[[], str], int]] = {
    "heart": (lambda: render_report(**heart_run()), 7),
    "many": (lambda: render_report(**many_run(clients=5000, rounds=1000)), 8),
    "bare": (lambda: render_report(**bare_run()), 4),
    "attacked": (lambda: render_report(**attacked()), 7),
    "eight runs": (lambda: render_comparison([heart_run(), many_run(clients=50, rounds=30)] * 4), 5),
    "comparison": (lambda: render_comparison([heart_run(), many_run(clients=50, rounds=30), bare_run()]), 5),
}


def opened(browser: Browser, folder: Path, name: str, **options: Any) -> tuple[Page, list[str]]:
    """Return a page of ours in the browser, and a list that collects what it complains of or asks for."""
    file = folder / f"{name}.html"
    file.write_text(PAGES[name][0](), encoding="utf-8")
    page = browser.new_page(**options)
    trouble: list[str] = []
    page.on("console", lambda message: trouble.append(message.text))
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("request", lambda request: trouble.append(request.url) if request.url != file.as_uri() else None)
    page.goto(file.as_uri())
    return page, trouble


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("name", list(PAGES))
def test_a_page_is_quiet_fits_and_draws(browser: Browser, tmp_path: Path, name: str, width: int) -> None:
    page, trouble = opened(browser, tmp_path, name, viewport={"width": width, "height": 800})
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
    assert page.evaluate(OVERFLOW) <= 0
    assert page.evaluate(OUTSIDE) == 0
    assert page.locator(".plot svg").count() >= PAGES[name][1] - 2
    assert page.evaluate(EMPTY_PATHS) == 0
    assert trouble == []
    assert page.title() != "taken"
    page.close()


def test_a_chart_shows_values_under_the_pointer_and_the_arrow_keys(browser: Browser, tmp_path: Path) -> None:
    page, trouble = opened(browser, tmp_path, "heart", viewport={"width": 360, "height": 800})
    plot = page.locator(".plot").first
    plot.hover(position={"x": plot.bounding_box()["width"] - 2, "y": 20})  # type: ignore[index]
    tip = page.locator(".tip")
    assert tip.locator("b").inner_text() == "round 40"
    assert "0.899" in tip.inner_text()
    assert page.evaluate(OVERFLOW) <= 0
    plot.press("ArrowLeft")
    assert tip.locator("b").inner_text() == "round 35"
    plot.press("Escape")
    assert tip.count() == 0
    assert trouble == []
    page.close()


def test_dark_mode_changes_the_paper_and_print_does_not(browser: Browser, tmp_path: Path) -> None:
    page, _ = opened(browser, tmp_path, "heart", color_scheme="dark")
    paper = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(paper) == "rgb(18, 22, 27)"
    page.emulate_media(media="print")
    assert page.evaluate(paper) == "rgb(255, 255, 255)"
    assert page.locator(".plot svg").first.is_visible()
    page.close()


def test_a_report_prints_on_a4(browser: Browser, tmp_path: Path) -> None:
    page, _ = opened(browser, tmp_path, "heart")
    printed = page.pdf(prefer_css_page_size=True)
    assert printed.startswith(b"%PDF")
    assert 3 <= printed.count(b"/Type /Page\n") <= 9
    page.close()


def test_charts_have_a_name_and_a_table(browser: Browser, tmp_path: Path) -> None:
    page, _ = opened(browser, tmp_path, "heart")
    unnamed = "[...document.querySelectorAll('[role=img]')].filter(one => !one.getAttribute('aria-label')).length"
    assert page.evaluate(unnamed) == 0
    bare = "[...document.querySelectorAll('.plot')].filter(one => !one.closest('.chart').querySelector('table')).length"
    assert page.evaluate(bare) == 0
    page.close()
