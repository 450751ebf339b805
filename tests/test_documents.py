"""What the documents say holds: commands run, links and names are there, tables are new."""

import json
import os
import re
import shlex
import subprocess
import sys

import documents
import numpy as np
import pytest
from documents import PAGES, UNRUN
from launch import REPO, start
from PIL import Image

from experiments import models, presets
from gm.tables import markdown

# What makes a command small enough for a test; the last of two flags wins.
SMALL = {
    "train": "--num_steps=4 --steps_per_dispatch=2 --valid_every=4 --save_every=4 "
    "--log_every=2 --batch_size=8",
    "evaluate": "--num_importance_samples=2",
    "judge": "--num_samples=32 --num_bayes=4",
    "complete": "--num_examples=2",
    "sample": "--num_samples=4",
    "plan": "--preset=digits/vae --mesh=data:2",
    "translate": "--num_examples=4",
}


@pytest.fixture(scope="module")
def flags_of():
    """The flags of every launcher: name of the launcher -> names of flags."""
    names = sorted(p.stem for p in (REPO / "experiments").glob("*.py"))
    code = (
        "import importlib, json, sys\n"
        "from absl import flags\n"
        "found = importlib.import_module(f'experiments.{sys.argv[1]}')\n"
        "getattr(found, 'define_flags', list)()\n"
        "print(json.dumps(list(flags.FLAGS)))"
    )
    found = {}
    for name in names:
        if "launcher.run(main)" in (REPO / "experiments" / f"{name}.py").read_text():
            words = [sys.executable, "-c", code, name]
            done = subprocess.run(words, cwd=REPO, capture_output=True, text=True)
            found[name] = set(json.loads(done.stdout))
    return found


@pytest.mark.parametrize("page", PAGES)
def test_flags_of_commands_exist(page, flags_of):
    for command in documents.commands(page):
        if not (launched := documents.launched(command)):
            continue
        launcher, args = launched
        for arg in args:
            if arg.startswith("--"):
                name, _, value = arg[2:].partition("=")
                assert name in flags_of[launcher], f"{command}: --{name}"
                if name == "preset":
                    presets.find(value)


def test_flags_that_the_text_names_exist(flags_of):
    files = [p for p in (REPO / "scripts").rglob("*") if p.is_file()]
    others = "".join(p.read_text() for p in files if p.suffix != ".pyc")
    others += (REPO / "gm/pytest_plugin.py").read_text()
    others += (REPO / "tests/conftest.py").read_text()
    known = set().union(*flags_of.values()) | {"extra"}
    for page in PAGES:
        for name in re.findall(r"`[^`\n]*?--([a-z_]+)", documents.named(page)):
            there = name in known or f"--{name}" in others or name.startswith("xla_")
            assert there, f"{page}: --{name}"


@pytest.mark.parametrize("page", PAGES)
def test_links_resolve(page):
    for path, anchor in documents.links(page):
        assert path.exists(), f"{page}: {path}"
        assert not anchor or anchor in documents.anchors(path), f"{page}: #{anchor}"


def test_every_page_is_checked():
    tracked = {str(p.relative_to(REPO)) for p in REPO.glob("[ge.s]*/**/*.md")}
    own = {
        p
        for p in tracked
        if p.split("/")[0] in ("gm", "experiments", "scripts", ".github")
    }
    assert own | {"README.md"} == set(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_files_that_the_text_names_are_there(page):
    top = r"(?:gm|experiments|scripts|tests)/[\w./-]+"
    for name in re.findall(rf"`(?:python )?({top})", documents.text_of(page)):
        assert (REPO / name).exists(), f"{page}: {name}"


FAMILIES = [f"gm/models/{name}.md" for name in ("AUTOREGRESSIVE", "FLOW", "LATENT")]


@pytest.mark.parametrize("page", FAMILIES)
def test_names_beside_the_equations_are_those_of_the_code(page):
    code = "".join(p.read_text() for p in (REPO / "gm").rglob("*.py"))
    words = set(re.findall(r"\w+", code))
    text = re.sub(r"\]\([^)]*\)", "", documents.named(page))
    camel = re.findall(r"\b[A-Z][a-z]+[A-Z]\w+|\b[A-Z]{2,}[a-z]\w+", text)
    snake = re.findall(r"\b_?[a-z]{3,}(?:_[a-z]{3,})+\b", text)
    assert len(camel + snake) > 10
    assert {w for w in camel + snake if w not in words} == set()


def test_tables_are_up_to_date(monkeypatch):
    """If not: python -m experiments.models | scripts/into_readme models."""
    assert markdown(*models.quality()) in documents.text_of("experiments/RESULTS.md")
    # Without the counts, for which every preset has to be traced.
    monkeypatch.setattr(models, "_short", lambda count: "")
    monkeypatch.setattr(models, "_preset_params", lambda name: 0)
    page = re.sub(
        r"(?<=`) [\d.]+[kM]?(?=,| \|)", " ", documents.text_of("gm/models/README.md")
    )
    assert markdown(*models.table()) in page


@pytest.mark.slow
def test_counts_of_the_table_are_up_to_date():
    assert markdown(*models.table()) in documents.text_of("gm/models/README.md")


def test_licences_are_listed():
    """If not: .venv/bin/python scripts/licences | scripts/into_readme licences."""
    setup = (REPO / "setup.py").read_text()
    needed = setup.partition("install_requires=[")[2].partition("\n    ]")[0]
    listed = documents.text_of(".github/LICENCES.md")
    for name in re.findall(r'^\s*"([\w.-]+)', needed, re.MULTILINE):
        assert f"**{re.sub('[-_.]+', '-', name).lower()}**" in listed


def test_bash_completes_launchers_flags_and_names():
    """`source scripts/completion`."""
    script = """
    source scripts/completion
    while read -r line; do
      COMP_LINE=$line COMP_POINT=${#line} COMP_WORDS=("$PYTHON") COMPREPLY=()
      _gm
      echo "${COMPREPLY[*]}"
    done"""
    typed = {
        "python -m experiments.tr": "experiments.train experiments.translate",
        "python -m experiments.train --model=pixels": "pixelsnail",
        "python -m experiments.train --preset=digits/glo": "digits/glow",
        "python -m experiments.evaluate --k_": "--k_curve",
        "python -m experiments.evaluate --split=t": "train test",
        "python -m experiments.evaluate --workdir=": "",
        "python other.py --k": "",
    }
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=REPO,
        env=os.environ | {"PYTHON": sys.executable},
        input="\n".join(typed) + "\n",
        capture_output=True,
        text=True,
    )
    assert done.stdout.split("\n")[:-1] == list(typed.values()), done.stderr


# Running what the pages show.


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with what the commands find: the file of the README, and an array."""
    place = tmp_path_factory.mktemp("documents")
    [model] = [t for lang, t in documents.blocks("README.md") if "class Indep" in t]
    (place / "my_model.py").write_text(model)
    np.save(place / "images.npy", np.zeros((4, 8, 8, 1), np.uint8))
    noise = np.random.default_rng(0).integers(0, 256, (44, 16, 16, 3), np.uint8)
    for folder, images in (("photos", noise[:40]), ("others", noise[40:])):
        (place / folder).mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image).save(place / folder / f"{i}.png")
    return place


def run(command, place):
    """Runs a command of the documents at its smallest."""
    if launched := documents.launched(command):
        launcher, args = launched
        small = SMALL.get(launcher, "").split()
        if launcher == "sample" and "--prompt" in command:
            small = []
        if launcher == "evaluate" and "--num_importance_samples" not in command:
            small = []
        args = [a.replace("--resolution=256", "--resolution=32") for a in args]
        process = start(
            launcher, *args, *small, cwd=place, env={"PYTHONPATH": str(REPO)}
        )
    else:
        words = shlex.split(command)
        assert words[0] == "pytest", f"neither run nor in documents.UNRUN: {command}"
        words = [w.replace("tests/", f"{REPO}/tests/") for w in words]
        process = subprocess.Popen(
            [sys.executable, "-m", *words, "-p", "no:xdist", "-q"],
            cwd=place,
            env=os.environ | {"PYTHONPATH": str(REPO)},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    out, err = process.communicate(timeout=1200)
    assert process.returncode == 0, f"{command}\n{out}{err}"
    return out


def of(page):
    return [c for c in documents.commands(page) if not documents.why_unrun(c)]


LAUNCH = [c for c in of("README.md") if re.search(r"runs/(vae|made)\b", c)][:5]


@pytest.mark.slow
def test_the_launch_of_the_readme_runs(place):
    assert len(LAUNCH) == 5
    out = [run(command, place) for command in LAUNCH]
    assert "bits/dim" in out[-1]
    assert (place / "report.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if of(p)])
def test_every_command_runs(page, place):
    if not (place / "report.html").exists():  # pages go on from these runs
        for command in LAUNCH:
            run(command, place)
    for command in of(page):
        if command not in LAUNCH:
            run(command, place)
    for code in (text for language, text in documents.blocks(page) if language == "py"):
        words, env = (
            [sys.executable, "-c", code],
            os.environ | {"PYTHONPATH": str(REPO)},
        )
        subprocess.run(words, cwd=place, env=env, check=True)


def test_what_is_not_run_is_there_and_says_why():
    every = [c for page in PAGES for c in documents.commands(page)]
    for begin, why in UNRUN.items():
        assert any(c.startswith(begin) for c in every), begin
        assert why
