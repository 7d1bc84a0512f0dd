"""Calls on other hosts: what is asked once more, and what is not."""

from __future__ import annotations

import pytest
import tensorflow as tf

from dist_restore.distribute.hosts.functions import Action, Kind, Placed

HOST = "/job:localhost/replica:0/task:0"
LOOK = Kind(Action.LOOK)


class Stumbling:
    """A function that fails a number of times before it answers."""

    def __init__(self, text: str, times: int) -> None:
        self.text, self.left, self.calls = text, times, 0

    def __call__(self, *arguments: object) -> tf.Tensor:
        self.calls += 1
        if self.left:
            self.left -= 1
            raise tf.errors.InternalError(None, None, self.text)
        return tf.constant([[1, 2]], tf.uint8)


def placed(function: Stumbling) -> Placed:
    found = Placed("", HOST)
    found._calls[HOST, LOOK] = function
    return found


def test_a_request_that_did_not_arrive_whole_is_sent_once_more() -> None:
    function = Stumbling("Unable to parse request", times=1)
    assert placed(function).call(HOST, LOOK) == (b"\1\2",)
    assert function.calls == 2


@pytest.mark.parametrize(("text", "times", "calls"), [("Unable to parse request", 2, 2), ("out of memory", 1, 1)])
def test_a_second_failure_and_any_other_is_raised(text: str, times: int, calls: int) -> None:
    function = Stumbling(text, times)
    with pytest.raises(tf.errors.InternalError, match=text):
        placed(function).call(HOST, LOOK)
    assert function.calls == calls
