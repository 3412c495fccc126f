"""Stages of a step: time belongs to exactly one of them, and nothing happens where nobody listens."""

import threading

import pytest

from scene_distill.core.stages import Stage, StageClock, backward_begins, clocked, picture_seen, staged


class Time:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def time():
    return Time()


def test_nested_stages_share_the_time_without_overlap(time):
    with clocked(StageClock(now=time)) as clock:
        time.now += 1
        with Stage("outer"):
            time.now += 2
            with Stage("inner"):
                time.now += 4
            time.now += 8
        time.now += 16
        seconds, steps = clock.take()
    assert seconds == {"rest": 17, "outer": 10, "inner": 4} and steps == 0
    assert sum(seconds.values()) == time.now
    assert clock.take() == ({"rest": 0}, 0)


def test_the_backward_pass_lasts_until_the_next_stage_and_counts_steps(time):
    clock = StageClock(now=time)
    with clocked(clock):
        for _ in range(3):
            backward_begins()
            time.now += 5
            backward_begins()
            time.now += 1
            with Stage("Adam"):
                time.now += 2
            time.now += 1
    assert clock.take() == ({"rest": 3, "backward": 18, "Adam": 6}, 3)


def test_an_error_ends_its_stage(time):
    clock = StageClock(now=time)
    with clocked(clock):
        with pytest.raises(ZeroDivisionError), Stage("broken"):
            time.now += 1
            raise ZeroDivisionError
        time.now += 2
    assert clock.take()[0] == {"rest": 2, "broken": 1}


def test_nobody_listens_outside_and_in_other_threads(time):
    @staged("work")
    def work(seconds: float) -> str:
        """Says done."""
        time.now += seconds
        return "done"

    assert work(3) == "done" and work.__doc__ == "Says done."
    seen = []
    clock = StageClock(lambda render, photo: seen.append((render, photo)), now=time)
    picture_seen(1, 2)
    backward_begins()
    with clocked(clock):
        other = threading.Thread(target=lambda: (work(1), picture_seen(3, 4)))
        other.start()
        other.join()
        picture_seen(5, 6)
    assert seen == [(5, 6)]
    assert clock.take() == ({"rest": 1}, 0)
