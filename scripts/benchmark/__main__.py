"""Measures speed and memory, as ratios of CPU time on one core.

  python scripts/benchmark --suite=all --json=benchmark.json        # against ourselves
  python scripts/benchmark --suite=sampling --peers=DIR --peer_python=VENV/bin/python

Suites: step (training), fused (many steps in a dispatch), sampling, likelihood (losses),
compile (and start-up), input (data wait), memory, all; and accelerator, which needs a GPU:
presets' training steps with their MFU, and sampling, by wall time. Both contenders of a
case run in warmed-up processes of their own, pinned to the same core, one thread, in the
order A B B A per round; a ratio is CPU time of B over that of A (ours), above 1 where ours
is faster.
Their numbers of parameters are equal, to 1 %, or the case is refused.

The peers are not part of this repository. DIR holds checkouts, each in a folder of the
repository's name, and --peer_python is a Python with torch, numpy and scipy:

  git clone https://github.com/EugenHotaj/pytorch-generative DIR/pytorch-generative
  git clone https://github.com/karpathy/nanoGPT DIR/nanoGPT
  git clone https://github.com/pclucas14/pixel-cnn-pp DIR/pixel-cnn-pp
  git clone https://github.com/rosinality/glow-pytorch DIR/glow-pytorch
  git clone https://github.com/bayesiains/nflows DIR/nflows
  git clone https://github.com/openai/vdvae DIR/vdvae

The status says whether all ratios were reached.
"""

import argparse
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
# So that it runs from a checkout without installation.
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

import accelerator  # noqa: E402
import driver  # noqa: E402
from once import ONCE  # noqa: E402
from suites import SUITES, Case  # noqa: E402

NAMES = ("step", "fused", "sampling", "likelihood", "compile", "input", "memory")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--suite", choices=[*NAMES, "all", "accelerator"], default="all"
    )
    parser.add_argument("--cases", default="", help="only those whose name begins so")
    parser.add_argument("--peers", type=Path, help="folder with the peers' checkouts")
    parser.add_argument(
        "--peer_python", default=sys.executable, help="a Python that has PyTorch"
    )
    parser.add_argument("--rounds", type=int, default=7, help="rounds A B B A")
    parser.add_argument("--core", type=int, default=0, help="which core to pin to")
    parser.add_argument(
        "--patience", type=float, default=600.0, help="seconds for compiling on a GPU"
    )
    parser.add_argument("--json", type=Path, help="file for the measurements")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peers is not None and not given.peers.is_dir():
        parser.error(f"--peers={given.peers}: no such directory; see --help")
    if given.rounds < 1:
        parser.error(f"--rounds={given.rounds}: give 1 or more")
    available = sorted(os.sched_getaffinity(0))
    if not 0 <= given.core < len(available):
        parser.error(f"--core={given.core}: give 0 to {len(available) - 1}")
    given.core = available[given.core]
    return given


def _selected(given: argparse.Namespace) -> list[Case]:
    """The cases that can be run with what was given."""
    names = NAMES if given.suite == "all" else (given.suite,)
    cases = [case for name in names for case in SUITES.get(name, ())]
    cases = [case for case in cases if case.name.startswith(given.cases)]
    if given.peers is None:
        left = [case.name for case in cases if case.has_peer]
        if left:
            print(f"without --peers, {len(left)} cases are left out", file=sys.stderr)
        cases = [case for case in cases if not case.has_peer]
    return cases


def _run(case: Case, given: argparse.Namespace) -> dict[str, Any]:
    file, function, arguments = case.b
    python = sys.executable
    if case.has_peer:
        python, peers = given.peer_python, str(given.peers.resolve())
        arguments = {"peers": peers, **arguments}
    sides = (sys.executable, case.a), (python, (file, function, arguments))
    result = driver.compare(*sides, case.rounds or given.rounds, given.core)
    reached = case.gate is None or result["ratio"] >= case.gate
    return result | {"unit": case.unit, "gate": case.gate, "reached": reached}


def _figures(result: dict[str, Any], peak: float) -> list[str]:
    """The cells of a row, after its name."""
    a, b = result["a"], result["b"]
    low, high = result["ratio_spread"]
    flops = a["flops"] or b["flops"]
    speed = flops / a["cpu_seconds"]
    gate = result["gate"]
    verdict = "" if gate is None else f">= {gate:g}"
    return [
        f"{1e3 * a['cpu_seconds']:.4g} ms",
        f"{1e3 * b['cpu_seconds']:.4g} ms",
        f"{result['ratio']:.3g} [{low:.3g}, {high:.3g}]",
        f"{result['wall_ratio']:.3g}",
        verdict if result["reached"] else f"{verdict} MISSED",
        f"{result['params'][0]:,}" if result["params"][0] else "",
        f"{speed / 1e9:.1f} ({speed / peak:.0%})" if flops else "",
    ]


HEADER = (
    "case",
    "ours, CPU per unit",
    "other",
    "ratio [spread]",
    "by wall time",
    "gate",
    "parameters",
    "GFLOP/s (of the matmul peak)",
)


def main() -> int:
    """Prints a Markdown table and notes; 1 if a gate was missed."""
    given = _arguments()
    if given.worker:
        driver.work(given.worker)
        return 0
    if given.suite == "accelerator":
        return 0 if accelerator.measure(given)[1] else 1
    measured: dict[str, Any] = {"processor": platform.processor(), "core": given.core}
    good, cases = True, _selected(given)
    if cases:
        measured["peak"] = peak = driver.peak(sys.executable, given.core)
        print(f"matmul peak of this core: {peak / 1e9:.1f} GFLOP/s\n")
        print("| " + " | ".join(HEADER) + " |")
        print("| " + " | ".join(["---"] * len(HEADER)) + " |", flush=True)
    for case in cases:
        try:
            measured[case.name] = result = _run(case, given)
        except SystemExit as error:  # the others can still be measured
            print(f"{case.name}: {error}", file=sys.stderr)
            good = False
            continue
        good = good and result["reached"]
        cells = [case.name, *_figures(result, peak)]
        print("| " + " | ".join(cells) + " |", flush=True)
        for side in ("a", "b"):
            for note, value in result[side]["notes"].items():
                who = "ours" if side == "a" else "other"
                print(f"  {case.name}, {who}: {note}: {value}", file=sys.stderr)
        if given.json:
            given.json.write_text(json.dumps(measured, indent=1) + "\n")
    once = {"compile": ["startup"], "input": ["input"], "memory": ["memory"]}
    for name in NAMES if given.suite == "all" else (given.suite,):
        for function in once.get(name, ()):
            for row in ONCE[function](given.core):
                measured[row["case"]] = row
                good = good and row["reached"]
                gate = "" if row["gate"] is None else f", gate <= {row['gate']:g}"
                missed = "" if row["reached"] else " MISSED"
                print(
                    f"{row['case']}: {row['value']:.4g} {row['unit']}{gate}{missed}",
                    flush=True,
                )
    if given.json:
        given.json.write_text(json.dumps(measured, indent=1) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
