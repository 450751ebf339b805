"""Presets on a GPU: MFU of a training step, memory, sampling; against compiled PyTorch.

Both contenders of a case are started together, each compiles, and then they take turns
A B B A by wall time; they end before the next case starts, whose memory they would take.
MFU: FLOPs of the model, without what is computed anew, over the
card's bf16 peak of experiments/accelerators.json.
"""

import contextlib
import dataclasses
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from driver import Entry, Worker, same_params

PIXELCNNPP: dict[str, Any] = dict(
    width=160, num_resnets=5, num_mixtures=10, dropout_rate=0.5
)
TRANSFORMER: dict[str, Any] = dict(
    width=768, depth=8, num_heads=6, num_mixtures=0, scan_layers=False
)
GPT: dict[str, Any] = dict(width=512, depth=12, num_heads=4)
GLOW: dict[str, Any] = dict(width=512, depth=8, num_scales=3)
_GPT2: dict[str, Any] = GPT | dict(style="gpt2", scan_layers=False)
COLOUR = (32, 32, 3)


@dataclasses.dataclass(frozen=True)
class Case:
    """A, ours, and what it is held against, if anything.

    ratio: of B's time to A's that is to be reached; mfu; seconds: that A may take.
    """

    name: str
    a: Entry
    b: Entry | None = None
    ratio: float | None = None
    mfu: float | None = None
    seconds: float | None = None


def _train(
    model: str, fields: Any, batch_size: int, precision: str, **more: Any
) -> Entry:
    given: dict[str, Any] = dict(shape=COLOUR, num_values=256, steps=5) | more
    given |= dict(fields=fields, batch_size=batch_size, precision=precision)
    return "ours", "train_on_device", dict(model=model, **given)


def _peer(function: str, batch_size: int, precision: str, **sizes: Any) -> Entry:
    given = dict(batch_size=batch_size, precision=precision, steps=5)
    return "peers", function, given | sizes


_SAMPLE: dict[str, Any] = dict(shape=COLOUR, num_values=256, precision="bfloat16")

CASES = [
    Case(
        "step: cifar10/transformer, batch 64, bf16",
        _train("transformer", TRANSFORMER, 64, "bfloat16"),
        mfu=0.4,
    ),
    Case(
        "step: cifar10/pixelcnnpp, batch 64, bf16",
        _train("pixelcnnpp", PIXELCNNPP, 64, "bfloat16"),
        mfu=0.25,
    ),
    Case(
        "step: pixelcnnpp, 1 block a scale, width 160, batch 32, bf16, against pclucas14",
        _train("pixelcnnpp", PIXELCNNPP | {"num_resnets": 1}, 32, "bfloat16"),
        _peer("pixelcnnpp_colour_step", 32, "bfloat16", width=160, num_resnets=1),
        1.3,
    ),
    Case(
        "step: gpt of 3072 tokens, 12 layers of 512, batch 16, bf16, against nanoGPT",
        _train("transformer", _GPT2, 16, "bfloat16", shape=(3072,)),
        _peer("gpt_step", 16, "bfloat16", length=3072, **GPT),
        1.3,
    ),
    Case(
        "step: glow, 3 x 8 steps of width 512, batch 64, TF32, against rosinality",
        _train("glow", GLOW, 64, "float32"),
        _peer("glow_step", 64, "float32", width=512, depth=8),
        1.3,
    ),
    Case(
        "step: binarized_mnist/transformer, batch 100, bf16",
        _train(
            "transformer",
            dict(width=256, depth=6, num_heads=4, dropout_rate=0.1),
            100,
            "bfloat16",
            shape=(28, 28, 1),
            num_values=2,
        ),
    ),
    Case(
        "sample: 64 images by cifar10/transformer",
        (
            "ours",
            "sample_on_device",
            dict(model="transformer", fields=TRANSFORMER, batch_size=64, **_SAMPLE),
        ),
        seconds=20.0,
    ),
]


def _peak(device: str) -> float:
    """Of a card whose kind is "NVIDIA H200" or the like; 0: it is not known."""
    path = Path(__file__).resolve().parents[2] / "experiments" / "accelerators.json"
    table = json.loads(path.read_text())["accelerators"]
    word = next((w for w in re.split(r"\W+", device.lower()) if w in table), None)
    return table[word]["flops"]["bfloat16"] if word else 0.0


def is_there() -> bool:
    """Whether JAX finds an accelerator; in a process of its own, lest this one holds it."""
    code = "import jax; print(jax.default_backend())"
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return found not in ("", "cpu")


def _started(given, case):
    """The workers of a case's contenders: ours alone, where no peers are given."""
    pair = [Worker(sys.executable, case.a, None)]
    if case.b and given.peers:
        file, function, arguments = case.b
        arguments = {"peers": str(given.peers.resolve()), **arguments}
        pair.append(Worker(given.peer_python, (file, function, arguments), None))
    return pair


def _ready(pair, patience):
    """Waits for both, so that nobody compiles while another is timed; a peer may fail."""
    end = time.perf_counter() + patience
    pair[0].ready(patience)
    for peer in pair[1:]:
        try:
            peer.ready(max(end - time.perf_counter(), 1.0))
        except SystemExit as error:
            print(error, file=sys.stderr)
    return [worker for worker in pair if worker.about]


def _gates(case, row):
    """What is to be reached -> whether it was; None: it was not measured."""
    found = {}
    for name, wanted, text in (
        ("ratio", case.ratio, "ratio >= {:g}"),
        ("mfu", case.mfu, "MFU >= {:.0%}"),
    ):
        if wanted is not None:
            value = row[name]
            found[text.format(wanted)] = None if value is None else value >= wanted
    if case.seconds is not None:
        found[f"<= {case.seconds:g} s"] = row["seconds"] <= case.seconds
    return found


def _measure(case, pair, rounds):
    """Medians of wall seconds, and what the contenders say of themselves.

    Raises:
      SystemExit: their numbers of parameters differ, or a process failed.
    """
    params = same_params(*pair)
    turns: dict[str, list[float]] = {"A": [], "B": []}
    for _ in range(rounds):
        for name in "ABBA" if len(pair) == 2 else "A":
            turns[name].append(pair["AB".index(name)].turn()[1])
    seconds = statistics.median(turns["A"])
    about = pair[0].about
    device = about["notes"]["device"]
    peak, flops = _peak(device), about["flops"]
    row: dict[str, Any] = {
        "case": case.name,
        "device": device,
        "seconds": seconds,
        "turns": turns,
        "params": params,
        "flops": flops,
        "mfu": flops / seconds / peak if peak and flops else None,
        "ratio": statistics.median(turns["B"]) / seconds if turns["B"] else None,
        "notes": [worker.about["notes"] for worker in pair],
    }
    row["gates"] = _gates(case, row)
    row["reached"] = all(row["gates"].values())
    return row


HEADER = "| case | device | ours | other | ratio | params | MFU | memory | gates |"
_VERDICT = {True: "", False: " MISSED", None: " not measured"}


def _line(row):
    other = statistics.median(row["turns"]["B"]) if row["ratio"] else None
    cells = [
        row["case"],
        row["device"],
        f"{1e3 * row['seconds']:.4g} ms",
        f"{1e3 * other:.4g} ms" if other else "",
        f"{row['ratio']:.3g}" if row["ratio"] else "",
        " / ".join(f"{n:,}" for n in row["params"]),
        f"{row['mfu']:.1%}" if row["mfu"] else "",
        " / ".join(f"{n['peak memory, GB']} GB" for n in row["notes"]),
        ", ".join(f"{gate}{_VERDICT[met]}" for gate, met in row["gates"].items()),
    ]
    return "| " + " | ".join(cells) + " |"


def measure(given: Any) -> tuple[dict[str, Any], bool]:
    """Prints a row for each case; what was measured, and whether all was reached."""
    cases = [case for case in CASES if case.name.startswith(given.cases)]
    alone = [case for case in cases if case.b and not given.peers]
    if alone:
        print(f"without --peers, {len(alone)} ratios are not measured", file=sys.stderr)
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    print(f"{HEADER}\n{'| --- ' * (HEADER.count('|') - 1)}|", flush=True)
    measured: dict[str, Any] = {}
    for case in cases:
        try:
            with contextlib.ExitStack() as opened:
                pair = [opened.enter_context(w) for w in _started(given, case)]
                row = _measure(case, _ready(pair, given.patience), given.rounds)
        except SystemExit as error:  # the others can still be measured
            print(f"{case.name}: {error}", file=sys.stderr)
            continue
        measured[case.name] = row
        print(_line(row), flush=True)
        if given.json:
            given.json.write_text(json.dumps(measured, indent=1) + "\n")
    good = len(measured) == len(cases)
    return measured, good and all(row["reached"] for row in measured.values())
