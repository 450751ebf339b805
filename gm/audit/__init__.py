"""The auditor: proves or refutes that a model is the distribution that it says it is.

  for verdict in audit_model("vae"):
      print(verdict)

A model is a file (ours or yours, by import path), or a plain pair of functions
(`audit_functions`); what turns it into numbers is examined too (`audit_evaluator`). Each
check runs on spaces small enough to enumerate, or where larger shapes matter, with
parameters off their initial values (zero-initialised layers hide bugs), far off them,
and after training. It measures figures and compares each with a limit; a verdict shows
the worst.
"""

import dataclasses
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from gm.audit import mass, structure
from gm.audit.evaluator import EVALUATOR_CHECKS
from gm.audit.subject import (
    SPACES,
    Measured,
    Space,
    Subject,
    Verdict,
    defines,
    space_for,
    subject,
)
from gm.errors import InputError, did_you_mean
from gm.fields import parse_settings
from gm.model import check_fields, load_model
from gm.spec import CondSpec, Estimate

__all__ = [
    "CHECKS",
    "EVALUATOR_CHECKS",
    "QUICK",
    "Verdict",
    "audit_evaluator",
    "audit_functions",
    "audit_model",
    "check_model",
]


@dataclasses.dataclass(frozen=True)
class Check:
    """A check, where it is run (names of SPACES, kinds of parameters), what it needs."""

    measure: Callable[[Subject], Iterator[Measured]]
    where: tuple[tuple[str, str], ...]
    methods: tuple[str, ...] = ()  # of the model
    needs: str = ""
    if_exact: tuple[tuple[str, str], ...] = ()  # where an EXACT model is examined too

    @property
    def wanted(self) -> str:
        """What is missing where nothing could be measured."""
        return " and ".join(self.methods) or self.needs


def _at(spaces: str, *kinds: str) -> tuple[tuple[str, str], ...]:
    return tuple((s, k) for s in spaces.split() for k in kinds)


_CACHED = ("conditionals", "init_cache", "step")
_FLOW = ("forward", "inverse")
_TRAINED = _at("pixels vector", "trained")  # training is what takes longest
# What is small comes first: a model that is refuted there is examined no further.
_WIDE = _at("sequence vector image colour", "perturbed")
_DEEP = _WIDE + _TRAINED
_MASS = _at("sequence pixels binary grey colours", "perturbed") + _TRAINED
_DRAWN = _at("sequence grey", "perturbed") + _TRAINED
_SYMBOLS = _at("binary sequence grey colours", "perturbed", "large")

CHECKS: dict[str, Check] = {
    check.measure.__name__: check
    for check in (
        Check(structure.values, _at("image", "perturbed") + _TRAINED),
        Check(mass.normalisation, _MASS, if_exact=_at("grey colours", "large")),
        Check(mass.symbols, _SYMBOLS, needs="conditionals, or generate and log_px_z"),
        Check(mass.sampler, _DRAWN, needs="sample"),
        Check(mass.bounds, _TRAINED, needs="an estimate; this likelihood is exact"),
        Check(structure.neighbours, _WIDE),
        Check(
            structure.batch_size, _at("sequence vector", "perturbed"), needs="a model"
        ),
        Check(
            structure.devices, _at("sequence vector", "perturbed"), needs="two devices"
        ),
        Check(structure.condition, _at("sequence vector", "perturbed"), needs="a cond"),
        Check(structure.causality, _DEEP, ("conditionals",)),
        Check(structure.receptive_field, _DEEP, ("conditionals",)),
        Check(structure.cache, _WIDE, _CACHED),
        Check(structure.inverse, _DEEP, _FLOW),
        Check(structure.log_det, _DEEP, _FLOW),
    )
}

# A fifth of the work: every check, given classes and after training.
QUICK = frozenset(_at("sequence", "perturbed") + _at("pixels", "trained"))


def _judge(name: str, measured: Iterable[Measured], needs: str) -> Verdict:
    """The verdict on what was measured: the worst figure, and how many there were."""
    figures = list(measured)
    if not figures:
        return Verdict(name, "skip", f"needs {needs}")
    worst = max(figures, key=lambda m: m.severity)
    status = "pass" if all(m.passed for m in figures) else "fail"
    more = f"; the worst of {len(figures)}" if len(figures) > 1 else ""
    return Verdict(name, status, f"{worst}{more}")


def _crash(name: str, error: Exception) -> Verdict:
    """A model that raises has failed; the innermost line says where."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = ""
    if trace is not None:
        where = f" ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})"
    what = " ".join(str(error).split())[:300]
    return Verdict(name, "fail", f"raises {type(error).__name__}: {what}{where}")


def _select(names: Iterable[str] | None, known: Iterable[str]) -> list[str]:
    known = list(known)
    if names is None:
        return known
    names = list(names)
    valid = f"one of {', '.join(known)}"
    if not names:
        raise InputError(f"--checks=: give {valid}")
    for name in names:
        if name not in known:
            near = did_you_mean(name, known)
            raise InputError(f"--checks={name}: no such check{near} ({valid})")
    return names


def check_model(
    cls: Any,
    settings: Mapping[str, Any],
    name: str,
    subjects: Collection[tuple[str, str]] | None = None,
) -> Verdict:
    """Runs one of CHECKS on a model class with these fields.

    A model may refuse a shape or a number of values by InputError, but not all of them.
    `subjects`: (space, kind of parameters) to look at, of those that the check has.
    """
    check = CHECKS[name]
    if not defines(cls, *check.methods):
        return Verdict(name, "skip", f"needs {check.wanted}")
    figures: list[Measured] = []
    refusals = []
    try:  # of an instance, since it may depend on the fields
        estimate = getattr(cls(shape=(1,), num_values=2, **settings), "estimate", None)
    except Exception as error:
        return _crash(name, error)
    exact = estimate is Estimate.EXACT
    where = check.where + (check.if_exact if exact else ())
    if subjects is not None:
        where = tuple(pair for pair in where if pair in subjects)
    for space, kind in where:
        try:
            found = subject(cls, tuple(settings.items()), space, kind)
        except InputError as error:
            refusals.append(str(error))
            continue
        except Exception as error:
            return _crash(name, error)
        try:
            found_here = check.measure(found)
            figures += [dataclasses.replace(m, where=found.name) for m in found_here]
            if not all(m.passed for m in figures):
                break  # refuted: the other spaces need not be looked at
        except Exception as error:
            return _crash(name, error)
    if refusals and len(refusals) == len(where):
        return Verdict(name, "fail", f"the model refuses every space: {refusals[0]}")
    return _judge(name, figures, check.wanted)


def load(
    model: str | types.ModuleType, settings: Mapping[str, str] | None = None
) -> tuple[Any, dict[str, Any]]:
    """The class in a model's file, and its TINY fields updated by --set texts.

    Raises:
      InputError: no such model or field, or one of which no network can be made.
    """
    module = load_model(model) if isinstance(model, str) else model
    given = parse_settings(module.Model, settings or {})
    fields = {**getattr(module, "TINY", {}), **given}
    if given:
        _check_fields(module.Model, fields, given)
    return module.Model, fields


def _check_fields(cls, fields, given):
    """Refuses --set values with which the model can be built on none of SPACES."""
    refusals = []
    for space in (space_for(cls, name) for name in SPACES):
        try:
            made = cls(space.shape, space.num_values, space.cond, **fields)
            check_fields(made, given)
            return
        except InputError as error:  # perhaps of the space alone
            refusals.append(error)
    raise refusals[0]


def audit_model(
    model: str | types.ModuleType,
    *,
    settings: Mapping[str, str] | None = None,
    checks: Iterable[str] | None = None,
    subjects: Collection[tuple[str, str]] | None = None,
) -> Iterator[Verdict]:
    """Examines a model file.

    Args:
      model: as for `--model`: a name of gm.models or an import path; or the module.
      settings: fields in place of those in TINY, as texts.
      checks: names from CHECKS; default all.
      subjects: (space, kind of parameters) to look at, such as QUICK; default all.

    Raises:
      InputError: no such model, field or check, or a field that cannot be.
    """
    cls, fields = load(model, settings)
    for name in _select(checks, CHECKS):
        yield check_model(cls, fields, name, subjects)


def audit_functions(
    log_prob: Callable[..., Any],
    sample: Callable[..., Any] | None = None,
    *,
    shape: tuple[int, ...],
    num_values: int,
    estimate: Estimate,
    cond: CondSpec | None = None,
    checks: Iterable[str] | None = None,
) -> Iterator[Verdict]:
    """Examines a plain pair of functions; only the checks that apply are run.

    Args:
      log_prob: (x int32 [B, *shape], cond, key) -> nats [B], log P(x) or an estimate.
      sample: (key, n, cond) -> integers [n, *shape].
      shape, num_values: a space of at most 20,000 states, to be enumerated.
      estimate: what log_prob returns.
      cond: what both are conditioned on.
      checks: names from CHECKS; default all.
    """
    space = Space(tuple(shape), num_values, cond)
    space.states()  # an error here is the caller's
    pair = Subject(f"{space}", space, Estimate(estimate), log_prob, sample)
    for name in _select(checks, CHECKS):
        check = CHECKS[name]
        try:
            yield _judge(name, check.measure(pair), check.wanted)
        except Exception as error:
            yield _crash(name, error)


def audit_evaluator(
    evaluate: Callable[..., Any], *, checks: Iterable[str] | None = None
) -> Iterator[Verdict]:
    """Examines what turns a model and a split into a number: `gm.evaluate.evaluate`'s like.

    Args:
      evaluate: (model, params, dataset, split_name, *, batch_size,
        num_importance_samples) -> (row, nats [N]).
      checks: names from EVALUATOR_CHECKS; default all.
    """
    for name in _select(checks, EVALUATOR_CHECKS):
        try:
            yield _judge(name, EVALUATOR_CHECKS[name](evaluate), "")
        except Exception as error:
            yield _crash(name, error)
