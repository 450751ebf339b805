"""Compares log-likelihoods with reference implementations, weights and inputs being equal.

  python scripts/parity --peers=DIR              # all that lie in DIR
  python scripts/parity --peers=DIR made glow    # some

DIR holds checkouts of the repositories, each in a folder of the repository's name:

  git clone https://github.com/EugenHotaj/pytorch-generative DIR/pytorch-generative

PyTorch comes from PyPI (`pip install torch numpy`). Each file beside this one initialises
a reference at random, loads its weights into ours and gives both the same inputs. The
exit status says whether all agree to 1e-4, relative, for every example.
"""

import argparse
import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
TOLERANCE = 1e-4
HEADER = (
    "model",
    "reference",
    "commit",
    "configuration",
    "parameters: reference, ours",
    "largest relative error",
)


def commit(checkout: Path) -> str:
    """Short hash of what is checked out; "" if it is not a git repository."""
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def forget(checkout: Path) -> None:
    """Un-imports a checkout's modules: the next may have others of the same names."""
    sys.path[:] = [p for p in sys.path if p != str(checkout)]

    def of_checkout(module):
        own = vars(module)  # torch has modules with every attribute
        paths = [own.get("__file__"), *own.get("__path__", ())]
        return any(str(path).startswith(f"{checkout}/") for path in paths)

    for name in [n for n, m in list(sys.modules.items()) if of_checkout(m)]:
        del sys.modules[name]


def main() -> int:
    """Prints a Markdown table; 0 if all agree, 1 if not, 2 for a mistake of the user."""
    names = sorted(
        p.stem for p in HERE.glob("*.py") if p.stem not in ("row", "__main__")
    )
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}"
    )
    given = parser.parse_args()
    for name in given.names:
        if name not in names:
            parser.error(f"{name}: no such comparison (one of {', '.join(names)})")
    if not given.peers.is_dir():
        parser.error(f"--peers={given.peers}: no such directory; see scripts/parity")
    print("| " + " | ".join(HEADER) + " |")
    print("| " + " | ".join(["---"] * len(HEADER)) + " |", flush=True)
    agree, notes, missing, compared = True, [], [], 0
    for name in given.names or names:
        module = importlib.import_module(name)
        checkout = given.peers / module.REPOSITORY.split("/")[1]
        if not checkout.is_dir():
            missing.append(f"{name}: {checkout} is not there")
            continue
        for row in module.compare(checkout):
            reference, ours = np.asarray(row.reference), np.asarray(row.ours)
            error = np.abs(ours / reference - 1).max()
            good = bool(error <= TOLERANCE)
            agree, compared = agree and good, compared + 1
            cells = (
                row.model,
                module.REPOSITORY,
                commit(checkout),
                row.configuration,
                f"{row.reference_params:,}, {row.our_params:,}",
                f"{error:.1e}" + ("" if good else f", ABOVE {TOLERANCE:.0e}"),
            )
            print("| " + " | ".join(cells) + " |", flush=True)
            if row.note:
                notes.append(f"- {row.model}: {row.note}")
        forget(checkout)
    print("", *dict.fromkeys(notes), sep="\n")
    for line in missing:
        print(
            f"error: {line}; see the head of scripts/parity/__main__.py",
            file=sys.stderr,
        )
    if missing and (given.names or not compared):
        return 2
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
