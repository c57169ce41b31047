# SPDX-License-Identifier: Apache-2.0
"""The page of quantfold report in a headless Chromium: how it fits, sorts, prints and asks for
nothing. Skipped where there is none (tests/install-deps.sh installs it)."""

from __future__ import annotations

import json
import re

import chromium
import pytest
from pages import DIGITS, HOSTILE, export, page, spoil


@pytest.fixture(scope="module")
def browser():
    program = chromium.find()
    if program is None:
        pytest.skip("there is no chromium: apt-get install chromium")
    with chromium.Browser(program) as running:
        yield running


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [320, 360, 1280])
@pytest.mark.parametrize("name", ["digits", "many"])
def test_fits(quantfold, request, browser, name, width, dark, tmp_path):
    """No part of the page is wider than the window, nothing is asked for, nothing complains."""
    path = page(quantfold, request.getfixturevalue(name))
    browser.open(path, width, dark=dark)
    assert browser.run("document.documentElement.scrollWidth") <= width
    wide = "[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, svg') &&"
    wide += (
        " e.getBoundingClientRect().right > innerWidth + 0.5).map(e => e.outerHTML.slice(0, 80))"
    )
    assert browser.run(wide) == []
    assert [r for r in browser.requests() if not r.startswith("data:")] == [path.as_uri()]
    assert browser.complaints() == []
    background = browser.run("getComputedStyle(document.body).backgroundColor")
    channels = [int(c) for c in re.findall(r"\d+", background)]
    assert (sum(channels) < 200) == dark
    browser.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 10000


CONTRAST = """
(() => {
  const channel = c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const parts = s => s.match(/[\\d.]+/g).map(Number);
  const light = c => 0.2126 * channel(c[0]) + 0.7152 * channel(c[1]) + 0.0722 * channel(c[2]);
  const behind = e => {
    for (; e; e = e.parentElement) {
      const c = parts(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  const bad = [];
  for (const e of document.querySelectorAll('body *')) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) || e.closest('title, desc, script'))
      continue;
    const style = getComputedStyle(e);
    const ink = parts(e.closest('svg') ? style.fill : style.color);
    const a = light(ink), b = light(behind(e.closest('svg') ? e.closest('svg').parentElement : e));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) bad.push([e.outerHTML.slice(0, 80), ratio]);
  }
  return bad;
})()
"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_contrast(quantfold, many, browser, dark):
    """Every text has the contrast of WCAG AA, 4.5 to 1."""
    browser.open(page(quantfold, many), 1280, dark=dark)
    browser.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.run(CONTRAST) == []


def column(browser, at: int) -> list[str]:
    script = (
        f"[...document.querySelectorAll('#layers tbody tr')].map(r => r.cells[{at}].textContent)"
    )
    return browser.run(script)


def click(browser, at: int) -> str:
    """Clicks a header where it is, and returns what it says of itself."""
    head = f"document.querySelectorAll('#layers thead th')[{at}]"
    spot = browser.run(
        f"(() => {{ const b = {head}.querySelector('button'); b.scrollIntoView({{block: 'center'}});"
        " const r = b.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()"
    )
    for kind in ("mousePressed", "mouseReleased"):
        browser.call(
            "Input.dispatchMouseEvent", type=kind, x=spot[0], y=spot[1], button="left", clickCount=1
        )
    return browser.run(f"{head}.getAttribute('aria-sort')")


@pytest.mark.parametrize("width", [360, 1280])
def test_sorting(quantfold, many, browser, width):
    """By click and by key; unknown values stay at the end."""
    browser.open(page(quantfold, many), width)
    assert browser.run("document.querySelectorAll('#layers [aria-sort]').length") == 12
    before = column(browser, 0)
    sqnr = [float(v) for v in column(browser, 6)]
    assert click(browser, 6) == "ascending"
    assert [float(v) for v in column(browser, 6)] == sorted(sqnr)
    assert click(browser, 6) == "descending"
    assert [float(v) for v in column(browser, 6)] == sorted(sqnr, reverse=True)
    assert click(browser, 4) == "ascending"
    assert browser.run("document.querySelectorAll('#layers [aria-sort=none]').length") == 11
    assert sorted(column(browser, 0)) == sorted(before)
    browser.run("document.querySelectorAll('#layers thead button')[0].focus()")
    for kind in ("rawKeyDown", "char", "keyUp"):
        browser.call(
            "Input.dispatchKeyEvent",
            type=kind,
            key="Enter",
            code="Enter",
            text="\r",
            windowsVirtualKeyCode=13,
        )
    names = column(browser, 0)

    def natural(text: str) -> list:
        return [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", text)]

    assert names == sorted(names, key=natural)
    assert browser.complaints() == []


def test_without_script(quantfold, many, browser):
    """The table is all there, in the model's order, and there is no button that does nothing."""
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(page(quantfold, many), 1280)
        document = browser.call("DOM.getDocument", depth=-1)["root"]
        text = json.dumps(document)
        assert text.count('"TR"') > 300 and '"BUTTON"' not in text
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)


def test_print(quantfold, many, browser):
    """On paper the table is not cut off by its box."""
    browser.open(page(quantfold, many), 1280)
    browser.call("Emulation.setEmulatedMedia", media="print")
    overflow = browser.run("getComputedStyle(document.querySelector('.scroll')).overflowX")
    browser.call("Emulation.setEmulatedMedia", media="")
    assert overflow == "visible"


def test_hostile_names(quantfold, browser, tmp_path):
    """Names that are markup make no element and run nothing."""
    record = DIGITS / "record.txt"
    prefix = export(quantfold, DIGITS / "model.onnx", record, tmp_path / "m")
    spoil(tmp_path / "m.manifest.json")
    browser.open(page(quantfold, prefix), 360)
    assert browser.run("document.images.length") == 0
    assert browser.run("document.title").startswith(HOSTILE[:20])
    assert browser.run("document.documentElement.scrollWidth") <= 360
    assert browser.complaints() == []
