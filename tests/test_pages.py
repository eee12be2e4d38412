"""The pages in a real headless Chromium: nothing overflows, nothing is fetched, nothing complains, all can be read."""

import itertools
import json

import chromium
import made_results as made
import pytest

from plaudit import report

pytestmark = pytest.mark.skipif(chromium.find() is None, reason="there is no chromium; apt-get install chromium")

# The least contrast of WCAG 2.2, level AA, for text of ordinary size.
LEAST_CONTRAST = 4.5
# Every text with its contrast against all that is painted behind it, the lowest first.
CONTRASTS = """(() => {
  const parts = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const over = (top, below, alpha) => below.map((value, i) => alpha * top[i] + (1 - alpha) * value);
  const light = rgb => { const [r, g, b] = rgb.map(v => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4 });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    if (!node.data.trim()) continue;
    const owner = node.parentElement, range = document.createRange();
    range.selectNodeContents(node);
    const box = range.getBoundingClientRect();
    if (!box.width || !box.height || !owner.checkVisibility()) continue;
    const style = getComputedStyle(owner);
    const inside = Boolean(owner.ownerSVGElement);
    const paint = parts(inside ? style.fill : style.color);
    const behind = document.elementsFromPoint(box.x + Math.min(box.width / 2, 20), box.y + box.height / 2).reverse();
    let ground = [255, 255, 255];
    for (const one of behind) {
      if (one === owner && inside) continue;
      const look = getComputedStyle(one), shape = one.ownerSVGElement && one.tagName !== 'text';
      if (shape && look.fill === 'none') continue;
      const colour = parts(shape ? look.fill : look.backgroundColor);
      if (colour.length < 3) continue;
      const alpha = (colour.length > 3 ? colour[3] : 1) * (shape ? Number(look.opacity) * Number(look.fillOpacity) : 1);
      ground = over(colour, ground, alpha);
    }
    const [a, b] = [light(paint), light(ground)].sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), node.data.trim().slice(0, 60)]);
  }
  return found.sort((x, y) => x[0] - y[0]);
})()"""
# What stands out of the page on the right, boxes that scroll by themselves left out.
OUTSIDE = """[...document.querySelectorAll('main *')].filter(one => !one.closest('.scroll') && one.checkVisibility()
  && one.getBoundingClientRect().right > innerWidth + 0.5).map(one => one.outerHTML.slice(0, 120))"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium.Browser(tmp_path_factory.mktemp("profile")) as one:
        yield one


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The pages to look at, by name: everything at once, one file of pairs, a demo, hostile names and texts, a comparison."""
    folder = tmp_path_factory.mktemp("pages")
    benchmarks = {
        "hh_harmless": made.pairs_entry(),
        "RM-Bench": made.rm_bench_entry(),
        "RewardMATH": made.best_of_entry(),
        "RewardBench": made.incomplete_entry(),
    }
    hostile = made.pairs_entry()
    hostile["subsets"] = {made.HOSTILE + "x" * 300: made.figure(0.4, 500), "b": made.figure(0.6, 500)}
    hostile["distributions"] = {name: made.distribution(1, -1) for name in ("all", made.HOSTILE, "b")}
    texts = made.mistakes(made.HOSTILE)
    for row in texts:
        row["prompt"], row["subset"] = made.HOSTILE + "y" * 5_000, made.HOSTILE
        row["candidates"][0]["text"] = made.HOSTILE * 100
    made.write(
        folder / "all", results=benchmarks, mistakes=made.mistakes("hh_harmless", long=True), state=made.trainer_state()
    )
    made.write(
        folder / "pairs", results={"hh_harmless": benchmarks["hh_harmless"]}, mistakes=made.mistakes("hh_harmless")
    )
    made.write(folder / "demo", summary=made.demo_summary(), state=made.trainer_state())
    made.write(folder / "hostile", results={made.HOSTILE: hostile}, mistakes=texts)
    found = {one.name: report.write_report(one) for one in sorted(folder.iterdir())}
    compared = made.comparison()
    compared["names"][1] = made.HOSTILE
    return {**found, "comparison": report.write_comparison(compared, folder / "comparison.html")}


NAMES = ("all", "pairs", "demo", "hostile", "comparison")


@pytest.mark.parametrize("width", [320, 390, 1440])
@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_wider_than_the_window(browser, pages, name, width):
    page = browser.open(pages[name], width=width)
    assert page.value("innerWidth") == width
    # Open folds show what they hide: their contents have to fit as well.
    page.value("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.value(OUTSIDE) == []
    assert page.value("document.scrollingElement.scrollWidth") <= width
    page.close()


@pytest.mark.parametrize("name", NAMES)
def test_a_page_asks_for_nothing_but_itself_and_nothing_complains(browser, pages, name):
    page = browser.open(pages[name])
    asked = [url for url in page.requests() if not url.startswith("data:")]
    assert asked == [pages[name].resolve().as_uri()]
    assert page.complaints() == []
    page.close()


def test_the_checks_see_requests_scripts_errors_and_overflow(browser, tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<!doctype html><meta name=viewport content='width=device-width'><body><main><img src='gone.png'>"
        "<p style='width:3000px;color:#999;background:#aaa'>wide</p><script>console.error('x'); boom()</script></main>"
    )
    page = browser.open(bad, width=390)
    assert any(url.endswith("gone.png") for url in page.requests())
    assert len(page.complaints()) >= 2
    assert page.value(OUTSIDE)
    assert page.value(CONTRASTS)[0][0] < LEAST_CONTRAST
    page.close()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_enough_contrast(browser, pages, name, scheme):
    page = browser.open(pages[name], scheme=scheme, height=30_000)
    found = page.value(CONTRASTS)
    assert len(found) > 60, "the check saw too few texts"
    assert [one for one in found if one[0] < LEAST_CONTRAST] == []
    page.close()


def test_a_dark_scheme_has_other_colours_in_text_and_pictures(browser, pages):
    looks = []
    for scheme in ("light", "dark"):
        page = browser.open(pages["pairs"], scheme=scheme)
        expression = "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color, getComputedStyle(document.querySelector('svg.plot text')).fill]"
        looks.append(page.value(expression))
        page.close()
    light, dark = looks
    assert all(one != other for one, other in zip(light, dark, strict=True))


def test_all_of_a_page_is_there_without_scripts(browser, pages):
    texts = []
    for scripts in (True, False):
        page = browser.open(pages["all"], scripts=scripts)
        texts.append(page.value("document.body.innerText"))
        page.close()
    assert texts[0] == texts[1]
    assert "In short" in texts[0]


def test_hostile_texts_make_no_elements_and_run_nothing(browser, pages):
    page = browser.open(pages["hostile"])
    assert page.value("document.querySelectorAll('script, iframe, img, object').length") == 0
    assert page.value("document.querySelectorAll('style').length") == 1
    assert "<script>alert('x')</script>" in page.value("document.body.innerText")
    assert page.value("document.title").startswith("plaudit report: <script>")
    page.close()


def test_print_shows_what_is_folded_and_cuts_no_table(browser, pages):
    seen = "[...document.querySelectorAll('details table')].map(one => one.checkVisibility())"
    page = browser.open(pages["all"], width=700)
    assert not any(page.value(seen))
    page.close()
    page = browser.open(pages["all"], width=700, media="print")
    assert len(page.value(seen)) > 10
    assert all(page.value(seen))
    cut = (
        "[...document.querySelectorAll('.scroll')].filter(one => getComputedStyle(one).overflowX !== 'visible').length"
    )
    assert page.value(cut) == 0
    wide = "[...document.querySelectorAll('table')].filter(one => one.getBoundingClientRect().right > innerWidth + 1).map(one => one.innerText.slice(0, 80))"
    assert page.value(wide) == []
    pdf = page.pdf()
    assert pdf.startswith(b"%PDF")
    assert pdf.rstrip().endswith(b"%%EOF")
    page.close()


def test_headings_go_down_one_level_at_a_time_and_every_part_has_a_name(browser, pages):
    for name in NAMES:
        page = browser.open(pages[name])
        levels = page.value("[...document.querySelectorAll('h1,h2,h3,h4,h5')].map(one => Number(one.tagName[1]))")
        assert levels.count(1) == 1
        steps = [(above, below) for above, below in itertools.pairwise(levels) if below > above + 1]
        assert steps == []
        unnamed = "[...document.querySelectorAll('svg[role=img], .scroll')].filter(one => !one.getAttribute('aria-label')).length"
        assert page.value(unnamed) == 0
        assert (
            page.value("[...document.querySelectorAll('table')].filter(one => !one.caption || !one.tHead).length") == 0
        )
        assert page.value("document.querySelectorAll('th:not([scope])').length") == 0
        ids = page.value("[...document.querySelectorAll('[id]')].map(one => one.id)")
        assert len(ids) == len(set(ids))
        page.close()


def test_links_within_a_page_lead_somewhere(browser, pages):
    page = browser.open(pages["all"])
    lost = "[...document.querySelectorAll('a[href^=\"#\"]')].filter(one => !document.getElementById(one.hash.slice(1))).length"
    assert page.value(lost) == 0
    assert page.value("document.querySelectorAll('nav a').length") > 3
    page.close()


def test_made_results_are_valid_json():
    # The fixtures stand for files: what is no JSON would test nothing.
    json.loads(json.dumps({"a": made.pairs_entry(), "b": made.rm_bench_entry()}, allow_nan=False))
