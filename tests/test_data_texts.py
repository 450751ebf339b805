"""Texts that end: read, scored, sampled and coded up to their end."""

import dataclasses
import gzip
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm import generate, judge, trained
from gm.audit.subject import SPACES, parameters, quick_jit
from gm.data import load, texts
from gm.errors import InputError
from gm.model import load_model


def make(name):
    module = load_model(name)
    model = module.Model(shape=(4,), num_values=3, end=0, **module.TINY)
    return model, parameters(model, "large")


@pytest.mark.parametrize("name", ["made", "transformer", "mixture", "pixelcnn"])
def test_documents_have_all_the_mass_and_padding_costs_nothing(name):
    model, params = make(name)
    states = SPACES["sequence"].states()  # 3^4
    bound = {"params": params}
    log_px = quick_jit(lambda x: model.apply(bound, x, method="log_prob")[0])
    log_p = np.asarray(log_px(states))
    length = np.argmax(states == 0, axis=1)
    proper = (states == 0).any(1) & np.array(
        [not row[n:].any() for row, n in zip(states, length, strict=True)]
    )
    # 1 + 2 + 4 + 8 texts of 0 to 3 characters; nothing else can occur.
    assert proper.sum() == 15
    assert (log_p[~proper] == -np.inf).all()
    np.testing.assert_allclose(np.exp(log_p[proper]).sum(), 1, atol=1e-5)
    # Up to and including the end, it is what the conditionals say.
    params_ = quick_jit(lambda x: model.apply(bound, x, method="conditionals"))(states)
    each = np.asarray(model.symbol_log_prob(params_, states))
    upto = [row[: min(n + 1, 3)].sum() for row, n in zip(each, length, strict=True)]
    np.testing.assert_allclose(log_p[proper], np.array(upto)[proper], atol=1e-5)


def test_sampled_documents_end_and_have_these_probabilities():
    model, params = make("made")
    x = generate.draw(model, params, 3000)
    assert (x[:, -1] == 0).all()
    for row in x[:200]:
        assert not row[np.argmax(row == 0) :].any()
    bound = {"params": params}
    log_p = model.apply(bound, jnp.zeros((1, 4), jnp.int32), method="log_prob")[0]
    p = float(np.exp(log_p[0]))  # of the empty text
    assert abs((x == 0).all(1).mean() - p) < 4 * np.sqrt(p * (1 - p) / 3000) + 1e-3
    prefix = np.array([2, 1], np.int32)
    held = generate.draw(model, params, 20, prefix=prefix)
    assert (held[:, :2] == prefix).all()


def test_coding_a_document_costs_its_log_probability():
    model, params = make("made")
    bound, x = {"params": params}, generate.draw(model, params, 8)
    cache = model.apply(bound, 8, method="init_cache")
    total, previous = np.zeros(8), jnp.zeros(8, jnp.int32)
    for index in range(4):
        args = (cache, jnp.int32(index), previous)
        cache, out = model.apply(bound, *args, method="step")
        logits = model.with_end(model.symbol_logits(out), index, previous)
        log_p = jax.nn.log_softmax(logits)
        total += np.take_along_axis(np.asarray(log_p), x[:, index, None], 1)[:, 0]
        previous = jnp.asarray(x[:, index])
    log_px = model.apply(bound, x, method="log_prob")[0]
    np.testing.assert_allclose(total, log_px, atol=1e-5)


def test_texts_are_read_from_lines_and_from_json(tmp_path):
    lines = [f"text {'ab' * (i % 7)} {i}" for i in range(40)]
    (tmp_path / "a.txt").write_text("\n".join([*lines, "", "long" * 30]) + "\n")
    found = texts.load(f"texts:{tmp_path / 'a.txt'}", resolution=30)
    assert (found.end, found.shape, found.symbols[0]) == (0, (30,), "\n")
    assert "or more: 1" in found.preprocessing
    back = [texts.decode(found.split(p).x, found.symbols) for p in ("train", "test")]
    assert set(back[0] + back[1]) < set(lines)
    characters = texts.num_characters(found.test, 0)
    assert characters == sum(len(t) + 1 for t in back[1])
    parts = {"one": {p: [{"text": t, "by": "x"} for t in lines[i::3]]
                     for i, p in enumerate(("train", "valid", "test"))}}  # fmt: skip
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(json.dumps(parts).encode()))
    found = texts.load("texts:b.json.gz", data_dir=str(tmp_path))
    assert texts.decode(found.valid.x, found.symbols) == lines[1::3]
    assert found.shape == (max(map(len, lines)) + 1,)


def test_whole_sentences_are_counted_and_texts_without_room():
    text = "ne two. How\nare you? Fine,\nthanks! \n\nKING:\nNo.\n\nAnd then"
    found = ["How are you?", "Fine, thanks!", "KING: No."]
    assert texts.sentences(text) == found
    assert texts.sentences("One.") == texts.sentences("no end") == []
    told = texts.novelty([*found, "KING: No."], ["KING: No.", "Fine, thanks"])
    assert (told["in_train"], told["distinct"], told["count"]) == (0.5, 3, 4)
    assert texts.novelty([], found) == {"count": 0}
    x = np.array([[1, 2, 0, 0], [1, 2, 1, 0], [0, 0, 0, 0], [1, 2, 1, 2]])
    np.testing.assert_array_equal(texts.is_full(x, 0), [False, True, False, True])


def test_generated_text_is_looked_up_in_the_training_text(tmp_path):
    lines = [f"Line {i} has {'abcdef'[i % 6]}. It ends here! " for i in range(400)]
    (tmp_path / "a.txt").write_text("".join(lines))
    dataset = load(f"files:{tmp_path / 'a.txt'}", resolution=80)
    windows = dataset.test.x
    sets = judge.Sets(windows, windows, windows, None, None, windows, None)
    row = judge.judge(_Model, None, dataset, sets)["texts"]
    assert row["of"] == "sentences"
    assert row["samples"]["count"] > 10
    # One of the two sentences of each line has its number in it.
    assert 0.2 < row["samples"]["in_train"] < 0.8
    seen = dataset.train.batch(np.arange(0, 2000, 80))[0]
    row = judge.judge(_Model, None, dataset, dataclasses.replace(sets, samples=seen))
    assert row["texts"]["samples"]["in_train"] == 1


class _Model:
    shape, cond = (80,), None


@pytest.mark.parametrize(
    ("name", "data", "part"),
    [
        ("a.txt", b"\xff\xfe", "not UTF-8"),
        ("a.json", b"{", "not UTF-8 text or JSON"),
        ("a.json", b'["a\\nb"]', "line break"),
        ("a.txt.gz", b"no gzip", "not UTF-8 text or JSON"),
        ("a.txt", b"\n\n", "no texts"),
        ("a.txt", b"ab\nba\n", "too few"),
    ],
)
def test_what_holds_no_texts_is_refused(name, data, part, tmp_path):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(InputError, match=part) as caught:
        texts.load(f"texts:{path}")
    assert str(path) in str(caught.value)


def test_a_run_is_told_that_its_texts_have_changed(tmp_path):
    path = tmp_path / "quotes.txt"

    def read(more):
        path.write_text("".join(f"text {i:02d}{more}\n" for i in range(40)))
        return load(f"texts:{path}")

    before = read("z")
    module = load_model("made")
    model = module.Model(shape=before.shape, num_values=before.num_values)
    data = trained.describe(before, conditional=False)
    run = types.SimpleNamespace(model=model, data=data)
    trained.check_same_data(run, before)
    with pytest.raises(InputError, match="the symbols are now .*, the run was trained"):
        trained.check_same_data(run, read("b"))  # as many, of which one is another
