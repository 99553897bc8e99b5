"""The page: its text, and what a real browser makes of it."""

import base64
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import torch
from selenium import webdriver
from selenium.webdriver.common.keys import Keys

from experiments.comparison.checklist import ITEMS, Evidence, operating_points
from experiments.comparison.page import Comparison, Failure, last_iteration, page, question
from experiments.comparison.statistics import summarise

METHODS = {  # reinit, criterion, control; where accuracy and early stop end, against dense
    "keep": ("keep", "magnitude", "none", -0.004, 0.35),
    "random": ("random", "magnitude", "none", -0.045, 1.9),
    "lottery": ("lottery", "magnitude", "none", -0.002, 0.7),
}
WITH_CONTROL = METHODS | {
    "lottery shuffled_mask": ("lottery", "magnitude", "shuffled_mask", -0.04, 1.8)
}
ROUNDS, EPOCHS, ITERATIONS = 11, 10, 240


def row_of(method, seed, number, rng, kinds):
    """A plausible round: accuracy bends down as the network shrinks."""
    reinit, criterion, control, fall, slower = kinds[method]
    left = 0.8**number
    bend = fall * (number / (ROUNDS - 1)) ** 2
    noise = rng.normal(0, 0.0012) if number else 0.001 * seed
    accuracy = 0.972 + bend + noise
    stop = 120 * (1 + (slower - 1) * number / (ROUNDS - 1)) + rng.integers(-9, 9)
    return {
        "method": method,
        "reinit": reinit,
        "criterion": criterion,
        "control": control,
        "pruning": "iterative",
        "seed": seed,
        "round": number,
        "sparsity": 1 - left,
        "train_loss": 0.02,
        "valid_loss": 0.12 - bend,
        "valid_accuracy": accuracy - 0.001 + (0.002 if 0 < number < 5 else 0),
        "test_loss": 0.13 - bend,
        "test_accuracy": accuracy,
        "early_stop_iteration": min(int(stop if number else 118 + 2 * seed), ITERATIONS),
        "early_stop_valid_accuracy": accuracy - 0.001,
        "early_stop_test_accuracy": accuracy - 0.002,
        "remaining_weights": round(266_200 * left),
        "compression_ratio": 266_610 / (410 + 266_200 * left),
        "theoretical_speedup": 1 / left,
        "checkpoint_bytes": round(1_066_000 * left),
        "round_seconds": 3.0 + rng.random(),
        "train_seconds": 2.5,
        "layer_sparsity/fc1": 1 - left,
        "layer_sparsity/fc2": 1 - left,
        "layer_sparsity/fc3": 1 - 0.9**number,
        "run_id": f"{list(kinds).index(method):016x}{seed:016x}",
    }


def epochs_of(rounds):
    rows = []
    for row in rounds.itertuples():
        for epoch in range(1, EPOCHS + 1):
            short = 0.5 * np.exp(-epoch / (0.4 if row.reinit == "keep" else 1.5))
            rows.append(
                {"method": row.method, "seed": row.seed, "round": row.round, "epoch": epoch}
                | {"train_loss": 0.1, "valid_loss": 0.2}
                | {"valid_accuracy": row.valid_accuracy - short}
                | {"test_accuracy": row.test_accuracy - short}
            )
    return pd.DataFrame(rows)


def comparison_of(kinds=METHODS, seeds=(0, 1, 2), shown_round=7, sizes=(30, 20)):
    rng = np.random.default_rng(0)
    rounds = pd.DataFrame(
        [
            row_of(method, seed, number, rng, kinds)
            for method in kinds
            for seed in seeds
            for number in range(ROUNDS)
        ]
    )
    draw = torch.Generator().manual_seed(0)
    shapes = {"fc1.weight": (sizes[0], 64), "fc2.weight": (sizes[1], sizes[0])}
    masks = {
        (method, seed): {
            name: torch.rand(shape, generator=draw) < 0.8**shown_round
            for name, shape in shapes.items()
        }
        for method in kinds
        for seed in seeds
    }
    setting = {
        "dataset": "digits",
        "model": "lenet_300_100",
        "masks": "own",
        "rounds": str(ROUNDS - 1),
        "epochs": str(EPOCHS),
        "retrain_epochs": str(EPOCHS),
        "batch_size": "60",
        "prune_rate": "0.2",
        "output_prune_rate": "0.1",
        "scope": "layer",
        "optimizer": "adam",
        "lr": "0.0012",
        "schedule": "cosine",
        "eval_every": "0",
    }
    return Comparison(
        name="keep, random, lottery on digits",
        setting=setting,
        defaults=frozenset(list(setting)[5:]) - {"output_prune_rate"},
        rounds=rounds,
        epochs=epochs_of(rounds),
        masks=masks,
        image_shape=(1, 8, 8),
        shown_round=shown_round,
        failed=(),
        links={run: f"http://127.0.0.1:5000/#/runs/{run}" for run in rounds["run_id"]},
        command="mlflow run . -e compare -P reinits=keep,random,lottery -P seeds=3",
        environment={
            "version.python": "3.11.7",
            "version.torch": "2.11.0",
            "processor": "x86_64 AVX512, 2 cores",
            "threads": "1",
            "git_commit": "875a04c0d1f7e6c3b2a1908f7e6d5c4b3a291807",
            "git_dirty": "false",
        },
        images={"train": 1412, "valid": 128, "test": 257},
        data_source="as asked for (dataset=digits)",
        pretrained=False,
    )


HOSTILE = "<script>document.title = 'gone'</script> & co"


def failing():
    """Four methods, one arm that broke off, and a data set whose name is an attack."""
    whole = comparison_of(WITH_CONTROL)
    broken = (whole.rounds["method"] == "random") & (whole.rounds["seed"] == 2)
    return replace(
        whole,
        setting=whole.setting | {"dataset": HOSTILE},
        rounds=whole.rounds[~(broken & (whole.rounds["round"] > 8))],
        failed=(Failure("random", 2, f"the loss is nan in {HOSTILE}"),),
    )


def done_again(comparison):
    """The same comparison on another day: other ids, links and seconds."""
    rounds = comparison.rounds.copy()
    rounds["run_id"] = rounds["run_id"].str.replace("0", "f")
    rounds["round_seconds"] *= 3
    rounds["train_seconds"] *= 3
    links = {run: f"http://elsewhere/{run}" for run in rounds["run_id"]}
    return replace(comparison, rounds=rounds, links=links)


@pytest.fixture(scope="module")
def html():
    return page(failing())


@pytest.fixture(scope="module")
def path(html, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(html, encoding="utf-8")
    return path


def test_two_pages_of_the_same_comparison_differ_in_volatile_elements_only(html):
    again = page(done_again(failing()))
    volatile = re.compile(r'<(a|span) class="volatile"[^>]*>[^<]*</\1>')
    assert again != html
    assert volatile.sub("", again) == volatile.sub("", html)
    assert len(volatile.findall(html)) == 2 * 12  # minutes and run of every arm


class Outline(HTMLParser):
    """Ids, what is fetched, and pictures without words."""

    def __init__(self):
        super().__init__()
        self.ids, self.fetched, self.anchors, self.images = [], [], [], []

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        self.ids += [named["id"]] if "id" in named else []
        self.images += [named] if tag == "svg" else []
        if tag == "a":
            self.anchors.append(named["href"])
        else:
            links = ("src", "href", "xlink:href", "action", "data", "srcset", "poster")
            self.fetched += [named[name] for name in links if name in named]


def test_the_page_is_one_file_that_fetches_nothing(html):
    outline = Outline()
    outline.feed(html)
    assert all(link.startswith(("#", "data:")) for link in outline.fetched)
    assert not re.search(r"@import|url\((?!#)", html)


def test_ids_are_unique_and_every_inner_link_leads_somewhere(html):
    outline = Outline()
    outline.feed(html)
    assert len(outline.ids) == len(set(outline.ids))
    inner = {link[1:] for link in outline.anchors + outline.fetched if link.startswith("#")}
    inner |= set(re.findall(r"url\(#([^)]+)\)", html))
    assert inner <= set(outline.ids)


def test_every_figure_has_a_caption_and_a_text_instead(html):
    figures = re.findall(r"<figure .*?</figure>", html, flags=re.DOTALL)
    assert len(figures) == 7
    for figure in figures:
        assert re.search(r'<svg [^>]*role="img"', figure)
        assert re.search(r"<title[^>]*>[^<]{10,}</title>", figure)
        assert re.search(r"<figcaption>[^<]{40,}</figcaption>", figure)
        assert "currentColor" in figure
        assert "#1b1f24" not in figure


def test_names_are_escaped(html):
    assert HOSTILE not in html
    assert html.count("&lt;script&gt;document.title = &#39;gone&#39;&lt;/script&gt; &amp; co") >= 4


def test_the_page_holds_what_it_promises(html):
    text = re.sub(r"\s+", " ", html)
    assert "1 arm failed" in text
    assert "Each method prunes networks of its own" in text
    assert "not corrected for multiple comparisons" in text
    assert "So here it does matter which weights are kept." in text
    assert "mlflow run . -e compare -P reinits=keep,random,lottery -P seeds=3" in text
    assert text.count('class="answer ') == len(ITEMS)
    assert not re.search(r"\bnan\b(?! in )|None|NaN(?!\()", text.partition("<script>")[0])


def test_one_seed_makes_a_page_without_spread():
    html = page(replace(comparison_of(seeds=(0,)), links={}, images={}, environment={}))
    assert "There is one seed: nothing can be said about spread" in html
    assert not re.search(r"\bnan\b", html)
    assert f'<span class="volatile">{0:032x}</span>' in html  # no link, so the whole id


def test_a_comparison_without_rounds_is_refused():
    empty = comparison_of()
    with pytest.raises(ValueError, match="without a single finished round"):
        page(replace(empty, rounds=empty.rounds.iloc[:0]))


def test_the_question_names_methods_network_and_data():
    setting = {"dataset": "digits", "model": "lenet_5_5"}
    assert question(setting, ["keep", "random", "lottery"]) == (
        "Which makes the best small lenet_5_5 on digits: keep, random or lottery?"
    )
    assert question(setting, ["keep"]) == "How small can keep make lenet_5_5 on digits?"


def test_the_last_iteration_counts_a_smaller_last_batch():
    setting = {"retrain_epochs": "10", "batch_size": "60"}
    assert last_iteration(setting, {"train": 1412}) == 240  # 23 batches of 60, one of 32
    assert last_iteration(setting, {}) is None
    assert last_iteration({}, {"train": 1412}) is None


def evidence_of(comparison, **changes):
    evidence = Evidence(
        comparison.rounds,
        summarise(comparison.rounds),
        comparison.setting,
        comparison.environment,
        comparison.images,
    )
    return replace(evidence, **changes)


def answers(evidence):
    return {item.__name__: item(evidence).answer for item in ITEMS}


def test_the_checklist_is_honest_about_a_small_comparison():
    assert answers(evidence_of(comparison_of())) == {
        "pairs": "no",
        "named": "partly",
        "reproducible": "yes",
        "dense_too": "yes",
        "both_sizes": "yes",
        "operating_points": "partly",
        "extremes": "yes",
        "curves": "yes",
        "top5": "partly",
        "random_baseline": "no",
        "magnitude_baseline": "yes",
        "other_methods": "no",
        "seeds": "yes",
        "error_bars": "yes",
        "same_recipe": "partly",
        "modest": "partly",
    }


def test_the_checklist_sees_what_changes():
    one = {"lottery": METHODS["lottery"]}
    found = answers(evidence_of(comparison_of(one, seeds=(0,)), environment={"git_dirty": "true"}))
    assert (found["seeds"], found["error_bars"], found["curves"]) == ("no", "no", "no")
    assert (found["reproducible"], found["extremes"]) == ("partly", "no")
    assert found["same_recipe"] == "yes"
    by_lot = METHODS | {"lottery random": ("lottery", "random", "none", -0.05, 2)}
    newer = by_lot | {"lottery snip": ("lottery", "snip", "none", -0.01, 1)}
    found = answers(evidence_of(comparison_of(newer, seeds=(0, 1))))
    assert (found["random_baseline"], found["other_methods"]) == ("yes", "partly")
    assert found["seeds"] == "partly"


def test_operating_points_are_told_with_the_networks_that_cover_them():
    item = operating_points(evidence_of(comparison_of()))
    assert item.why.startswith(
        "Nearest networks within 12%: 1.95\N{MULTIPLICATION SIGN} for 2\N{MULTIPLICATION SIGN}, "
    )
    assert "none for 16\N{MULTIPLICATION SIGN}" in item.why


# From here on in a real browser.


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


def test_it_renders_without_a_complaint_and_without_the_network(browser, path):
    browser.get_log("performance")
    browser.get_log("browser")
    browser.get(path.as_uri())
    assert browser.title.startswith("Which makes the best small lenet_300_100 on <script>")
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
    table, button, place = column(shown, "Paired differences", "difference")
    before = cells(shown, table, place)

    def value(text):
        return float(text.replace("\N{MINUS SIGN}", "-").replace(",", ""))

    button.click()
    head = button.find_element("xpath", "./..")
    assert head.get_attribute("aria-sort") == "ascending"
    assert cells(shown, table, place) == sorted(before, key=value)
    assert sorted(before) != sorted(before, key=value)  # as text they would stand otherwise
    button.send_keys(Keys.ENTER)
    assert head.get_attribute("aria-sort") == "descending"
    assert cells(shown, table, place) == sorted(before, key=value, reverse=True)


def test_unknown_numbers_stay_below_whichever_way_a_table_is_sorted(shown):
    table, button, place = column(shown, "Winning tickets", "weights left")
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


def test_dark_mode_turns_paper_and_ink_around(shown, path):
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
