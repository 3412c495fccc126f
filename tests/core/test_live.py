"""The live board draws what it is told on a terminal, and plain lines elsewhere."""

import io

import pytest
from rich.console import Console

from scene_distill.core import console as console_module
from scene_distill.core import live
from scene_distill.core.live import Row, curve, live_board


@pytest.fixture
def terminal(monkeypatch):
    def use(is_terminal: bool) -> io.StringIO:
        out = io.StringIO()
        made = Console(file=out, force_terminal=is_terminal, width=100, highlight=False)
        monkeypatch.setattr(live, "console", made)
        monkeypatch.setattr(console_module, "console", made)
        return out

    return use


def rows():
    return [Row("loss", "0.0321", curve([3, 2, 1]), "l1 0.02"), Row("memory", "1 GB")]


def test_a_terminal_gets_a_bar_and_rows_below_it(terminal):
    out = terminal(True)
    with live_board("training", 200, 20) as board:
        board.update(100, "a note for logs", rows)
    text = out.getvalue()
    for part in ("training", "50%", "100/200", "left", "loss", "0.0321", "█▅▁", "l1 0.02", "memory", "1 GB"):
        assert part in text
    assert "a note for logs" not in text


def test_a_row_that_is_too_long_is_cut_and_keeps_its_label(terminal):
    out = terminal(True)
    long = [Row("loss", "0.0321", curve([3, 2, 1]), "l1 0.02"), Row("step", "12 ms:", "", "render 3.0  " * 40)]
    with live_board("training", 200, 20) as board:
        board.update(100, "", lambda: long)
    text = out.getvalue()
    assert "loss" in text and "step" in text and "12 ms:" in text and "…" in text


def test_a_log_file_gets_lines_and_no_control_characters(terminal, monkeypatch):
    monkeypatch.setattr(console_module, "SECONDS_BETWEEN_LINES", 0.0)
    out = terminal(False)
    with live_board("training", 200, 20) as board:
        board.update(100, "loss 0.03", lambda: pytest.fail("rows are for terminals"))
    assert out.getvalue().startswith("training 100/200, ") and "s left  loss 0.03" in out.getvalue()
    assert "\x1b" not in out.getvalue()


def test_a_curve_is_as_wide_as_asked_and_keeps_the_order_of_its_values():
    assert curve([]) == "" and curve([5.0]) == "▁" and curve([2, 2, 2]) == "▁▁▁"
    assert curve(range(8)) == "▁▂▃▄▅▆▇█"
    assert curve(range(1000), 4) == "▁▃▆█"
    assert len(curve(range(1000))) == live.CURVE_WIDTH
