"""The progress bar: shown when asked for or useful, and gone afterwards."""

from __future__ import annotations

import io
import re
import types

import pytest

from dist_restore.report import progress as module
from dist_restore.report.progress import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def last_line(text: str) -> str:
    """What is left on the terminal's last line after carriage returns overwrote each other."""
    line: list[str] = []
    for part in re.split("\r", text.split("\n")[-1]):
        line[: len(part)] = part
    return "".join(line).strip()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    # pytest gives each phase of a test its own sys.stderr, so that the module's view of it is what is replaced.
    stream = Terminal()
    monkeypatch.setattr(module, "sys", types.SimpleNamespace(stderr=stream))
    return stream


def test_a_bar_that_is_on_shows_bytes_and_the_escaped_name(terminal: Terminal) -> None:
    with progress(4 << 20, True, "check") as bar:
        bar.advance(1 << 20, "model/\x1b[2J\nkernel")
        bar.advance(3 << 20)
        bar._bar.refresh()
    text = terminal.getvalue()
    assert "check:" in text and "4.00M/4.00M" in text
    assert r"model/\x1b[2J\nkernel" in text


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, ValueError])
def test_the_terminal_is_clean_afterwards(terminal: Terminal, error: type[BaseException] | None) -> None:
    try:
        with progress(100, True) as bar:
            bar.advance(50, "a/very/long/name" * 20)
            bar._bar.refresh()
            if error is not None:
                raise error
    except (KeyboardInterrupt, ValueError):
        assert error is not None
    assert "50.0/100" in terminal.getvalue()
    assert last_line(terminal.getvalue()) == ""
    assert "\n" not in terminal.getvalue()


def test_an_exception_comes_out_as_it_was() -> None:
    with pytest.raises(KeyboardInterrupt), progress(1, False):
        raise KeyboardInterrupt


@pytest.mark.parametrize("enabled", [False, None])
def test_a_bar_is_off_when_told_or_when_nobody_watches(
    capsys: pytest.CaptureFixture[str], enabled: bool | None
) -> None:
    with progress(10, enabled) as bar:
        bar.advance(10, "x")
    assert capsys.readouterr() == ("", "")


def test_a_short_restore_shows_nothing_on_a_terminal(terminal: Terminal) -> None:
    with progress(10) as bar:
        bar.advance(10, "x")
    assert terminal.getvalue().strip() == ""


def test_a_long_restore_shows_a_bar_on_a_terminal(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DELAY_SECONDS", 0.0)
    with progress(10) as bar:
        bar.advance(10, "x")
        bar._bar.refresh()
    assert "10.0/10.0" in terminal.getvalue()


@pytest.mark.parametrize("stream", [None, "closed"])
def test_a_program_without_a_console_has_no_bar(monkeypatch: pytest.MonkeyPatch, stream: str | None) -> None:
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(module, "sys", types.SimpleNamespace(stderr=closed if stream else None))
    with progress(10) as bar:
        bar.advance(10, "x")


class Broken(Terminal):
    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_a_terminal_that_goes_away_does_not_end_the_restore(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "sys", types.SimpleNamespace(stderr=Broken()))
    with progress(10, True) as bar:
        bar.advance(10, "x")


def test_an_unknown_total_is_no_error(terminal: Terminal) -> None:
    with progress(0, True) as bar:
        bar.advance(5, "x")
    assert last_line(terminal.getvalue()) == ""
