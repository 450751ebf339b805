"""Fits a model to a data set in a run directory: the loop around the one step."""

import functools
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from gm import sharding
from gm.checkpoint import Checkpoints, state_digest
from gm.config import TrainConfig
from gm.data.dataset import Dataset, identify
from gm.errors import InputError
from gm.evaluate import evaluate_nats
from gm.feed import ReadAhead, check_feed, make_feed
from gm.flops import count_flops
from gm.likelihood import bits
from gm.model import LikelihoodModel
from gm.rundir import RunDirectory
from gm.train import init_state, make_optimizer, train_steps
from gm.writer import Metrics, Progress

MAX_NONFINITE = 10  # consecutive skipped updates after which --on_nonfinite=skip stops
MAX_ROLLBACKS = 3


def trace_steps(
    model: LikelihoodModel,
    dataset: Dataset,
    config: TrainConfig,
    mesh: jax.sharding.Mesh | None = None,
) -> jax.stages.Traced:
    """Traces a dispatch for a configuration without running anything."""
    mesh = mesh or sharding.make_mesh()
    feed = make_feed(dataset, config, model.cond is not None, mesh)
    optimizer = make_optimizer(config)
    state = jax.eval_shape(lambda: init_state(model, optimizer, config.seed))
    state = sharding.abstract(mesh, state)
    xs = feed.xs(0, config.steps_per_dispatch)
    args = (model, optimizer, config, feed.draw, state, feed.data, xs)
    return train_steps.trace(*args, mesh=mesh)


class Trainer:
    """Fits a model to a data set in a run directory; resumes where it stopped."""

    def __init__(
        self,
        model: LikelihoodModel,
        dataset: Dataset,
        config: TrainConfig,
        run: RunDirectory,
        mesh: jax.sharding.Mesh | None = None,
        start: Any = None,
        *,
        tensorboard: bool = False,
        recorded: Mapping[int, float] | None = None,
    ):
        """Restores the newest sound checkpoint, or initialises.

        Args:
          model, dataset, config: what is fitted to what, and how.
          run: where; of several processes the first one's is locked.
          mesh: of the devices; None: all of them along `data`.
          start: parameters to begin with; None: the model's initial ones.
          tensorboard: whether to write event files too.
          recorded: {step: validation bits/dim} of an earlier run, shown beside ours.

        Raises:
          InputError: a configuration that cannot be run.
        """
        config.check()
        self.mesh = mesh or sharding.make_mesh()
        check_feed(dataset, config, self.mesh)
        self.model, self.dataset, self.config, self.run = model, dataset, config, run
        self.optimizer = make_optimizer(config)
        make_feed_args = (dataset, config, model.cond is not None, self.mesh)
        self._make_feed = functools.partial(make_feed, *make_feed_args)
        self.latest = Checkpoints(run.checkpoints / "latest")
        self.best = Checkpoints(run.checkpoints / "best", keep=1)
        self.step, self.seconds, self.best_nats = 0, 0.0, math.inf
        self._valid_text = ""
        self._init = functools.partial(init_state, model, self.optimizer, config.seed)
        if self._restore() is None:
            self.state = sharding.initialize(self.mesh, self._init)
            if start is not None:  # a copy each, since the state is donated
                copies = (jax.tree.map(np.array, start) for _ in range(2))
                params, ema_params = (sharding.place(self.mesh, c) for c in copies)
                self.state = self.state.replace(params=params, ema_params=ema_params)
        found = self.best.restore()
        if found is not None:
            self.best_nats = found[2]["valid_nats"]
        _, order = identify(dataset, dataset.valid)
        self._valid_order = order[: config.num_valid_examples]
        self.feed = self._read_ahead(int(self.state.rollbacks))
        self.flops = 0.0  # of one step; known once it is traced
        self._tensorboard, self._recorded = tensorboard, recorded or {}
        self._open_logs()

    def _read_ahead(self, rollbacks):
        return ReadAhead(self._make_feed(rollbacks=rollbacks))

    def _restore(self):
        restored = self.latest.restore(jax.eval_shape(self._init))
        if restored is not None:
            self.step, state, meta = restored
            self.state = sharding.place(self.mesh, state)
            self.seconds = meta["train_seconds"]
        return restored

    def _open_logs(self):
        """What people watch, without the rows after the step that is resumed from."""
        primary, self.events = sharding.is_primary(), None
        self.metrics = Metrics(self.run.metrics, self.step, writable=primary)
        if self._tensorboard and primary:
            from gm.events import Events

            self.events = Events(self.run.path / "tensorboard", self.step)

    def _close_logs(self):
        self.metrics.close()
        if self.events is not None:
            self.events.close()

    def digest(self) -> str:
        """sha256 of the whole state."""
        return state_digest(self.state)

    def _meta(self):
        return {
            "step": self.step,
            "train_seconds": self.seconds,
            "examples_seen": self.step * self.config.batch_size,
            "train_flops": self.flops * self.step,
        }

    def save(self) -> None:
        """Saves the state (in the background) beside the older ones."""
        # Validation is not repeated on resuming: its checkpoint must be safe by then.
        self.best.wait()
        self.latest.save(self.step, self.state, self._meta())

    def validate(self) -> float:
        """Mean nats on the validation split; keeps the parameters if it is the best."""
        nats, _ = evaluate_nats(
            self.model,
            self.state.ema_params,
            self.dataset.valid,
            self._valid_order,
            batch_size=max(self.config.batch_size, 100),
            num_importance_samples=self.config.valid_samples,
            mesh=self.mesh,
        )
        mean = float(nats.mean())
        if mean < self.best_nats:
            self.best_nats = mean
            meta = dict(self._meta(), valid_nats=mean)
            self.best.delete_from(self.step)  # of a course that was rolled back
            self.best.save(self.step, {"ema_params": self.state.ema_params}, meta)
        return mean

    def _count(self, start):
        """Steps of the dispatch that begins at `start`.

        Dispatches end at multiples of steps_per_dispatch wherever a run resumes, so that
        the same programs run on the same steps.
        """
        fused = self.config.steps_per_dispatch
        return min(fused - start % fused, self.config.num_steps - start)

    def _advance(self, count):
        """Runs `count` steps in one dispatch and handles what was not finite."""
        xs = self.feed.take(self.step, count)
        feed, after = self.feed.feed, self.step + count
        args = (self.model, self.optimizer, self.config, feed.draw)
        args = (*args, self.state, feed.data, xs)
        if not self.flops:
            traced = train_steps.trace(*args, mesh=self.mesh)
            self.flops = count_flops(traced.jaxpr.jaxpr)[0] / count
        self.state, values = train_steps(*args, mesh=self.mesh)
        if after < self.config.num_steps:  # while the device works
            self.feed.prepare(after, self._count(after))
        values = jax.device_get(values)  # the only wait: once per dispatch
        finite = np.isfinite(values["train/bpd"]) & np.isfinite(values["grad_norm"])
        self.step += count
        if not finite.all():
            self._nonfinite(values, int(np.flatnonzero(~finite)[0]), count)
        return values, finite

    def _nonfinite(self, values, first, count):
        step = self.step - count + first
        told = ", ".join(
            f"{name} is {values[name][first]}" for name in ("train/bpd", "grad_norm")
        )
        in_a_row = int(self.state.skipped_in_a_row)
        policy = self.config.on_nonfinite
        if policy == "skip" and in_a_row < MAX_NONFINITE:
            return
        rollbacks = int(self.state.rollbacks)
        if policy == "rollback" and rollbacks < MAX_ROLLBACKS:
            self.latest.wait()
            restored = self._restore()
            if restored is not None:
                rollbacks += 1
                count = sharding.replicate(self.mesh, np.int32(rollbacks))
                self.state = self.state.replace(rollbacks=count)
                self.feed.close()
                self.feed = self._read_ahead(rollbacks)
                self._close_logs()
                self._open_logs()
                return
        self.latest.wait()
        last = self.latest.steps()[-1:]
        raise InputError(
            f"step {step}: not finite ({told}; {in_a_row} updates in a row); the last "
            f"good checkpoint is {f'step {last[0]}' if last else 'none'}; lower "
            "--learning_rate or --clip_norm, or try --on_nonfinite=skip or rollback"
        )

    def _crosses(self, every, count):
        """Whether the last `count` steps reached a multiple of `every`, or the end."""
        reached = self.step // every > (self.step - count) // every
        return reached or self.step == self.config.num_steps

    def fit(self, should_stop: Callable[[], bool] = lambda: False) -> bool:
        """Trains to the end, or until `should_stop()`; returns whether it ended.

        Either way the state is saved, and the same call resumes it bit for bit. Of
        several processes all stop where any should.
        """
        config, primary = self.config, sharding.is_primary()
        progress = Progress(self.run.path.name, config.num_steps, self.step, primary)
        begin = time.monotonic() - self.seconds
        validated = sharding.agree(bool(self.best.steps()))
        if self.step >= config.valid_every and not validated:
            self.validate()  # the best one was damaged: there must be one again
        while self.step < config.num_steps and not sharding.any_of(should_stop()):
            start, waited = self.step, self.feed.waited
            count = self._count(start)
            values, finite = self._advance(count)
            if self.step <= start:  # rolled back
                continue
            elapsed = time.monotonic() - begin - self.seconds
            speed = count * config.batch_size / max(elapsed, 1e-9)
            idle = (self.feed.waited - waited) / max(elapsed, 1e-9)
            self.seconds += elapsed
            row = {}
            if self._crosses(config.log_every, count):
                # Of this dispatch alone: a mean since the last row would depend on
                # where a run was interrupted.
                finite_values = {
                    k: v[finite] for k, v in values.items() if finite.any()
                }
                row = {k: v.mean(dtype=np.float64) for k, v in finite_values.items()}
                row["train/skipped"] = int(self.state.skipped)
            if self._crosses(config.valid_every, count):
                nats = self.validate()
                row["valid/bpd"] = bits(nats) / self.model.num_dims
                row["valid/bits_per_object"] = bits(nats)
                self.seconds = time.monotonic() - begin
            if row:
                row["time/seconds"] = self.seconds
                row["time/examples_per_second"] = speed
                row["time/data_wait"] = idle
                self.metrics.write(self.step, row)
                if self.events is not None:
                    self.events.scalars(self.step, row)
                self.latest.check()
            self._show(progress, values, finite, row, speed, idle)
            if self._crosses(config.save_every, count):
                self.save()
                begin += self._draw()
        progress.close()
        self.save()
        self.latest.wait()
        self.best.wait()
        return self.step >= config.num_steps

    def _draw(self):
        """Shows samples of the averaged parameters; returns the seconds that it took."""
        begin = time.monotonic()
        if self.events is not None:
            params = self.state.ema_params
            self.events.samples(self.step, self.model, params, self.dataset)
        return time.monotonic() - begin

    def _show(self, progress, values, finite, row, speed, idle):
        bpd = values["train/bpd"][finite]
        text = f"train {bpd.mean():.4f} bits/dim" if bpd.size else "not finite"
        if "valid/bpd" in row:
            self._valid_text = f", valid {row['valid/bpd']:.4f}"
            if self.step in self._recorded:
                self._valid_text += f" (recorded: {self._recorded[self.step]:.4f})"
        text += f"{self._valid_text}, {speed:.0f} examples/s, data wait {idle:.1%}"
        progress.update(self.step, text, line="valid/bpd" in row)

    def close(self) -> None:
        """Closes files and Orbax's threads."""
        self.feed.close()
        if self.events is not None and self.step >= self.config.num_steps:
            self.events.hyperparameters(self.run.config(), self.metrics.rows)
        self._close_logs()
        self.latest.close()
        self.best.close()
