"""The page as people use it: a real browser, without a screen, on a real server with a library of tones.

After every test the browser's own log must be free of errors (also those of the Content Security Policy), and every
request must have gone to the server.
"""

import base64
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import soundfile
import torch

from antiphon.library import Library
from serve.conftest import TOKEN, serving, tones
from test_encoding import ToneModel

webdriver = pytest.importorskip("selenium.webdriver")

from selenium.common.exceptions import TimeoutException  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

T = TypeVar("T")

PATIENCE_SECONDS = 30
HOSTILE = '"><img src=x onerror=document.title=1>'
UGLY = f"{HOSTILE}.wav"
BEST_SECOND = 20  # of long.wav, for "middle"
SOUNDS = {  # weights of the tones low, middle, high, top
    "low.wav": [(1, 0, 0, 0)],
    "middle.wav": [(0, 1, 0, 0)],
    "high.wav": [(0, 0, 1, 0)],
    "top.wav": [(0, 0, 0, 1)],
    "deep/low-high.wav": [(1, 0, 2, 0)],
    "deep/low-top.wav": [(2, 0, 0, 1)],
    "long.wav": [(1, 0, 0, 1)] * BEST_SECOND + [(0, 4, 1, 0)] + [(1, 0, 0, 1)] * 39,
    UGLY: [(0, 0, 1, 1)],
}
TAGS = {  # artist, tempo
    "low.wav": ("Ada", 90),
    "high.wav": ("Ada", 120),
    "deep/low-high.wav": ("Grace", 150),
    UGLY: (HOSTILE, 60),
}
HIGH = ["high.wav", "low-high.wav", UGLY]  # what fits "high", best first

# Runs in every page before its own scripts: where the player's sound is, and what was played.
WATCH = """
{
  const Real = Audio;
  window.played = [];
  window.Audio = function (...given) {
    window.media = new Real(...given);
    media.addEventListener("playing", () => played.push(media.currentSrc));
    return media;
  };
}
"""


class Page:
    """The open page, and what a person sees of it."""

    def __init__(self, browser, url: str) -> None:
        self.browser, self.url = browser, url
        self.expected: list[str] = []  # what may stand in the browser's log

    def open(self, hash: str = "") -> None:
        self.browser.get("about:blank")  # only another hash would not load the page anew
        self.browser.get(f"{self.url}/{hash}")
        self.ready()

    def js(self, script: str, *given: Any) -> Any:
        return self.browser.execute_script(f"return {script}", *given)

    def until(self, seen: Callable[[], T], wanted: T) -> None:
        """Wait until `seen()` is `wanted`; else say what it was."""
        try:
            WebDriverWait(self.browser, PATIENCE_SECONDS, poll_frequency=0.05).until(lambda _: seen() == wanted)
        except TimeoutException:
            assert seen() == wanted

    def becomes(self, script: str, wanted: Any = True) -> None:
        self.until(lambda: self.js(script), wanted)

    def ready(self) -> None:
        self.becomes("document.body.dataset.state", "ready")

    def one(self, css: str):
        return self.browser.find_element(By.CSS_SELECTOR, css)

    def click(self, css: str) -> None:
        self.one(css).click()

    def mouse(self):
        return webdriver.ActionChains(self.browser, duration=0)

    def press(self, *keys: str) -> None:
        for key in keys:
            self.mouse().send_keys(key).perform()

    def row(self, name: str) -> str:
        """A selector of the result of a file."""
        place = self.names().index(name)
        return f"#results [data-id]:nth-child({place + 1})"

    def names(self) -> list[str]:
        return self.texts("#results .name")

    def texts(self, css: str) -> list[str]:
        return self.js("[...document.querySelectorAll(arguments[0])].map((one) => one.textContent)", css)

    def text(self, css: str) -> str:
        return "".join(self.texts(css))

    def chips(self) -> list[str]:
        return self.js("[...document.querySelectorAll('#chips li')].map((chip) => chip.dataset.kind)")

    def shows(self, *names: str) -> None:
        """Wait until these are the first results."""
        self.until(lambda: self.names()[: len(names)], list(names))
        self.ready()

    def searches(self, words: str, *names: str) -> None:
        self.open(f"#q={words}")
        self.shows(*names)

    def is_visible(self, css: str) -> bool:
        return self.js("document.querySelector(arguments[0]).checkVisibility()", css)

    def plays(self, row: str) -> None:
        """Wait until the sound of a row has begun to play last."""
        part = f"/api/audio/{self.one(row).get_attribute('data-id')}?"
        self.until(lambda: part in (self.js("played.at(-1)") or ""), True)

    def pauses(self) -> None:
        self.becomes("media.paused && document.body.dataset.playing === ''")

    def drop(self, name: str, content: bytes) -> None:
        """Let a file go over the page."""
        script = """
            const bytes = Uint8Array.from(atob(arguments[1]), (letter) => letter.charCodeAt(0));
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File([bytes], arguments[0], { type: "audio/wav" }));
            const send = (kind) => document.getElementById("list").dispatchEvent(
              new DragEvent(kind, { dataTransfer, bubbles: true, cancelable: true }));
            send("dragenter");
            const seen = document.getElementById("drop").checkVisibility();
            send("drop");
            return seen;
        """
        assert self.browser.execute_script(script, name, base64.b64encode(content).decode())
        assert not self.is_visible("#drop")

    def troubles(self) -> list[str]:
        """Errors in the log and requests to elsewhere, since the last time."""
        found = [line["message"] for line in self.browser.get_log("browser") if line["level"] == "SEVERE"]
        found = [line for line in found if not any(part in line for part in self.expected)]
        for line in self.browser.get_log("performance"):
            message = json.loads(line["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                address = message["params"]["request"]["url"]
                if not address.startswith((f"{self.url}/", f"blob:{self.url}/", "data:", "about:")):
                    found.append(f"request to {address}")
        return found


class Listener(ToneModel):
    """Other words than its four mean a little of everything: half a word is a search too while somebody types."""

    def encode_text(self, texts) -> torch.Tensor:
        return torch.nn.functional.normalize(super().encode_text(texts) + 1e-3, dim=-1)


def program(*names: str) -> str:
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip(f"needs {' or '.join(names)}")
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = program("chromium", "chromium-browser", "google-chrome")
    service = webdriver.ChromeService(program("chromedriver"))
    for argument in (
        "headless=new",
        "no-sandbox",  # which needs rights that a container lacks
        "disable-dev-shm-usage",
        "disable-gpu",
        "disable-background-networking",
        "disable-component-update",
        "no-first-run",
        "no-proxy-server",
        "host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        "autoplay-policy=no-user-gesture-required",
        "window-size=1280,800",
    ):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SE_AVOID_STATS", "true")
        patch.setenv("SE_OFFLINE", "true")
        patch.setenv("NO_PROXY", "localhost,127.0.0.1")
        made = webdriver.Chrome(options=options, service=service)
        try:
            made.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": WATCH})
            yield made
        finally:
            made.quit()


@pytest.fixture(scope="module")
def model() -> ToneModel:
    return Listener()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    from mutagen import id3
    from mutagen.wave import WAVE

    made = tmp_path_factory.mktemp("page") / "sounds"
    for name, weights in SOUNDS.items():
        path = made / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, tones(*weights), 8000, subtype="PCM_16")
        if name in TAGS:
            artist, bpm = TAGS[name]
            tagged = WAVE(path)
            tagged.add_tags()
            tagged.tags.add(id3.TPE1(text=[artist]))
            tagged.tags.add(id3.TBPM(text=[str(bpm)]))
            tagged.save()
    return made


@pytest.fixture(scope="module")
def shelf(folder, model) -> Library:
    made = Library.create(folder.parent / "library", model=model, root=folder)
    made.sync(folder, model=model)
    return made


@pytest.fixture(scope="module")
def url(shelf, model) -> Iterator[str]:
    from antiphon.serve.app import create_app
    from antiphon.serve.settings import Settings

    settings = Settings(name=HOSTILE, upload_burst=1000, burst=100_000)
    with serving(create_app({"tones": shelf}, {"tones": model}, settings)) as address:
        yield address


def watched(browser, url: str) -> Iterator[Page]:
    """A page of a browser that remembers nothing, held to what the module says."""
    page = Page(browser, url)
    browser.get("about:blank")
    browser.execute_cdp_cmd("Storage.clearDataForOrigin", {"origin": url, "storageTypes": "all"})
    page.troubles()
    yield page
    assert page.troubles() == []


@pytest.fixture
def page(browser, url) -> Iterator[Page]:
    yield from watched(browser, url)


def wav(path: Path, *weights: tuple[float, float, float, float]) -> bytes:
    soundfile.write(path, tones(*weights), 8000, subtype="PCM_16")
    return path.read_bytes()


def test_the_watch_sees_errors_forbidden_styles_and_other_hosts(page):
    page.open()
    assert page.troubles() == []
    page.js("setTimeout(() => { throw new Error('a planted fault'); })")
    page.js("document.body.setAttribute('style', 'color: red')")
    page.js("setTimeout(() => (location = 'http://127.0.0.1:9/elsewhere'), 100)")
    found: list[str] = []

    def told() -> set[str]:
        found.extend(page.troubles())
        parts = ("a planted fault", "inline style", "request to http://127.0.0.1:9/elsewhere")
        return {part for part in parts if any(part in line for line in found)}

    page.until(lambda: len(told()), 3)


def test_words_find_sounds_as_they_are_typed(page):
    page.open()
    assert "8 sounds" in page.text("#empty")
    page.press("/")
    page.press(*"high")
    page.shows(*HIGH)
    assert page.one("#words").get_attribute("value") == "high"
    assert page.text("#summary").startswith("8 results in ")
    assert page.chips() == ["words"]
    assert page.js("[location.hash, document.title]") == ["#q=high", "high · Antiphon"]
    assert page.text(page.row("high.wav") + " .percentile") == "87.5 %"  # seven of eight fit less
    assert page.texts(page.row("low-high.wav") + " .sub span") == ["deep", "Grace", "BPM 150"]


def test_what_is_unwanted_sinks(page):
    page.searches("high", *HIGH)
    page.one("#without").send_keys("low", Keys.ENTER)
    page.shows("high.wav", UGLY)
    assert page.chips() == ["words", "without"]


def test_an_older_answer_never_replaces_a_newer_one(page):
    page.open()
    # The answer for "low" is held back, and comes although the page has given it up.
    page.browser.execute_script("""
        const real = window.fetch;
        window.fetch = async (address, options) => {
          if (!options?.body?.includes('"low"')) return real(address, options);
          window.signal = options.signal;
          const answer = await real(address, { ...options, signal: undefined });
          await new Promise((free) => (window.free = free));
          return answer;
        };
    """)
    words = page.one("#words")
    words.send_keys("low")
    page.becomes("window.free !== undefined")
    assert page.js("[document.body.dataset.state, window.signal.aborted]") == ["busy", False]
    words.send_keys(Keys.CONTROL, "a")
    words.send_keys("high")
    page.shows(*HIGH)
    assert page.js("window.signal.aborted")
    page.browser.execute_async_script("const done = arguments[0]; window.free(); setTimeout(done, 300)")
    page.shows(*HIGH)
    assert page.chips() == ["words"]


def test_a_result_plays_from_its_best_moment(page):
    page.searches("middle", "middle.wav", "long.wav")
    page.js("void (window.times = [], media.addEventListener('timeupdate', () => times.push(media.currentTime)))")
    row = page.row("long.wav")
    page.click(row + ' [data-action="play"]')
    page.becomes("new Set(times).size >= 3")
    times = page.js("times")
    assert times == sorted(times)
    assert times[0] == pytest.approx(BEST_SECOND, abs=0.3)
    page.plays(row)
    assert page.text("#player-name") == "long.wav"
    assert page.text("#player-time").endswith(" / 1:00")
    assert page.js("media.error") is None
    page.click("#player-toggle")
    page.pauses()
    page.click(page.row("middle.wav") + ' [data-action="play"]')  # and another
    page.plays(page.row("middle.wav"))


def test_a_click_on_a_waveform_plays_from_there_and_a_drag_means_that_part(page):
    page.searches("middle", "middle.wav", "long.wav")
    wave = page.one(page.row("long.wav") + " canvas")
    page.becomes("document.querySelectorAll('#results canvas')[1].wave.data !== null")
    page.mouse().move_to_element(wave).click().perform()
    page.becomes("media.currentTime > 30 && media.currentTime < 45")
    width = wave.size["width"]
    drag = page.mouse().move_to_element_with_offset(wave, -width // 4, 0).click_and_hold()
    drag.move_by_offset(width // 8, 0).move_by_offset(width // 8, 0).release().perform()
    page.click(page.row("long.wav") + ' [data-action="more"]')
    page.until(page.chips, ["words", "like"])
    page.ready()
    start, end = page.js("location.hash.match(/%40([\\d.]+)-([\\d.]+)/).slice(1).map(Number)")
    assert (start, end) == pytest.approx((15, 30), abs=1)


def test_a_dropped_sound_finds_sounds_like_it(page, tmp_path):
    page.open()
    page.drop(f"{HOSTILE}.wav", wav(tmp_path / "a.wav", (0, 0, 1, 0)))
    page.shows("high.wav", "low-high.wav", UGLY)
    assert page.chips() == ["like"]
    assert page.text("#chips .hear") == f"{HOSTILE}.wav"
    page.click("#chips .hear")
    page.becomes("media.currentTime > 0 && media.src.startsWith('blob:')")
    page.click('#chips [data-action="remove"]')
    page.until(page.chips, [])
    page.until(page.names, [])
    assert page.is_visible("#empty")


def test_a_chosen_file_finds_sounds_like_it_and_words_join_in(page, tmp_path):
    page.open()
    wav(tmp_path / "mine.wav", (0, 0, 0, 1))
    page.one("#file").send_keys(str(tmp_path / "mine.wav"))
    page.shows("top.wav")
    page.one("#words").send_keys("high", Keys.ENTER)
    page.shows(UGLY)  # has both
    assert page.chips() == ["words", "like"]
    assert page.is_visible("#balance")
    page.js("void ($ => { $.value = 0.05; $.dispatchEvent(new Event('input', { bubbles: true })); })(balance)")
    page.shows("high.wav")


def test_a_file_that_is_no_sound_says_so(page):
    page.expected.append("/api/similar")
    page.open()
    page.drop("letter.wav", b"no sound at all")
    page.becomes("document.body.dataset.state", "error")
    assert page.text("#notice-text") != ""
    assert not page.is_visible("#retry")
    page.until(page.chips, [])


def test_more_and_less_like_a_result(page):
    page.searches("high", *HIGH)
    page.click(page.row(UGLY) + ' [data-action="more"]')
    page.shows("high.wav", "low-high.wav", "top.wav")
    page.click(page.row("low-high.wav") + ' [data-action="less"]')
    page.shows("high.wav", "top.wav")
    assert not {UGLY, "low-high.wav"} & set(page.names())  # the examples themselves
    assert page.chips() == ["words", "like", "unlike"]
    page.click('#chips [data-kind="like"] [data-action="remove"]')
    page.shows("high.wav", UGLY)
    page.click('#chips [data-kind="words"] [data-action="remove"]')
    page.until(page.names, [])  # only what it should not be is left: nothing to search for, and no error
    page.ready()
    assert page.chips() == ["unlike"]


def test_filters_by_number_and_text(page):
    page.searches("high", *HIGH)
    captions = page.texts("#columns .field > span:first-child")
    assert captions[:2] == ["Folder or file", "Length in seconds"]
    assert {"Artist", "BPM"} <= set(captions)
    assert "Key" not in captions  # no file has one
    assert not {"Size", "Comment", "Mtime ns", "Id"} & set(captions)
    page.one('[data-column="bpm"] input').send_keys("100")
    page.until(page.names, ["high.wav", "low-high.wav"])
    page.one('[data-column="artist"] input').send_keys("aDA")
    page.until(page.names, ["high.wav"])
    page.until(page.chips, ["words", "filter", "filter"])
    assert page.texts("#chips span") == ["high", "Artist: aDA", "BPM ≥ 100"]
    assert page.js("location.hash") == "#q=high&f.artist=%7EaDA&f.bpm=100.."
    page.becomes("[...document.querySelectorAll('[data-column=artist] option')].map((one) => one.value)", ["Ada"])
    page.one('[data-column="path"] input').send_keys("nowhere")
    page.until(page.names, [])
    page.becomes("document.querySelector('#empty h2').textContent", "Nothing fits")
    page.click("#clear")
    page.shows(*HIGH)
    assert page.chips() == ["words"]


def test_sql_and_its_error_line(page):
    page.expected.append("/api/search")  # the answer 400
    page.searches("high", *HIGH)
    page.one("#where").send_keys("bmp > 100", Keys.ENTER)
    page.becomes("document.body.dataset.state", "error")
    assert "'bmp' is no column" in page.text("#notice-text")
    assert page.names()[:3] == HIGH  # what was there stays
    page.one("#where").send_keys(Keys.CONTROL, "a")
    page.one("#where").send_keys("bpm > 100 AND artist <> 'Ada'", Keys.ENTER)
    page.until(page.names, ["low-high.wav"])
    page.ready()
    assert not page.is_visible("#notice")
    assert page.js("new URLSearchParams(location.hash.slice(1)).get('where')") == "bpm > 100 AND artist <> 'Ada'"


# Where results are drawn: the middle of all pixels of their colour, and how many there are.
HITS = """(() => {
  const canvas = document.getElementById("map-canvas");
  const dot = document.createElement("canvas").getContext("2d");
  dot.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--words").trim();
  dot.fillRect(0, 0, 1, 1);
  const [red, green, blue] = dot.getImageData(0, 0, 1, 1).data;
  const { width, height } = canvas;
  const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
  let [count, x, y] = [0, 0, 0];
  for (let at = 0; at < data.length; at += 4) {
    if (data[at] !== red || data[at + 1] !== green || data[at + 2] !== blue || data[at + 3] !== 255) continue;
    count++;
    x += (at / 4) % width;
    y += Math.floor(at / 4 / width);
  }
  const ratio = canvas.clientWidth / width;
  return [count, (x / count - width / 2) * ratio, (y / count - height / 2) * ratio];
})()"""


def test_the_map_shows_the_results_and_plays_the_point_that_is_clicked(page):
    page.open("#q=high&f.path=~onerror")  # one result: one point
    page.shows(UGLY)
    page.press("m")
    page.becomes("document.body.dataset.view", "map")
    page.becomes("document.getElementById('map-summary').textContent", "8 sounds")
    page.becomes(f"{HITS}[0] > 20")
    few, x, y = page.js(HITS)
    canvas = page.one("#map-canvas")
    point = page.mouse().move_to_element_with_offset(canvas, round(x), round(y))
    point.perform()
    page.becomes("document.getElementById('map-tip').textContent", UGLY)
    point.click().perform()
    page.until(lambda: page.texts("#map-card .name"), [UGLY])
    page.plays("#map-card [data-id]")
    page.click('#map-card [data-action="more"]')
    page.until(page.chips, ["words", "like", "filter"])
    page.open("#q=high&view=map")
    page.becomes(f"{HITS}[0] > {3 * few}")  # all eight now
    page.press("m")
    page.shows(*HIGH)


def test_the_keyboard_alone(page):
    page.open()
    page.press("/")
    assert page.js("document.activeElement.id") == "words"
    page.press(*"middle", Keys.ENTER)
    page.shows("middle.wav", "long.wav")
    chosen = "[...document.querySelectorAll('#results .row')].findIndex((row) => row.ariaCurrent)"
    page.press(Keys.ARROW_DOWN, "j", "j", "k")
    assert page.js(f"[{chosen}, document.activeElement.querySelector('.name').textContent]") == [1, "long.wav"]
    page.press(" ")
    page.plays(page.row("long.wav"))
    page.press(" ")
    page.pauses()
    page.press(Keys.ENTER)
    page.until(page.chips, ["words", "like"])
    page.shows("middle.wav")
    page.press("u")
    page.until(page.chips, ["words", "like", "unlike"])
    page.ready()
    page.press("?")
    assert page.js("document.getElementById('help').open")
    page.press("m")  # is not for the page now
    page.press(Keys.ESCAPE)
    assert not page.js("document.getElementById('help').open")
    for view in ("map", "list"):
        page.press("m")
        page.becomes("document.body.dataset.view", view)
    shown = page.is_visible("#filters")
    page.press("f")
    assert page.is_visible("#filters") is not shown


def test_a_path_is_copied(page, folder):
    page.searches("high", *HIGH)
    page.click(page.row(UGLY) + ' [data-action="copy"]')
    page.becomes("document.getElementById('toast').textContent", "Path copied")
    page.one("#without").send_keys(Keys.CONTROL, "v")
    assert page.one("#without").get_attribute("value") == str(folder / UGLY)
    page.until(page.chips, ["words", "without"])
    page.ready()


def test_a_playlist_of_the_results_and_a_download(page, folder, tmp_path):
    page.browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    page.open("#q=high&f.bpm=100..")
    page.shows("high.wav", "low-high.wav")
    page.click("#export")
    page.until(lambda: os.listdir(tmp_path), ["high.m3u8"])
    high, mixed = folder / "high.wav", folder / "deep" / "low-high.wav"
    assert (tmp_path / "high.m3u8").read_text() == (
        f"#EXTM3U\n#EXTINF:1,high.wav\n{high}\n#EXTINF:1,low-high.wav\n{mixed}\n"
    )
    page.click(page.row("low-high.wav") + ' [data-action="download"]')
    page.until(lambda: sorted(os.listdir(tmp_path)), ["high.m3u8", "low-high.wav"])
    page.until((tmp_path / "low-high.wav").read_bytes, mixed.read_bytes())


def test_the_address_holds_the_search_and_the_history_its_steps(page):
    page.open("#q=high&by=window&f.bpm=100..&where=artist+%3D+%27Ada%27&top=20")
    page.until(page.names, ["high.wav"])
    assert page.one("#where").get_attribute("value") == "artist = 'Ada'"
    assert page.one('[data-column="bpm"] input').get_attribute("value") == "100"
    assert page.js("document.querySelector('input[name=by]:checked').value") == "window"
    page.searches("high", *HIGH)
    page.one("#words").send_keys(Keys.CONTROL, "a")
    page.js("document.execCommand('insertText', false, 'low')")  # at once: a rest while typing would be a step
    page.press(Keys.ENTER)
    page.shows("low.wav")
    page.press(Keys.ESCAPE, "m")
    page.becomes("document.body.dataset.view", "map")
    page.browser.back()
    page.becomes("document.body.dataset.view", "list")
    page.browser.back()
    page.shows(*HIGH)
    assert page.one("#words").get_attribute("value") == "high"
    page.browser.forward()
    page.shows("low.wav")
    assert page.js("location.hash") == "#q=low"


def test_a_phone_never_scrolls_sideways(page):
    screen = {"width": 360, "height": 780, "deviceScaleFactor": 2, "mobile": True}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    wide = """[...document.querySelectorAll("html, body, header *, main *, footer *")].filter((one) =>
        one.checkVisibility() && one.getBoundingClientRect().right > 360.5 && !["B", "I", "SPAN"].includes(one.tagName)
      ).map((one) => one.outerHTML).concat(document.documentElement.scrollWidth > 360 ? ["the page"] : [])"""
    try:
        page.open()
        assert page.js("innerWidth") == 360
        assert page.js(wide) == []
        page.one("#words").send_keys("high", Keys.ENTER)
        page.shows(*HIGH)
        page.click(page.row(UGLY) + ' [data-action="play"]')
        page.plays(page.row(UGLY))
        page.click(page.row(UGLY) + ' [data-action="more"]')
        page.until(page.chips, ["words", "like"])
        page.shows("high.wav")
        assert page.js(wide) == []
        page.click("#filters-toggle")
        assert page.is_visible("#where")
        assert page.js(wide) == []
        page.click("#filters .close")
        page.click("#map-toggle")
        page.becomes("document.getElementById('map-summary').textContent", "8 sounds")
        assert page.js(wide) == []
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_dark_theme_is_kept(page):
    light = "rgb(253, 253, 251)"
    paper = "getComputedStyle(document.body).backgroundColor"
    page.open()
    assert page.js(paper) == light
    page.click("#theme")
    page.click("#theme")
    assert page.js("document.documentElement.dataset.theme") == "dark"
    dark = page.js(paper)
    assert dark != light
    page.open()
    assert page.js(f"[document.documentElement.dataset.theme, {paper}]") == ["dark", dark]


def test_the_token_is_asked_for_once(browser, shelf, model):
    from antiphon.serve.app import create_app
    from antiphon.serve.settings import Settings

    with serving(create_app({"tones": shelf}, {"tones": model}, Settings(token=TOKEN))) as url:
        for page in watched(browser, url):
            page.expected.append("status of 401")
            browser.get(f"{url}/#q=high")
            page.becomes("document.getElementById('token-dialog').open")
            page.press(*"wrong", Keys.ENTER)
            page.becomes("document.getElementById('token-error').textContent", "That is not the token of this server.")
            page.one("#token").send_keys(Keys.CONTROL, "a")
            page.one("#token").send_keys(TOKEN, Keys.ENTER)
            page.shows(*HIGH)  # and on with what was asked
            assert page.js("[document.getElementById('token-dialog').open, document.cookie]") == [False, ""]
            assert TOKEN not in page.js("location.href + JSON.stringify(localStorage)")
            page.click(page.row("high.wav") + ' [data-action="play"]')
            page.becomes("media.currentTime > 0")
            page.open("#q=low")
            page.shows("low.wav")


def test_hostile_names_tags_and_words_stay_text(page):
    page.open()
    assert HOSTILE in page.text("#empty")  # the library's name
    page.one("#words").send_keys(f"high {HOSTILE}", Keys.ENTER)
    page.shows(*HIGH)
    page.one("#where").send_keys(f"artist <> '{HOSTILE}' OR bpm > 0", Keys.ENTER)
    page.until(page.chips, ["words", "filter"])
    page.one('[data-column="artist"] input').send_keys('"')
    page.until(page.names, [UGLY])
    assert page.text("#results .tag").startswith(HOSTILE)
    page.becomes("[...document.querySelectorAll('[data-column=artist] option')].map((one) => one.value)", [HOSTILE])
    page.click('#results [data-action="play"]')
    page.plays("#results [data-id]")
    assert page.text("#player-name") == UGLY
    page.click('#results [data-action="less"]')
    page.until(page.chips, ["words", "unlike", "filter", "filter"])
    assert page.texts("#chips .hear")[0].startswith(UGLY)
    page.click("#map-toggle")
    page.becomes("document.getElementById('map-summary').textContent", "8 sounds")
    assert page.js("document.querySelectorAll('img:not(.brand img), [onerror], script:not([src])').length") == 0
    assert page.js("document.title") == f"high {HOSTILE} · Antiphon"
