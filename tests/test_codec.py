"""Lossless compression: round trips, code length against bits, damage, refusals."""

import functools
import types

import jax
import numpy as np
import pytest
from launch import launch, one_error, train
from test_models import SLOW, SPECS

from gm import codec
from gm.audit.subject import SPACES, Space
from gm.codec import archive, lossless
from gm.codec.baselines import baseline_bits
from gm.codec.coders import QueueReader, QueueWriter, Stack
from gm.codec.flow import FlowCodec
from gm.codec.program import Program
from gm.config import TrainConfig
from gm.data.whole import read_whole, write_again
from gm.errors import InputError
from gm.likelihood import bits
from gm.model import init_params, load_model, log_prob, model_names
from gm.rundir import read_json
from gm.spec import CondSpec
from gm.train import init_state, make_optimizer, train_step


@pytest.fixture(autouse=True, scope="module")
def cache_of_small_programs():
    """An encoder's programs are found again by the decoder, which compiles its own."""
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    jax.config.update(name, 0.0)
    yield
    jax.config.update(name, before)


def make(name, spec):
    """A tiny model with parameters that are neither initial nor special."""
    module = load_model(name)
    space = SPACES[spec]
    given = dict(shape=space.shape, num_values=space.num_values, cond=space.cond)
    model = module.Model(**given, **module.TINY)
    skip_without_codec(model)
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    rng = np.random.default_rng(0)  # compiling `init` would take longer than the test
    return model, jax.tree.map(
        lambda v: 0.2 * rng.standard_normal(v.shape, np.float32), shapes
    )


def skip_without_codec(model):
    """A model that has no sequential form, say, is refused in one line."""
    try:
        lossless.codec_class(model)
    except InputError as error:
        pytest.skip(str(error))


def run_of(model, params, name="tiny"):
    """What `trained.load` would give, as far as the codec reads it."""
    config = types.SimpleNamespace(model=name)
    return types.SimpleNamespace(
        model=model, params=params, config=config, checkpoint="latest, step 0"
    )


def examples(model, size, seed=0):
    space = Space(model.shape, model.num_values, model.cond)
    x, cond = space.batch(size, seed)
    x = np.asarray(x, np.uint8 if model.num_values <= 256 else np.int32)
    return x, None if cond is None else np.asarray(cond)


@functools.cache
def learnt(name, shape=(4, 4, 1), num_values=16):
    """A tiny model after a few steps on a pattern with noise, and examples of it."""
    module = load_model(name)
    model = module.Model(shape=shape, num_values=num_values, **module.TINY)
    skip_without_codec(model)
    config = TrainConfig(num_steps=100, learning_rate=1e-2, warmup_steps=5)
    optimizer = make_optimizer(config)
    state = jax.jit(lambda: init_state(model, optimizer, 0))()
    step = jax.jit(functools.partial(train_step, model, optimizer, config))
    rng = np.random.default_rng(0)

    def draw(count):
        pattern = np.indices(shape).sum(0) + rng.integers(0, 3, (count, 1, 1, 1))
        noise = rng.integers(0, 4, (count, *shape))
        return (pattern + noise).clip(max=num_values - 1).astype(np.uint8)

    for _ in range(100):
        state, _ = step(state, (draw(64).astype(np.int32), None))
    return run_of(model, state.ema_params, name), draw(400)


# A model of each kind of codec; training the others takes minutes.
KINDS = ("made", "vae", "realnvp", "idf")
LEARNT = [
    pytest.param(name, marks=() if name in KINDS else SLOW) for name in model_names()
]


# The coders.


def test_queue_gives_back_what_was_put():
    rng = np.random.default_rng(0)
    logits = 3 * rng.standard_normal((500, 7)).astype(np.float32)
    logits[0, :6] = -np.inf
    x = rng.integers(0, 7, 500)
    x[0] = 0  # of probability zero in float64; the coder gives it 2^-24
    writer = QueueWriter()
    writer.put(x[:100], logits[:100])
    writer.put(x[100:], logits[100:])
    reader = QueueReader(writer.words())
    np.testing.assert_array_equal(reader.get(logits), x)


def test_tables_are_cut_into_parts_alike_at_both_ends(monkeypatch):
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((50, 7)).astype(np.float32)
    x = rng.integers(0, 7, 50)
    results = []
    for cells in (1 << 22, 7 * 6):
        monkeypatch.setattr("gm.codec.coders._CELLS", cells)
        stack = Stack(np.arange(9, dtype=np.uint32), seal=True)
        stack.push(x, logits)
        results.append(stack.words())
        np.testing.assert_array_equal(stack.pop(logits), x)
        words = stack.words(unseal=True)
        np.testing.assert_array_equal(words, np.arange(9))
    np.testing.assert_array_equal(*results)


def words(count=4000, seed=0):
    return np.random.default_rng(seed).integers(0, 2**32, count, dtype=np.uint32)


@pytest.mark.parametrize("sd", [1e-9, 0.3, 1.0, 57.0, 2.0**22])
def test_popped_normals_have_their_distribution_and_go_back(sd):
    stack = Stack(words(), seal=True)
    mean = np.linspace(-3, 3, 3000) * 1e4 + 0.3
    before = stack.num_bits
    x = stack.pop_normal(mean, np.full(3000, sd), narrow=True)
    entropy = np.log2(max(sd, 1e-9)) + 0.5 * np.log2(2 * np.pi * np.e)
    if sd >= 1:
        error = (x - mean) / sd
        assert abs(error.mean()) < 0.1
        assert 0.9 < error.std() < 1.1
        assert (before - stack.num_bits) / 3000 == pytest.approx(entropy, abs=0.1)
    else:
        assert np.abs(x - mean).max() < 3
    stack.push_normal(x, mean, np.full(3000, sd), narrow=True)
    np.testing.assert_array_equal(stack.words(unseal=True), words())


def test_pushed_normals_may_lie_anywhere():
    stack = Stack(words(10), seal=True)
    x = np.array([0, 5, -5, 10**6, -(10**6), 2**45, -(2**45), 1])
    mean, sd = np.full(8, 0.25), np.array([1, 1e-3, 30, 1, 1, 1, 2e3, 1e6])
    stack.push_normal(x, mean, sd, narrow=False)
    np.testing.assert_array_equal(stack.pop_normal(mean, sd, narrow=False), x)
    np.testing.assert_array_equal(stack.words(unseal=True), words(10))

    with pytest.raises(ValueError, match="too large"):
        stack.push_normal(np.array([2**46]), mean[:1], sd[:1], narrow=False)
    with pytest.raises(ValueError, match="not finite"):
        stack.pop_normal(np.array([np.nan]), sd[:1], narrow=True)


# Models.


@pytest.mark.parametrize("spec", SPECS)
def test_every_model_is_lossless(model_name, spec):
    """Image, colours with a class, a vector with real conditions, binary symbols."""
    model, params = make(model_name, spec)
    x, cond = examples(model, 11)
    run = run_of(model, params)
    data = codec.compress(run, x, cond, batch_size=4)
    back, back_cond = codec.decompress(run, data)
    np.testing.assert_array_equal(back, x)
    assert back.dtype == x.dtype
    if cond is None:
        assert back_cond is None
    else:
        np.testing.assert_array_equal(back_cond, cond)
        assert back_cond.dtype == cond.dtype


@pytest.mark.parametrize("name", LEARNT)
def test_code_is_as_long_as_the_reported_bits(name):
    run, x = learnt(name)
    draws = [log_prob(run.model, run.params, x, None, jax.random.key(i))[0]
             for i in range(20)]  # fmt: skip
    reported = -float(np.mean(draws))
    header = codec.read_header(codec.compress(run, x))
    net = header["net_bits"] / len(x)
    assert net == pytest.approx(bits(reported), rel=0.01)
    assert net < 0.9 * 4 * run.model.num_dims  # it has learnt something to code with


@SLOW
def test_bits_back_by_normal_noise_agrees_with_the_exact_affine_steps():
    """The path of layers that are not affine, on layers that are."""
    run, x = learnt("realnvp")
    lengths = []
    for exact in (True, False):
        made = FlowCodec(Program(run.model, run.params, 100), exact_affine=exact)
        stack = Stack(words(20000), seal=True)
        before = stack.num_bits
        for start in range(0, 400, 100):
            made.encode(stack, x[start : start + 100], None)
        lengths.append(stack.num_bits - before)
        for start in reversed(range(0, 400, 100)):
            rows = made.decode(stack, 100, None)
            np.testing.assert_array_equal(rows, x[start : start + 100])
        np.testing.assert_array_equal(stack.words(unseal=True), words(20000))
    assert lengths[1] == pytest.approx(lengths[0], rel=0.01)


@pytest.mark.parametrize("name", LEARNT)
def test_an_example_far_from_the_data_is_coded_too(name):
    run, x = learnt(name)
    x = np.concatenate([x[:3], 15 - x[:3], 0 * x[:3], 0 * x[:3] + 15])
    back, _ = codec.decompress(run, codec.compress(run, x))
    np.testing.assert_array_equal(back, x)


def test_types_come_back():
    run, x = learnt("made")
    for dtype in (">u2", "int64", "int8"):
        back, _ = codec.decompress(run, codec.compress(run, x[:5].astype(dtype)))
        assert back.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(back, x[:5])


# Refusals.


@functools.cache
def small_archive():
    run, x = learnt("vae")
    return run, x[:40], codec.compress(run, x[:40])


def test_flipped_bits_and_truncations_are_refused():
    run, _, data = small_archive()
    rng = np.random.default_rng(0)
    for where in rng.choice(8 * len(data), 200, replace=False):
        damaged = bytearray(data)
        damaged[where // 8] ^= 1 << where % 8
        with pytest.raises(InputError, match=r"^a\.gm: "):
            codec.decompress(run, bytes(damaged), where="a.gm")
    for length in [*range(8), *rng.choice(len(data), 50, replace=False)]:
        with pytest.raises(InputError, match=r"^a\.gm: "):
            codec.decompress(run, data[:length], where="a.gm")
    with pytest.raises(InputError, match="in place of"):
        codec.decompress(run, data + b"\0", where="a.gm")


def repacked(data, **changes):
    """The archive with another header: sound, but of something else."""
    header, body = archive.unpack(data)
    return archive.pack(header | changes, body)


def test_another_model_version_or_device_is_refused():
    run, x, data = small_archive()
    other = jax.tree.map(lambda p: p + 1e-7, run.params)
    with pytest.raises(InputError, match="this run's are"):
        codec.decompress(run_of(run.model, other), data)
    with pytest.raises(InputError, match="this run's are"):
        codec.decompress(learnt("made")[0], data)
    versions = archive.unpack(data)[0]["versions"]
    for name in ("jax", "jaxlib", "numpy", "scipy", "constriction"):
        old = repacked(data, versions=versions | {name: "0.0.1"})
        with pytest.raises(InputError, match=f"made with {name} 0.0.1, here is"):
            codec.decompress(run, old)
    with pytest.raises(InputError, match="made on TPU v9"):
        codec.decompress(run, repacked(data, device="TPU v9"))
    with pytest.raises(InputError, match="compiled network differs"):
        codec.decompress(run, repacked(data, batch_size=65))
    later = data[:7] + bytes([archive.MAGIC[7] + 1]) + data[8:]
    with pytest.raises(InputError, match="its layout is number"):
        codec.decompress(run, later)
    back, _ = codec.decompress(run, repacked(data))
    np.testing.assert_array_equal(back, x)


@pytest.mark.parametrize("name", ["made", "vae", "realnvp", "idf"])
def test_a_sound_archive_that_decodes_to_other_bytes_is_refused(name, monkeypatch):
    """As on a machine whose arithmetic differs in the last bit, made visible."""
    run, x = learnt(name)
    data = codec.compress(run, x[:40])
    real = np.exp
    monkeypatch.setattr("gm.codec.coders.np.exp", lambda v: real(v * (1 + 1e-3)))
    if name == "realnvp":
        monkeypatch.setattr("gm.codec.coders._BINS_PER_SD", 3)
    with pytest.raises(InputError, match="decodes it to other bytes"):
        codec.decompress(run, data)


def test_what_a_model_cannot_code_is_refused():
    run, x = learnt("made")
    with pytest.raises(InputError, match="the run models integers"):
        codec.compress(run, x[..., :0])
    with pytest.raises(InputError, match="the run models integers"):
        codec.compress(run, x.astype(float))
    with pytest.raises(InputError, match="0 to 15"):
        codec.compress(run, x + 1 + 15 * (x == 0))
    with pytest.raises(InputError, match="unconditional"):
        codec.compress(run, x, np.zeros(len(x), np.int32))
    model, params = make("made", "colour")
    with pytest.raises(InputError, match="class:3"):
        codec.compress(run_of(model, params), examples(model, 2)[0])

    class Mute:
        pass

    with pytest.raises(InputError, match="Mute cannot be a codec"):
        lossless.codec_class(Mute())


def test_baselines_find_structure_and_none_in_noise():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (9, 16, 16, 3), dtype=np.uint8)
    for size in baseline_bits(noise, 256).values():
        assert size > 0.98 * 8 * noise.size
    flat = np.zeros((9, 16, 16, 1), np.uint8)
    found = baseline_bits(flat, 256)
    assert set(found) == {"PNG", "PNG, one sheet", "WebP", "WebP, one sheet",
                          "zlib", "lzma"}  # fmt: skip
    assert found["PNG, one sheet"] < found["PNG"] < 0.5 * 8 * flat.size
    assert set(baseline_bits(np.zeros((5, 7), np.int32), 300)) == {"zlib", "lzma"}


# Files of one's own.

TEN = CondSpec("class", 10)


def saved(path, **columns):
    np.savez(path, **columns)
    return path


def test_labels_keep_their_type_and_an_npz_its_key(tmp_path):
    x = np.asfortranarray(np.arange(4 * 64).reshape(4, 8, 8) % 17)
    model, params = make("made", "colour")
    run, coded = run_of(model, params), examples(model, 4)[0]
    for dtype in ("int64", ">i2", "uint8"):
        labels = (np.arange(4) % 3).astype(dtype)
        path = saved(tmp_path / "a.npz", images=x, labels=labels)
        whole = read_whole(path, (8, 8, 1), TEN)
        cond = codec.decompress(run, codec.compress(run, coded, labels))[1]
        assert cond.dtype == whole.cond.dtype == np.dtype(dtype)
        path.write_bytes(write_again(whole.x, whole.cond, whole.source, None, ".npz"))
        with np.load(path) as back:
            assert sorted(back) == ["images", "labels"]
            assert (back["images"].dtype, back["labels"].dtype) == (x.dtype, dtype)
            np.testing.assert_array_equal(back["images"], x)
            np.testing.assert_array_equal(back["labels"], labels)
        with pytest.raises(InputError, match=r"\.npy would lose; name an \.npz"):
            write_again(whole.x, whole.cond, whole.source, None, ".npy")


def test_arrays_that_would_be_lost_are_refused(tmp_path):
    x, labels = np.zeros((4, 8, 8), np.uint8), np.arange(4)
    path = saved(tmp_path / "a.npz", x=x, labels=labels)
    with pytest.raises(InputError, match="holds labels beside x"):
        read_whole(path, (8, 8, 1))
    saved(path, x=x, labels=labels, weights=x, images=x)
    with pytest.raises(InputError, match="holds weights, images beside x"):
        read_whole(path, (8, 8, 1), TEN)
    np.save(tmp_path / "none.npy", x[:0])
    with pytest.raises(InputError, match="is empty: there are no examples"):
        read_whole(tmp_path / "none.npy", (8, 8, 1))


def test_images_that_would_be_changed_are_refused(tmp_path):
    from PIL import Image

    grey = np.random.default_rng(0).integers(0, 17, (8, 8), np.uint8)
    Image.fromarray(grey).save(tmp_path / "a.png")
    whole = read_whole(tmp_path, (8, 8, 1))
    np.testing.assert_array_equal(whole.x, grey[None, ..., None])
    image = Image.fromarray(grey)
    deep = Image.new("I;16", (8, 8))
    for wrong in (image.resize((16, 16)), image.resize((9, 8)), deep,
                  *map(image.convert, ("1", "LA", "P", "RGB", "RGBA"))):  # fmt: skip
        wrong.save(tmp_path / "b.png")
        with pytest.raises(InputError, match=r"b\.png: .*8x8 of mode L, and lossless"):
            read_whole(tmp_path, (8, 8, 1))
    image.save(tmp_path / "b.png", transparency=0)
    with pytest.raises(InputError, match="transparent"):
        read_whole(tmp_path, (8, 8, 1))
    (tmp_path / "b.png").unlink()
    image.save(tmp_path / "b.tif", save_all=True, append_images=[image])
    with pytest.raises(InputError, match="2 frames"):
        read_whole(tmp_path, (8, 8, 1))
    (tmp_path / "b.tif").unlink()
    with pytest.raises(InputError, match="8x8 of mode RGB"):
        read_whole(tmp_path, (8, 8, 3))
    with pytest.raises(InputError, match="does not model images"):
        read_whole(tmp_path, (64,))


@pytest.mark.parametrize("text", ["ab\nba\n", "ab\n\nb", "\n", "aab\n\n"])
def test_lines_come_back_byte_for_byte(text, tmp_path):
    """Of a run on texts: each line is an example, and padding costs nothing."""
    model = load_model("made").Model(shape=(4,), num_values=3, end=0, width=8)
    params = init_params(model, jax.random.key(0))
    path = tmp_path / "a.txt"
    path.write_text(text)
    whole = read_whole(path, (4,), symbols="\nab", end=0)
    assert len(whole.x) == len(text.splitlines())
    data = codec.compress(run_of(model, params), whole.x, source=whole.source)
    x, cond = codec.decompress(run_of(model, params), data)
    header = codec.read_header(data)
    assert write_again(x, cond, header["source"], "\nab", ".txt") == text.encode()


def test_lines_that_the_run_cannot_model_are_refused(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("a\nabab\n")
    with pytest.raises(InputError, match="line 2 has 4 characters; .* up to 3"):
        read_whole(path, (4,), symbols="\nab", end=0)
    path.write_text("a\nabc\n")
    with pytest.raises(InputError, match="'c' in line 2, column 3"):
        read_whole(path, (4,), symbols="\nab", end=0)


def test_the_nats_of_any_type_are_measured_alike():
    from experiments.compress import _measured_nats

    run, x = learnt("made")
    types = ("u1", ">i2", "i8")
    found = [_measured_nats(run, x[:5].astype(d), None, None) for d in types]
    assert len(set(found)) == 1


def test_a_failure_leaves_no_file(tmp_path, monkeypatch):
    """The nats are measured before the archive is written; the name comes first."""
    from absl.testing import flagsaver

    from experiments import compress

    if not compress.FLAGS.is_parsed():
        compress.FLAGS.mark_as_parsed()
    run, x = learnt("made")
    run.data = {"symbols": None}
    np.save(tmp_path / "x.npy", x[:3])
    path, output = tmp_path / "a.gm", tmp_path / "out.npy"
    names = dict(input=str(tmp_path / "x.npy"), archive=str(path), output=str(output))
    monkeypatch.setattr(compress, "_measured_nats", lambda *_: 1 / 0)
    with flagsaver.flagsaver(**names):
        with pytest.raises(ZeroDivisionError):
            compress._compress(run, None)
        assert not path.exists()
        model, params = make("made", "colour")
        path.write_bytes(codec.compress(run_of(model, params), *examples(model, 3),
                                        source={"kind": "array"}))  # fmt: skip
        monkeypatch.setattr(codec, "decompress", None)
        with pytest.raises(InputError, match=r"name an \.npz"):
            compress._decompress(run, None)
    assert not output.exists()


# The launcher.


def test_a_file_is_never_compressed_over_itself(tmp_path):
    path, link = tmp_path / "x.npy", tmp_path / "link.npy"
    path.write_bytes(b"kept")
    link.symlink_to(path)
    flags = ["compress", "--workdir=/none"]
    odd = f"{tmp_path}/../{tmp_path.name}/x.npy"
    for archive_ in (odd, link):
        wrong = launch(*flags, f"--input={path}", f"--archive={archive_}")
        one_error(wrong, "--archive", "is the --input itself")
    wrong = launch(*flags, "--decompress", f"--archive={path}", f"--output={link}")
    one_error(wrong, "--output", "is the --archive itself")
    one_error(launch(*flags, "--input=", "--archive=a.gm"), "--input is empty")
    assert path.read_bytes() == b"kept"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    small = ["--set=width=8", "--num_steps=20", "--valid_every=20", "--batch_size=16"]
    for name in ("made", "vae"):
        assert train(root / name, *small, model=name)[0] == 0
    flags = ["--set=width=8", "--num_steps=20", "--valid_every=20", "--batch_size=16"]
    assert train(root / "text", *flags, dataset="sayings")[0] == 0
    return root


def test_another_process_with_another_batch_size_gives_the_bytes_back(runs, tmp_path):
    from gm import data

    x = data.load("digits").test.x
    path = tmp_path / "a.gm"
    flags = [f"--workdir={runs / 'vae'}", "--num_importance_samples=3"]
    assert launch("evaluate", *flags)[0] == 0
    status, out, err = launch(
        "compress", f"--workdir={runs / 'vae'}", f"--archive={path}", "--batch_size=48"
    )
    assert status == 0, err
    assert "(bound, one draw each)" in out
    row = read_json(runs / "vae/results/test.json")
    assert f"{row['bits_per_dim']:.4f} bits/dim  (bound, 3 draws each)" in out
    for word in ("reported", "net", "gross", "PNG", "WebP", "zlib", "lzma"):
        assert word in out
    flags = ["--decompress", f"--workdir={runs / 'vae'}", f"--archive={path}"]
    output = tmp_path / "x.npy"
    status, out, err = launch(
        "compress", *flags, f"--output={output}", "--batch_size=7"
    )
    assert status == 0, err
    assert "--batch_size=7 is not used" in out
    back = np.load(output)
    np.testing.assert_array_equal(back, x)
    assert back.dtype == x.dtype

    wrong = [f.replace("/vae", "/made") for f in flags]
    one_error(launch("compress", *wrong, f"--output={tmp_path / 'y.npy'}"), "made")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    one_error(launch("compress", *flags, f"--output={tmp_path / 'y.npy'}"), "bytes in")
    assert not (tmp_path / "y.npy").exists()


@SLOW
def test_files_of_ones_own(runs, tmp_path):
    images = np.random.default_rng(0).integers(0, 17, (5, 8, 8)).astype(">i2")
    np.save(tmp_path / "in.npy", images)
    archived = f"--archive={tmp_path / 'a.gm'}"
    made = [f"--workdir={runs / 'made'}", archived]
    status, _, err = launch("compress", *made, f"--input={tmp_path / 'in.npy'}")
    assert status == 0, err
    output = tmp_path / "out.npy"
    status, _, err = launch("compress", "--decompress", *made, f"--output={output}")
    assert status == 0, err
    assert output.read_bytes() == (tmp_path / "in.npy").read_bytes()

    text = "a stitch in time saves nine" * 9
    (tmp_path / "in.txt").write_text(text)
    flags = [f"--workdir={runs / 'text'}", archived]
    status, _, err = launch("compress", *flags, f"--input={tmp_path / 'in.txt'}")
    assert status == 0, err
    output = tmp_path / "out.txt"
    status, _, err = launch("compress", "--decompress", *flags, f"--output={output}")
    assert status == 0, err
    assert output.read_text() == text

    np.save(tmp_path / "big.npy", images + 10)
    wrong = launch("compress", *made, f"--input={tmp_path / 'big.npy'}")
    one_error(wrong, "values from", "0 to 16")
    one_error(launch("compress", *made, "--input=/none"), "no such file")
