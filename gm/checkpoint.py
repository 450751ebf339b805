"""Orbax checkpoints that are verified by digest, and that fall back when damaged.

Orbax commits a step atomically but does not notice a flipped bit in array data, so each
step carries a digest of every leaf, and its own number: a directory may be renamed. On
restore, damaged steps are renamed `corrupt-N` and the one before is tried; nothing
damaged is ever used.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from gm import sharding
from gm.errors import InputError

_NOT_DAMAGE = (errno.EACCES, errno.EIO, errno.ENOSPC, errno.EROFS, errno.EDQUOT)


def flatten(tree: Any) -> dict[str, Any]:
    """A pytree as {dotted path: array}; typed keys as their data."""
    flat = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            abstract = isinstance(leaf, jax.ShapeDtypeStruct)
            data = jax.random.key_data
            leaf = jax.eval_shape(data, leaf) if abstract else data(leaf)
        flat[name] = leaf
    return flat


def unflatten(like: Any, flat: Mapping[str, Any], where: str | Path) -> Any:
    """The inverse of `flatten`.

    Args:
      like: a pytree of arrays or ShapeDtypeStructs: the structure.
      flat: the arrays.
      where: they were read, for messages.

    Raises:
      InputError: other names, shapes or types than `like`; Orbax would cast silently.
    """
    wanted = flatten(like)
    for name in sorted(set(wanted) | set(flat)):
        a, b = wanted.get(name), flat.get(name)
        told = ["missing" if v is None else f"{v.dtype}{v.shape}" for v in (a, b)]
        if told[0] != told[1]:
            raise InputError(
                f"{where}: {name} is {told[1]} in the checkpoint and {told[0]} in this "
                "model"
            )
    leaves = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(like):
        value = flat[jax.tree_util.keystr(path, simple=True, separator=".")]
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            value = jax.random.wrap_key_data(value)
        leaves.append(value)
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def leaf_digests(flat: Mapping[str, Any]) -> dict[str, str]:
    """sha256 of every leaf's type, shape and bytes."""
    digests = {}
    for name, leaf in flat.items():
        leaf = np.asarray(sharding.fetch(leaf))
        head = f"{leaf.dtype}{leaf.shape}".encode()
        digests[name] = hashlib.sha256(head + leaf.tobytes()).hexdigest()
    return digests


def state_digest(tree: Any) -> str:
    """sha256 of a whole state: equal for equal arrays, and for those alone."""
    lines = [f"{k} {v}" for k, v in sorted(leaf_digests(flatten(tree)).items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _meta_digest(meta):
    """sha256 of what is stored beside the arrays."""
    rest = {k: v for k, v in meta.items() if k != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def _quiet(where: bool) -> Iterator[None]:
    """Orbax warns of a directory that is opened for reading alone, as was asked for."""
    logger = logging.getLogger("absl")
    before = logger.level
    if where:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


class Checkpoints:
    """The checkpoints of a run under one directory, newest last.

    Of several processes all call each method; process 0 alone writes, and whole arrays,
    so that any mesh and number of processes can go on from there. All read the directory.
    """

    def __init__(self, directory: Path, keep: int | None = 3, writable: bool = True):
        """Opens (and creates) the directory.

        Args:
          directory: where Orbax alone writes.
          keep: how many steps stay; None: all.
          writable: False: nothing is changed, since a training run may be writing here.
        """
        self.directory = Path(directory).absolute()
        self.writable = writable = writable and sharding.is_primary()
        self._saving: int | None = None
        here = jax.process_index()
        # Each process by itself: Orbax would have all of them write together.
        alone = ocp.options.MultiprocessingOptions(
            primary_host=here,
            active_processes={here} if jax.process_count() > 1 else None,
        )
        # Asynchronous creation hangs at exit where the disk is read-only.
        in_turn = ocp.AsyncOptions(create_directories_asynchronously=False)
        try:
            if writable:
                self.directory.mkdir(parents=True, exist_ok=True)
            sharding.agree(True)  # the others find the directory
            with _quiet(not writable):
                options = ocp.CheckpointManagerOptions(
                    read_only=not writable,
                    max_to_keep=keep if writable else None,
                    create=False,
                    cleanup_tmp_directories=writable,
                    async_options=in_turn,
                    multiprocessing_options=alone,
                )
                self._manager = ocp.CheckpointManager(self.directory, options=options)
        except OSError as error:
            raise InputError(
                f"{self.directory}: cannot be opened ({error.strerror})"
            ) from None

    def steps(self) -> list[int]:
        """Committed steps, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, tree: Any, meta: Mapping[str, Any]) -> None:
        """Starts writing a step in the background; an existing step is left alone."""
        self.wait()  # so that a failure is told of the step that it happened in
        if sharding.agree(step in self.steps()):
            return
        flat = sharding.fetch(flatten(tree))
        if not self.writable:
            return
        meta = dict(meta, digests=leaf_digests(flat), saved_as=step)
        meta["sha256"] = _meta_digest(meta)
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(flat), meta=ocp.args.JsonSave(meta)
        )
        try:
            self._saving = step
            saved = self._manager.save(step, args=args, force=True)
        except (OSError, ValueError) as error:
            raise self._failed(error) from None
        if not saved:
            raise InputError(
                f"{self.directory}: step {step} was not saved, since the directory holds "
                f"a later one ({self.steps()[-1]}); move that away"
            )

    def delete_from(self, step: int) -> None:
        """Deletes the given step and later ones."""
        for later in [s for s in self.steps() if s >= step and self.writable]:
            self.wait()
            self._manager.delete(later)

    def _failed(self, error):
        code = re.search(r"os_error_code='(\d+)'", str(error))
        what = os.strerror(int(code[1])) if code else _one_line(error)
        good = ", ".join(str(s) for s in self.steps() if s != self._saving)
        return InputError(
            f"{self.directory}: checkpoint of step {self._saving} could not be written "
            f"({what}); free some space and start the same command again "
            f"(steps that are safe there: {good or 'none'})"
        )

    def check(self) -> None:
        """Raises InputError if the background write failed."""
        try:
            self._manager.check_for_errors()
        except Exception as error:  # Orbax re-raises whatever its thread met
            raise self._failed(error) from None

    def wait(self) -> None:
        """Waits for the background write; InputError if it failed."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._failed(error) from None
        self.check()

    def close(self) -> None:
        """Waits and releases Orbax's threads."""
        self.wait()
        self._manager.close()

    def read(self, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reads and verifies one step.

        Returns:
          (flat, meta): {dotted path: array} and what `save` was given.

        Raises:
          ValueError: the step is damaged; the message says where.
        """
        if (self.directory / str(step)).is_symlink():
            raise ValueError("a symbolic link, not a checkpoint")
        try:
            meta = self._manager.restore(
                step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())
            ).meta
            wanted, told = meta["digests"], meta.pop("sha256")
            flat = self._manager.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore())
            ).state
        except OSError as error:
            if error.errno in _NOT_DAMAGE:
                raise InputError(
                    f"{self.directory / str(step)}: cannot be read ({error.strerror})"
                ) from None
            raise ValueError(str(error)) from None
        except Exception as error:  # whatever Orbax raises on a damaged file
            raise ValueError(f"{type(error).__name__}: {error}") from None
        if told != _meta_digest(meta):
            raise ValueError("the digest of its meta data does not match")
        saved_as = meta.pop("saved_as", step)  # older versions did not note it
        if saved_as != step:
            raise ValueError(f"it was saved as step {saved_as}")
        found = leaf_digests(flat)
        for name in sorted(set(wanted) | set(found)):
            if wanted.get(name) != found.get(name):
                raise ValueError(f"the digest of {name} does not match")
        return flat, meta

    def restore(
        self, like: Any = None, step: int | None = None
    ) -> tuple[int, Any, dict[str, Any]] | None:
        """Restores the newest sound step, or the given one.

        Args:
          like: a pytree of arrays or ShapeDtypeStructs to restore into; None returns
            the flat dictionary.
          step: None for the newest.

        Returns:
          (step, tree, meta), or None if there is no checkpoint.

        Raises:
          InputError: the given step is missing or damaged, or the stored arrays have
            other names, shapes or types than `like`.
        """
        if not sharding.is_primary():  # process 0 has found a sound one
            step = sharding.agree(-1)
            self._manager.reload()
            return None if step < 0 else self._restore(like, step)
        found = self._restore(like, step)
        sharding.agree(-1 if found is None else found[0])
        return found

    def _restore(self, like, step):
        for candidate in [step] if step is not None else self.steps()[::-1]:
            try:
                flat, meta = self.read(candidate)
            except ValueError as error:
                where = self.directory / str(candidate)
                if isinstance(error, InputError):
                    raise
                if step is not None:
                    raise InputError(
                        f"{where}: no sound checkpoint ({_one_line(error)}); "
                        f"steps here: {self.steps()}"
                    ) from None
                logging.warning(
                    "%s: damaged (%s); trying the one before", where, _one_line(error)
                )
                if self.writable:
                    self._move_aside(where)
                continue
            if like is None:
                return candidate, flat, meta
            return candidate, self._unflatten(like, flat, candidate), meta
        return None

    def _move_aside(self, where):
        """Renames a damaged step `corrupt-N`: Orbax sees it no more, a person can."""
        name, count = f"corrupt-{where.name}", 1
        while os.path.lexists(where.with_name(name)):
            name, count = f"corrupt-{where.name}-{count}", count + 1
        where.rename(where.with_name(name))
        self._manager.reload()

    def select(self, flat: Mapping[str, Any], prefix: str, like: Any, step: int) -> Any:
        """The subtree under `prefix` of a flat checkpoint, with the structure of `like`.

        Raises:
          InputError: other names, shapes or types.
        """
        head = prefix + "."
        part = {k.removeprefix(head): v for k, v in flat.items() if k.startswith(head)}
        return self._unflatten(like, part, step)

    def _unflatten(self, like, flat, step):
        return unflatten(like, flat, self.directory / str(step))


def _one_line(error):
    return " ".join(str(error).split())[:200]
