"""The board: shared between processes, read without tears, believed only when it is whole."""

from __future__ import annotations

import os
import signal

import pytest

from metamusesd.board import MAX_ROWS, QUEUES, WORKER_FIELDS, Board, milli, rates


def test_a_child_writes_and_the_parent_reads():
    """What a forked child writes is seen by its parent."""
    board = Board(2)
    pid = os.fork()
    if pid == 0:
        board.workers[1].write(steps=7, slots=3)
        os._exit(0)
    os.waitpid(pid, 0)
    assert board.workers[1].read()["steps"] == 7
    assert board.workers[0].read()["steps"] == 0


def test_reads_are_never_torn():
    """While another process writes as fast as it can, every block that is read is of one moment."""
    board = Board(1)
    block = board.workers[0]
    pid = os.fork()
    if pid == 0:
        value = 0
        while True:
            value += 1
            block.write(**dict.fromkeys(WORKER_FIELDS, value))
    try:
        seen, whole = set(), 0
        while len(seen) < 50 or whole < 2000:
            fields = block.read()
            if fields is not None:
                whole += 1
                assert len(set(fields.values())) == 1, fields
                seen.add(fields["steps"])
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_writer_killed_in_the_middle_leaves_a_stale_block_that_the_next_writer_heals():
    """An odd sequence word reads as None, and one write makes the block whole again."""
    board = Board(1)
    block = board.workers[0]
    block.write(steps=1)
    block._words[0] |= 1
    assert block.read() is None
    assert block.get("steps") == 1
    block.write(steps=2)
    assert block.read()["steps"] == 2


def test_a_clear_leaves_nothing():
    """After `clear` every field is zero and the block is whole."""
    block = Board(1).workers[0]
    block.write(**dict.fromkeys(WORKER_FIELDS, 5))
    block.clear()
    assert set(block.read().values()) == {0}


def test_blocks_do_not_overlap():
    """Filling one block changes no other, and the metric page is untouched."""
    board = Board(3)
    blocks = [board.dispatcher, board.queues, *board.workers, *board.slots]
    for number, block in enumerate(blocks, start=1):
        block.write(**dict.fromkeys(block._index, number))
    for row in range(3):
        board.add_frame_sent(row)
    for number, block in enumerate(blocks, start=1):
        assert set(block.read().values()) == {number}
    assert not any(board.metric_words)
    assert [board.frames_sent(row) for row in range(3)] == [1, 1, 1]
    board.reset_frames_sent(1)
    assert [board.frames_sent(row) for row in range(3)] == [1, 0, 1]


def test_every_queue_has_its_depths():
    """The queue block has the four classes and the oldest of every queue."""
    fields = Board(1).queues.read()
    assert all(f"{queue}.{part}" in fields for queue in QUEUES for part in ("low", "critical", "oldest_ms"))


@pytest.mark.parametrize("rows", [0, -1, MAX_ROWS + 1])
def test_impossible_sizes_are_refused(rows):
    """A board has 1 to MAX_ROWS rows."""
    with pytest.raises(ValueError, match="rows"):
        Board(rows)


def test_values_out_of_a_word_are_refused():
    """A negative figure is a mistake of the writer, and the block is stale until it writes again."""
    block = Board(1).workers[0]
    with pytest.raises((ValueError, OverflowError)):
        block.write(steps=-1)
    block.write(steps=3)
    assert block.read()["steps"] == 3


def test_rates_travel_in_thousandths():
    """A rate survives the board to three places; a negative one is zero."""
    assert rates({"prefill_milli_rate": milli(1.2345), "decode_milli_rate": milli(-1)}) == (1.234, 0.0)
