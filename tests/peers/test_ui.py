"""The page in the browser: journeys in Debian's Chromium on a real engine with real plugins, and who is refused."""

import os
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import pytest

from moorage.client import MoorageClient
from support.apply_files import push_version, run_moorage
from support.browser import Browser, Page, elapsed, open_browser, serve_ui
from support.drivers import create_driver, driver_config
from support.engines import EngineProcess, config, engine, package
from support.foreground import wait_until
from support.limits import limit
from support.registries import Served, _free_port

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs/guide/web-page.md").read_text()
SECRET = "hunter2-is-never-shown"
MARKUP = "<img src=x onerror=\"document.title='hacked'\"><script>document.title='hacked'</script>"
MIB = 1 << 20
NAMES = ["counter", "net/bridge", "volumes", "web"]

pytestmark = [pytest.mark.real, pytest.mark.needs("static-cc", "docker-registry", "chromium", "chromedriver")]


class UiSession:
    """An engine with plugins, its page, and a browser that is signed in."""

    def __init__(self, house: EngineProcess, page: Page, browser: Browser, registry: Served) -> None:
        self.house, self.page, self.browser, self.registry = house, page, browser, registry

    def open(self, name: str) -> Browser:
        """The page of a plugin; the list for an empty name."""
        path = f"/plugins/{self.house.inspect(name)['Id'][:12]}" if name else "/"
        self.browser.open(f"{self.page.url}{path}")
        self.until_live()
        return self.browser

    def operate(self, button: str, outcome: str = "done") -> None:
        """Click a button, and wait until the operation that this began, not one of before, has this outcome."""
        newest = "return document.querySelector('#results li time')?.dateTime"
        before = self.browser.script(newest)
        self.browser.press(button)
        self.browser.until(lambda: self.browser.script(newest) != before, f"{button} is among the results")
        self.browser.until(lambda: outcome in self.browser.text("#results li"), f"{button}: {outcome}")

    def until_live(self) -> None:
        """Wait until the page follows what changes."""
        self.browser.until(
            lambda: self.browser.script("return typeof source === 'object' && source?.readyState === 1"),
            "the page is connected",
        )


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    base = tmp_path_factory.mktemp("engine")
    data = base / "volumes"
    data.mkdir()
    with engine(base, ui=f"127.0.0.1:{_free_port()}") as made:
        env = [
            {"name": "LEVEL", "description": "What is logged", "settable": ["value"], "value": "info"},
            {"name": "PASSWORD", "description": "Of the server", "settable": ["value"], "value": ""},
        ]
        made.create("web", config("out=web listens", description="Serves the status", env=env))
        made.request_own("POST", "web", "set", {"secrets": [f"PASSWORD={SECRET}"]})
        made.create("counter", config("count=40", "allocate=24", description="Counts requests"))
        made.create("net/bridge", config(description="Networks between machines"))
        create_driver(made, "volumes", driver_config("volume", data, description="Volumes on the large disk"))
        for name in ("web", "counter"):
            made.enable(name)
        run_moorage(made, "volume", "create", "photos", "-d", "volumes")
        run_moorage(made, "volume", "mount", "photos", "--id", "gallery")
        yield made
        for plugin in made.plugins():
            made.remove(plugin["Id"], force=True)


@pytest.fixture(scope="module")
def ui(house: EngineProcess, registry: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[UiSession]:
    with serve_ui(house.socket) as page, open_browser(tmp_path_factory.mktemp("browser")) as browser:
        browser.set_window(1280, 900)
        browser.open(f"{page.url}/#token={page.token}")
        browser.until(lambda: browser.text("h1") == "Plugins", "the link signs in")
        yield UiSession(house, page, browser, registry)


@pytest.fixture(autouse=True)
def _window(ui: UiSession) -> None:
    ui.browser.set_window(1280, 900)


def test_u22_the_list_shows_sorts_and_filters(ui: UiSession) -> None:
    browser = ui.open("")
    assert browser.driver.current_url == f"{ui.page.url}/"  # the token is not in the address any more
    assert browser.texts("tbody th a") == NAMES
    row = browser.text(f"#row-{ui.house.inspect('web')['Id'][:12]}")
    assert "ready" in row
    assert "Serves the status" in row
    assert "iB" in row  # memory
    browser.click("#head-name a")
    ui.until_live()
    assert browser.texts("tbody th a") == NAMES[::-1]
    assert browser.find("#head-name").get_attribute("aria-sort") == "descending"
    browser.fill("#q", "large disk")
    browser.until(lambda: browser.texts("tbody th a") == ["volumes"], "one row fits the filter")
    assert "q=large" in browser.driver.current_url
    browser.fill("#q", "nothing like this")
    browser.until(lambda: "No plugin fits" in browser.text("#nothing"), "it says that none fits")


def test_u22_a_click_enables_disables_and_restarts(ui: UiSession) -> None:
    browser = ui.open("web")
    pid = ui.house.more("web")["Pid"]
    ui.operate("Restart")
    browser.until(lambda: "ready" in browser.text("#badges"), "it is ready again")
    assert ui.house.more("web")["Pid"] not in (None, pid)
    ui.operate("Disable")
    browser.until(lambda: "disabled" in browser.text("#badges"), "it is shown as disabled")
    assert ui.house.state("web") == "disabled"
    ui.operate("Enable")
    browser.until(lambda: "ready" in browser.text("#badges"), "it is shown as ready")
    assert ui.house.state("web") == "ready"
    assert "enable" in browser.text("#results")


def test_u22_a_setting_is_changed_and_a_wrong_one_is_explained(ui: UiSession) -> None:
    browser = ui.open("web")
    browser.fill("input[name='value:LEVEL']", "debug")
    ui.operate("Set")
    assert "LEVEL=debug" in ui.house.inspect("web")["Settings"]["Env"]
    assert "LEVEL=debug" in ui.house.call("web", "env")
    ui.open("web")
    browser.press("Set")
    browser.until(lambda: "no setting differs" in browser.text("main"), "nothing was changed, and it says so")


def test_u22_no_page_shows_a_secret(ui: UiSession) -> None:
    assert SECRET in ui.house.call("web", "env")
    for path in ("/", f"/plugins/{ui.house.inspect('web')['Id']}", "/events", "/volumes", "/disk"):
        ui.browser.open(f"{ui.page.url}{path}")
        assert SECRET not in ui.browser.driver.page_source
    field = ui.open("web").find("input[name='hidden:PASSWORD']")
    assert (field.get_attribute("value"), field.get_attribute("type")) == ("", "password")


def test_u22_a_crash_appears_within_two_seconds_with_its_last_lines(ui: UiSession) -> None:
    browser = ui.open("web")
    before = browser.text("#timeline").count("status 7")

    def crash() -> None:
        ui.house.crash("web", 7)
        browser.until(lambda: browser.text("#timeline").count("status 7") > before, "the exit is in the timeline")
        browser.until(lambda: "status 7" in browser.text("#facts"), "the exit is among the facts")

    assert elapsed(crash) < limit(2.0)
    browser.until(lambda: "web listens" in browser.text("#timeline .lines"), "its last lines are shown")
    ui.house.until("web", "ready")


_AFTER_LINES = """
const [count, done] = arguments, log = document.querySelector("#log");
const newest = () => Number(log.lastChild?.lastChild.textContent ?? -1);
const first = newest(), began = performance.now();
const timer = setInterval(() => {
  if (newest() < first + count) return;
  clearInterval(timer);
  done([newest() - first, (performance.now() - began) / 1000, log.childElementCount]);
}, 100);
"""
"""Waits in the page until so many more lines have come: how many did, in how many seconds, and how many it has."""


def test_u22_output_of_1000_lines_a_second_is_live_filtered_and_small(ui: UiSession) -> None:
    ui.house.create("loud", config("count=1000"))
    ui.house.enable("loud")
    try:
        ui.browser.renew()
        browser = ui.open("loud")
        browser.until(lambda: browser.text("#log-state") == "live", "lines come")
        lines, seconds, shown = browser.driver.execute_async_script(_AFTER_LINES, 4000)
        assert lines > 500 * seconds
        assert shown <= 1000
        assert browser.memory_bytes() < 100 * MIB
        assert elapsed(lambda: browser.script("return document.title")) < limit(5)  # it has time for a user
        browser.fill("#log-text", "777")
        texts = "[...document.querySelectorAll('#log span')].map(each => each.innerText)"
        fits = f"const all = {texts}; return all.length && all.every(each => each.includes('777'))"
        browser.until(lambda: browser.script(fits), "only lines that fit are shown")
        browser.press("Pause")
        assert browser.text("#log-state") == "paused"
    finally:
        ui.house.remove("loud", force=True)
    browser.until(lambda: "removed" in browser.text("#connection"), "it says that the plugin was removed")


def test_u22_an_upgrade_a_rollback_and_more_privileges_are_shown(ui: UiSession) -> None:
    base = f"{ui.registry.host}/t/up"
    for tag, arguments in (("1", ()), ("2", ()), ("bad", ("end=3",))):
        push_version(ui.house, f"{base}:{tag}", *arguments, description=tag)
    push_version(ui.house, f"{base}:host", description="host", network={"type": "host"})
    ui.house.install(f"{base}:1", "up")
    ui.house.enable("up")
    browser = ui.open("up")

    def upgrade(tag: str, outcome: str) -> None:
        browser.fill("#reference", f"{base}:{tag}")
        ui.operate("Upgrade", outcome)

    upgrade("2", "done")
    assert ui.house.inspect("up")["Config"]["Description"] == "2"
    upgrade("bad", "rolled back")
    assert "the version of before is current again" in browser.text("#results li")
    assert ui.house.inspect("up")["Config"]["Description"] == "2"
    assert ui.house.state("up") == "ready"
    upgrade("host", "requests more privileges")
    assert "network: host" in browser.text("#results .agree")
    assert ui.house.inspect("up")["Config"]["Description"] == "2"
    ui.operate("Grant these and upgrade")
    assert ui.house.inspect("up")["Config"]["Description"] == "host"
    ui.house.remove("up", force=True)


def test_u22_volumes_are_shown_with_their_users(ui: UiSession) -> None:
    browser = ui.open("volumes")
    assert "gallery" in browser.text("#users-list")
    browser.open(f"{ui.page.url}/volumes")
    assert browser.text("tbody tr").split()[0] == "photos"
    assert "gallery" in browser.text("tbody tr")
    browser.open(f"{ui.page.url}/disk")
    assert sorted(browser.texts("tbody th")) == NAMES


def test_u22_what_a_plugin_says_is_text_wherever_it_is_shown(ui: UiSession) -> None:
    ui.house.create("hostile", config(f"out={MARKUP}", "end=3@300", description=MARKUP))
    ui.house.request("POST", "/plugins/hostile/enable?timeout=2")
    ui.house.wait_until(lambda: ui.house.more("hostile")["LastExit"], "it has exited")
    browser = ui.open("hostile")
    browser.until(lambda: MARKUP in browser.text("#log"), "its output is shown as it is")
    browser.until(lambda: MARKUP in browser.text("#timeline"), "so are its last lines")
    assert MARKUP in browser.text("main > p")
    for path in ("/", "/events"):
        browser.open(f"{ui.page.url}{path}")
        ui.until_live()
        assert browser.script("return document.querySelectorAll('img, script:not([src])').length") == 0
        assert "hacked" not in browser.driver.title
    ui.house.remove("hostile", force=True)
    browser.open(f"{ui.page.url}/?q={quote(MARKUP)}")
    assert browser.find("#q").get_attribute("value") == MARKUP
    browser.open(f"{ui.page.url}/plugins/{quote(MARKUP, safe='')}")
    assert "not found" in browser.text("main")


def test_u22_nothing_answers_without_the_token(ui: UiSession) -> None:
    page = ui.page
    assert page.request("GET", "/", Accept="text/html")[1]["Location"] == "/login"
    for path in ("/", "/events", "/volumes", "/disk", "/plugins/web", "/plugins/web/logs", "/session"):
        assert page.request("GET", path)[0] == 401, path
        assert page.request("GET", path, cookie=f"moorage-{page.port}=wrong")[0] == 401, path
    assert page.request("POST", "/plugins/web/disable", "x=1", Origin=page.url)[0] == 401
    status, headers, text = page.request("POST", "/login", "token=wrong", Origin=page.url)
    assert (status, "Set-Cookie" in headers) == (403, False)
    assert "This is not the token" in text
    _, headers, _ = page.request("POST", "/login", f"token={page.token}", Origin=page.url)
    assert "HttpOnly" in headers["Set-Cookie"]
    assert "SameSite=Strict" in headers["Set-Cookie"]
    assert ui.house.state("web") == "ready"


def test_u22_another_origin_and_another_host_are_refused(ui: UiSession) -> None:
    page, cookie = ui.page, ui.page.cookie()
    for origin in (
        {},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": f"http://localhost:{page.port}"},
    ):
        status, _, text = page.request("POST", "/plugins/web/disable", "x=1", cookie=cookie, **origin)
        assert status == 403, origin
        assert "not from this page" in text
    for host in (
        "evil.example",
        f"evil.example:{page.port}",
        "127.0.0.1.evil.example",
        "user@localhost",
        "localhost:x",
    ):
        status, _, text = page.request("GET", "/", cookie=cookie, Host=host)
        assert (status, "another host" in text) == (403, True), host
    assert page.request("GET", "/", cookie=cookie, Host=f"localhost:{page.port}")[0] == 200
    assert ui.house.state("web") == "ready"


def test_u22_every_answer_forbids_content_from_elsewhere(ui: UiSession) -> None:
    cookie = ui.page.cookie()
    for path in ("/", "/nothing", "/login", "/static/page.js", "/static/../server.py"):
        _, headers, text = ui.page.request("GET", path, cookie=cookie)
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert not re.search(r"(src|href|action)=\"(?![/?#])", text)
    for wrong in ("{}", "a" * 300_000):
        status, _, _ = ui.page.request(
            "POST", "/plugins/web/set", wrong, cookie=cookie, Origin=ui.page.url, Content_Type="text/plain"
        )
        assert status == 400
    long = ui.page.request("POST", "/plugins/web/set", "a=" + "a" * 300_000, cookie=cookie, Origin=ui.page.url)
    assert long[0] == 400


def test_u22_axe_finds_nothing_against_the_rules_of_accessibility(ui: UiSession) -> None:
    browser, plugin = ui.browser, f"/plugins/{ui.house.inspect('web')['Id']}"
    pages = {False: ("/", plugin, "/events", "/volumes", "/disk", "/login", "/nothing"), True: ("/", plugin)}
    for dark, paths in pages.items():
        browser.set_window(1280, 900, dark=dark)
        for path in paths:
            browser.open(f"{ui.page.url}{path}")
            assert browser.violations() == [], (path, dark)


def test_u22_it_can_be_read_without_scripts_and_on_a_phone(ui: UiSession) -> None:
    browser = ui.browser
    browser.set_window(390, 844, phone=True)
    for path in ("/", f"/plugins/{ui.house.inspect('web')['Id']}", "/events", "/volumes", "/disk"):
        browser.open(f"{ui.page.url}{path}")
        assert browser.script("return document.documentElement.scrollWidth <= innerWidth"), path
    with browser.without_scripts():
        browser.open(f"{ui.page.url}/?q=serves")
        assert [each.text for each in browser.all("tbody th a")] == ["web"]
        browser.click("tbody th a")
        browser.fill("#log-text", "listens")
        browser.click("#log-filter .no-script")
        lines = [each.text for each in browser.all("#log span")]
        assert lines
        assert set(lines) == {"web listens"}
        assert browser.all("#chart-memory path.line")
        before = [each.text for each in browser.all("#results li")]
        browser.press("Restart")
        browser.until(lambda: [each.text for each in browser.all("#results li")] != before, "there is another result")
        assert "restart" in browser.all("#results li")[0].text


def test_u22_the_keyboard_reaches_the_filter_and_skips_to_the_content(ui: UiSession) -> None:
    from selenium.webdriver.common.keys import Keys

    browser = ui.open("")
    browser.find("body").send_keys(Keys.TAB)
    assert browser.script("return document.activeElement.innerText") == "Skip to the content"
    browser.find("body").send_keys("/")
    assert browser.script("return document.activeElement.id") == "q"


def test_u22_the_pictures_of_the_guide_are_taken_here(ui: UiSession, tmp_path: Path) -> None:
    """With ``MOORAGE_PICTURES=docs/images`` they are replaced."""
    folder = Path(os.environ.get("MOORAGE_PICTURES", tmp_path))
    browser = ui.browser
    id = ui.house.inspect("counter")["Id"][:12]
    ui.house.crash("counter", 1)
    ui.house.until("counter", "ready")
    for name, path, height, dark, phone in (
        ("ui-plugins.png", "/", 420, False, False),
        ("ui-plugin.png", f"/plugins/{id}?range=5+minutes", 1180, False, False),
        ("ui-plugin-dark.png", f"/plugins/{id}?range=5+minutes", 760, True, False),
        ("ui-phone.png", f"/plugins/{id}?range=5+minutes", 844, False, True),
    ):
        browser.set_window(390 if phone else 1280, height, dark=dark, phone=phone)
        browser.open(f"{ui.page.url}{path}")
        ui.until_live()
        if path != "/":
            browser.until(lambda: browser.text("#badges") == "ready", "its state is current")
            browser.until(lambda: browser.text("#log-state") == "live", "the output is live")
            browser.until(lambda: browser.script("return document.querySelector('#log').children.length > 99"), "lines")
        assert browser.driver.save_screenshot(str(folder / name))
        assert f"../images/{name}" in GUIDE
        assert (ROOT / "docs/images" / name).read_bytes().startswith(b"\x89PNG")


def test_u22_it_survives_a_restart_of_the_engine_and_says_so(ui: UiSession) -> None:
    browser = ui.open("")
    ui.house.end(signal.SIGKILL)
    browser.until(lambda: "does not answer" in browser.text("#problem"), "it says that the engine is gone")
    assert browser.texts("tbody th a") == NAMES  # what was last known
    ui.house.start()
    browser.until(lambda: "answers again" in browser.text("#problem"), "it says that the engine is back")
    ui.house.until("web", "ready")
    browser = ui.open("web")
    ui.house.crash("web", 8)
    browser.until(lambda: "status 8" in browser.text("#timeline"), "it follows the new engine")
    ui.house.until("web", "ready")


def test_u22_the_page_of_the_service_is_a_process_of_its_own(ui: UiSession) -> None:
    house = ui.house
    token_file = house.root / "ui-token"
    assert token_file.stat().st_mode & 0o777 == 0o600

    def pids() -> list[int]:
        children = Path(f"/proc/{house.child.pid}/task/{house.child.pid}/children").read_text()  # type: ignore[union-attr]
        words = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") for pid in children.split()}
        return [pid for pid, line in words.items() if b"ui" in line]

    def links() -> list[str]:
        return re.findall(r"the page is at (\S+), its token in", house.log.read_text())

    wait_until(lambda: len(pids()) == 1, "the engine has a page")
    (first,), before = pids(), len(links())
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: len(links()) > before, "it is started again")
    assert house.info()["Moorage"]["Problem"] == ""
    ui.browser.open(f"{links()[-1]}/#token={token_file.read_text().strip()}")
    ui.browser.until(lambda: ui.browser.text("h1") == "Plugins", "the file has its token")
    ui.until_live()
    (second,) = pids()
    house.end(signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{second}").exists(), "it exits with the engine")
    ui.browser.until(lambda: "lost" in ui.browser.text("#connection"), "the page says that it is not connected")
    house.start()
    ui.browser.until(lambda: "Connected again" in ui.browser.text("#connection"), "it reconnects, still signed in")


@pytest.mark.extensive
def test_u22_300_plugins_are_painted_within_a_second_and_200_kb(ui: UiSession) -> None:
    client = MoorageClient(str(ui.house.socket))
    raw = package({**config(), "description": "One of many plugins of a large machine"})

    def create(number: int) -> None:
        client.create(f"many/plugin-{number:03}", iter([raw]))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(create, range(300)))
    browser = ui.browser
    browser.count_messages()
    ui.open("")
    shown = "return document.querySelectorAll('tbody th a').length"
    browser.until(lambda: browser.script(shown) >= 300, "all plugins are shown")
    browser.open("about:blank")
    ui.open("")
    assert browser.script(shown) >= 300
    paint = browser.script("return performance.getEntriesByName('first-contentful-paint')[0].startTime")
    assert paint < 1000 * limit(1.0)
    assert browser.received_bytes() < 200_000
    for plugin in ui.house.plugins():
        if plugin["Name"].startswith("many/"):
            ui.house.remove(plugin["Id"])
