"""Parameters as one safetensors file, which any framework reads and which runs no code."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from gm.checkpoint import flatten, state_digest, unflatten
from gm.errors import InputError
from gm.rundir import write_whole


def write_weights(
    path: Path, params: Any, checkpoint: str, meta: Mapping[str, Any]
) -> str:
    """Writes parameters, whole.

    Args:
      path: of the file.
      params: a pytree of arrays.
      checkpoint: which parameters these are, such as "best, step 500".
      meta: JSON values to keep beside them.

    Returns:
      sha256 of the parameters.
    """
    digest = state_digest(params)
    flat = {k: np.ascontiguousarray(v) for k, v in flatten(params).items()}
    told = {"format": "gm", "checkpoint": checkpoint, "sha256": digest}
    write_whole(path, save(flat, told | {"meta": json.dumps(dict(meta))}))
    return digest


def read_weights(path: Path, like: Any) -> tuple[str, Any, dict[str, Any]]:
    """(checkpoint, params, meta), as `write_weights` was given them.

    Raises:
      InputError: damaged, or of another model than `like`.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            told = file.metadata() or {}
            flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            label, meta = told["checkpoint"], json.loads(told["meta"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        what = " ".join(str(error).split())[:120]
        raise InputError(f"{path}: not weights that gm exported ({what})") from None
    params = unflatten(like, flat, path)
    if state_digest(params) != told.get("sha256"):
        raise InputError(
            f"{path}: damaged: the sha256 of its parameters does not match"
        )
    return label, jax.tree.map(np.asarray, params), meta
