"""Debian's Chromium without a display, and the page of an engine that it shows."""

import contextlib
import http.client
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from support.foreground import wait_until
from support.limits import limit

AXE = Path(sys.prefix, "peers/axe_playwright_python/axe.min.js")
WITHIN = limit(20.0)
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
    "--window-size=1280,900",
)
_COUNT = """
window.streamed = 0;
window.EventSource = class extends EventSource {
  constructor(url) {
    super(url);
    this.addEventListener("message", (event) => { window.streamed += event.data.length; });
  }
};
"""
_RECEIVED = """
const entries = [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")];
return entries.reduce((sum, each) => sum + each.transferSize, window.streamed);
"""


class Page:
    """``moorage ui`` of an engine: its address and its token."""

    def __init__(self, url: str, token: str, child: "subprocess.Popen[str]") -> None:
        self.url, self.token, self.child = url, token, child
        self.port = int(url.rpartition(":")[2])

    def request(
        self, method: str, path: str, body: str = "", *, cookie: str = "", **headers: str
    ) -> tuple[int, dict[str, str], str]:
        """One request, with exactly these headers besides Host; an underscore is a hyphen."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WITHIN)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if body:
            sent.setdefault("Content-Type", "application/x-www-form-urlencoded")
        if cookie:
            sent["Cookie"] = cookie
        with contextlib.closing(connection):
            connection.request(method, path, body or None, sent)
            answer = connection.getresponse()
            raw = b"" if answer.headers.get("Content-Type") == "text/event-stream" else answer.read()
            return answer.status, dict(answer.headers), raw.decode()

    def cookie(self) -> str:
        """The cookie of a new session."""
        _, headers, _ = self.request("POST", "/login", f"token={self.token}", Origin=self.url)
        return headers["Set-Cookie"].partition(";")[0]


@contextlib.contextmanager
def serve_ui(socket: Path, *options: str) -> Iterator[Page]:
    """``moorage ui --listen 127.0.0.1:0 OPTIONS`` until the end of the block."""
    command = [sys.executable, "-m", "moorage", "--json", "--host", f"unix://{socket}", "ui"]
    child = subprocess.Popen([*command, "--listen", "127.0.0.1:0", *options], stdout=subprocess.PIPE, text=True)
    with child:
        try:
            assert child.stdout is not None
            printed = json.loads(child.stdout.readline())
            yield Page(printed["Url"], printed["Token"], child)
        finally:
            child.terminate()
            assert child.wait(limit(10)) == 0


class Browser:
    """One window."""

    def __init__(self, driver: webdriver.Chrome, profile: Path) -> None:
        self.driver = driver
        self._profile = profile

    # what it shows

    def open(self, url: str) -> None:
        self.driver.get(url)

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        """The text of the first such element; empty where there is none."""
        found = self.script("return document.querySelector(arguments[0])?.innerText ?? ''", selector)
        return str(found)

    def texts(self, selector: str) -> list[str]:
        found = self.script("return [...document.querySelectorAll(arguments[0])].map(e => e.innerText)", selector)
        return [str(each) for each in found]

    def script(self, text: str, *arguments: Any) -> Any:
        return self.driver.execute_script(text, *arguments)

    def until(self, condition: Callable[[], object], what: str, within: float = WITHIN) -> None:
        """Wait for a condition; an element that was replaced meanwhile counts as false."""

        def is_met() -> bool:
            with contextlib.suppress(StaleElementReferenceException):
                return bool(condition())
            return False

        try:
            wait_until(is_met, what, within)
        except AssertionError as error:
            raise AssertionError(f"{error}; the page shows:\n{self.text('body')[:3000]}") from error

    # what a person does

    def click(self, selector: str) -> None:
        self.find(selector).click()

    def press(self, text: str) -> None:
        """Click the button with this text."""
        next(each for each in self.all("button") if each.text == text).click()

    def fill(self, selector: str, text: str) -> None:
        field = self.find(selector)
        field.clear()
        field.send_keys(text)

    # the window

    def set_window(self, width: int, height: int, *, dark: bool = False, phone: bool = False) -> None:
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.cdp("Emulation.setEmulatedMedia", features=[feature])
        self.cdp("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)

    def renew(self) -> None:
        """Another window instead of this one, in a process of its own."""
        before = self.driver.current_window_handle
        self.driver.switch_to.new_window("window")
        after = self.driver.current_window_handle
        self.driver.switch_to.window(before)
        self.driver.close()
        self.driver.switch_to.window(after)

    @contextlib.contextmanager
    def without_scripts(self) -> Iterator[None]:
        """A block in which pages run no script."""
        self.cdp("Emulation.setScriptExecutionDisabled", value=True)
        try:
            yield
        finally:
            self.cdp("Emulation.setScriptExecutionDisabled", value=False)

    def cdp(self, command: str, **parameters: Any) -> Any:
        return self.driver.execute_cdp_cmd(command, parameters)

    def violations(self) -> list[str]:
        """What axe finds against the rules of accessibility: the rule and the elements of each."""
        self.script(AXE.read_text())
        run = (
            "const done = arguments[0]; axe.run(document, {resultTypes: ['violations']}).then(r => done(r.violations))"
        )
        found = self.driver.execute_async_script(run)
        return [f"{each['id']}: {[node['html'][:200] for node in each['nodes']]}" for each in found]

    def count_messages(self) -> None:
        """Let the pages that are opened from now on count what comes on streams; see ``received_bytes``."""
        self.cdp("Page.addScriptToEvaluateOnNewDocument", source=_COUNT)

    def received_bytes(self) -> int:
        """What this page took from the network: headers, compressed bodies, and what came on its stream."""
        return int(self.script(_RECEIVED))

    def memory_bytes(self) -> int:
        """The memory that no other process shares, of the largest process that shows a page."""
        found = [0]
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                words = path.read_bytes()
                if b"--type=renderer" in words and str(self._profile).encode() in words:
                    lines = path.with_name("smaps_rollup").read_text().splitlines()
                    found.append(sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) * 1024)
        return max(found)


@contextlib.contextmanager
def open_browser(folder: Path) -> Iterator[Browser]:
    """A browser with a profile of its own, and without anything of it afterwards."""
    profile = folder / "profile"
    options = Options()
    options.binary_location = str(shutil.which("chromium"))
    for flag in (*_FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(shutil.which("chromedriver"))))
    try:
        driver.set_script_timeout(limit(30.0))
        yield Browser(driver, profile)
    finally:
        driver.quit()
        shutil.rmtree(profile, ignore_errors=True)


def elapsed(action: Callable[[], object]) -> float:
    """How many seconds an action takes."""
    began = time.monotonic()
    action()
    return time.monotonic() - began
