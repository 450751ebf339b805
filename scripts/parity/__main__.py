"""Compares log-likelihoods with reference implementations, weights and inputs being equal.

  python scripts/parity --peers=DIR              # all that lie in DIR
  python scripts/parity --peers=DIR made glow    # some

DIR holds checkouts of the repositories, each in a folder of the repository's name; --help
lists them with the commits that were compared. PyTorch comes from PyPI (`pip install torch
numpy`). Each file beside this one initialises a reference at random, loads its weights into
ours and gives both the same inputs. The exit status says whether all agree to 1e-4,
relative, for every example.
"""

import argparse
import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np

# Here, for without PyTorch the files cannot be asked. With the commits compared.
_GENERATIVE = ("EugenHotaj/pytorch-generative", "d1f0a5c")
REPOSITORIES = {
    "gated_pixelcnn": _GENERATIVE,
    "glow": ("rosinality/glow-pytorch", "97081ff"),
    "made": _GENERATIVE,
    "nice": _GENERATIVE,
    "pixelcnnpp": ("pclucas14/pixel-cnn-pp", "7cb4436"),
    "tarflow": ("apple/ml-tarflow", "313120e"),
    "vdm": ("google-research/vdm", "dc27b98"),
    "vdvae": ("openai/vdvae", "ea35b49"),
}
TOLERANCE = 1e-4
HEADER = (
    "model",
    "reference",
    "commit",
    "configuration",
    "parameters: reference, ours",
    "largest relative error",
)


def folder(name: str) -> str:
    """The folder of a comparison's checkout, in DIR."""
    return REPOSITORIES[name][0].split("/")[1]


def how_to_get(name: str, peers: object = "DIR") -> str:
    """The commands that check out what a comparison needs."""
    (repository, compared), path = REPOSITORIES[name], f"{peers}/{folder(name)}"
    clone = f"git clone https://github.com/{repository} {path}"
    return f"{clone} && git -C {path} checkout {compared}"


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
    names = ", ".join(REPOSITORIES)
    checkouts = dict.fromkeys(map(how_to_get, REPOSITORIES))
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="\n  ".join(
            ["checkouts, at the commits that were compared:", *checkouts]
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--peers", type=Path, required=True, metavar="DIR")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {names}")
    given = parser.parse_args()

    def refuse(what):
        parser.exit(2, f"error: {what}\n")

    for name in given.names:
        if name not in REPOSITORIES:
            refuse(f"{name}: no such comparison (one of {names})")
    if not given.peers.is_dir():
        refuse(f"--peers={given.peers}: no such directory; see --help")
    wanted = given.names or list(REPOSITORIES)
    missing = [n for n in wanted if not (given.peers / folder(n)).is_dir()]
    if missing and (given.names or missing == wanted):
        name = missing[0]
        lacking = f"{name} needs a checkout that is not there"
        refuse(f"--peers={given.peers}: {lacking}: {how_to_get(name, given.peers)}")
    if missing:
        left = f"left out, without a checkout (see --help): {', '.join(missing)}"
        print(left, file=sys.stderr)
    there = [name for name in wanted if name not in missing]
    try:
        modules = {name: importlib.import_module(name) for name in there}
    except ModuleNotFoundError as error:
        how = "pip install torch numpy"
        refuse(f"PyTorch is needed, and {error.name} is not installed: {how}")
    print("| " + " | ".join(HEADER) + " |")
    print("| " + " | ".join(["---"] * len(HEADER)) + " |", flush=True)
    agree, notes = True, []
    for name, module in modules.items():
        checkout = given.peers / folder(name)
        for row in module.compare(checkout):
            reference, ours = np.asarray(row.reference), np.asarray(row.ours)
            error = np.abs(ours / reference - 1).max()
            good = bool(error <= TOLERANCE)
            agree = agree and good
            cells = (
                row.model,
                REPOSITORIES[name][0],
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
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
