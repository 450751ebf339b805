"""Options and fixtures.

`pytest tests/test_models.py --model=my_package.my_model` runs the contract tests on a
model of your own, from the directory where `import my_package.my_model` works.
"""

import os
import re
import signal
import sys
from pathlib import Path

import pytest
from cases import pytest_collection_modifyitems, pytest_terminal_summary  # noqa: F401

from gm.rundir import cache_dir

# Programs compiled by one test session are found again by the next.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_dir("xla")))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
# A background job of a shell ignores Ctrl-C, and so would the launchers that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    parser.addoption(
        "--model",
        action="append",
        default=[],
        help="import path of a model to run the contract tests on, in place of gm's",
    )
    parser.addoption(
        "--cases", action="store_true", help="which test shows which case, as a table"
    )


def pytest_generate_tests(metafunc):
    """Collects gm/models/* by itself: a new file is tested without an edit here."""
    if "model_name" in metafunc.fixturenames:
        from gm.model import model_names

        sys.path.insert(0, os.getcwd())
        names = metafunc.config.getoption("--model") or model_names()
        metafunc.parametrize("model_name", names)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Tests of a model share compiled programs, those of a file its runs: one worker.

    pytest 9.2 no longer lets xdist_group say so.
    """
    from xdist.scheduler import LoadScopeScheduling

    from gm.model import model_names

    names = {*model_names(), *config.getoption("--model")}

    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            path, _, test = nodeid.partition("::")
            first = re.split(r"[\[\]-]", test)[1:2]  # what a test is parametrized by
            return first[0] if first and first[0] in names else path

    return Scheduler(config, log)


MAX_MAPS = 30_000  # Linux allows a process 65,530 memory maps; beyond, XLA crashes


@pytest.fixture(autouse=True)
def few_memory_maps():
    """Drops compiled programs before their memory maps reach the system's limit."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MAX_MAPS:
        import jax  # here, since it reads the variables above when it is imported

        jax.clear_caches()


@pytest.fixture(scope="session")
def raw_data():
    """The folder of raw archives that some tests need."""
    path = os.environ.get("GM_DATA_DIR")
    if not path:
        pytest.skip("GM_DATA_DIR is not set: no raw data archives to test on")
    return path
