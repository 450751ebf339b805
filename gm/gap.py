"""Bits above a known entropy: what a plateau means, checked on samples.

A cube state is legal if three invariants hold besides every cubie occurring once: the
corner twists sum to 0 mod 3, the edge flips to 0 mod 2, and the corner and edge
permutations have the same parity (Joyner 2008). A model that spreads its mass evenly
over what it cannot tell from legal states pays log2 of how many more there are: log2 3,
1 and 1 bits. So the distance to the entropy says which invariants are not learnt.
"""

import itertools
import math
from typing import Any

import numpy as np

from gm.data.dataset import Dataset
from gm.generate import draw
from gm.likelihood import bits
from gm.model import LikelihoodModel

_INVARIANTS = {
    "pocket_cube": {"corner_twist": 3},
    "rubiks_cube": {"corner_twist": 3, "edge_flip": 2, "parity": 2},
}
_NEAR = 0.15  # bits from a stair that count as standing on it


def staircase(dataset: str) -> list[tuple[float, tuple[str, ...]]]:
    """Bits above the entropy of a model that misses each set of invariants, sorted."""
    odds = _INVARIANTS[dataset]
    return sorted(
        (sum(math.log2(odds[n]) for n in missing), missing)
        for count in range(len(odds) + 1)
        for missing in itertools.combinations(odds, count)
    )


def check_samples(
    model: LikelihoodModel,
    params: Any,
    dataset: Dataset,
    cond: np.ndarray | None,
    *,
    count: int,
    batch_size: int = 250,
    seed: int = 0,
) -> dict[str, Any]:
    """Judges samples of a model of a known distribution.

    Args:
      model, params, dataset: the dataset has a `support`.
      cond: conditions to draw from, [N, ...], or None.
      count: how many samples.
      batch_size: samples at a time.
      seed: of the samples.

    Returns:
      count; legal: the fraction that can occur; facts: the fraction of each condition;
      distinct and distinct_true: different legal ones among them, and among as many
      test examples; uniformity_p: of a chi-square test that legal samples fall into
      the classes of the support as often as they should (None: too few).
    """
    given = None if cond is None else cond[np.arange(count) % len(cond)]
    x = draw(model, params, count, given, batch_size=batch_size, seed=seed)
    return judge_samples(x, dataset, given)


def legality(facts: dict[str, np.ndarray]) -> dict[str, Any]:
    """Legal: the fraction of which all facts (bool [N] each) hold; facts: of each one."""
    legal = np.all(list(facts.values()), axis=0)
    held = {name: float(fact.mean()) for name, fact in facts.items()}
    return {"legal": float(legal.mean()), "facts": held}


def legality_text(found: dict[str, Any], what: str) -> str:
    """The same as a phrase, of `what`."""
    facts = ", ".join(f"{name} {held:.1%}" for name, held in found["facts"].items())
    return f"{found['legal']:.1%} of {what} can occur ({facts})"


def judge_samples(
    x: np.ndarray, dataset: Dataset, cond: np.ndarray | None = None
) -> dict[str, Any]:
    """The same of samples [N, *shape] that were drawn already, for conditions [N, ...].

    Where the support can tell, also agrees: the share that is what was asked for.
    """
    support, count = dataset.support, len(x)
    assert support is not None
    facts = support.facts(x)
    possible = x[np.all(list(facts.values()), axis=0)]
    true, _ = dataset.test.batch(np.arange(min(count, len(dataset.test))))
    found = {
        "count": count,
        **legality(facts),
        "distinct": len({e.tobytes() for e in possible}),
        "distinct_true": len({e.tobytes() for e in true}),
        "uniformity_p": _uniformity(support, possible) if cond is None else None,
    }
    if cond is not None and support.agrees is not None:
        found["agrees"] = float(support.agrees(x, cond).mean())
    return found


def _uniformity(support, x):
    from scipy.stats import chisquare

    expected = len(x) * support.class_probs
    if expected.min() < 5:
        return None
    observed = np.bincount(support.classes(x), minlength=len(expected))
    return float(chisquare(observed, expected).pvalue)


def plateau(label: str, row: dict[str, Any]) -> list[str]:
    """What the distance to the entropy and the samples of a row say, as sentences."""
    said = []
    floor, found = row["entropy_floor_nats"], row.get("samples") or {}
    if floor is not None and row["dataset"] in _INVARIANTS:
        said.append(_stair(row["dataset"], bits(row["nats"] - floor), found))
    if found:
        text = (
            f"{found['legal']:.1%} of {found['count']} samples are legal, "
            f"{found['distinct']} different ({found['distinct_true']} among as many "
            "true ones)"
        )
        p = found["uniformity_p"]
        said.append(
            text + (f", spread evenly with p = {p:.2g}" if p is not None else "")
        )
    return [f"{label}: {'; '.join(said)}."] if said else []


def _stair(dataset, gap, found):
    stairs = staircase(dataset)
    near = [missing for height, missing in stairs if abs(gap - height) <= _NEAR]
    if not gap >= -_NEAR:
        return f"{gap:+.2f} bits, below the floor"
    if gap > stairs[-1][0] + _NEAR:
        text = f"{gap:+.2f} bits, above the staircase: not even the cubies are learnt"
    elif not near:
        low = max((s for s in stairs if s[0] < gap), default=stairs[0])
        text = f"{gap:+.2f} bits, leaving the stair {_name(*stairs[stairs.index(low) + 1])}"
    else:
        # Flip and parity cost the same bit each: samples tell which of them it is.
        missing = min(near, key=lambda names: _distance(dataset, names, found))
        height = next(h for h, names in stairs if names == missing)
        text = f"{gap:+.2f} bits, on the stair {_name(height, missing)}"
    facts = _facts(dataset, found)
    if not facts:
        text += " (by the bits alone: no samples were judged)"
    if facts and facts["cubies"] * found["count"] >= 50:
        rates = [
            f"{name} {facts[name] / facts['cubies']:.0%} (chance {1 / odds:.0%})"
            for name, odds in _INVARIANTS[dataset].items()
        ]
        text += f"; of samples with the right cubies {', '.join(rates)} hold"
    return text


def _facts(dataset, found):
    """How often each invariant held; {} where it was not measured (or by no gm)."""
    facts, names = found.get("facts"), {"cubies", *_INVARIANTS[dataset]}
    if not isinstance(facts, dict) or not names <= facts.keys():
        return {}
    return facts if all(isinstance(facts[n], int | float) for n in names) else {}


def _name(height, missing):
    names = " and ".join(n.replace("_", " ") for n in missing)
    return f"+{height:.3f}: {names + ' not learnt' if missing else 'all learnt'}"


def _distance(dataset, missing, found):
    """How far samples are from missing exactly these invariants."""
    facts = _facts(dataset, found)
    if not facts.get("cubies"):
        return 0.0  # nothing to tell them apart by
    return sum(
        abs(facts[name] / facts["cubies"] - (1 / odds if name in missing else 1.0))
        for name, odds in _INVARIANTS[dataset].items()
    )
