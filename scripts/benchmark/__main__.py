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

The status says whether all gates were reached; one that was not measured was not.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

HERE = Path(__file__).resolve().parent
# So that it runs from a checkout without installation.
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

import accelerator  # noqa: E402
import driver  # noqa: E402
from once import ONCE  # noqa: E402
from suites import SUITES, Case  # noqa: E402

NAMES = ("step", "fused", "sampling", "likelihood", "compile", "input", "memory")


def _refuse(what: str) -> NoReturn:
    print(f"error: {what}", file=sys.stderr)
    sys.exit(2)


def _suites(given: argparse.Namespace) -> tuple[str, ...]:
    return NAMES if given.suite == "all" else (given.suite,)


def _names(given: argparse.Namespace) -> list[str]:
    """Of all cases of the suites."""
    if given.suite == "accelerator":
        return [case.name for case in accelerator.CASES]
    found = []
    for suite in _suites(given):
        found += [case.name for case in SUITES.get(suite, ())] + [*ONCE.get(suite, ())]
    return found


def _lacks(python: str) -> str:
    """What a peer's Python lacks; "" if nothing."""
    code = (
        "import importlib.util as u\n"
        "print(*(n for n in ('torch', 'numpy', 'scipy') if not u.find_spec(n)))"
    )
    try:
        done = subprocess.run(
            [python, "-c", code], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "it does not run"
    lacking = ", ".join(done.stdout.split())
    return f"it lacks {lacking}" if lacking else ""


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
        "--patience",
        type=float,
        default=600.0,
        help="seconds that a case may compile on a GPU",
    )
    parser.add_argument("--json", type=Path, help="file for the measurements")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        return given
    if given.peers is not None and not given.peers.is_dir():
        _refuse(f"--peers={given.peers}: no such directory; see --help")
    if given.rounds < 1:
        _refuse(f"--rounds={given.rounds}: give 1 or more")
    names = _names(given)
    if not any(name.startswith(given.cases) for name in names):
        told = f"no case of --suite={given.suite} begins so"
        _refuse(f"--cases={given.cases}: {told} ({'; '.join(names)})")
    if given.peers and (lacks := _lacks(given.peer_python)):
        wanted = "give a Python with torch, numpy and scipy"
        _refuse(f"--peer_python={given.peer_python}: {lacks}; {wanted}")
    if given.suite == "accelerator" and not accelerator.is_there():
        _refuse("--suite=accelerator: JAX finds no GPU here; give another suite")
    available = sorted(os.sched_getaffinity(0))
    if not 0 <= given.core < len(available):
        _refuse(f"--core={given.core}: give 0 to {len(available) - 1}")
    given.core = available[given.core]
    return given


def _once(given: argparse.Namespace) -> dict[str, Any]:
    """The measurements of ours alone: name -> function of the core."""
    found = [pair for name in _suites(given) for pair in ONCE.get(name, {}).items()]
    return {name: f for name, f in found if name.startswith(given.cases)}


def _selected(given: argparse.Namespace) -> list[Case]:
    """The cases of two contenders that can be run with what was given."""
    cases = [case for name in _suites(given) for case in SUITES.get(name, ())]
    cases = [case for case in cases if case.name.startswith(given.cases)]
    if given.peers is None:
        own = [case for case in cases if not case.has_peer]
        left = len(cases) - len(own)
        if left and not own and not _once(given):
            told = f"without --peers=DIR, none of {left} cases can be measured"
            _refuse(f"--suite={given.suite}: {told}; see --help")
        if left:
            print(f"without --peers, {left} cases are left out", file=sys.stderr)
        return own
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
    speed = a["flops"] / a["cpu_seconds"]
    gate = result["gate"]
    verdict = "" if gate is None else f">= {gate:g}"
    return [
        f"{1e3 * a['cpu_seconds']:.4g} ms",
        f"{1e3 * b['cpu_seconds']:.4g} ms",
        f"{result['ratio']:.3g} [{low:.3g}, {high:.3g}]",
        f"{result['wall_ratio']:.3g}",
        verdict if result["reached"] else f"{verdict} MISSED",
        f"{result['params'][0]:,}" if result["params"][0] else "",
        f"{speed / 1e9:.1f} ({speed / peak:.0%})" if speed else "",
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
    good, cases, once = True, _selected(given), _once(given)
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
    for name, measure in once.items():
        measured[name] = row = measure(given.core)
        good = good and row["reached"]
        gate = "" if row["gate"] is None else f", gate <= {row['gate']:g}"
        missed = "" if row["reached"] else " MISSED"
        told = f"{row['value']:.4g} {row['unit']}{gate}{missed}"
        print(f"{name}: {told}", flush=True)
    if given.json:
        given.json.write_text(json.dumps(measured, indent=1) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
