"""The page: its text, its links and figures, and what it refuses."""

import re
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import torch

from experiments.comparison.checklist import ITEMS
from experiments.comparison.figures import draw_all
from experiments.comparison.page import question, render_page
from experiments.comparison.results import Comparison
from experiments.figures.page import to_svg

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
        retrain_lr={m: 0.00036 if m == "keep" else 0.0012 for m in rounds["method"]},
        retrain_epochs=dict.fromkeys(rounds["method"], EPOCHS),
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
    )


HOSTILE = "<script>document.title = 'gone'</script> & co"


@cache
def failing():
    """Four methods, an arm that stopped early, and a data set whose name is an attack."""
    whole = comparison_of(WITH_CONTROL)
    broken = (whole.rounds["method"] == "random") & (whole.rounds["seed"] == 2)
    return replace(
        whole,
        setting=whole.setting | {"dataset": HOSTILE},
        rounds=whole.rounds[~(broken & (whole.rounds["round"] > 8))],
        failed=[{"label": "random", "seed": 2, "reason": f"the loss is nan in {HOSTILE}"}],
    )


@cache
def drawings():
    return {name: to_svg(figure) for name, figure in draw_all(failing()).items()}


@cache
def failing_page():
    return render_page(failing(), drawings())


def repeated(comparison):
    """The same comparison on another day: other ids, links and seconds."""
    rounds = comparison.rounds.copy()
    rounds["run_id"] = rounds["run_id"].str.replace("0", "f")
    rounds["round_seconds"] *= 3
    rounds["train_seconds"] *= 3
    links = {run: f"http://elsewhere/{run}" for run in rounds["run_id"]}
    return replace(comparison, rounds=rounds, links=links)


@pytest.fixture(scope="module")
def html():
    return failing_page()


@pytest.fixture(scope="module")
def path(html, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(html, encoding="utf-8")
    return path


def test_two_pages_of_the_same_comparison_differ_in_volatile_elements_only(html):
    again = render_page(repeated(failing()), drawings())
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


def test_every_figure_has_a_caption_and_a_title(html):
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


def test_the_page_has_its_caveats_command_and_checklist(html):
    text = re.sub(r"\s+", " ", html)
    assert "1 arm failed" in text
    assert "random lacks 2 networks (seed 2)" in text
    assert "Each method prunes its own networks" in text
    assert (
        "Corrected by Holm&#39;s method (headline family: 3 tests; controls family: 1 test)" in text
    )
    assert "<td>it matters which weights are kept</td>" in text
    assert "is above \N{MINUS SIGN}0.20 points." in text
    assert "winning ticket" not in text  # the rate is not constant
    assert "follows schedule=cosine, which sets when validation loss is lowest" in text
    assert "of means it is an upper bound, and of differences it is unknown" in text
    assert "mlflow run . -e compare -P reinits=keep,random,lottery -P seeds=3" in text
    assert text.count('class="answer ') == len(ITEMS)
    assert not re.search(r"\bnan\b(?! in )|None|NaN(?!\()", text.partition("<script>")[0])


def test_the_answer_and_its_figure_come_first(html):
    places = [html.index(f'id="{name}"') for name in ("accuracy", "figures", "settings", "runs")]
    assert html.index('class="lead"') < min(places)
    assert places == sorted(places)
    assert html.index('id="accuracy"') < html.index("<main")  # beside the answer


def table_rows(html, name):
    table = re.search(rf'aria-label="{name}".*?</table>', html, re.DOTALL)[0]
    return re.findall(r"<tr>\n<th scope=\"row.*?</tr>", table, flags=re.DOTALL)


def test_only_the_tests_of_the_family_have_verdicts(html):
    rows = table_rows(html, "Tested differences in accuracy")
    assert len(rows) == 3  # the best method against two others and the dense network
    verdict = r">(higher|lower|undecided \(\d\.\d\d points could have been shown\))<"
    assert all(re.search(verdict, row) for row in rows)
    assert len({re.search(verdict, row)[1][:6] for row in rows}) > 1
    for name, count in (("All differences in accuracy", 10), ("Differences, all rounds", 400)):
        rows = table_rows(html, name)
        assert len(rows) == count  # six pairs of methods, and four with the dense network
        assert not any(re.search(verdict, row) for row in rows)


def test_early_stops_are_tested_only_if_the_rate_is_constant(html):
    def heads(page):
        table = re.search(r'aria-label="Differences in early stop".*?</table>', page, re.DOTALL)[0]
        return re.findall(r"<th scope=\"col\"[^>]*>([^<]*)<", table)

    whole = comparison_of()
    constant = replace(whole, setting=whole.setting | {"schedule": "constant"})
    page = render_page(constant, drawings())
    assert "p" in heads(page)
    assert "p" not in heads(html)
    assert "a matching subnetwork of <code>lottery</code> whose early" in page


def test_with_the_images_of_every_network_the_intervals_are_over_images_too():
    whole, draw = comparison_of(), np.random.default_rng(0)
    hard = np.arange(257) < 40
    correct = {
        (row.method, row.seed, row.round): ~(hard & (draw.random(257) < 0.2))
        for row in whole.rounds.itertuples()
    }
    page = render_page(replace(whole, correct=correct), drawings())
    assert "upper bound" not in page
    cells = [row.count("\N{EN DASH}") for row in table_rows(page, "Tested differences in accuracy")]
    assert cells == [0, 0, 0]


def test_where_a_method_restarts_is_said_without_a_paper_that_does_otherwise():
    own = comparison_of()
    shared = replace(own, setting=own.setting | {"masks": "shared"})
    cell = "Survivors get new random values"
    pages = [render_page(each, drawings()) for each in (own, shared)]
    assert f"{cell}</td>" in pages[0]
    assert f"{cell}: the control of Frankle &amp; Carbin 2019, arXiv:1803.03635</td>" in pages[1]


def test_one_seed_makes_a_page_without_spread():
    unknown = {"git_commit": "unknown", "git_dirty": "unknown"}
    comparison = replace(comparison_of(seeds=(0,)), links={}, environment=unknown)
    html = render_page(comparison, drawings())
    assert "With one seed no spread is known" in html
    assert ">one seed<" in html
    assert not re.search(r"\bnan\b", html)
    assert f'<span class="volatile">{0:032x}</span>' in html  # no link, so the whole id


def test_dense_networks_alone_make_a_page():
    whole = comparison_of()
    dense = replace(whole, rounds=whole.rounds[whole.rounds["round"] == 0], shown_round=0)
    html = render_page(dense, drawings())
    assert "there is nothing to compare" in html
    assert "Differences in" not in html


def test_the_page_says_whose_masks_the_methods_retrain():
    own = comparison_of()
    shared = replace(own, setting=own.setting | {"masks": "shared"})
    pages = [render_page(each, drawings()) for each in (own, shared)]
    assert ["found by one trunk experiment" in page for page in pages] == [False, True]
    assert ["prunes its own networks" in page for page in pages] == [True, False]


def test_the_question_names_methods_network_and_data():
    assert question(comparison_of()) == (
        "Which method finds the best small lenet_300_100 on digits: keep, random or lottery?"
    )
    one = {"keep": METHODS["keep"]}
    assert question(comparison_of(one)) == "How small can keep make lenet_300_100 on digits?"
    many = {f"lottery {number}": METHODS["lottery"] for number in range(5)}
    assert question(comparison_of(many)).startswith("Which of 5 methods finds the best small")
    alone = comparison_of({name: WITH_CONTROL[name] for name in ("lottery", *WITH_CONTROL)})
    assert "lottery shuffled_mask" not in question(alone)
