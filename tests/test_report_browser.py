"""The report in a real browser: what it shows, and what its controls do."""

import json
import os
import re
import shutil
from base64 import b64decode
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from quick_run import folder_run, make_learnable_tree

from ribseg.cli import main

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
DRIVER = shutil.which("chromedriver")
PICTURES = os.environ.get("RIBSEG_PICTURES")  # folder for pictures of the pages, to be looked at


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver", reason="pip install selenium")
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("no browser; Debian and Ubuntu: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The report of a quick run with everything: maps over steps, masks, segmenter."""
    folder = tmp_path_factory.mktemp("report")
    tree = make_learnable_tree(folder / "tree", 12)
    whole = "run=[classifier,cam,rib,controls,refine,segmenter,evaluate,report]"
    folder_run(folder, tree, whole, "rib.steps=4", "rib.lr=0.01")
    return folder / "out" / "report.html"


@pytest.fixture
def page(browser, report):
    """The opened report, as a function of a script."""
    return opened(browser, report)


def opened(browser, path, width=1400, height=1000):
    browser.set_window_size(width, height)
    browser.get(path.as_uri())
    wait_until(
        browser, "return !document.getElementById('list') || document.querySelectorAll('.image').length > 0"
    )
    return browser.execute_script


def wait_until(browser, script):
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 20).until(lambda driver: driver.execute_script(script))


def complaints(browser):
    return [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def drawn(browser, column, place=0):
    """The pixels of a column of the place-th image, after it has been drawn."""
    canvas = f"document.querySelectorAll('canvas[data-column=\"{column}\"]')[{place}]"
    wait_until(browser, f"return {canvas} && {canvas}.width > 8")
    uri = browser.execute_script(f"return {canvas}.toDataURL()")
    return np.asarray(Image.open(BytesIO(b64decode(uri.partition(",")[2]))).convert("RGB")).astype(int)


def move(browser, control, value):
    """Sets a control as a user does, and waits until the images in view are drawn again."""
    browser.execute_async_script(
        "const [id, value, done] = arguments; const input = document.getElementById(id);"
        "if (input.type === 'checkbox') input.checked = value; else input.value = value;"
        "input.dispatchEvent(new Event('input', {bubbles: true}));"
        "input.dispatchEvent(new Event('change', {bubbles: true}));"
        "setTimeout(done, 150);",
        control, value,
    )  # fmt: skip


def ids(browser):
    return browser.execute_script(
        "return [...document.querySelectorAll('.image')].map(image => image.row.id)"
    )


def read(report, name):
    return json.loads(re.search(rf'id="{name}">(.*?)</script>', report.read_text(), re.DOTALL)[1])


def rows(report):
    return read(report, "gallery-data")["rows"]


def test_the_page_opens_without_complaints_and_without_a_network(browser, report, page):
    page("document.getElementById('images').scrollIntoView()")
    drawn(browser, "rib")
    assert complaints(browser) == []
    text = report.read_text()
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', text)
    assert "RIB reaches" in page("return document.querySelector('.answer').textContent")
    assert page("return document.querySelectorAll('section svg[role=img]').length") >= 5


def test_the_slider_over_the_steps_changes_the_maps_of_rib_alone(browser, page):
    browser.execute_script("document.getElementById('images').scrollIntoView()")
    after = {name: drawn(browser, name) for name in ("cam", "rib", "ground_truth")}
    move(browser, "k", 0)
    before = {name: drawn(browser, name) for name in after}
    assert (before["rib"] != after["rib"]).any()
    for name in ("cam", "ground_truth"):
        np.testing.assert_array_equal(before[name], after[name])
    # With k = 0 the map of RIB is that of CAM, which is kept in another size.
    move(browser, "outline", False)
    assert np.abs(drawn(browser, "rib") - drawn(browser, "cam")).mean() < 12
    caption = "return document.querySelector('canvas[data-column=rib]').nextElementSibling.textContent"
    assert page(caption) == "RIB, k = 0"


def test_opacity_goes_from_the_image_to_the_map(browser, report, page):
    browser.execute_script("document.getElementById('images').scrollIntoView()")
    image = drawn(browser, "")
    move(browser, "outline", False)
    move(browser, "opacity", 0)
    for name in ("cam", "rib", "pseudo_mask", "ground_truth"):
        np.testing.assert_array_equal(drawn(browser, name), image)
    move(browser, "opacity", 1)
    colours = np.array(read(report, "colour-map"))
    cam = drawn(browser, "cam")
    assert np.abs(cam[:, :, None] - colours).sum(-1).min(-1).max() <= 3  # nothing but the colours of maps
    assert np.abs(cam - image).mean() > 20


def test_sorting_by_loss_gain_score_and_id(browser, report, page):
    gains = {row["id"]: row["scores"]["rib"] - row["scores"]["cam"] for row in rows(report)}
    found = [gains[image] for image in ids(browser)]
    assert found == sorted(gains.values())  # the worst come first when the page opens
    options = page("return [...document.getElementById('sort').options].map(option => option.text)")
    move(browser, "sort", options.index("largest gain: RIB over CAM"))
    assert [gains[image] for image in ids(browser)] == sorted(gains.values(), reverse=True)
    scores = {row["id"]: row["scores"]["rib"] for row in rows(report)}
    move(browser, "sort", options.index("lowest score: RIB"))
    assert [scores[image] for image in ids(browser)] == sorted(scores.values())
    move(browser, "sort", options.index("image id"))
    assert ids(browser) == sorted(scores)


def test_filters_by_split_class_and_text(browser, report, page):
    everything = rows(report)
    move(browser, "split", "val")
    assert set(ids(browser)) == {row["id"] for row in everything if row["split"] == "val"}
    assert page("return document.getElementById('count').textContent") == f"4 of {len(everything)} images"
    move(browser, "split", "")
    move(browser, "class", "1")
    assert set(ids(browser)) == {row["id"] for row in everything if 1 in row["classes"]}
    move(browser, "class", "")
    move(browser, "text", "im_03")
    assert ids(browser) == ["im_03"]
    move(browser, "text", "no such image")
    assert ids(browser) == []
    move(browser, "text", "")
    assert len(ids(browser)) == len(everything)


def test_keys_move_between_images_and_steps(browser, page):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    order = ids(browser)
    press = lambda *keys: [ActionChains(browser).send_keys(key).perform() for key in keys]  # noqa: E731
    focused = "return document.activeElement.row && document.activeElement.row.id"
    press("j")
    assert page(focused) == order[0]
    press("j", "j")
    assert page(focused) == order[2]
    press("k")
    assert page(focused) == order[1]
    step = "return Number(document.getElementById('k').value)"
    last = page(step)
    press(Keys.ARROW_LEFT)
    assert page(step) == last - 1
    press("/", "im_0")  # keys in a text field write
    assert page("return document.getElementById('text').value") == "im_0"


def test_times_are_sorted_by_their_length(page):
    table = "[...document.querySelectorAll('#run table')].at(-1)"
    page(f"{table}.querySelectorAll('th button')[1].click()")
    seconds = page(f"return [...{table}.tBodies[0].rows].map(row => Number(row.cells[1].dataset.value))")
    assert len(seconds) > 5
    assert seconds == sorted(seconds, reverse=True)


def test_tables_are_sorted_by_a_click(page):
    table = "document.querySelector('#localization-maps table')"
    column = f"return [...{table}.tBodies[0].rows].map(row => row.cells[1].textContent)"
    before = page(column)
    page("document.querySelectorAll('#localization-maps th button')[1].click()")
    numbers = [float(text.split()[0]) for text in page(column)]
    assert numbers == sorted(numbers, reverse=True)
    page("document.querySelectorAll('#localization-maps th button')[1].click()")
    assert [float(text.split()[0]) for text in page(column)] == sorted(numbers)
    assert sorted(before) == sorted(page(column))


@pytest.mark.parametrize("width", [400, 1400])
def test_nothing_is_cut_off_at_any_width(browser, report, width):
    script = opened(browser, report, width, 900)
    browser.execute_script("document.getElementById('images').scrollIntoView()")
    drawn(browser, "rib")
    assert script("return document.documentElement.scrollWidth") <= script("return window.innerWidth")
    panel = script("return document.querySelector('.panels canvas').getBoundingClientRect().width")
    assert panel >= 90  # still to be seen
    if PICTURES:
        browser.save_screenshot(f"{PICTURES}/gallery-{width}.png")


def test_three_runs_beside_each_other(browser, report, tmp_path):
    folder = report.parent.parent
    for name, lr in (("slow", 0.001), ("fast", 0.1)):
        stages = "run=[classifier,cam,rib,evaluate]"
        folder_run(folder, folder / "tree", stages, "rib.steps=4", f"rib.lr={lr}", output=name)
    runs = [str(folder / name) for name in ("out", "slow", "fast")]
    main(["report", *runs, "--out", str(tmp_path), "--resamples", "50", "--names", "first,slow,fast"])
    script = opened(browser, tmp_path / "comparison.html")
    script("document.getElementById('images').scrollIntoView()")
    pictures = [drawn(browser, name) for name in ("rib/first", "rib/slow", "rib/fast", "cam/first")]
    assert all((one != pictures[0]).any() for one in pictures[1:])
    assert complaints(browser) == []
    labels = script(
        "return [...document.querySelector('.panels').querySelectorAll('figcaption')].map(c => c.innerText)"
    )
    assert [text.partition(", k")[0] for text in labels[:5]] == [
        "image", "RIB, first", "RIB, slow", "RIB, fast", "CAM",
    ]  # fmt: skip
    scores = {row["id"]: row["scores"] for row in rows(tmp_path / "comparison.html")}
    losses = [scores[image]["rib/slow"] - scores[image]["rib/first"] for image in ids(browser)]
    assert losses == sorted(losses)  # the worst of the second run against the first come first
    assert "RIB, first: " in script("return document.querySelector('.answer').textContent")
    first = "return [...document.querySelectorAll('#settings tbody tr')].map(row => row.cells[0].textContent)"
    assert script(first) == ["run", "rib.lr"]
    if PICTURES:
        browser.save_screenshot(f"{PICTURES}/comparison.png")


def test_the_report_of_one_run_is_written_again(report, capsys):
    before = report.read_bytes()
    report.unlink()
    capsys.readouterr()
    main(["report", str(report.parent)])
    assert capsys.readouterr().out.strip() == f"report: {report}"
    assert report.read_bytes() == before


def test_dark_and_light(browser, page):
    background = "return getComputedStyle(document.body).backgroundColor"
    first = page(background)
    page("document.getElementById('theme').click()")
    assert page(background) != first
    page("document.getElementById('theme').click()")
    assert page(background) == first


def test_everything_has_a_name_for_screen_readers(page):
    nameless = page(
        "return [...document.querySelectorAll('canvas, svg, input, select, button, img')].filter(e => "
        "!(e.getAttribute('aria-label') || e.getAttribute('alt') || e.textContent.trim() "
        "|| (e.labels && e.labels.length)))"
        ".filter(e => e.getBoundingClientRect().height > 0).map(e => e.outerHTML.slice(0, 80))"
    )
    # Canvases that have not come into view yet get their name when they are drawn.
    assert [text for text in nameless if "data-column" not in text] == []
    assert page("return document.documentElement.lang") == "en"
