"""Rows: identity of a split, comparability, tables."""

import csv
import io
import itertools
import json

import numpy as np
import pytest

from gm import data, evaluate, results
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

    def broken(model, params, x, cond, indices, key, draws):
        log_px = jnp.where(indices == 3, jnp.nan, -1.0)
        return log_px, {"symbols": log_px}

    monkeypatch.setattr(evaluate, "example_log_prob", broken)
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
    ],
)
def test_what_differs_is_listed_apart_with_the_field(field, value):
    rows = [row("a", 90.0), row("b", 80.0), row("c", 10.0, **{field: value})]
    [(title, ranked, apart)] = results.group_rows(rows)
    assert title == "d, test split"
    assert [r["model"] for r in ranked] == ["b", "a"]
    assert [r["model"] for r in apart] == ["c"]
    assert apart[0]["apart"].startswith(f"{field} is ")
    assert "Not ranked: c" in results.to_markdown(rows)


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
    text = results.to_markdown(rows)
    assert "<= 1.8034 ± 0.0113" in text
    assert "weight, 64 draws" in text
    assert "=cmd\\|" in text
    table = list(csv.reader(io.StringIO(results.to_csv(rows))))
    assert len(table) == 4
    assert table[3][0].startswith("'=cmd")
    parsed = json.loads(results.to_json(rows))
    assert [r["model"] for r in parsed[0]["ranked"]][0] == "bound"


def test_only_seeds_are_averaged():
    rows = [
        row("a", 90.0, settings={"width": 8}, seed=0),
        row("a", 92.0, settings={"width": 8}, seed=1),
        row("a", 80.0, settings={"width": 16}, seed=0),
        row("b", 85.0, dataset="e"),
    ]
    _, lines = results.pivot(rows)
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
    assert "+2.200 bits" in results.to_markdown(rows)
    header, lines = results.pivot(rows)
    assert header[1:] == ["cube, test (bits/object)", "d, test (bits/dim)"]
    assert lines[0][1] == "24.0000 ± 0.7213"
    assert lines[-1] == ["entropy", "21.8000", "unknown"]
