"""What a run tells: every step in the log, once a second with PSNR, stages and memory, and rows for the board."""

import pytest
import torch

from scene_distill.blocks.runtime import Progress
from scene_distill.core.stages import StageClock
from scene_distill.training import telemetry
from scene_distill.training.telemetry import PSNR_SHARE, PsnrMeter, Telemetry


class Time:
    now = 0.0

    def __call__(self):
        return self.now


class Board:
    def update(self, done, note, rows):
        self.done, self.note, self.rows = done, note, [" ".join(row) for row in rows()]


@pytest.fixture
def time():
    return Time()


def lanes(loss: float):
    return ((2, {"anchors": 500.0, "visible": 100.0, "loss": loss, "l1": loss / 2}),
            (7, {"anchors": 700.0, "visible": 300.0, "loss": loss, "l1": loss / 2}))  # fmt: skip


def test_every_step_is_a_line_and_figures_come_once_a_second(time):
    lines, board, clock = [], Board(), StageClock(now=time)
    psnr = PsnrMeter(time)
    heard = Telemetry(lines.append, board, clock, psnr, time)
    for step in range(10):
        clock.switch("render")
        time.now += 0.2
        clock.backward_begins()
        time.now += 0.2
        clock.switch("rest")
        psnr.saw(torch.zeros(4, 4, 3), torch.full((4, 4, 3), 0.1))
        heard.hear(Progress(3, 9, 2 * step + 2, 20, lanes(0.5)))
    assert [line["step"] for line in lines] == list(range(2, 21, 2))
    assert lines[0]["units"] == {"2": lanes(0.5)[0][1], "7": lanes(0.5)[1][1]} and lines[0]["round"] == 3
    told = [index for index, line in enumerate(lines) if "memory_bytes" in line]
    assert told == [2, 5, 8, 9], "every 1.2 s of 0.4 s steps, and the last"
    assert lines[2]["stages_ms"] == pytest.approx({"rest": 0, "render": 200, "backward": 200})
    assert lines[2]["psnr"] == pytest.approx(20.0, abs=1e-3)
    assert board.done == 20 and board.note == "loss 0.5000  l1 0.2500  1k anchors on 2 lanes"
    assert board.rows[0] == "round 4 of 9, training blocks 2 7  "
    assert "loss 0.5000" in board.rows[1] and "l1 0.25" in board.rows[1] and "visible" not in board.rows[1]
    assert "20.00 dB" in board.rows[2]
    assert "1,200 anchors on 2 lanes, 200 in a view" in board.rows[3]
    assert "400.0 ms" in board.rows[-1] and "backward 200.0" in board.rows[-1]


def test_a_method_without_losses_yet_still_has_a_board(time):
    lines, board = [], Board()
    heard = Telemetry(lines.append, board, StageClock(now=time), PsnrMeter(time), time)
    time.now = 2.0
    heard.hear(Progress(0, 1, 1, 5, ((0, {"splats": 10.0}),)))
    assert "psnr" not in lines[0] and "stages_ms" not in lines[0] and board.note == ""
    assert any("10 splats on 1 lanes" in row for row in board.rows)


def test_psnr_is_measured_only_while_it_has_its_share_of_the_time(monkeypatch):
    time = Time()
    psnr, looked = PsnrMeter(time), []
    measure = torch.nn.functional.mse_loss

    def slow(render, photo):
        looked.append(time.now)
        time.now += 0.01
        return measure(render, photo)

    monkeypatch.setattr(telemetry.torch.nn.functional, "mse_loss", slow)
    for _ in range(2000):
        psnr.saw(torch.zeros(1, 1, 3), torch.ones(1, 1, 3))
        time.now += 0.02
    assert 0.01 * len(looked) <= PSNR_SHARE * time.now + 0.01
    assert 0.01 * len(looked) > 0.8 * PSNR_SHARE * time.now
    assert psnr.take() == pytest.approx(0.0) and psnr.take() is None
