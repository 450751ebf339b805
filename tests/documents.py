"""The documents as the tests read them: their commands, links and names."""

import re
import shlex
from pathlib import Path

from launch import REPO

PAGES = [
    "README.md",
    "experiments/README.md",
    "experiments/APPLICATIONS.md",
    "experiments/RESULTS.md",
    "gm/models/README.md",
    "gm/models/AUTOREGRESSIVE.md",
    "gm/models/FLOW.md",
    "gm/models/LATENT.md",
    "gm/codec/README.md",
    "scripts/benchmark/README.md",
    ".github/CONTRIBUTING.md",
    ".github/LICENCES.md",
]

# How commands begin that no test runs, and why. Their flags are checked all the same.
UNRUN = {
    "scripts/run": "trains for minutes; the commands in it are run one by one",
    "scripts/test": "the tests themselves",
    "scripts/check": "runs before the tests, in scripts/test",
    ".venv/bin/python scripts/licences": "rewrites a page; a test compares the names",
    "python -m experiments.models | scripts/into_readme": "rewrites a page, as a test sees",
    "python scripts/parity": "needs PyTorch and checkouts of reference implementations",
    "python -m experiments.train --preset=cifar10/transformer": "needs a GPU",
    "srun": "needs Slurm; tests/test_slurm.py runs against a stand-in",
    "[ $? = 83 ]": "needs Slurm",
    "python -m experiments.sweep --launcher=slurm": "needs Slurm",
    "python -m experiments.sweep --status --workdir=/shared": "needs Slurm's sweep",
    "python -m experiments.compare /shared": "needs Slurm's sweep",
    "gcloud": "needs a TPU pod",
    'flags="--model=made --dataset=fashion_mnist': "needs an archive; as the next three",
    "python -m experiments.train $flags": "needs an archive that is downloaded",
    "python -m experiments.outliers --inlier=runs/fashion": "needs that archive",
    "python -m experiments.train --data_dir=DATA": "needs archives that are downloaded",
    "python -m experiments.judge --data_dir=DATA": "of a run on such an archive",
    "python -m experiments.complete --data_dir=DATA": "of a run on such an archive",
    "python -m experiments.translate --data_dir=DATA": "of a run on such an archive",
    "python -m experiments.outliers --data_dir=DATA": "of a run on such an archive",
    "python -m experiments.train --model=multiscale --dataset=files:PHOTOS": "needs them",
    "python -m experiments.sample --workdir=runs/photo512": "of that run",
    "python scripts/prepare_data --train=DATA": "needs an archive that is downloaded",
}


def text_of(page: str) -> str:
    return (REPO / page).read_text()


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, text) of the fenced blocks."""
    return re.findall(r"^```(\w*)\n(.*?)^```", text_of(page), re.DOTALL | re.MULTILINE)


def commands(page: str) -> list[str]:
    """The commands of a page, one a line, without comments."""
    found = []
    for language, text in blocks(page):
        lines = re.sub(r"\\\n\s*", "", text).splitlines()
        if language != "bash":  # equations and trees of files, but for commands
            lines = [s for s in lines if re.match(r'python |flags="', s)]
        for line in lines:
            line = re.sub(r"(^|\s+)#.*", "", line).strip()
            if line:
                found.append(line)
    return found


def why_unrun(command: str) -> str | None:
    return next((why for s, why in UNRUN.items() if command.startswith(s)), None)


def launched(command: str) -> tuple[str, list[str]] | None:
    """(launcher, arguments) of `python -m experiments.LAUNCHER ARGUMENTS`."""
    match = re.search(
        r"python -m experiments\.(\w+)([^|&\")]*(?:\"[^\"]*\"[^|&]*)*)", command
    )
    if not match or "$" in command or "..." in command:
        return None
    return match[1], shlex.split(match[2])


def links(page: str) -> list[tuple[Path, str]]:
    """(file, anchor) of the relative links and pictures."""
    found = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if not target.startswith(("http:", "https:")):
            path, _, anchor = target.partition("#")
            own = REPO / page
            found.append(((own.parent / path).resolve() if path else own, anchor))
    return found


def anchors(path: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in heads}


def named(page: str) -> str:
    """The text outside of fenced blocks in bash, whose words are names of the code."""
    return re.sub(
        r"^```bash\n.*?^```", "", text_of(page), flags=re.DOTALL | re.MULTILINE
    )
