"""The report as a person meets it: opened from disk in headless Chromium."""

import json
import random
import shutil
import sys
from pathlib import Path

import pytest
from report_cases import make_run, sample_of, token_of, write_lines

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import hostile_completions

from covgrpo.cli import main

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH (Debian: apt-get install chromium)"),
]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield made
        made.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    runs = [make_run(folder / f"gaussian-{seed}", seed=seed) for seed in (0, 1)]
    runs.append(make_run(folder / "grpo", method="grpo"))
    evil = ["</script><img src=x onerror=document.title='hit'>", " and", " 7"]
    samples = [sample_of(step, evil, random.Random(0)) for step in (1, 60)]
    for sample in samples:
        sample["tokens"]["weight"] = [1.0, 0.5, -0.5]
    write_lines(runs[2] / "samples.jsonl", samples)
    records = [json.loads(line) for line in (runs[0] / "metrics.jsonl").read_text().splitlines()]
    probed = [
        {**r, "entropy/change": 3 * r["entropy/predicted"], "entropy/predicted_step": -r["step"]} for r in records
    ]
    write_lines(runs[0] / "metrics.jsonl", probed)
    assert main(["report", *map(str, runs), "--output", str(folder / "report.html"), "--title", "Three runs"]) == 0
    return folder / "report.html"


@pytest.fixture(params=["desktop", "dark phone"])
def page(request, browser, report):
    """The opened page; fails at its end if anything was said on the console or asked of the network."""
    options = {"viewport": {"width": 1280, "height": 900}}
    if request.param != "desktop":
        options = {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark", "has_touch": True}
    context = browser.new_context(**options)
    opened = context.new_page()
    said, asked = [], []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(report.as_uri())
    opened.wait_for_selector("html[data-ready=yes]", state="attached")
    yield opened
    context.close()
    assert said == []
    assert [url for url in asked if url != report.as_uri() and not url.startswith("data:")] == []


def test_figures_are_drawn(page):
    assert page.title() == "Three runs"
    curves = page.locator("figure[data-curve]")
    assert curves.count() >= 10
    for index in range(curves.count()):
        assert painted(curves.nth(index)), curves.nth(index).get_attribute("data-curve")
    assert page.locator("figure[data-histogram]").count() == 2
    assert page.locator("#quantiles tbody tr").count() == 6
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out sideways"


def painted(figure) -> int:
    """How many colours a chart's canvas has."""
    return figure.locator("canvas").first.evaluate(
        """canvas => {
            const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
            const seen = new Set();
            for (let i = 0; i < data.length; i += 4)
                if (data[i + 3]) seen.add((data[i] << 16) | (data[i + 1] << 8) | data[i + 2]);
            return seen.size > 3 ? seen.size : 0;
        }"""
    )


def test_pointing_at_a_curve_tells_its_numbers(page):
    over = page.locator("figure[data-curve=entropy] .u-over")
    over.scroll_into_view_if_needed()
    page.wait_for_timeout(200)  # scrolling hides what was told before
    box = over.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tip = page.locator("#tip")
    assert tip.is_visible()
    text = tip.inner_text()
    assert text.startswith("step 3") and "gaussian: " in text and " to " in text and "grpo: " in text


def test_the_sliders(page):
    first = page.locator("#histogram-label").inner_text()
    assert first.startswith("step 60")
    canvas = page.locator("figure[data-histogram=c] canvas").first
    before = canvas.evaluate("canvas => canvas.toDataURL()")
    page.locator("#histogram-step").fill("0")
    assert page.locator("#histogram-label").inner_text().startswith("step 1,")
    assert page.locator("figure[data-histogram=c] canvas").first.evaluate("canvas => canvas.toDataURL()") != before
    page.locator("#completion-step").fill("0")
    assert page.locator("#completion-label").inner_text() == "step 1"


def test_pointing_at_a_token_tells_its_numbers(page):
    token = page.locator(".tokens span").nth(1)
    token.scroll_into_view_if_needed()
    page.wait_for_timeout(200)
    token.hover()
    text = page.locator("#tip").inner_text()
    assert '" sum"' in text and "weight " in text and "log p " in text
    background = token.evaluate("token => getComputedStyle(token).backgroundColor")
    assert background.startswith("rgba(")


def test_a_token_whose_push_is_reversed_has_a_colour_of_its_own(page):
    page.locator("select[aria-label=run]").last.select_option(label="grpo")
    colours = [
        page.locator(".tokens span").nth(place).evaluate("token => getComputedStyle(token).backgroundColor")
        for place in (1, 2)
    ]
    assert colours[1].startswith(("rgba(116, 60, 190", "rgba(178, 130, 250")) and colours[0][:9] != colours[1][:9]


def test_text_of_runs_stays_text(page):
    page.locator("select[aria-label=run]").last.select_option(label="grpo")
    shown = page.locator(".tokens").first.inner_text()
    assert shown.startswith("</script><img src=x onerror=") and page.title() == "Three runs"
    assert page.locator("main img").count() == 0


def test_the_entropy_prediction_is_there(page):
    text = page.locator("figure[data-entropy=predicted] figcaption").first.inner_text()
    assert "Pearson" in text and "Spearman" in text


def test_colours_follow_the_scheme(page):
    dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(23, 24, 27)" if dark else "rgb(255, 255, 255)")


def test_axes_of_flat_curves_and_of_steps(page):
    assert page.evaluate("[ranges.any(null, 0, 0), ranges.any(null, 2, 2), ranges.any(null, null, null)]") == [
        [0, 1], [1.8, 2.2], [0, 1],
    ]  # fmt: skip
    low, high = page.evaluate("ranges.any(null, 0.5, 2)")
    assert low <= 0.5 and 2 <= high < 3
    assert page.evaluate("[ranges.steps(null, 3, 3), ranges.steps(null, 1, 60)]") == [[2, 4], [1, 60]]
    assert all(tick == int(tick) for tick in page.evaluate("ranges.stepTicks"))


def test_a_sentence_says_what_to_conclude(page):
    texts = page.locator(".conclusions li").all_inner_texts()
    assert texts[0].startswith("gaussian: the reward rose from 0.2")
    assert "Which is better cannot be told from this" in texts[-1]


def test_a_table_wider_than_the_screen_says_so(page):
    for table in ("#quantiles", "#damped"):
        holder = page.locator(f".wide:has({table})")
        wider = holder.evaluate("holder => holder.scrollWidth > holder.clientWidth")
        assert page.locator(f".hint:has(+ .wide {table})").is_visible() == wider
    if page.viewport_size["width"] < 400:
        assert page.locator(".hint:has(+ .wide #damped)").is_visible()


def hostile_run(folder):
    """A run in which every text is made to hurt, and the page's markup in each place that a record has."""
    rng = random.Random(0)
    pages = sorted({hostile_completions.page(rng) for _ in range(100)})
    texts = [*pages, *(kind(rng)[:20_000] for kind in hostile_completions.KINDS)]
    run = make_run(folder / "hostile", steps=len(texts), method=pages[0], task=pages[1], model=pages[2])
    samples = []
    for step, text in enumerate(texts, start=1):
        sample = sample_of(step, [text, pages[step % len(pages)], " 7"], rng)
        samples.append({**sample, "prompt": text, "rewards": {text: 1.0}})
    write_lines(run / "samples.jsonl", samples)
    write_lines(run / "tokens.jsonl", [{**token_of(i, 0, rng), "text": t, "before": t} for i, t in enumerate(texts, 1)])
    return run


def test_a_report_of_hostile_completions_runs_nothing(browser, tmp_path):
    run = hostile_run(tmp_path)
    title = "<script>document.title='HOSTILE'</script>"
    assert main(["report", f"{run}=</script><svg/onload>", "--title", title]) == 0
    page = browser.new_page()
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append("a dialog"))
    page.on("request", lambda request: asked.append(request.url))
    page.goto((run / "report.html").as_uri())
    page.wait_for_selector("html[data-ready=yes]", state="attached")
    for at in range(0, int(page.locator("#completion-step").get_attribute("max")) + 1):
        page.locator("#completion-step").fill(str(at))
    page.wait_for_timeout(300)
    assert (page.title(), said) == (title, [])
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    own = {"svg": 0, "iframe": 0, "base": 0, "img": 0, "script": 4, "style": 1}
    assert {name: page.locator(name).count() for name in own} == own, "no text became an element"
    page.close()


# What would run, show or load something, were a text of a run ever to become markup.
INJECTED = """
<script>document.title = "hit"</script>
<img src="x" onerror="document.title = 'hit'">
<svg onload="document.title = 'hit'"></svg>
<iframe srcdoc="<script>parent.document.title = 'hit'</script>"></iframe>
<object data="data:text/html,<script>top.document.title = 'hit'</script>"></object>
<style>main { display: none }</style><p id="styled" style="position: fixed">x</p>
<link rel="stylesheet" href="https://example.org/x.css"><base href="https://example.org/">
<a id="link" href="javascript:void(document.title = 'hit')">x</a>
<button id="button" onclick="document.title = 'hit'">x</button>
<form action="https://example.org/"><input name="x"><input id="send" type="submit"></form>
"""


def opened_with(browser, path, text):
    """(title, is the report shown, position of #styled, what was loaded) once all that can be clicked was clicked."""
    path.write_text(text, encoding="utf-8")
    page = browser.new_page()
    loaded = []
    page.on("requestfinished", lambda request: loaded.append(request.url))
    page.on("requestfailed", lambda request: loaded.append(request.url) if request.failure != "csp" else None)
    page.goto(path.as_uri())
    page.wait_for_timeout(300)
    styled = page.locator("#styled").evaluate("p => getComputedStyle(p).position")
    for name in ("link", "button"):
        page.evaluate(f"document.getElementById({name!r}).click()")
        page.wait_for_timeout(100)
    found = page.title(), page.locator("main").is_visible(), styled
    page.evaluate("document.getElementById('send').click()")  # a form that is held back leaves an empty page
    page.wait_for_timeout(300)
    page.close()
    return *found, {url.split("?")[0] for url in loaded}


def test_what_would_get_into_the_page_does_not_run(browser, report, tmp_path):
    text = report.read_text(encoding="utf-8")
    evil = text.replace("</header>", "</header>" + INJECTED)
    path = tmp_path / "evil.html"
    assert opened_with(browser, path, evil) == ("Three runs", True, "static", {path.as_uri()})
    start, end = text.index("<meta http-equiv"), text.index('<meta name="color-scheme"')
    assert "'unsafe" not in text[start:end]
    # Without the policy it would.
    without = evil.replace(text[start:end], "").replace("https://example.org/", "nowhere")
    title, shown, styled, loaded = opened_with(browser, tmp_path / "without.html", without)
    assert (title, shown, styled) == ("hit", False, "fixed") and len(loaded) > 1


def test_no_text_becomes_markup_in_the_page(browser, report):
    page = browser.new_page()
    page.goto(report.as_uri())
    if not page.evaluate("'trustedTypes' in window"):
        pytest.skip("this browser has no trusted types")
    assert page.evaluate("try { document.body.innerHTML = '<b>'; false } catch (error) { true }")
    page.close()
