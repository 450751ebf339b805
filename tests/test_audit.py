"""The auditor: it passes our models and catches every seeded bug."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bugs import EVALUATORS, MODELS

from gm import audit
from gm.audit import structure
from gm.audit.subject import subject
from gm.errors import InputError
from gm.evaluate import evaluate
from gm.models import made, realnvp, transformer, vae
from gm.spec import CondSpec, Estimate

# Smaller still than TINY, since there are many.
TINY = {
    made.Model: made.TINY,
    realnvp.Model: dict(width=4, depth=1, num_couplings=1),
    transformer.Model: dict(width=8, depth=1, num_heads=2),
    vae.Model: vae.TINY,
}


@pytest.mark.parametrize(
    "subjects",
    [pytest.param(audit.QUICK, id="quick"), pytest.param(None, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("check", audit.CHECKS)
def test_model_passes(model_name, check, subjects):
    [verdict] = audit.audit_model(model_name, checks=[check], subjects=subjects)
    print(verdict)
    if verdict.status == "skip":
        pytest.skip(verdict.figure)
    assert verdict.status == "pass", verdict.figure


@pytest.mark.parametrize("bug", MODELS)
def test_seeded_bug_in_a_model_is_caught(bug):
    cls, check = MODELS[bug]
    tiny = next((t for base, t in TINY.items() if issubclass(cls, base)), {})
    verdict = audit.check_model(cls, tiny, check)
    print(verdict)
    assert verdict.status == "fail"
    assert "raises" not in verdict.figure, verdict.figure


@pytest.mark.parametrize("check", audit.EVALUATOR_CHECKS)
def test_the_evaluator_passes(check):
    [verdict] = audit.audit_evaluator(evaluate, checks=[check])
    print(verdict)
    assert verdict.status == "pass", verdict.figure


@pytest.mark.parametrize("bug", EVALUATORS)
def test_seeded_bug_in_an_evaluator_is_caught(bug):
    function, check = EVALUATORS[bug]
    [verdict] = audit.audit_evaluator(function, checks=[check])
    print(verdict)
    assert verdict.status == "fail"
    assert "raises" not in verdict.figure, verdict.figure


LOGITS = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
GIVEN = dict(shape=(3,), num_values=2, cond=CondSpec("class", 3))
PLACES = np.array([4, 2, 1])


def log_prob(x, cond, key):
    return jax.nn.log_softmax(LOGITS)[cond, x @ PLACES]


def sample(key, n, cond):
    index = jax.random.categorical(key, LOGITS[cond])
    return index[:, None] // PLACES % 2


def statuses(*pair, **changes):
    given = GIVEN | dict(estimate=Estimate.EXACT) | changes
    return {v.check: v.status for v in audit.audit_functions(*pair, **given)}


def test_a_pair_of_functions_passes_what_applies():
    found = statuses(log_prob, sample)
    ran = {name for name, status in found.items() if status == "pass"}
    assert ran == {"values", "normalisation", "sampler", "neighbours", "condition"}
    assert set(found.values()) == {"pass", "skip"}
    assert statuses(log_prob)["sampler"] == "skip"


def test_a_wrong_pair_of_functions_fails():
    assert statuses(lambda x, c, k: log_prob(x, c, k) + 0.01)["normalisation"] == "fail"
    assert statuses(log_prob, lambda k, n, c: sample(k, n, 0 * c))["sampler"] == "fail"
    assert statuses(log_prob, lambda k, n, c: sample(k, n, c) / 2)["sampler"] == "fail"
    assert statuses(lambda x, c, k: log_prob(x, 0 * c, k))["condition"] == "fail"

    def noisy(x, cond, key):  # the mean of its logarithm is right, not its own mean
        return log_prob(x, cond, key) + jax.random.normal(key, (len(x),))

    assert statuses(noisy, sample, estimate=Estimate.WEIGHT)["normalisation"] == "fail"
    assert statuses(noisy, sample, estimate=Estimate.EXACT)["values"] == "fail"
    passed = statuses(noisy, sample, estimate=Estimate.ELBO)
    assert passed["normalisation"] == passed["bounds"] == "pass"

    def above(x, cond, key):  # on average 0.05 nats too high
        return noisy(x, cond, key) + 0.05

    assert statuses(above, sample, estimate=Estimate.ELBO)["bounds"] == "fail"


def test_what_cannot_be_examined_says_so():
    def broken(x, cond, key):
        raise TypeError("no such thing")

    verdicts = list(audit.audit_functions(broken, **GIVEN, estimate=Estimate.EXACT))
    assert "raises TypeError: no such thing" in verdicts[0].figure
    with pytest.raises(ValueError, match="too many states"):
        list(
            audit.audit_functions(
                log_prob, **GIVEN | dict(shape=(99,)), estimate="exact"
            )
        )
    with pytest.raises(InputError, match="^--checks=sample: .*did you mean sampler"):
        list(audit.audit_model("made", checks=["sample"]))


@pytest.mark.parametrize(
    ("model", "settings", "told"),
    [
        ("made", {"width": "0"}, "--set=width=0: .*give 1 or more"),
        ("vae", {"width": "0"}, "--set=width=0: .*give 1 or more"),
        (
            "transformer",
            {"num_heads": "3"},
            "--set=width=16 --set=num_heads=3: .*multiple",
        ),
    ],
)
def test_fields_of_which_no_model_can_be_made_are_a_mistake(model, settings, told):
    """And no failed check: they do not refute the model."""
    with pytest.raises(InputError, match=f"^{told}"):
        audit.load(model, settings)


def test_a_model_that_refuses_every_space_has_not_passed():
    class Choosy(made.MADE):
        def setup(self):
            raise InputError("only 3 x 5")

    assert "refuses every space" in audit.check_model(Choosy, {}, "values").figure


def test_an_order_other_than_the_raster_order_is_examined_in_that_order():
    class Backwards(made.MADE):
        @property
        def order(self):
            return tuple(range(self.num_dims))[::-1]

        def conditionals(self, x, cond=None, *, train=False):
            return super().conditionals(x[:, ::-1], cond, train=train)[:, ::-1]

    class Undeclared(Backwards):
        order = property(lambda self: tuple(range(self.num_dims)))

    for check in (structure.causality, structure.receptive_field):
        right, wrong = (
            subject(cls, tuple(made.TINY.items()), "vector", "perturbed")
            for cls in (Backwards, Undeclared)
        )
        assert all(m.passed for m in check(right))
        assert not any(m.passed for m in check(wrong))


def test_jnp_is_not_needed_by_functions():
    """NumPy in, NumPy out."""
    table = np.log([0.25, 0.75])

    def log_p(x, cond, key):
        return table[np.asarray(x)].sum(1)

    [verdict] = audit.audit_functions(
        log_p,
        shape=(2,),
        num_values=2,
        estimate=Estimate.EXACT,
        checks=["normalisation"],
    )
    assert verdict.status == "pass"
    assert jnp.exp(table).sum() == 1
