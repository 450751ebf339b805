import math

import numpy as np
import pytest

from gm.data import DATASETS, load, sayings
from gm.errors import InputError


@pytest.fixture(scope="module")
def data():
    return load("sayings")


def test_every_sentence_has_one_derivation_and_probabilities_sum_to_one():
    # `expand` raises where two derivations give one text, so that as many texts as
    # derivations means that the grammar is unambiguous.
    def derivations(symbol):
        return sum(
            math.prod(derivations(name) for name in symbols)
            for _, symbols, _ in sayings._options(symbol)
        )

    log_p = np.array(list(sayings.expand().values()))
    assert len(log_p) == derivations("sentence") == 292_617
    assert np.exp(log_p).sum() == pytest.approx(1, abs=1e-12)


def test_entropy_by_recursion_equals_the_sum_over_sentences():
    log_p = np.array(list(sayings.expand().values()))
    assert sayings.entropy() == pytest.approx(-(np.exp(log_p) @ log_p), rel=1e-12)
    assert 12 < sayings.entropy() / math.log(2) < 20


def test_an_ambiguous_grammar_is_refused(monkeypatch):
    monkeypatch.setitem(sayings.GRAMMAR, "pair", "1 {item}{item} | 1 {item}")
    monkeypatch.setitem(sayings.GRAMMAR, "item", "2 a | 1 aa")
    with pytest.raises(ValueError, match="ambiguous: 'pair' derives 'aaa' twice"):
        sayings.expand("pair")
    sayings._options.cache_clear()
    sayings.expand.cache_clear()


def test_a_known_sentence_has_the_probability_of_its_derivation():
    # The weights of: no speaker, the first saying, old, fox, fears no, rain.
    p = 5 / 8 * 6 / 36 * 9 / 34 * 9 / 42 * 8 / 24 * 8 / 24
    found = sayings.log_prob(["the old fox fears no rain", "the old fox fears no dog"])
    assert found[0] == pytest.approx(math.log(p), rel=1e-12)
    assert found[1] == -math.inf


def test_draws_have_the_stated_entropy(data):
    x, _ = data.train.batch(np.arange(len(data.train)))
    nats = -sayings.log_prob(sayings.decode(x))
    error = nats.std() / math.sqrt(len(nats))
    assert abs(nats.mean() - data.entropy_nats) < 4 * error
    assert 0 < error < 0.03


def test_splits_and_encoding(data):
    assert [len(data.split(s)) for s in ("train", "valid", "test")] == [
        20000,
        500,
        2000,
    ]
    sentences = sorted(sayings.expand(), key=len)
    assert data.shape == (len(sentences[-1]) + 1,)
    assert data.num_values == len(data.symbols) == len(set(data.symbols))
    assert data.symbols[0] == sayings.END
    entry = DATASETS["sayings"]
    assert (entry.shape, entry.num_values) == (str(data.shape[0]), data.num_values)
    assert float(entry.entropy) == round(data.entropy_nats / math.log(2), 2)
    for split in (data.train, data.valid, data.test):
        x, cond = split.batch(np.arange(len(split)))
        assert cond is None
        assert x.dtype == np.uint8
        assert x.max() < data.num_values
        assert (x[:, -1] == 0).all()  # even the longest has an end
        assert np.isfinite(sayings.log_prob(sayings.decode(x))).all()
        np.testing.assert_array_equal(sayings.encode(sayings.decode(x)), x)
    some = sentences[:50] + sentences[-50:]
    assert sayings.decode(sayings.encode(some)) == some
    again = load("sayings")
    np.testing.assert_array_equal(again.test.x, data.test.x)


def test_what_is_no_sentence_has_probability_zero(data):
    x = data.test.x[:3].copy()
    x[0, -1] = 5  # text after the end
    x[1] = 5  # no end
    x[2] = 0  # nothing
    assert (sayings.log_prob(sayings.decode(x)) == -math.inf).all()


def test_resolution_is_refused():
    with pytest.raises(InputError, match="^--resolution=16: sayings has no resolution"):
        load("sayings", resolution=16)
