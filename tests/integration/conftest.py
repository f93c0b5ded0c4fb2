"""Shared by the tests of whole commands."""

import sys

import pytest

from antiphon import cli


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command in this process; returns (exit status, stdout, stderr)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["antiphon", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        return stopped.value.code or 0, captured.out, captured.err

    return call
