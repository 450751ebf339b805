"""Hostile input: no code runs, nothing is allocated or written beyond what is right."""

import dataclasses
import json
import math
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from launch import REPO, launch, one_error

from experiments import launcher, outcome
from experiments.cell import _progress, cell_name, read_state
from experiments.status import table
from gm.codec import archive
from gm.codec.header import unpack
from gm.collectives import count_collectives
from gm.config import TrainConfig
from gm.errors import InputError
from gm.fields import parse_settings
from gm.model import load_model
from gm.report.charts import k_curves, ranking
from gm.report.content import origin
from gm.results import read_nats
from gm.rows import check_row
from gm.tables import make_tables, markdown

pytestmark = pytest.mark.case(20)
QUICK = settings(max_examples=300, deadline=None)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)

# What turns data into code, or unpacks without looking.
FORBIDDEN = re.compile(
    r"\b(?:import (?:pickle|cloudpickle|dill|marshal|shelve|joblib)"
    r"|allow_pickle=True|yaml\.(?:unsafe_)?load\b|UnsafeLoader"
    r"|(?<![.\w])(?:eval|exec)\(|os\.system|shell=True|extractall|http://)"
)


def test_no_line_of_ours_runs_what_it_reads():
    files = subprocess.run(
        ["git", "ls-files", "gm", "experiments"],
        cwd=REPO, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert len(files) > 100
    for file in files:
        text = (REPO / file).read_text(errors="ignore")
        assert not (found := FORBIDDEN.findall(text)), (file, found)


@given(st.text(max_size=300))
@QUICK
def test_file_names_stay_in_their_folder(text):
    for name in (cell_name([text, "made"]), outcome.safe_name(text) + ".json"):
        path = Path("/root/of/runs") / name
        assert path.parent == Path("/root/of/runs")
        assert path.resolve().parent == Path("/root/of/runs")
        assert name.isprintable()
        assert "/" not in name
    assert len(outcome.safe_name(text * 9).encode()) <= 200


def test_outcomes_of_files_of_one_name_have_names_of_their_own(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder / "test").mkdir(parents=True)
    one, other = (outcome.short_name(f"{tmp_path}/{f}/test/") for f in ("a", "b"))
    assert one.startswith("test-")
    assert other.startswith("test-")
    assert one != other
    for value in ("bottom", "width=3/16"):
        assert outcome.short_name(value) == value


FLOATS = [f.name for f in dataclasses.fields(TrainConfig) if f.type is float]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", FLOATS)
def test_flags_are_finite(name, value):
    with pytest.raises(InputError, match=f"--{name}="):
        TrainConfig(**{name: value}).check()


@given(st.text(max_size=20))
@QUICK
def test_augmentations_and_settings_are_read_or_refused(text):
    for check in (
        lambda: TrainConfig(augmentation=text).check(),
        lambda: TrainConfig(augmentation=f"mutate:{text}").check(),
        lambda: parse_settings(load_model("vae").Model, {"width": text}),
        lambda: parse_settings(load_model("vae").Model, {"dropout_rate": text}),
        lambda: launcher.parse_set([text]),
    ):
        try:
            found = check()
        except InputError:
            continue
        values = [v for v in (found or {}).values() if isinstance(v, float)]
        assert all(map(math.isfinite, values))


SOUND = {
    **dict.fromkeys(("codec", "model", "checkpoint", "params_sha256"), "x"),
    **dict.fromkeys(("program_sha256", "device", "machine", "sha256"), "x"),
    **{"dtype": "|u1", "batch_size": 2, "seed": 0, "initial_words": 0, "net_bits": 9},
    **{"versions": {}, "source": {}, "shape": [3, 4], "batches": [[2, 7], [1, 7]]},
    "cond": ["<i4", [3], 2],
}
HOSTILE = {
    "shape": [[1 << 40, 4], [-3, 4], [3, 1 << 40], [], [True, 4], "12"],
    "dtype": ["O", "|O", "V8", "<M8[s]", "U9", "", "f8,O", "|u1" * 99],
    "batches": [[[3, 7]], [[1, 7]] * 2, [[2, 7], [1, "x"]], [[2]], [[2, 7], [-1, 7]]],
    "batch_size": [1 << 40, 0, -1, "2"],
    "cond": [["O", [3], 2], ["<i4", [1 << 40], 2], ["<i4", [3], 99], [], ["<i4"]],
    "source": [
        {"shape": [1 << 50]},
        {"shape": [-1, -12]},
        {"kind": "text"},
        {"kind": "../x"},
        {"key": "../x"},
        {"key": "file"},
    ],  # fmt: skip
}


def refusal(call):
    """The message of the InputError that it raises, or ""."""
    try:
        call()
    except InputError as error:
        return str(error)
    return ""


def packed(changes):
    return archive.pack(SOUND | changes, b"body")


def test_a_sound_header_is_read():
    assert unpack(packed({}))[1] == b"body"


@pytest.mark.parametrize("name", HOSTILE)
def test_a_header_with_sound_checksums_is_not_believed(name):
    for value in HOSTILE[name]:
        with pytest.raises(InputError, match="no gm has written its header"):
            unpack(packed({name: value}))


@given(st.sampled_from(sorted(SOUND)), JSON)
@QUICK
def test_any_header_is_read_or_refused_in_one_line(name, value):
    try:
        data = packed({name: value})
    except ValueError:
        return  # not finite: no JSON
    told = refusal(lambda: unpack(data))
    assert "\n" not in told


@given(st.binary(max_size=200), st.integers(0, 60), st.binary(min_size=1, max_size=4))
@QUICK
def test_any_bytes_are_no_archive(data, where, patch):
    sound = packed({})
    cut = bytearray(sound)
    cut[where : where + len(patch)] = patch
    for bad in (data, archive.MAGIC + data, sound[:where], bytes(cut)):
        if bytes(bad) != sound:
            with pytest.raises(InputError):
                unpack(bytes(bad))


def test_a_header_that_inflates_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(archive, "_MAX_HEADER", 1000)
    with pytest.raises(InputError, match="no gm has written its header"):
        unpack(packed({"model": "x" * 2000}))


ROW = {
    **dict.fromkeys(("model", "dataset", "split", "split_sha256", "unit"), "x"),
    **{"conditioning": "none", "estimate": "weight", "shape": [2], "num_values": 2},
    **dict.fromkeys(("num_examples", "num_params", "num_importance_samples"), 2),
    **dict.fromkeys(("nats", "bits_per_dim", "bits_per_object"), 1.5),
    **dict.fromkeys(("standard_error_nats", "entropy_floor_nats"), None),
}


KNOWN = sorted(ROW) + [
    *("checkpoint", "commit", "device", "precision", "preprocessing", "init_from"),
    *("seed", "step", "examples_seen", "train_seconds", "train_flops", "settings"),
    *("training", "versions", "interval_nats", "samples", "k_curve", "augmentation"),
]
NEAR = [  # of the right type, and yet none
    *([], {}, [{}], [1], {"a": 1}, {"low": 1.0}, {"legal": 1.0}, [{"k": 1}], [0], -1),
    {**dict.fromkeys(("count", "distinct", "distinct_true"), 1), "legal": 0.5}
    | {"uniformity_p": None, "facts": {"cubies": "x"}},
]


@given(st.sampled_from(KNOWN), JSON | st.sampled_from(NEAR))
@QUICK
def test_any_row_is_ranked_or_refused_in_one_line(name, value):
    row = ROW | {"dataset": "pocket_cube", "entropy_floor_nats": 1.0, name: value}
    told = refusal(lambda: check_row(row, Path("row.json")))
    assert told.isprintable()
    assert told or not isinstance(value, str) or value.isprintable()
    if not told:
        row = {"augmentation": "none", "run": "a", "file": "a/results/x.json"} | row
        [table] = make_tables([row])
        for make in (ranking, k_curves):
            make(table, "s0")
        assert origin(row).title == "a"
        assert markdown(table.header, table.lines)


def test_names_are_no_escapes_and_no_markup(tmp_path):
    with pytest.raises(InputError, match="model is"):
        check_row(ROW | {"model": "\x1b[2Jx"}, Path("row.json"))
    with pytest.raises(InputError, match="settings is"):
        check_row(ROW | {"settings": {"a": ["\r"]}}, Path("row.json"))
    text = markdown(["a|b"], [["<script>x</script>"], ["<= 3"]])
    assert "<script" not in text
    assert "</" not in text
    assert "<= 3" in text
    name = "[red]x[bold]"
    (tmp_path / name).mkdir()
    failed = {"args": [], "done": False, "failed": f"{name}[/blue]"}
    (tmp_path / name / "cell.json").write_text(json.dumps(failed))
    from rich.console import Console

    console = Console(width=100, record=True, file=open("/dev/null", "w"))
    console.print(table([read_state(tmp_path / name)]))
    assert console.export_text().count(name) == 2
    (tmp_path / "\x1b[2J").mkdir()
    failed["failed"] = "status 1: \x1b]0;title\x07 \u202egnp"
    (tmp_path / "\x1b[2J" / "cell.json").write_text(json.dumps(failed))
    console.print(table([read_state(tmp_path / "\x1b[2J")]))
    text = console.export_text()
    assert "?]0;title? ?gnp" in text
    assert all(line.isprintable() for line in text.splitlines())


@given(JSON)
@QUICK
def test_any_record_of_a_cell_is_read_or_told_of_in_one_line(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("cell")
    for record in (value, {"args": [], "done": False, "failed": value}):
        (path / "cell.json").write_text(json.dumps(record))
        state = read_state(path)
        if isinstance(record, dict) and {"args", "done"} <= set(record):
            assert state.told in ("", str(value))
        else:
            assert state.word == "failed"
            assert state.told.endswith(
                "cell.json: not written by a sweep; move it away"
            )


@pytest.mark.parametrize(
    ("metrics", "config", "told"),
    [
        ('{"step": 0, "time/seconds": 1}', '{"num_steps": 9}', "is damaged"),
        ('{"step": 5}', '{"num_steps": 9}', "is damaged"),
        (
            '{"step": 5, "time/seconds": 1, "train/bpd": []}',
            '{"num_steps": 9}',
            "is da",
        ),
        ('{"step": 5, "time/seconds": "x"}', '{"num_steps": 9}', "is damaged"),
        ('{"step": 5, "time/seconds": 1}', "{}", "is damaged"),
        ('{"step": 5, "time/seconds": 1}', "[", "not readable as JSON"),
        ('x\n{"step": 5}', '{"num_steps": 9}', "line 1 is not a row"),
        ('{"step": 5, "time/seconds": 1e999}', '{"num_steps": 9}', "step 5 of 9"),
    ],
)
def test_a_damaged_cell_does_not_hide_the_others(metrics, config, told, tmp_path):
    (tmp_path / "cell.json").write_text('{"args": [], "done": false}')
    (tmp_path / "metrics.jsonl").write_text(metrics)
    (tmp_path / "config.json").write_text(config)
    state = read_state(tmp_path)
    assert state.word == "stopped"
    assert told in state.told
    table([state, dataclasses.replace(state, seconds_left=_progress(tmp_path)[1])])


def test_compare_prints_names_as_they_are(tmp_path):
    (tmp_path / "results").mkdir()
    row = ROW | {"dataset": "files:[/x]", "seed": 0}
    (tmp_path / "results" / "test.json").write_text(json.dumps(row))
    status, out, err = launch("compare", tmp_path)
    assert status == 0, err
    assert "files:[/x]" in out


def test_kept_nats_that_lie_are_refused(tmp_path):
    row = ROW | {"file": str(tmp_path / "test.json")}
    path = tmp_path / "test.nats.npy"
    np.save(path, np.full(2, 1.5))
    assert read_nats(row).tolist() == [1.5, 1.5]
    head = path.read_bytes().replace(b"(2,)", b"(9999999999999,)")
    path.write_bytes(head)
    with pytest.raises(InputError, match="not the nats"):
        read_nats(row)
    np.save(path, np.asarray([{}, 1], object), allow_pickle=True)
    with pytest.raises(InputError, match="not the nats"):
        read_nats(row)


@given(st.text(alphabet='%(){}[]=,x0f32 "all-reduce\nwhile body', max_size=200))
@QUICK
def test_any_text_is_counted(text):
    count_collectives(text, 8)


@pytest.mark.parametrize("name", ["..", ".", "a/b", "\0", "a\nb"])
def test_a_mask_of_odd_name_is_no_file(name, tmp_path):
    from gm.complete.masks import parse_mask

    with pytest.raises((InputError, ValueError)) as error:
        parse_mask(name, (4, 4, 1))
    assert isinstance(error.value, InputError)


def test_a_workdir_that_cannot_be_a_path(tmp_path):
    for name in ("a" * 300, f"{tmp_path}/file/x"):
        (tmp_path / "file").write_text("")
        flags = ("--model=made", "--dataset=digits", f"--workdir={name}")
        one_error(launch("train", *flags, cwd=tmp_path, env={"PYTHONPATH": str(REPO)}))
