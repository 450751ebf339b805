"""`pytest --gm-audit=mypackage.mymodel`: one test for each check of the auditor.

It works from any folder from which the model can be imported. Without paths on the
command line only the audit is run. Nothing is imported unless the option is given.
"""

import os
import sys
from typing import Any

import pytest


class AuditFailure(Exception):
    """A check failed; the message is the figure."""


class AuditItem(pytest.Item):
    """One check on one model."""

    def __init__(self, *, model: str, **kwargs: Any):
        super().__init__(**kwargs)
        self.model = model

    def runtest(self) -> None:
        """Runs the check."""
        from gm.audit import audit_model

        [verdict] = audit_model(self.model, checks=[self.name])
        self.user_properties.append(("gm_audit", str(verdict)))
        if verdict.status == "skip":
            pytest.skip(verdict.figure)
        if verdict.status == "fail":
            raise AuditFailure(verdict.figure)

    def repr_failure(self, excinfo: Any, style: Any = None) -> Any:
        """The figure, not a traceback."""
        if isinstance(excinfo.value, AuditFailure):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Any, int | None, str]:
        """What is shown as the test's name."""
        return self.path, None, f"audit of {self.model}: {self.name}"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds --gm-audit."""
    group = parser.getgroup("gm", "likelihood-based generative models")
    group.addoption(
        "--gm-audit",
        action="append",
        default=[],
        metavar="MODEL",
        help="audit a model: a name of gm.models or the import path of a file with "
        "Model; may be repeated",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Without paths on the command line only the audit is run."""
    if config.option.gm_audit and config.args_source != config.ArgsSource.ARGS:
        config.args = []


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Adds one test for each model and check."""
    if not config.option.gm_audit:
        return
    sys.path.insert(0, os.getcwd())  # as `python -m pytest` does
    from gm.audit import CHECKS, load
    from gm.errors import InputError

    for model in config.option.gm_audit:
        try:
            load(model)
        except InputError as error:
            message = str(error).replace("--model=", "--gm-audit=")
            raise pytest.UsageError(message) from None
        for name in CHECKS:
            item = AuditItem.from_parent(
                session, name=name, nodeid=f"{model}::{name}", model=model
            )
            items.append(item)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Lists every verdict with its figure."""
    reports = [r for found in terminalreporter.stats.values() for r in found]
    lines = [
        f"{report.nodeid.split('::')[0]} {text}"
        for report in reports
        if getattr(report, "when", "") == "call"
        for name, text in report.user_properties
        if name == "gm_audit"
    ]
    if lines:
        terminalreporter.section("audit")
        terminalreporter.write("\n".join(sorted(lines)) + "\n")
