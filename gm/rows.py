"""What a result row holds, and which JSON is none: rows may come from elsewhere."""

import math
from pathlib import Path
from typing import Any

from gm.errors import InputError
from gm.spec import Estimate

Row = dict[str, Any]

_Kinds = tuple[type, ...]
_TEXT: _Kinds = (str,)
_COUNT: _Kinds = (int,)
_NUMBER: _Kinds = (int, float)
_NONE: _Kinds = (type(None),)
_NEEDED: dict[str, _Kinds] = {
    **dict.fromkeys(("model", "dataset", "split", "split_sha256", "unit"), _TEXT),
    **dict.fromkeys(("conditioning", "estimate"), _TEXT),
    **dict.fromkeys(("num_values", "num_examples", "num_params"), _COUNT),
    **dict.fromkeys(("num_importance_samples",), _COUNT),
    **dict.fromkeys(("nats", "bits_per_dim", "bits_per_object"), _NUMBER),
    **dict.fromkeys(("standard_error_nats", "entropy_floor_nats"), _NUMBER + _NONE),
    "shape": (list,),
}
# What else `compare` reads of a row, where it is there.
_KNOWN: dict[str, _Kinds] = {
    **dict.fromkeys(("checkpoint", "commit", "device", "precision"), _TEXT + _NONE),
    **dict.fromkeys(("preprocessing", "init_from", "bit_map"), _TEXT + _NONE),
    **dict.fromkeys(("seed", "evaluation_seed"), _COUNT + _NONE),
    **dict.fromkeys(("step", "examples_seen"), _COUNT),
    **dict.fromkeys(("train_seconds", "train_flops"), _NUMBER),
    **dict.fromkeys(("settings", "training", "versions"), (dict,)),
    **dict.fromkeys(("interval_nats", "samples"), (dict,)),
    "augmentation": _TEXT,
    "k_curve": (list,),
}
# The entries of those of them that have a form: needed where the field is there.
_POINT = {"k": _COUNT, "nats": _NUMBER, "standard_error_nats": _NUMBER}
_INTERVAL = {
    **dict.fromkeys(("low", "high", "effective_draws"), _NUMBER),
    **dict.fromkeys(("groups", "k"), _COUNT),
    "own_sample_shortfall": _NUMBER + _NONE,
}
_SAMPLES = {
    "legal": _NUMBER,
    **dict.fromkeys(("count", "distinct", "distinct_true"), _COUNT),
    "uniformity_p": _NUMBER + _NONE,
}


def _is_plain(value: Any) -> bool:
    """Whether JSON has no text that moves a terminal's cursor, and no NaN or infinity."""
    if isinstance(value, dict):
        return all(map(_is_plain, [*value, *value.values()]))
    if isinstance(value, list):
        return all(map(_is_plain, value))
    if isinstance(value, float):
        return math.isfinite(value)
    return not isinstance(value, str) or value.isprintable()


def _has(value: Any, form: dict[str, _Kinds]) -> bool:
    """Whether a dictionary has these entries."""
    return isinstance(value, dict) and all(
        name in value and isinstance(value[name], kinds) for name, kinds in form.items()
    )


def _strange(row: Row) -> list[str]:
    """Names of the fields that no evaluation can have written so."""
    kinds = _NEEDED | {n: k for n, k in _KNOWN.items() if n in row}
    wrong = [n for n, k in kinds.items() if not isinstance(row[n], k)]
    wrong += [n for n, value in row.items() if n not in wrong and not _is_plain(value)]
    if wrong:
        return wrong
    sound = {
        "shape": row["shape"] and all(type(n) is int and n > 0 for n in row["shape"]),
        "num_examples": row["num_examples"] > 0,
        "estimate": row["estimate"] in [e.value for e in Estimate],
        # Exact and below 0 would be a probability above one.
        "nats": row["estimate"] != "exact" or row["nats"] >= -1e-3,
        "standard_error_nats": (row["standard_error_nats"] or 0.0) >= 0,
        "k_curve": all(_has(point, _POINT) for point in row.get("k_curve", [])),
        "interval_nats": not (sides := row.get("interval_nats"))
        or _has(sides, _INTERVAL),
        "samples": not (found := row.get("samples")) or _has(found, _SAMPLES),
    }
    return [n for n, good in sound.items() if not good]


def check_row(row: Any, file: Path) -> None:
    """Raises InputError for what no evaluation can have written."""
    missing = [n for n in _NEEDED if not isinstance(row, dict) or n not in row]
    if missing:
        raise InputError(f"{file}: not a result row ({', '.join(missing)} missing)")
    wrong = _strange(row)
    if wrong:
        told = ", ".join(f"{n} is {row[n]!r:.80}" for n in wrong)
        raise InputError(f"{file}: not a result row ({told}); run `evaluate` again")
