"""The page of `cogen-fast app` in a browser: paint, run, stop, reload, two users, bad pictures.

Needs the extra `app-test`, and Chromium with its driver, which Debian has as `chromium` and
`chromium-driver`. With COGEN_FAST_SCREENSHOT set to a file, the picture of the documentation is
written there: ``COGEN_FAST_SCREENSHOT=docs/_static/app.png pytest -m slow tests/test_app_browser.py
-k screenshot``.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="needs the extra app-test")
pytest.importorskip("selenium", reason="needs the extra app-test")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

from selenium import webdriver  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver"),
]
PATIENCE = 120.0  # seconds; the machine may be busy
SHORT = "completions=4&gradients=1600"
LONG = "completions=4&gradients=100000"
MOST_PIXELS = 1_000_000


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A page that a process of its own serves: its address, and the process.

    The process must end well on a signal, and leave no temporary files.
    """
    command = [sys.executable, "-m", "cogen_fast", "app", "--port", "0"]
    command += ["--max-pixels", str(MOST_PIXELS)]
    (folder / "temporary").mkdir()
    environment = {**os.environ, "TMPDIR": str(folder / "temporary")}
    with (folder / "errors").open("w") as errors:
        process = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://[\d.]+:\d+/", line)
        assert found, line + (folder / "errors").read_text()
        yield found[0], process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        status = process.wait(PATIENCE)
    # Gradio logs requests that it refuses; none of the page's own code may have failed.
    logged = (folder / "errors").read_text()
    assert status == 0 and "cogen_fast/app" not in logged, logged
    assert not list((folder / "temporary").iterdir())


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("served")) as (address, _):
        yield address


class Browser:
    """A page in a browser that reaches nothing but this machine."""

    def __init__(self, folder: Path, width: int = 1280, height: int = 960) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = str(CHROMIUM)
        for argument in (
            "--headless=new",
            "--no-sandbox",
            "--disable-dev-shm-usage",
            f"--window-size={width},{height}",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        ):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        saving = {"behavior": "allow", "downloadPath": str(folder)}
        self.driver.execute_cdp_cmd("Browser.setDownloadBehavior", saving)
        self.folder = folder

    def open(self, address: str, task: str = "fill") -> None:
        """Open the page and wait for its picture, which comes after everything else."""
        self.driver.get(address)
        self.wait(lambda: max(self.canvas(task)[::4]) > 0)

    def wait(self, condition: Callable[[], Any]) -> Any:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            try:
                if found := condition():
                    return found
            except Exception:  # the page is being changed
                pass
            time.sleep(0.1)
        raise TimeoutError(f"the page shows: {self.status()}")

    def find(self, selector: str) -> Any:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def press(self, selector: str) -> None:
        self.wait(lambda: self.find(selector).is_enabled() and self.find(selector).is_displayed())
        self.find(selector).click()

    def status(self) -> str:
        return " ".join(self.find("#cf-status").text.split())

    def wait_for_status(self, *beginnings: str) -> str:
        self.wait(lambda: self.status().startswith(beginnings))
        return self.status()

    def pictures(self) -> list[str]:
        """The sources of all pictures of the results."""
        script = "return [...document.querySelectorAll('#cf-results img')].map(i => i.src)"
        found: list[str] = self.driver.execute_script(script)
        return found

    def canvas(self, task: str = "fill") -> list[int]:
        """The bytes of a painter's canvas, RGBA."""
        script = (
            f"const c = document.querySelector('#cf-painter-{task} canvas');"
            "return [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
        )
        found: list[int] = self.driver.execute_script(script)
        return found

    def covered(self) -> int:
        """The percentage of hidden pixels which the page shows."""
        return int(self.find("#cf-painter-fill .cf-count").text.split()[0])

    def stroke(self, *moves: tuple[float, float], task: str = "fill") -> None:
        """Draw a line; the places are shares of the canvas, from its centre."""
        canvas = self.find(f"#cf-painter-{task} canvas")
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
        width, height = canvas.size["width"], canvas.size["height"]
        (x, y), *rest = [(round(a * width), round(b * height)) for a, b in moves]
        chain = ActionChains(self.driver).move_to_element_with_offset(canvas, x, y).click_and_hold()
        for a, b in rest:
            chain = chain.move_by_offset(a - x, b - y)
            x, y = a, b
        chain.release().perform()

    def upload(self, path: Path) -> None:
        """Open a picture to be filled in."""
        self.find("#cf-painter-fill input[type=file]").send_keys(str(path))

    def requests(self) -> set[str]:
        """The addresses that the browser has asked for."""
        logged = self.driver.get_log("performance")
        events = (json.loads(entry["message"])["message"] for entry in logged)
        sent = (e["params"] for e in events if e["method"] == "Network.requestWillBeSent")
        return {each["request"]["url"] for each in sent}


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    made = Browser(tmp_path)
    yield made
    made.driver.quit()


def test_paint_run_and_watch(browser: Browser, served: str) -> None:
    browser.open(f"{served}?{SHORT}")
    before, hidden = browser.canvas(), browser.covered()
    browser.stroke((-0.4, -0.3), (0.4, -0.3))
    assert browser.canvas() != before and browser.covered() > hidden
    browser.press("#cf-run-fill")
    seen = set()
    browser.wait(
        lambda: seen.add("".join(browser.pictures())) or browser.status().startswith("Done")
    )
    assert len(seen - {""}) >= 3  # at two temperatures at least, and at the end
    browser.wait(lambda: len(browser.pictures()) == 4 + 2)  # with mean and standard deviation
    for number in range(3):
        browser.press(f"#cf-download-{number}")
    names = ("completions.png", "run.npz", "repeat.py")
    browser.wait(lambda: all((browser.folder / name).is_file() for name in names))
    with np.load(browser.folder / "run.npz") as arrays:
        assert arrays["latents"].shape == (4, 64)
        assert round(100 * (1 - arrays["observed"].mean())) == browser.covered()
    assert Image.open(browser.folder / "completions.png").width > 100
    assert "fashion-32" in (browser.folder / "repeat.py").read_text()
    elsewhere = {url for url in browser.requests() if not url.startswith((served, "data:"))}
    assert {url for url in elsewhere if not url.startswith(("chrome", "blob:"))} == set()
    logged = [each["message"] for each in browser.driver.get_log("browser")]
    assert [line for line in logged if "Refused to" in line or "Content Security" in line] == []


def test_tools_of_the_painter(browser: Browser, served: str) -> None:
    browser.open(served)
    first = browser.canvas()
    browser.press("#cf-painter-fill [data-do=swap]")
    swapped = browser.canvas()
    assert swapped != first and browser.covered() == 50
    browser.press("#cf-painter-fill [data-do=undo]")
    assert browser.canvas() == first
    browser.press("#cf-painter-fill [data-do=none]")
    assert browser.covered() == 0
    browser.press("#cf-painter-fill [data-tool=draw]")
    plain = browser.canvas()
    browser.stroke((0.0, 0.0), (0.3, 0.3))
    assert browser.canvas() != plain and browser.covered() == 0
    browser.press("#cf-run-fill")
    assert "paint over a part" in browser.wait_for_status("Not yet")
    browser.press("#cf-painter-fill [data-tool=hide]")
    browser.stroke((0.0, 0.0), (0.3, 0.3))
    assert browser.covered() > 0
    browser.press("#cf-painter-fill [data-tool=show]")
    browser.stroke((0.0, 0.0), (0.3, 0.3))
    assert browser.covered() == 0


def test_stop_keeps_the_samples_and_reload_the_picture(browser: Browser, served: str) -> None:
    browser.open(f"{served}?{LONG}&seed=7")
    browser.stroke((-0.4, -0.3), (0.4, -0.3))
    painted = browser.canvas()
    browser.press("#cf-run-fill")
    browser.wait_for_status("Running")
    browser.press("#cf-stop")
    assert "You stopped the run" in browser.wait_for_status("Stopped")
    browser.wait(lambda: len(browser.pictures()) == 4 + 2)
    address = browser.driver.current_url
    fields = parse_qs(urlsplit(address).query)
    assert (fields["seed"], fields["gradients"]) == (["7"], ["100000"])
    browser.driver.refresh()
    browser.wait(lambda: browser.canvas() == painted)
    assert browser.pictures() == []
    browser.open(served)
    assert browser.canvas() != painted
    browser.open(address)
    browser.wait(lambda: browser.canvas() == painted)


def test_enlarging(browser: Browser, served: str) -> None:
    browser.open(f"{served}?{SHORT}&task=enlarge&factor=8", "enlarge")
    browser.wait(lambda: len(browser.canvas("enlarge")) == 4 * 4 * 4)
    before = browser.canvas("enlarge")
    browser.stroke((0.2, 0.2), (0.4, 0.2), task="enlarge")
    assert browser.canvas("enlarge") != before
    browser.press("#cf-run-enlarge")
    browser.wait_for_status("Done")
    browser.wait(lambda: len(browser.pictures()) == 4 + 2)
    assert "task=enlarge" in browser.driver.current_url


def test_two_users_at_once(browser: Browser, served: str, tmp_path: Path) -> None:
    other = Browser(tmp_path)
    try:
        browser.open(f"{served}?{LONG}&seed=1")
        other.open(f"{served}?{SHORT}&seed=2")
        browser.press("#cf-run-fill")
        browser.wait_for_status("Running")
        other.press("#cf-run-fill")
        assert "after another run" in other.wait_for_status("Waiting")
        assert browser.status().startswith("Running")
        other.press("#cf-stop")
        assert "before it began" in other.wait_for_status("No result")
        assert browser.status().startswith("Running")  # one user's stop is not the other's
        other.press("#cf-run-fill")
        other.wait_for_status("Waiting")
        browser.driver.get("about:blank")  # a page that is left ends its run
        other.wait_for_status("Done")
        other.wait(lambda: len(other.pictures()) == 4 + 2)
    finally:
        other.driver.quit()


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_the_server_ends_in_the_midst_of_a_run(
    ending: signal.Signals, browser: Browser, tmp_path: Path
) -> None:
    with serving(tmp_path) as (address, process):
        browser.open(f"{address}?{LONG}")
        browser.press("#cf-run-fill")
        browser.wait_for_status("Running")
        process.send_signal(ending)
        assert process.wait(PATIENCE) == 0
    assert (tmp_path / "errors").read_text() == ""


def huge_png(side: int) -> bytes:
    """A small file which claims to be a picture of ``side`` x ``side`` pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        check = zlib.crc32(name + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + name + content + check

    size = side.to_bytes(4, "big") * 2
    head = chunk(b"IHDR", size + bytes([8, 0, 0, 0, 0]))
    body = chunk(b"IDAT", zlib.compress(bytes(10**6), 9))
    return b"\x89PNG\r\n\x1a\n" + head + body + chunk(b"IEND", b"")


SCRIPT = b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"
BAD = {
    "huge.png": (huge_png(30_000), "too large"),
    "wide.png": (huge_png(1_100), "too large"),  # more than the command line allows
    "text.png": (b"no picture", "unknown format"),
    "script.svg": (SCRIPT, "unknown format"),
    "program.eps": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n",
        "unknown format",
    ),
    "<img src=x onerror=alert(1)>.png": (huge_png(900)[:60], "damaged"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_malicious_upload_is_told_and_changes_nothing(
    name: str, browser: Browser, served: str
) -> None:
    content, message = BAD[name]
    path = browser.folder / name
    path.write_bytes(content)
    browser.open(served)
    before = browser.canvas()
    browser.upload(path)
    said = browser.wait_for_status("Not yet")
    assert message in said and "/tmp" not in said
    assert browser.canvas() == before
    assert not browser.driver.find_elements(By.CSS_SELECTOR, "#cf-status img, #cf-status script")


def test_after_a_refused_file_the_page_goes_on(browser: Browser, served: str) -> None:
    path = browser.folder / "text.png"
    path.write_bytes(b"no picture")
    browser.open(f"{served}?{SHORT}")
    for _ in range(2):  # the same file again, too
        browser.upload(path)
        browser.wait_for_status("Not yet")
        browser.press("#cf-run-fill")
        browser.wait_for_status("Done")


def test_a_photograph_is_cropped_and_scaled(browser: Browser, served: str) -> None:
    levels = np.zeros((60, 90, 3), np.uint8)
    levels[:, 45:] = 255
    path = browser.folder / "photograph.png"
    Image.fromarray(levels).save(path)
    browser.open(served)
    before = browser.canvas()
    browser.upload(path)
    browser.wait(lambda: browser.canvas() != before)
    row = np.array(browser.canvas()).reshape(32, 32, 4)[0, :, 0]
    assert row[:14].max() < 30 and row[-14:].min() > 225  # black to the left, white to the right


def status_of(request: str | urllib.request.Request) -> int:
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def files_of_the_machine() -> list[str]:
    here = str(Path(__file__).resolve())
    return ["/etc/passwd", here, "/proc/self/environ", "..%2f..%2f..%2f..%2fetc%2fpasswd"]


@pytest.mark.parametrize("file", files_of_the_machine(), ids=lambda file: Path(file).name)
def test_no_file_of_the_machine_is_read(file: str, served: str) -> None:
    for path in (f"gradio_api/file={file}", f"static/..{file}", f"assets/../../..{file}"):
        assert status_of(f"{served}{path}") in (400, 403, 404)


def test_a_request_can_name_no_file_of_the_machine(served: str, tmp_path: Path) -> None:
    of_the_machine = tmp_path / "picture.png"
    Image.new("L", (32, 32), 77).save(of_the_machine)
    config = json.load(urllib.request.urlopen(f"{served}config"))
    for data in ({"path": str(of_the_machine)}, {"path": "http://127.0.0.1/"}, [str(tmp_path)]):
        value = {**data, "meta": {"_type": "gradio.FileData"}} if isinstance(data, dict) else data
        for event in config["dependencies"]:
            body = {"data": [value] * 8, "fn_index": event["id"], "session_hash": "s" * 10}
            for path in ("queue/join", "run/predict"):
                request = urllib.request.Request(
                    f"{served}gradio_api/{path}",
                    json.dumps(body).encode(),
                    {"content-type": "application/json"},
                )
                assert status_of(request) == 400


def test_uploads_are_bounded(served: str) -> None:
    target = urlsplit(served)
    connection = http.client.HTTPConnection(target.hostname or "", target.port)
    connection.putrequest("POST", "/gradio_api/queue/join")
    connection.putheader("content-length", str(2**25 + 1))
    connection.endheaders()
    assert connection.getresponse().status == 413


def test_screenshot(served: str, tmp_path: Path) -> None:
    """The picture of the documentation shows a finished run."""
    made = Browser(tmp_path, 1240, 960)
    try:
        made.open(f"{served}?completions=16&gradients=800")
        made.press("#cf-run-fill")
        made.wait_for_status("Done")
        made.wait(lambda: len(made.pictures()) == 16 + 2)
        time.sleep(1)  # the page may still be laid out
        shot = Image.open(io.BytesIO(made.driver.get_screenshot_as_png()))
    finally:
        made.driver.quit()
    assert len(set(shot.convert("L").tobytes())) > 100
    if target := os.environ.get("COGEN_FAST_SCREENSHOT"):
        shot.convert("P", palette=Image.Palette.ADAPTIVE, colors=256).save(target, optimize=True)
