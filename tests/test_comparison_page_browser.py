"""The page in a real browser: layout, requests, sorting and keyboard."""

import base64
import json
import re
import shutil

import pytest
from selenium import webdriver
from selenium.webdriver.common.keys import Keys

from tests.test_comparison_page import html, path

pytestmark = pytest.mark.browser
assert html  # a fixture
assert path  # a fixture


@pytest.fixture(scope="module")
def browser():
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield started
    started.quit()


@pytest.fixture
def shown(browser, path):
    """The page as it opens, in light, 1200 pixels wide."""
    emulate(browser, width=1200, scheme="light")
    browser.get(path.as_uri())
    return browser


def emulate(browser, width, scheme="light"):
    size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def test_it_renders_without_console_messages_or_network_requests(browser, path):
    browser.get_log("performance")
    browser.get_log("browser")
    browser.get(path.as_uri())
    assert browser.title.startswith("Which method finds the best small lenet_300_100 on <script>")
    heights = browser.execute_script(
        "return [...document.querySelectorAll('figure svg')].map(e => e.clientHeight)"
    )
    assert len(heights) == 7
    assert min(heights) > 100
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]


def column(browser, region, heading):
    """Press the heading of a table; its cells below and its aria-sort."""
    table = browser.find_element("css selector", f'[aria-label="{region}"] table')
    heads = [
        head.text.partition("\n")[0] for head in table.find_elements("css selector", "th button")
    ]
    place = heads.index(heading)
    return table, table.find_elements("css selector", "th button")[place], place


def cells(browser, table, place):
    script = "return [...arguments[0].tBodies[0].rows].map(r => r.cells[arguments[1]].textContent)"
    return [text.strip() for text in browser.execute_script(script, table, place)]


def test_numbers_sort_as_numbers_by_mouse_and_by_keyboard(shown):
    table, button, place = column(shown, "Differences in early stop", "difference")
    before = cells(shown, table, place)

    def value(text):
        return float(text.replace("\N{MINUS SIGN}", "-").replace(",", ""))

    button.click()
    head = button.find_element("xpath", "./..")
    assert head.get_attribute("aria-sort") == "ascending"
    assert cells(shown, table, place) == sorted(before, key=value)
    assert sorted(before) != sorted(before, key=value)  # text order would differ
    button.send_keys(Keys.ENTER)
    assert head.get_attribute("aria-sort") == "descending"
    assert cells(shown, table, place) == sorted(before, key=value, reverse=True)


def test_unknown_numbers_sort_last_in_both_directions(shown):
    table, button, place = column(shown, "Smallest matching networks", "weights left")
    for _ in range(2):
        button.click()
        assert cells(shown, table, place)[-1] == "\N{EN DASH}"


def test_words_sort_as_words_and_only_one_column_at_a_time(shown):
    table, button, place = column(shown, "Runs", "method")
    button.click()
    assert cells(shown, table, place) == sorted(cells(shown, table, place))
    column(shown, "Runs", "seed")[1].click()
    sorted_heads = table.find_elements("css selector", "th[aria-sort]")
    assert [head.text.partition("\n")[0] for head in sorted_heads] == ["seed"]


@pytest.mark.parametrize("width", [320, 390, 1200])
def test_nothing_overflows_the_viewport(browser, path, width):
    emulate(browser, width)
    browser.get(path.as_uri())
    browser.execute_script("document.querySelectorAll('details').forEach(e => e.open = true)")
    script = "const root = document.documentElement; return root.scrollWidth - root.clientWidth"
    assert browser.execute_script(script) == 0
    beyond = browser.execute_script(
        """return [...document.querySelectorAll('body *')]
            .filter(e => !e.parentElement.closest('.scroll') && !e.closest('.hidden, .skip'))
            .filter(e => e.getBoundingClientRect().right > innerWidth + 1)
            .map(e => e.outerHTML.slice(0, 80))"""
    )
    assert beyond == []


def luminance(browser, name):
    colour = browser.execute_script(
        f"return getComputedStyle(document.body).getPropertyValue('{name}')"
    )
    return sum(int(part) for part in re.findall(r"\d+", colour)[:3]) / 765


def test_dark_mode_swaps_light_and_dark(shown, path):
    assert luminance(shown, "background-color") > 0.95
    assert luminance(shown, "color") < 0.2
    emulate(shown, 1200, "dark")
    assert luminance(shown, "background-color") < 0.15
    assert luminance(shown, "color") > 0.8
    ink = "return getComputedStyle(document.querySelector('figure svg')).color"
    assert shown.execute_script(ink) == shown.execute_script(
        "return getComputedStyle(document.body).color"
    )


def test_the_first_tab_stop_skips_to_the_content(shown):
    shown.find_element("css selector", "body").send_keys(Keys.TAB)
    assert shown.switch_to.active_element.text == "Skip to content"
    shown.switch_to.active_element.send_keys(Keys.ENTER)
    assert shown.switch_to.active_element.get_attribute("id") == "content"


def test_it_prints(shown):
    printed = shown.execute_cdp_cmd("Page.printToPDF", {})
    assert base64.b64decode(printed["data"])[:5] == b"%PDF-"
