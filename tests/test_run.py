"""Runs as Python and other people use them: `gm.load`, what is exported, event files."""

import json
import re
import shutil
import struct
import subprocess
import sys
from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest
from launch import REPO, SMALL, flip_bit, launch, one_error, train

import gm
from gm import evaluate, trained
from gm.checkpoint import state_digest
from gm.errors import InputError
from gm.events import Events
from gm.export import export
from gm.model import check_conditions, load_model
from gm.report.content import origin
from gm.spec import CondSpec


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A run with a result row and event files; do not change it."""
    path = tmp_path_factory.mktemp("runs") / "made"
    flags = ("--set=width=16", *SMALL, "--evaluate=test", "--tensorboard")
    status, _, err = train(path, *flags)
    assert status == 0, err
    return path


@pytest.fixture(scope="module")
def run(path):
    return gm.load(path)


@pytest.fixture(scope="module")
def x():
    return gm.load_data("digits").test.x


@pytest.fixture(scope="module")
def exported(path, tmp_path_factory):
    """The same run as a directory to share; do not change it."""
    out = tmp_path_factory.mktemp("shared") / "made"
    return export(trained.load(path), out, license="apache-2.0")


def test_what_a_row_says_of_the_code_needs_no_installed_gm(monkeypatch):
    found = evaluate.version

    def version(name):
        if name == "gm":
            raise PackageNotFoundError(name)
        return found(name)

    monkeypatch.setattr(evaluate, "version", version)
    assert evaluate.provenance()["versions"]["gm"] == gm.__version__


def test_importing_gm_is_cheap_and_its_names_are_there():
    code = (
        "import gm, sys; assert not {'jax', 'numpy'} & set(sys.modules); print(dir(gm))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True)
    assert done.returncode == 0, done.stderr
    for name in gm.__all__:
        assert name in done.stdout.decode()
        assert getattr(gm, name).__doc__
        assert f"  {name}" in gm.__doc__
    assert (REPO / "gm/py.typed").is_file()  # mypy reads the types
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        gm.laod  # noqa: B018


def test_loading_warns_of_nothing(path, caplog):
    gm.load(path)
    assert not caplog.records


def test_log_prob_is_that_of_the_row(run, x):
    [row] = run.rows()
    log_px = run.log_prob(x)
    assert log_px.shape == (397,)
    assert -log_px.mean() == pytest.approx(row["nats"], rel=1e-6)
    assert run.bits_per_dim(x) == pytest.approx(row["bits_per_dim"], rel=1e-6)
    assert repr(run) == "Run(made of digits, 8x8x1, best, step 20)"


def test_sample_complete_compress(run, x):
    drawn = run.sample(3, seed=1)
    assert drawn.shape == (3, *run.shape)
    np.testing.assert_array_equal(drawn, run.sample(3, seed=1))
    assert not np.array_equal(drawn, run.sample(3, seed=2))
    assert drawn.max() < run.num_values
    found = run.complete(x[:2], "bottom", num_completions=3)
    assert found.x.shape == (2, 3, *run.shape)
    np.testing.assert_array_equal(found.x[:, 0, :4], x[:2, :4])
    hidden = np.zeros(run.shape, bool)
    hidden[4:] = True
    same = run.complete(x[:2], hidden, num_completions=3)
    np.testing.assert_array_equal(found.x, same.x)
    data = run.compress(x[:40])
    again, cond = run.decompress(data)
    np.testing.assert_array_equal(again, x[:40])
    assert (again.dtype, cond) == (x.dtype, None)


def test_the_lines_of_the_readme_run(path, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "vae").symlink_to(path)
    monkeypatch.chdir(tmp_path)
    [code] = re.findall(r"```py\n(.*?)```", (REPO / "README.md").read_text(), re.DOTALL)
    names = {}
    exec(code, names)
    assert names["seen"].shape == (16, 4, 8, 8, 1)
    assert names["nats"].shape == (16,)


def test_mistakes_are_told_in_one_line(run, x):
    for call, told in {
        lambda: run.log_prob(x[0]): "cannot be scored: the run models integers",
        lambda: run.log_prob(x / 16): "float64 .* cannot be scored",
        lambda: run.log_prob(x + 1): "values from 1 to 17 cannot be scored",
        lambda: run.log_prob(x, np.zeros(397, int)): "the run is unconditional",
        lambda: run.log_prob(x, batch_size=-1): "--batch_size=-1: give 1 or more",
        lambda: run.log_prob(x, seed="a"): "--seed=a: give 0 to",
        lambda: run.log_prob(x, num_importance_samples=1.5): "give a whole number",
        lambda: run.sample(2, np.zeros(2, int)): "the run is unconditional",
        lambda: run.sample(-1): "--num_samples=-1: give 1 or more",
        lambda: run.sample(2, temprature=2.0): "--temprature=2.0: not defined for MADE",
        lambda: run.sample(2, temperature=-1.0): "--temperature=-1.0: give a number ab",
        lambda: run.sample(2, top_p=2): "--top_p=2: give a number above 0, 1 at most",
        lambda: run.complete(x[:1], [True]): r"mask: bool \(1,\); give bool",
        lambda: run.complete(x[:1], np.zeros(3)): r"mask: float64 \(3,\); give bool",
        lambda: run.complete(x[:1], "botom"): "did you mean bottom?",
        lambda: gm.load("nowhere"): "nowhere: no run here",
    }.items():
        with pytest.raises(InputError, match=told):
            call()


@pytest.mark.parametrize(
    ("spec", "good", "bad"),
    [
        (CondSpec("class", 3), [0, 2], [[0, 3], [-1, 0], [0.0, 1.0], [0], 1, None]),
        (CondSpec("class", 3, optional=True), [0, 3], [[0, 4]]),
        (
            CondSpec("real", 1, low=(0,), high=(1,)),
            [[0.5], [1]],
            [[[np.nan], [0]], [[0.5]]],
        ),
        (
            CondSpec("image", 1, shape=(1, 1, 1), num_values=2),
            np.zeros((2, 1, 1, 1), int),
            [np.full((2, 1, 1, 1), 2), np.zeros((2, 1))],
        ),
    ],
)
def test_a_condition_is_what_the_model_was_trained_with(spec, good, bad):
    model = load_model("independent").Model(shape=(4,), num_values=2, cond=spec)
    check_conditions(model, good, 2)
    for cond in bad:
        with pytest.raises(InputError, match="give one for each of 2 examples"):
            check_conditions(model, cond, 2)


def test_the_nearest_run_is_suggested(path):
    with pytest.raises(InputError, match=f"did you mean {path}?"):
        gm.load(path.with_name("mad"))
    one_error(launch("compare", path.with_name("mad")), f"did you mean {path}?")


def test_an_exported_run_gives_the_same_numbers(path, exported, run, x):
    files = sorted(str(f.relative_to(exported)) for f in exported.rglob("*.*"))
    results = ["results/test.json", "results/test.nats.npy"]
    assert files == ["README.md", "config.json", "model.safetensors", *results]
    shared = gm.load(exported)
    assert shared.checkpoint == run.checkpoint
    assert state_digest(shared.params) == state_digest(run.params)
    np.testing.assert_array_equal(shared.log_prob(x[:9]), run.log_prob(x[:9]))
    status, out, err = launch("evaluate", f"--workdir={exported}", "--split=valid")
    assert status == 0, err
    assert "digits valid: " in out
    (exported / "results" / "valid.json").unlink()
    (exported / "results" / "valid.nats.npy").unlink()


DATA = {"shape": [8, 8, 1], "num_values": 17, "cond": None}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model": 3}, "model is 3"),
        ({"precision": "float8"}, "precision"),
        ({"settings": [1]}, r"settings is \[1\]"),
        ({"settings": {"widht": 8}}, "settings.widht"),
        ({"settings": {"width": "wide"}}, "settings.width"),
        ({"settings": {"width": -8}}, "settings.width"),
        ({"seed": [1]}, r"seed is \[1\]"),
        ({"num_steps": "many", "learning_rate": None}, "num_steps is 'many', learn"),
        ({"data": DATA | {"shape": "ab"}}, "data"),
        ({"data": DATA | {"shape": [8, -8, 1]}}, "data"),
        ({"data": DATA | {"num_values": "z"}}, "data"),
        ({"data": DATA | {"cond": 5}}, "data"),
        ({"data": DATA | {"cond": {"kind": "class", "many": 2}}}, "data"),
        ({"data": DATA | {"cond": {"kind": "class", "size": "2"}}}, "data"),
    ],
)
def test_a_configuration_from_elsewhere_is_not_believed(
    change, told, exported, tmp_path
):
    copy = shutil.copytree(exported, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(InputError, match=rf"copy/config.json: not .* run \({told}"):
        gm.load(copy)


def test_a_number_of_a_checkpoint_without_end(path):
    with pytest.raises(InputError, match="give best, latest or a step number"):
        gm.load(path, "9" * 5000)


def test_the_card_says_what_it_is(exported, run):
    card = (exported / "README.md").read_text()
    [row] = run.rows()
    for part in (
        'license: "apache-2.0"',
        f"{row['bits_per_dim']:.4f} ± ",
        row["split_sha256"][:16],
        "--model=made --dataset=digits --set=width=16 --num_steps=20",
        f"parameters sha256: {state_digest(run.params)}",
        "- training FLOPs: ",
        "scikit-learn",
        "The licence of the data is that of its source",
    ):
        assert part in card, part


def test_training_begins_with_the_parameters_of_another_run(path, exported, tmp_path):
    def first(source, workdir):
        flags = (
            *SMALL,
            "--set=width=16",
            "--schedule=constant",
            f"--init_from={source}",
        )
        status, _, err = train(tmp_path / workdir, *flags)
        assert status == 0, err
        lines = (tmp_path / workdir / "metrics.jsonl").read_text().splitlines()
        row = json.loads(lines[0])
        return {k: v for k, v in row.items() if not k.startswith("time/")}

    of_run, of_export = first(path, "a"), first(exported, "b")
    assert of_run == of_export
    before = (path / "metrics.jsonl").read_text().splitlines()
    assert of_run["train/bpd"] < json.loads(before[0])["train/bpd"] - 0.02
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["init_from"] == str(path)
    assert config["init_sha256"] == state_digest(gm.load(path).params)


def test_what_cannot_be_exported_or_begun_with_is_refused(path, exported, tmp_path):
    flags = (f"--init_from={exported}", *SMALL)
    outcome = train(tmp_path / "a", *flags, "--set=width=8")
    told = "it was trained with --model=made --set=width=16"
    one_error(outcome, f"--init_from={exported}", "in the checkpoint", told)
    assert not (tmp_path / "a").exists()
    one_error(
        train(tmp_path / "a", f"--init_from={tmp_path}"), "--init_from=", "no run"
    )
    one_error(train(exported, *SMALL, "--set=width=16"), "--init_from", "exported")
    flags = (f"--workdir={path}", f"--output={exported}")
    one_error(launch("export", *flags), f"--output={exported}: is there already")
    with pytest.raises(
        InputError, match="--checkpoint=latest: an exported run has but"
    ):
        trained.load(exported, "latest")
    broken = shutil.copytree(exported, tmp_path / "broken")
    flip_bit(broken / "model.safetensors", 0.9)
    with pytest.raises(InputError, match="sha256 of its parameters does not match"):
        trained.load(broken)
    (broken / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(InputError, match="not weights that gm exported"):
        trained.load(broken)


def test_an_export_of_an_export_keeps_where_it_comes_from(path, exported, tmp_path):
    again = export(trained.load(exported), tmp_path / "again")
    card = (again / "README.md").read_text()
    assert card == (exported / "README.md").read_text()
    assert f"--workdir={path}\n" in card
    assert "- checkpoint: best, step 20 of 20" in card
    [command] = [c for c in card.split("\n") if "--init_from=THIS" in c]
    assert "--set=width=16" in command
    assert command.endswith("--workdir=NEW")
    [row] = gm.load(again).rows()
    assert f"--workdir={path}" in origin(row).commands[0]
    with pytest.raises(InputError, match="--license='two.nlines': give one line"):
        export(trained.load(path), tmp_path / "c", license="two\nlines")
    (again / "model.safetensors").unlink()
    with pytest.raises(InputError, match="safetensors: is missing; copy all of"):
        gm.load(again)


def test_a_model_of_ones_own_is_found_in_what_was_exported(tmp_path, monkeypatch):
    (tmp_path / "own").mkdir()
    code = (REPO / "gm" / "models" / "independent.py").read_text()
    (tmp_path / "own" / "model_of_mine.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    here = {"env": {"PYTHONPATH": str(tmp_path)}, "model": "own.model_of_mine"}
    status, _, err = train(tmp_path / "run", *SMALL, **here)
    assert status == 0, err
    out = export(trained.load(tmp_path / "run"), tmp_path / "out")
    assert (out / "own" / "model_of_mine.py").read_text() == code
    assert "`own/model_of_mine.py` here" in (out / "README.md").read_text()
    shutil.rmtree(tmp_path / "own")
    done = launch("evaluate", f"--workdir={out}")
    one_error(done, f"{out}/own/model_of_mine.py is it: read it, and put {out} into")
    there = {"PYTHONPATH": str(out)}
    status, _, err = launch("evaluate", f"--workdir={out}", env=there)
    assert status == 0, err


def _events(directory):
    """What TensorBoard reads: length, checksum, event, checksum; and so on."""
    from tensorboardX.proto.event_pb2 import Event

    for file in sorted(directory.glob("events.*")):
        data = file.read_bytes()
        while data:
            [length] = struct.unpack("<Q", data[:8])
            yield Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def test_event_files_of_one_second_do_not_overwrite_each_other(tmp_path, monkeypatch):
    monkeypatch.setattr("tensorboardX.event_file_writer.time.time", lambda: 1e9)
    events = Events(tmp_path, 0)
    events.scalars(1, {"train/bpd": 2.0})
    events.hyperparameters({"batch_size": 8}, [])
    events.close()
    values = [v for e in _events(tmp_path) for v in e.summary.value]
    assert "train/bpd" in {v.tag for v in values}
    assert "hparams" in {v.metadata.plugin_data.plugin_name for v in values}


def test_event_files_that_cannot_be_written_are_told(tmp_path):
    (tmp_path / "tensorboard").write_text("a file")
    with pytest.raises(InputError, match="--tensorboard: .* cannot be written"):
        Events(tmp_path / "tensorboard", 0)


def test_event_files_have_scalars_samples_and_hyperparameters(path):
    rows = [json.loads(t) for t in (path / "metrics.jsonl").read_text().splitlines()]
    scalars, images, plugins = {}, [], set()
    for event in _events(path / "tensorboard"):
        for value in event.summary.value:
            plugins.add(value.metadata.plugin_data.plugin_name)
            if value.HasField("image"):
                images.append(event.step)
            elif value.HasField("simple_value"):
                scalars[value.tag, event.step] = value.simple_value
    assert images == [5, 10, 15, 20]
    for row in rows:
        for name in ("train/bpd", "grad_norm"):
            assert scalars[name, row["step"]] == pytest.approx(row[name], rel=1e-6)
    assert ("valid/bpd", 20) in scalars
    assert "hparams" in plugins


def test_event_files_begin_anew_where_a_run_is_resumed(tmp_path):
    from gm.events import Events

    for resumed in (0, 10):
        events = Events(tmp_path, resumed)
        for step in (5, 10, 15):
            if step > resumed:
                events.scalars(step, {"train/bpd": float(step)})
        events.close()
    starts = [e.step for e in _events(tmp_path) if e.HasField("session_log")]
    assert starts == [11]
