"""The page in a real browser, where there is one: sorting, filtering, columns, a row, the keyboard, and no scripts."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from row_fixtures import add_picture

from ssl_bench.commands.leaderboard import leaderboard

CHROME = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
EVIL = '</script><img src=x onerror="window.evil=1">'
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROME is None, reason="no Chromium")]


class Browser:
    """Headless Chromium through the DevTools protocol: JSON messages that end in a zero byte, over two pipes."""

    def __init__(self, profile: Path) -> None:
        assert CHROME is not None
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe"]
        # Chromium reads file descriptor 3 and writes 4; bash puts the pipes there.
        command = ["bash", "-c", f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}', CHROME, *flags]
        self._process = subprocess.Popen(
            [*command, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._rest, self._count, self._session = b"", 0, ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its result."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self._count:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = os.read(self._in, 1 << 20) if select.select([self._in], [], [], 60)[0] else b""
            assert part, "the browser has gone, or says nothing"
            self._rest += part
        message, self._rest = self._rest.split(b"\0", 1)
        return json.loads(message)

    def open(self, path: Path, *, scripts: bool = True, width: int = 1200) -> None:
        """Load a page and wait until it is there."""
        self.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 600
        )
        self.call("Page.navigate", url=path.as_uri())
        while self._read().get("method") != "Page.loadEventFired":
            pass

    def ask(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        """A key of the keyboard."""
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        codes = {"Tab": 9, "Enter": 13, "Escape": 27}
        options: dict[str, Any] = {"key": key, "windowsVirtualKeyCode": codes.get(key, ord(key[0]))}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **options)
        self.call("Input.dispatchKeyEvent", type="keyUp", **options)

    def close(self) -> None:
        """End the browser."""
        self._process.kill()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    made = Browser(tmp_path_factory.mktemp("profile"))
    yield made
    made.close()


@pytest.fixture
def page(tmp_path: Path, add_row: Any) -> Path:
    """Three methods, one with a name that wants to be markup, and one without a k-NN row."""
    for method, category, percent in (
        ("mae", "reconstruction", 50),
        ("dino", "self-distillation", 60),
        (EVIL, "x", 40),
    ):
        for seed in (0, 1):
            add_row(method, seed, np.arange(100) < percent + seed, category=category)
        if method != "mae":
            add_row(method, 0, np.arange(100) < percent - 5, "knn", category=category)
    return leaderboard(tmp_path, formats=["html"], show=lambda _: None)[0]


NAMES = "[...document.querySelectorAll('tbody tr')].filter(r => !r.hidden).map(r => r.cells[0].textContent)"


def head(name: str) -> str:
    return f"document.querySelector('th[data-name=\"{name}\"]')"


def test_sorts_filters_and_hides(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert browser.ask(NAMES) == ["dino", "mae", EVIL]
    browser.ask(f"{head('linear')}.querySelector('button').click()")
    assert browser.ask(NAMES) == ["dino", "mae", EVIL] and browser.ask(f"{head('linear')}.ariaSort") == "descending"
    browser.ask(f"{head('linear')}.querySelector('button').click()")
    assert browser.ask(NAMES) == [EVIL, "mae", "dino"]
    for _ in range(2):  # a missing cell stays last in both directions
        browser.ask(f"{head('knn')}.querySelector('button').click()")
        assert browser.ask(NAMES)[-1] == "mae"
    browser.ask("document.getElementById('filter').focus()")
    for letter in "recon":
        browser.press(letter)
    assert browser.ask(NAMES) == ["mae"]
    assert browser.ask("document.getElementById('count').textContent") == "1 of 3 methods"
    browser.press("Escape")
    assert len(browser.ask(NAMES)) == 3
    browser.ask("[...document.querySelectorAll('#columns label')].find(l => l.textContent == ' knn').control.click()")
    assert browser.ask(f"{head('knn')}.hidden") is True and browser.ask(f"{head('linear')}.hidden") is False


def test_a_number_opens_its_rows_by_keyboard(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.ask("document.querySelector('tbody button').focus()")
    browser.press("Enter")
    assert browser.ask("document.getElementById('row').open") is True
    text = browser.ask("document.getElementById('row').innerText")
    assert "dino: knn" in text and "Seed 0: top1 55.00" in text and "ssl-bench pretrain dino" in text
    browser.press("Escape")
    assert browser.ask("document.getElementById('row').open") is False


def test_names_are_text_and_nothing_is_fetched(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.ask("[...document.querySelectorAll('tbody tr')].at(-1).querySelector('button').click()")
    assert EVIL in browser.ask("document.getElementById('row').innerText")
    assert browser.ask("[window.evil === undefined, document.images.length]") == [True, 0]
    assert browser.ask("performance.getEntriesByType('resource').length") == 0


def test_without_scripts_the_table_can_be_read(browser: Browser, page: Path) -> None:
    browser.open(page, scripts=False)
    document = browser.call("DOM.getDocument")["root"]["nodeId"]
    found = {}
    for selector in ("tbody tr", ".tools:not([hidden])", "dialog[open]"):
        found[selector] = len(browser.call("DOM.querySelectorAll", nodeId=document, selector=selector)["nodeIds"])
    assert found == {"tbody tr": 3, ".tools:not([hidden])": 0, "dialog[open]": 0}
    (node,) = browser.call("DOM.querySelectorAll", nodeId=document, selector="table")["nodeIds"]
    shown = browser.call("DOM.getBoxModel", nodeId=node)["model"]
    assert shown["height"] > 100 and "50.5" in browser.call("DOM.getOuterHTML", nodeId=node)["outerHTML"]


def test_on_a_phone_the_page_does_not_scroll_sideways(browser: Browser, page: Path) -> None:
    browser.open(page, width=390)
    assert browser.ask("document.documentElement.scrollWidth") <= 390
    assert browser.ask("document.querySelector('.scroll').scrollWidth > document.querySelector('.scroll').clientWidth")


def test_a_wide_page_hides_costs_rather_than_cut_them(browser: Browser, page: Path, add_row: Any) -> None:
    fits = "document.querySelector('table').scrollWidth <= document.querySelector('.scroll').clientWidth + 1"
    browser.open(page, width=1400)
    assert browser.ask(fits) and browser.ask("document.getElementById('shown').textContent") == "Columns"
    for name in ("clustering", "fewshot", "logistic", "lowshot", "retrieval"):
        for seed in (0, 1):
            add_row("dino", seed, np.arange(100) < 40, name)
    leaderboard(page.parent, formats=["html"], show=lambda _: None)
    browser.open(page, width=1200)
    assert browser.ask(fits)
    assert browser.ask(f"{head('memory')}.hidden") is True and browser.ask(f"{head('retrieval')}.hidden") is False
    assert browser.ask("document.getElementById('shown').textContent").endswith(" hidden)")
    browser.ask(
        "[...document.querySelectorAll('#columns label')].find(l => l.textContent == ' memory').control.click()"
    )
    assert browser.ask(f"{head('memory')}.hidden") is False
    browser.open(page, width=390)
    assert browser.ask(f"{head('memory')}.hidden") is False


def test_a_number_opens_its_picture(browser: Browser, page: Path, add_row: Any) -> None:
    add_picture(add_row("dino", 0, np.arange(100) < 40, "a-first"))
    leaderboard(page.parent, formats=["html"], show=lambda _: None)
    browser.open(page)
    browser.ask("document.querySelector('tbody button').click()")
    assert "left to right: image, truth" in browser.ask("document.getElementById('row').innerText")
    assert browser.ask("[document.images.length, document.images[0].naturalWidth]") == [1, 62]
