"""Rows: identity of a split, comparability, tables."""

import csv
import io
import itertools
import json
import re
import shutil

import numpy as np
import pytest

from gm import data, evaluate, results, tables
from gm.data.dataset import ArraySplit, Dataset, identify
from gm.errors import InputError
from gm.model import build, init_params
from gm.spec import Estimate


def dataset(x, **more):
    split = ArraySplit(np.asarray(x))
    return Dataset("t", x.shape[1:], 4, "dim", split, split, split, **more)


def test_identity_does_not_depend_on_the_order_of_the_source_or_its_dtype():
    x = np.random.default_rng(0).integers(0, 4, (20, 3)).astype(np.uint8)
    sha, order = identify(dataset(x), ArraySplit(x))
    shuffled = x[::-1].astype(np.int32)
    sha2, order2 = identify(dataset(shuffled), ArraySplit(shuffled))
    assert sha == sha2
    np.testing.assert_array_equal(x[order], shuffled[order2])
    assert sorted(order) == list(range(20))
    changed = x.copy()
    changed[0, 0] ^= 1
    assert identify(dataset(changed), ArraySplit(changed))[0] != sha
    text_sha, text_order = identify(dataset(x, ordered=True), ArraySplit(x))
    assert text_sha != sha
    assert text_order.tolist() == list(range(20))


def test_digits_splits_are_fixed_and_share_no_image():
    digits = data.load("digits")
    assert [len(digits.split(s)) for s in ("train", "valid", "test")] == [
        1200,
        200,
        397,
    ]
    sha, _ = identify(digits, digits.test)
    assert sha == "2faf9f557a45fbb5076c091612d3211c5beb21b992523e1c73ed7f3187f55044"
    names = ("train", "valid", "test")
    images = [{x.tobytes() for x in digits.split(s).x} for s in names]
    for a, b in itertools.combinations(images, 2):
        assert not a & b
    assert digits.train.x.max() == 16


def test_row_says_what_it_is(tmp_path):
    digits = data.load("digits")
    model = build("made", digits, {"width": 8})
    params = init_params(model, __import__("jax").random.key(0))
    row, nats = evaluate.evaluate(model, params, digits, "valid", batch_size=64)
    assert row["num_examples"] == len(nats) == 200
    assert row["nats"] == pytest.approx(nats.mean())
    assert row["bits_per_object"] == pytest.approx(row["bits_per_dim"] * 64)
    assert row["standard_error_nats"] == pytest.approx(nats.std(ddof=1) / 200**0.5)
    assert row["estimate"] == "exact"
    path = evaluate.write_result(tmp_path / "results", "valid", row, nats)
    assert json.loads(path.read_text())["split_sha256"] == row["split_sha256"]
    np.testing.assert_array_equal(np.load(path.with_name("valid.nats.npy")), nats)


def test_importance_samples_are_refused_for_an_elbo():
    class Elbo:
        estimate = Estimate.ELBO

    class Exact:
        estimate = Estimate.EXACT

    with pytest.raises(InputError, match="ELBO"):
        evaluate.check_importance_samples(Elbo(), 2)
    assert evaluate.check_importance_samples(Elbo(), 1) == 1
    assert evaluate.check_importance_samples(Exact(), 64) == 1
    with pytest.raises(InputError, match="num_importance_samples=0"):
        evaluate.check_importance_samples(Exact(), 0)


def test_a_non_finite_example_is_named_and_never_left_out(monkeypatch):
    import jax.numpy as jnp

    digits = data.load("digits")
    model = build("made", digits, {"width": 8})

    def broken(model, params, x, cond, indices, *rest):
        log_px = jnp.where(indices == 3, jnp.nan, -1.0)
        return log_px[None], {"symbols": log_px}

    monkeypatch.setattr(evaluate, "example_log_weights", broken)
    with pytest.raises(InputError, match="example 3 of the split"):
        evaluate.evaluate_nats(model, {}, digits.valid, np.arange(10), batch_size=4)


def row(model, nats, **more):
    return {
        "model": model,
        "dataset": "d",
        "split": "test",
        "split_sha256": "a" * 64,
        "num_values": 17,
        "shape": [8, 8, 1],
        "conditioning": "none",
        "unit": "dim",
        "preprocessing": "none",
        "estimate": "exact",
        "num_importance_samples": 1,
        "nats": nats,
        "bits_per_dim": nats / 64,
        "bits_per_object": nats,
        "standard_error_nats": 0.5,
        "num_examples": 10,
        "entropy_floor_nats": None,
        "num_params": 10,
        "run": f"runs/{model}",
    } | more


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("split_sha256", "b" * 64),
        ("num_values", 256),
        ("conditioning", "class:10"),
        ("unit", "object"),
        ("augmentation", "flip"),
    ],
)
def test_what_differs_is_listed_apart_with_the_field(field, value):
    rows = [row("a", 90.0), row("b", 80.0), row("c", 10.0, **{field: value})]
    [(title, ranked, apart)] = results.group_rows(rows)
    assert title == "d, test split"
    assert [r["model"] for r in ranked] == ["b", "a"]
    assert [r["model"] for r in apart] == ["c"]
    assert apart[0]["apart"].startswith(f"{field} is ")
    assert "Not ranked: c" in tables.to_markdown(rows)


def test_the_preprocessing_is_told_where_the_bytes_differ():
    resized = {"split_sha256": "b" * 64, "preprocessing": "area-averaged 28x28 to 8x8"}
    rows = [row("a", 90.0), row("b", 80.0), row("c", 10.0, **resized)]
    [(_, _, apart)] = results.group_rows(rows)
    assert "preprocessing is area-averaged 28x28 to 8x8, not none" in apart[0]["apart"]
    # The same bytes are the same bytes, however the train split was held out.
    rows = [row("a", 90.0), row("b", 80.0, preprocessing="another valid split")]
    [(_, ranked, apart)] = results.group_rows(rows)
    assert len(ranked) == 2
    assert not apart


def test_formats():
    rows = [
        row("exact", 90.0),
        row("bound", 80.0, estimate="weight", num_importance_samples=64),
        row("=cmd|' /C calc'!A0", 85.0),
    ]
    text = tables.to_markdown(rows)
    assert "<= 1.8034 ± 0.0113" in text
    assert "weight, 64 draws" in text
    assert "=cmd\\|" in text
    table = list(csv.reader(io.StringIO(tables.to_csv(rows))))
    assert len(table) == 4
    assert table[3][0].startswith("'=cmd")
    parsed = json.loads(tables.to_json(rows))
    assert [r["model"] for r in parsed[0]["ranked"]][0] == "bound"


def test_only_seeds_are_averaged():
    rows = [
        row("a", 90.0, settings={"width": 8}, seed=0),
        row("a", 92.0, settings={"width": 8}, seed=1),
        row("a", 80.0, settings={"width": 16}, seed=0),
        row("b", 85.0, dataset="e"),
    ]
    _, lines = tables.pivot(rows)
    assert [line[0].split()[:2] for line in lines[:-1]] == [
        ["a", "width=16"],
        ["a", "width=8"],
        ["b"],
    ]
    assert lines[1][1].startswith("2.0513 (mean of 2, sd ")


def test_a_file_that_is_no_row_is_named(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "test.json").write_text("{}")
    with pytest.raises(InputError, match="test.json: not a result row"):
        results.read_rows([str(tmp_path)])


def test_floor_is_shown_in_bits_above_it():
    ln2 = float(np.log(2))
    cube = dict(unit="object", entropy_floor_nats=21.8 * ln2, dataset="cube")
    rows = [row("a", 24.0 * ln2, **cube), row("a", 90.0)]
    assert "+2.200 bits" in tables.to_markdown(rows)
    header, lines = tables.pivot(rows)
    assert header[1:] == ["cube, test (bits/object)", "d, test (bits/dim)"]
    assert lines[0][1] == "24.0000 ± 0.7213"
    assert lines[-1] == ["entropy", "21.8000", "unknown"]


def written(tmp_path, name, nats, **more):
    """Writes a run with per-example nats, as `evaluate` does, and returns its path."""
    values = row(name, float(np.mean(nats)), num_examples=len(nats), **more)
    values.pop("run")
    evaluate.write_result(tmp_path / name / "results", "test", values, np.asarray(nats))
    return str(tmp_path / name)


def verdict(*paths):
    rows = results.read_rows(paths)
    [(_, ranked, _)] = results.group_rows(rows)
    found = results.contenders(ranked)
    return found, results.verdicts(found)


def test_a_run_against_itself_is_a_tie(tmp_path):
    nats = np.random.default_rng(0).normal(90, 20, 300)
    a, b = written(tmp_path, "a", nats), written(tmp_path, "b", nats)
    found, said = verdict(a, b)
    assert said[0] is None
    assert said[1].kind == "tie"
    text = tables.sentence(found[0], found[1], said[1])
    assert "+0.0000 [0.0000, 0.0000] bits/example" in text
    assert "nothing is known of other seeds" in text
    assert text.endswith("a tie.")


def test_seeds_are_gathered_and_their_spread_decides(tmp_path):
    rng = np.random.default_rng(0)
    base = rng.normal(90, 20, 300)
    paths = [
        written(tmp_path, f"{model}{seed}", base + shift, seed=seed)
        for model, shifts in (("a", (0.0, 2.0, 4.0)), ("b", (1.0, 3.5, 5.0)))
        for seed, shift in enumerate(shifts)
    ]
    for path in paths:  # the name of a run is not that of its model
        file = tmp_path / path / "results" / "test.json"
        values = json.loads(file.read_text())
        file.write_text(json.dumps(values | {"model": values["model"][0]}))
    found, said = verdict(*paths)
    assert [(c.label, len(c.rows)) for c in found] == [("a", 3), ("b", 3)]
    assert said[1].kind == "tie"
    assert "3 and 3 seeds, spread 2.9153 bits" in tables.sentence(*found, said[1])


def test_many_comparisons_are_corrected(tmp_path):
    rng = np.random.default_rng(3)
    base = rng.normal(90, 20, 400)
    best = written(tmp_path, "best", base)
    # Differences at the edge: p is about 0.02 each, which one in forty shows by chance.
    d = rng.normal(0, 1, 400)
    d = (d - d.mean()) / d.std() + 2.4 / 20
    alone = verdict(best, written(tmp_path, "x0", base + d))[1]
    assert alone[1].kind == "better"
    others = [written(tmp_path, f"x{i}", base + rng.permutation(d)) for i in range(8)]
    assert {v.kind for v in verdict(best, *others)[1][1:]} == {"tie"}


def test_what_may_be_claimed_of_bounds(tmp_path):
    base = np.random.default_rng(0).normal(90, 20, 300)
    low, high = written(tmp_path, "low", base), written(tmp_path, "high", base + 1)
    bound = dict(estimate="weight", num_importance_samples=8)
    low_bound = written(tmp_path, "low_bound", base, **bound)
    high_bound = written(tmp_path, "high_bound", base + 1, **bound)
    with_curve, steep = (
        written(
            tmp_path,
            f"curve{gain}",
            base + 1,
            k_curve=[
                {"k": k, "nats": float(base.mean()) + more, "standard_error_nats": 0.1}
                for k, more in ((1, 1 + gain), (2, 1))
            ],
            **bound,
        )
        for gain in (0.1, 0.9)
    )
    mean = float(base.mean())
    drawn = {"groups": 16, "k": 1, "effective_draws": 9.0, "own_sample_shortfall": None}
    inside, above = (
        written(
            tmp_path,
            f"i{shift}",
            base + 1,
            interval_nats={"low": mean + shift, "high": mean + 1, **drawn},
            **bound,
        )
        for shift in (-0.5, 0.5)
    )
    assert verdict(low, high)[1][1].kind == "better"
    assert verdict(low_bound, high)[1][1].kind == "better"
    assert verdict(low, high_bound)[1][1].kind == "open"
    assert "--k_curve" in verdict(low, high_bound)[1][1].reason
    assert verdict(low, with_curve)[1][1].kind == "better"
    assert verdict(low, steep)[1][1].kind == "open"  # it may fall as far again
    assert verdict(low, inside)[1][1].kind == "open"
    assert verdict(low, above)[1][1].kind == "better"
    assert "open, +" in tables.to_markdown(results.read_rows([low, high_bound]))


@pytest.mark.parametrize(
    ("field", "more"),
    [
        ("split_sha256", {"split_sha256": "b" * 64, "preprocessing": "resized"}),
        ("num_values", {"num_values": 2}),
        ("conditioning", {"conditioning": "class:10"}),
        ("augmentation", {"augmentation": "flip"}),
    ],
)
def test_comparing_two_that_cannot_be_is_refused(tmp_path, field, more):
    nats = np.full(10, 90.0)
    a, b = written(tmp_path, "a", nats), written(tmp_path, "b", nats, **more)
    told = results.incomparable(results.read_rows([a, b]))
    assert re.search(f"b cannot be compared with .*a: .*{field} is", told)
    c = written(tmp_path, "c", nats)
    assert not results.incomparable(results.read_rows([a, c]))


def test_a_run_held_against_itself_and_against_a_copy(tmp_path):
    nats = np.random.default_rng(0).normal(90, 20, 50)
    a = written(tmp_path, "a", nats, seed=0)
    for other in (a, shutil.copytree(a, tmp_path / "copy")):
        found, said = verdict(a, str(other))
        assert [len(c.rows) for c in found] == [1, 1]  # a copy is no second seed
        assert said[1].kind == "tie"
        assert "a tie" in tables.to_markdown(results.read_rows([a, str(other)]))
    labels = {c.label for c in found}
    assert labels == {f"a ({a})", f"a ({other})"}  # told by where they lie


def test_a_narrow_terminal_has_the_numbers_whole():
    from experiments import compare

    header = ["model", "bits/dim", "to the best", "nats", "params", "run", "seed"]
    line = ["vae width=32 num_steps=800 num_mixtures=5", "<= 2.1933 ± 0.0117"]
    line += [
        "+0.2423 [0.2347, 0.2500]",
        "<= 97.299 ± 0.517",
        "439,377",
        "runs/vae",
        "0",
    ]
    every = list(range(len(header)))
    assert compare._shown(240, header, [line]) == (every, True)
    shown, whole = compare._shown(100, header, [line])
    assert ([header[c] for c in shown], whole) == (
        ["model", "bits/dim", "to the best", "run"],
        True,
    )
    shown, whole = compare._shown(40, header, [line])
    assert ([header[c] for c in shown][:2], whole) == (["model", "bits/dim"], False)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("nats", "90"),
        ("nats", float("nan")),
        ("nats", -5.0),
        ("standard_error_nats", float("nan")),
        ("estimate", "EXAKT"),
        ("num_examples", None),
        ("shape", "8x8"),
        ("train_seconds", "long"),
        ("k_curve", [{"k": 1}]),
        ("training", [1]),
    ],
)
def test_what_no_evaluation_writes_is_refused(tmp_path, field, value):
    a = written(tmp_path, "a", np.full(10, 90.0))
    file = tmp_path / "a" / "results" / "test.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    with pytest.raises(InputError, match=f"not a result row .*{field} is"):
        results.read_rows([a])


def test_nats_that_are_not_those_of_the_row_are_refused(tmp_path):
    a = written(tmp_path, "a", np.full(10, 90.0))
    np.save(tmp_path / "a" / "results" / "test.nats.npy", np.full(9, 90.0))
    with pytest.raises(InputError, match=r"test\.nats\.npy: not the nats of"):
        results.read_nats(results.read_rows([a])[0])


def test_published_numbers_need_the_same_bytes():
    from experiments import published

    mine = row("made", 90.0, dataset="binarized_mnist", augmentation="none")
    mine |= {"shape": [28, 28, 1], "num_values": 2, "num_examples": 10000}
    mine["split_sha256"] = published._file()["protocols"]["binarized_mnist"][
        "split_sha256"
    ]
    found = published.lines(mine)
    assert any(line[0] == "MADE" and "NOT CHECKED" in line[3] for line in found)
    assert any(line[3] == "checked" for line in found)
    for change in (
        {"split_sha256": "c" * 64},
        {"num_examples": 100},
        {"split": "valid"},
        {"conditioning": "class:10"},
        {"augmentation": "flip"},
        {"dataset": "digits"},
    ):
        assert not published.lines(mine | change)
    header = published.HEADER
    assert "NOT CHECKED" in tables.to_markdown([mine], lambda r: (header, found))


def test_every_published_number_says_where_it_is_from():
    from experiments import published

    names = {"dataset", "version", "model", "number", "unit", "estimate", "source"}
    names |= {"conditioning", "augmentation", "checked", "note", "parameters"}
    entries = published._file()["numbers"]
    assert len(entries) > 100
    for entry in entries:
        assert set(entry) == names, entry["model"]
        assert entry["source"]
        assert isinstance(entry["checked"], bool)
        assert entry["unit"] in ("nats", "bits/dim", "bits/char")


def test_variants_of_a_data_set_are_refused_by_name(tmp_path):
    """Binarised twice, resized twice, conditional, other levels, a part of the split."""
    import dataclasses

    import jax

    from gm.data.resize import area_resize
    from gm.spec import CondSpec

    rng = np.random.default_rng(0)
    digits = data.load("digits").test
    grey = digits.x.astype(np.uint8)  # [N, 8, 8, 1] of 17 levels
    labels = np.asarray(digits.cond)

    def measured(name, x, num_values, cond=None, preprocessing="none"):
        split = ArraySplit(x, labels[: len(x)])
        whole = Dataset(
            "d", x.shape[1:], num_values, "dim", split, split, split, cond=cond
        )
        whole = dataclasses.replace(whole, preprocessing=preprocessing)
        settings = {"width": 8, "num_mixtures": 2, "one_hot": False}
        model = build("made", whole, settings, conditional=cond is not None)
        values, nats = evaluate.evaluate(
            model, init_params(model, jax.random.key(0)), whole, "test"
        )
        values |= {"model": name}
        evaluate.write_result(tmp_path / name / "results", "test", values, nats)
        return str(tmp_path / name)

    binary = (grey > 8).astype(np.uint8)
    dynamic = (rng.random(grey.shape) < grey / 16).astype(np.uint8)
    area = np.asarray(area_resize(grey, 4))
    nearest = grey[:, ::2, ::2]
    whole = measured("grey", grey, 17)
    pairs = [
        (
            measured("static", binary, 2),
            measured("dynamic", dynamic, 2),
            "split_sha256",
        ),
        (
            measured("area", area, 17, preprocessing="area"),
            measured("nearest", nearest, 17, preprocessing="nearest"),
            "split_sha256 .*preprocessing is nearest, not area",
        ),
        (whole, measured("given", grey, 17, CondSpec("class", 10)), "conditioning is"),
        (whole, measured("levels", grey, 256), "num_values is 256, not 17"),
        (whole, measured("part", grey[:100], 17), "split_sha256 is"),
    ]
    for a, b, field in pairs:
        assert re.search(field, results.incomparable(results.read_rows([a, b])))
