"""The report: what the page says, and how it behaves in a real browser."""

import base64
import hashlib
import html.parser
import json
import re
import shutil
import signal
import time

import numpy as np
import pytest
from launch import launch, one_error, start
from PIL import Image
from test_results import row

from gm import commands, evaluate, results, tables
from gm.config import RunConfig, TrainConfig
from gm.plots import write_plots
from gm.report import write_report
from gm.report.charts import ranking
from gm.rundir import write_json

EVIL = (
    '<img src=x onerror="window.hacked=1"></script><script>window.hacked=1</script>%{x}'
)
PUBLISHED = (["published model", "number"], [["Paper & Co", "1.5 bits/dim"]])


def written(root, model, nats, **more):
    """A run directory as training and evaluating leave it."""
    path = root / re.sub(r"\W", "_", model)[:20]
    nats = np.asarray(nats)
    values = row(model, float(nats.mean()), num_examples=len(nats))
    values |= {"seed": 0, "evaluation_seed": 0, "step": 40, "train_flops": 4e9}
    values |= {"commit": "abc123", "device": "1 x cpu", "checkpoint": "best, step 40"}
    values |= {"standard_error_nats": float(nats.std(ddof=1) / len(nats) ** 0.5)} | more
    values.pop("run")
    arrays = {"map": more.pop("map")} if "map" in more else {}
    values.pop("map", None)
    evaluate.write_result(path / "results", "test", values, nats, **arrays)
    config = RunConfig(
        model, "d", settings={"width": 8}, train=TrainConfig(num_steps=40)
    )
    write_json(path / "config.json", config.to_json() | {"data": {}})
    lines = [
        {"step": s, "valid/bpd": 3 + 20 / s, "time/seconds": s / 10.0}
        for s in (10, 20, 30, 40)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (path / "metrics.jsonl").write_text(text)
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three contenders, a name that attacks, a row apart, and a run that is not done."""
    root = tmp_path_factory.mktemp("runs")
    rng = np.random.default_rng(0)
    nats = rng.normal(90, 20, 200)
    made = written(root, "made", nats, bit_map="symbols", map=np.eye(8))
    curve = [
        {"k": k, "nats": 92.5 - i, "standard_error_nats": 0.5}
        for i, k in enumerate((1, 2, 4))
    ]
    bound = {"estimate": "weight", "num_importance_samples": 4, "k_curve": curve}
    written(root, "vae", nats + 0.5 + rng.normal(0, 0.1, 200), **bound)
    written(root, EVIL, nats + rng.normal(0, 5, 200))
    written(root, "other", nats, augmentation="flip")
    unfinished = written(root, "slow", nats)
    shutil.rmtree(unfinished / "results")
    (made / "samples").mkdir()
    Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(made / "samples/step_40.png")
    (made / "applications").mkdir()
    for name in ("judge-test-n=8.png", "outliers-outliers=noise.png"):
        shutil.copy(made / "samples/step_40.png", made / "applications" / name)
    return root


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    """The page of these runs."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    rows = results.read_rows([str(runs)])
    made = tables.make_tables(rows)
    write_report(path, rows, made, beside=lambda row: PUBLISHED, paths=[str(runs)])
    return path


class Reader(html.parser.HTMLParser):
    """Tags with attributes, text, and the texts of scripts."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.text, self.scripts = [], "", []
        self.inside = ""
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        self.inside = tag
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        self.inside = ""
        self.text += " "  # between cells

    def handle_data(self, data):
        if self.inside == "script":
            self.scripts.append(data)
        elif self.inside != "style":
            self.text += data


@pytest.fixture(scope="module")
def read(page):
    """The page, parsed."""
    return Reader(page)


def test_page_ranks_with_intervals_ties_and_reasons(read):
    text = " ".join(read.text.split())
    assert "open where a bound may hide a better model" in text
    assert "d, test split" in text
    assert re.search(r"best \d\.|best", text)
    assert "tie, " in text
    assert "weight, 4 draws" in text
    assert "a tie." in text
    assert re.search(
        r"other \(.*\) , .* bits/dim: augmentation is flip, not none", text
    )
    assert "Paper & Co" in text
    assert "30 of 40" not in text
    assert re.search(r"slow d 40 of 40 3\.5000", text)  # trained, not evaluated


def test_page_says_where_every_number_comes_from(read, runs):
    text = " ".join(read.text.split())
    train = "python -m experiments.train --model=made --dataset=d --set=width=8"
    assert f"{train} --num_steps=40 --workdir={runs / 'made'}" in text
    assert f"experiments.evaluate --workdir={runs / 'vae'} --split=test " in text
    assert "--num_importance_samples=4 --k_curve" in text
    for fact in ("abc123", "1 x cpu", "a" * 64, "best, step 40"):
        assert fact in text


def test_page_loads_nothing_and_runs_its_own_scripts_alone(read):
    for tag, attributes in read.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href"):
            link = attributes.get(name, "#")
            assert link.startswith(("#", "data:")), (tag, link[:80])
    [policy] = [
        a["content"]
        for _, a in read.tags
        if a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert len(read.scripts) == 2
    for script in read.scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy


def test_a_name_that_attacks_is_text(read):
    assert EVIL in read.text
    images = [a for tag, a in read.tags if tag == "img"]
    assert [a["src"][:22] for a in images] == ["data:image/png;base64,"] * 3
    told = " ".join(a["alt"] for a in images)
    assert "judge-test-n=8: samples, and beside them" in told
    assert "<img" not in read.scripts[1]


def test_every_chart_has_words_and_a_table(read):
    charts = [a for _, a in read.tags if a.get("class") == "chart"]
    assert {a["id"] for a in charts} == {"s0-ranking", "s0-curves", "s0-k", "s0-map-0"}
    assert all(a["role"] == "img" and len(a["aria-label"]) > 20 for a in charts)
    captions = [a["id"] for tag, a in read.tags if tag == "caption"]
    assert {f"{a['id']}-table" for a in charts} < set(captions)


def test_numbers_of_charts_are_those_of_the_rows(read, runs):
    data = json.loads(read.scripts[1].removeprefix("const CHARTS = ").split(";\n")[0])
    curves = data["s0-curves"]
    [_, flops] = [curves["controls"][0][i][0]["x"][0] for i in (0, 2)]
    assert flops == [1e9, 2e9, 3e9, 4e9]  # 4e9 at step 40
    pixels = data["s0-map-0"]["figure"]["data"][0]
    assert pixels["zmax"] == pytest.approx(1 / np.log(2))
    names = data["s0-ranking"]["figure"]["layout"]["meta"]["narrow"]
    assert {"made", "vae"} < set(names)
    assert max(len(html.unescape(name)) for name in names) == 14


def test_a_plot_has_the_width_of_the_page(read):
    figures = [a for tag, a in read.tags if tag == "figure" and a.get("data-group")]
    assert [a.get("class") for a in figures].count("plot") == 1


def test_commands_are_those_that_were_given():
    train = TrainConfig(num_steps=7, learning_rate=0.01)
    settings = {"width": 8, "widths": [1, 2], "flag": False, "none": None}
    config = RunConfig(
        "m", "files:/a b", conditional=True, settings=settings, train=train
    )
    assert commands.train_command(config, "runs/x") == (
        "python -m experiments.train --model=m '--dataset=files:/a b' --conditional "
        "--set=width=8 --set=widths=1,2 --set=flag=False --set=none=None "
        "--num_steps=7 --learning_rate=0.01 --workdir=runs/x"
    )
    found = {"run": "runs/x", "split": "test", "num_importance_samples": 1}
    found |= {"file": "runs/x/results/test-latest.json", "checkpoint": "latest, step 7"}
    found |= {"settings": {"width": 9}, "bit_map": "symbols"}
    assert commands.evaluate_command(found, config) == (
        "python -m experiments.evaluate --workdir=runs/x --split=test --bit_map "
        "--checkpoint=latest --set=width=9"
    )


def test_errors_of_several_seeds_are_of_examples_and_seeds():
    shared = {"estimate": "exact", "unit": "object", "entropy_floor_nats": None}
    rows = [
        shared | {"nats": 90.0 + s, "standard_error_nats": 3.0, "seed": s, "shape": [2]}
        for s in (-4, 0, 4)
    ]
    found = results.Contender("made", rows)
    assert found.standard_error == pytest.approx((9 + 16 / 3) ** 0.5)
    table = tables.Table("d", [], [], [], [], [found], [])
    [mean] = [t for t in ranking(table, "s0").figure.data if t.error_x.array]
    assert mean.error_x.array[0] == pytest.approx(2 * (9 + 16 / 3) ** 0.5 / np.log(2))


def test_names_of_many_models_do_not_lie_on_each_other(tmp_path):
    for seed in range(2):
        for i in range(25):
            nats = np.random.default_rng(i).normal(90 + i, 1, 50) + seed
            run = written(tmp_path / "runs", f"m{i}", nats)
            run.rename(run.with_name(f"m{i}_s{seed}"))
    rows = results.read_rows([str(tmp_path / "runs")])
    rows = [r | {"seed": int(r["run"][-1])} for r in rows]
    paths = write_plots(rows, tmp_path / "plots")
    assert [p.name for p in paths] == [
        "d__test_split_curves.png",
        "d__test_split_bits.png",
    ]
    for path in paths:
        assert Image.open(path).height > 25 * 130 * 0.2  # inches of a name, at 130 dpi


def test_refused_runs_are_told_in_the_page_too(runs, tmp_path):
    path = tmp_path / "report.html"
    two = (runs / "made", runs / "other")
    status, _, err = launch("compare", *two, f"--html={path}")
    assert status == 2
    assert "cannot be compared with" in err
    text = Reader(path).text
    assert "Not compared." in text
    assert "augmentation is flip, not none" in text


def test_watch_makes_the_page_again_until_it_is_interrupted(runs, tmp_path):
    path, root = tmp_path / "report.html", tmp_path / "sweep"
    shutil.copytree(runs / "slow", root / "slow")
    process = start("compare", root, f"--html={path}", "--watch", "--refresh_seconds=1")
    try:
        _until(path.exists)
        assert 'http-equiv="refresh"' in path.read_text()
        assert "Not evaluated yet" in Reader(path).text
        shutil.copytree(runs / "made" / "results", root / "slow" / "results")
        _until(lambda: "d, test split" in Reader(path).text)
        # Points of a curve renew the page. A row that is damaged ends no watch.
        before, row = path.stat().st_mtime_ns, root / "slow" / "results" / "test.json"
        (root / "slow" / "metrics.jsonl").touch()
        _until(lambda: path.stat().st_mtime_ns > before)
        tables, sound = path.stat().st_mtime_ns, row.read_text()
        row.write_text("{")
        time.sleep(3)
        row.write_text(sound)
        _until(lambda: path.stat().st_mtime_ns > tables)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert "test.json: not readable as JSON" in err
    # As the row came, as it was whole again, and at the end; not for points of a curve.
    assert out.count("d, test split") == 3
    assert 'http-equiv="refresh"' not in path.read_text()


def test_watch_that_found_nothing_leaves_a_page_that_stays(tmp_path):
    path, root = tmp_path / "report.html", tmp_path / "later"
    process = start("compare", root, f"--html={path}", "--watch", "--refresh_seconds=1")
    try:
        _until(path.exists)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert f"{root}: nothing there yet" in err
    assert "No run was found yet" in Reader(path).text
    assert 'http-equiv="refresh"' not in path.read_text()


def test_where_there_is_nothing_to_compare_or_to_write(runs, tmp_path):
    one_error(launch("compare", tmp_path / "none"), "none: no such directory")
    one_error(launch("compare", tmp_path), "no results/*.json below it; run `evaluate`")
    done = launch("compare", runs / "made", f"--html={tmp_path}")
    one_error(done, "a folder; give a file, such as")


def _until(true):
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.2)


# In a browser.


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A headless Chromium; no test here needs a network."""
    webdriver = pytest.importorskip("selenium.webdriver")
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    driver = shutil.which("chromedriver")
    if not (found and driver):
        pytest.skip(
            "no Chromium with its chromedriver (apt-get install chromium-driver)"
        )
    options = webdriver.ChromeOptions()
    options.binary_location = found
    for flag in (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "force-device-scale-factor=1",
        f"user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=driver)
    chromium = webdriver.Chrome(options=options, service=service)
    yield chromium
    chromium.quit()


@pytest.fixture
def opened(browser, page):
    """The page in a desktop's window."""
    browser.set_window_size(1280, 900)
    browser.get(page.as_uri())
    drawn = "return [...document.querySelectorAll('.chart')].every(c => c.calcdata)"
    _until(lambda: browser.execute_script(drawn))
    return browser


def _find(browser, selector):
    return browser.find_element("css selector", selector)


def test_browser_draws_without_errors_or_requests(opened):
    count = "return document.querySelectorAll('.chart .main-svg').length"
    assert opened.execute_script(count) >= 4
    assert opened.get_log("browser") == []
    loaded = opened.execute_script(
        "return performance.getEntriesByType('resource').map(e => e.name)"
    )
    assert [name for name in loaded if not name.startswith(("data:", "blob:"))] == []
    assert opened.execute_script("return window.hacked") is None
    ticks = opened.execute_script(
        "const found = document.querySelectorAll('#s0-ranking .ytick');"
        "return [...found].map(t => t.textContent)"
    )
    assert f"{EVIL[:27]}…" in ticks  # as it is, not as what it would be in HTML


def test_browser_hover_tells_the_point(opened):
    from selenium.webdriver import ActionChains

    point = _find(opened, "#s0-curves .scatterlayer .trace .point")
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", point)
    ActionChains(opened).move_to_element(point).perform()
    told = "return document.querySelector('#s0-curves .hovertext')?.textContent ?? ''"
    _until(lambda: opened.execute_script(told))
    assert re.search(r"\d\.\d{4} bits/dim.*step \d+", opened.execute_script(told))


def test_browser_legend_and_choices_work_by_keyboard(opened):
    from selenium.webdriver import Keys
    from selenium.webdriver.support.ui import Select

    shown = (
        "return document.querySelector('#s0-curves').data"
        ".filter(t => t.legendgroup === '0' && t.visible !== false).length"
    )
    assert opened.execute_script(shown) == 1
    _find(opened, "input[data-legend='0']").send_keys(Keys.SPACE)
    assert opened.execute_script(shown) == 0
    assert not _find(opened, "figure[data-group='0']").is_displayed()
    _find(opened, "button[data-all='true']").send_keys(Keys.ENTER)
    assert opened.execute_script(shown) == 1
    axis = "return document.querySelector('#s0-curves').layout.xaxis"
    against, scale = opened.find_elements(
        "css selector", "select[data-chart=s0-curves]"
    )[:2]
    Select(against).select_by_visible_text("training FLOPs")
    Select(scale).select_by_visible_text("logarithmic")
    found = opened.execute_script(axis)
    assert (found["type"], found["title"]["text"]) == ("log", "training FLOPs")
    summary = _find(opened, ".origin summary")
    summary.send_keys(Keys.ENTER)
    assert _find(opened, ".origin pre").is_displayed()


def test_browser_keeps_what_was_chosen_while_a_sweep_is_watched(opened, runs, tmp_path):
    from selenium.webdriver import Keys
    from selenium.webdriver.support.ui import Select

    path, rows = tmp_path / "watched.html", results.read_rows([str(runs)])
    made = tables.make_tables(rows)
    write_report(path, rows, made, beside=lambda row: PUBLISHED, refresh=2)
    opened.get(path.as_uri())
    _find(opened, "input[data-legend='0']").send_keys(Keys.SPACE)
    axis = Select(_find(opened, "select[data-chart=s0-curves]"))
    axis.select_by_visible_text("training FLOPs")
    _find(opened, ".origin summary").send_keys(Keys.ENTER)
    opened.execute_script("window.before = true")
    _until(lambda: opened.execute_script("return window.before !== true"))
    assert not _find(opened, "input[data-legend='0']").is_selected()
    assert not _find(opened, "figure[data-group='0']").is_displayed()
    assert _find(opened, ".origin pre").is_displayed()
    title = "return document.querySelector('#s0-curves').layout.xaxis.title.text"
    _until(lambda: opened.execute_script(title) == "training FLOPs")
    assert opened.get_log("browser") == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_browser_fits_a_phone_in_either_scheme(opened, scheme):
    media = [{"name": "prefers-color-scheme", "value": scheme}]
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        opened.refresh()
        width = "return document.documentElement.scrollWidth"
        _until(lambda: opened.execute_script(width) <= 390)
        names = "return document.querySelector('#s0-ranking')?.layout?.yaxis.ticktext"
        _until(lambda: opened.execute_script(names))
        assert max(map(len, map(html.unescape, opened.execute_script(names)))) == 14
        colors = opened.execute_script(
            "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]"
        )
        lightness = [sum(map(int, re.findall(r"\d+", c)[:3])) / 765 for c in colors]
        assert (lightness[0] < lightness[1]) == (scheme == "light")
        text = _find(opened, "#s0-curves .xtick text").value_of_css_property("fill")
        assert text.replace(" ", "") in colors[0].replace(" ", "")
    finally:
        opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
