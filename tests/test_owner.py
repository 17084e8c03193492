"""One process at a time owns a folder, whoever stalls or dies: in memory, without a clock."""

import json
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe import owner
from raypipe.errors import Stopped
from raypipe.store import Folder
from tests.memory import FAULTY, Crash, Memory, Shelf
from tests.turns import CHOICES, Turns

PROCESS = st.fixed_dictionaries(
    {"works_s": st.integers(0, 30), "begins_s": st.integers(0, 30), "again": st.booleans()},
    optional={**FAULTY, "fails_at": st.integers(0, 40)},
)


class Contest:
    """Processes that want to own one folder, and work there for some seconds."""

    def __init__(self, choices=()):
        self.shelf, self.choices = Shelf(lambda shelf: self.at_most_one()), choices
        self.owned, self.working = [], set()  # (number, when) as they take it; numbers

    def run(self, *processes):
        """What each was ended by."""
        turns = Turns(self.shelf, self.choices)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {"TAKE_OVER_S": 10.0, "LOOK_S": 3.0, "threading": turns, "time": turns}.items():
                patch.setattr(owner, name, value)
            return turns.run(*(partial(self.process, turns, **how) for how in processes))

    def process(self, turns, *, begins_s=0, works_s=5, again=False, **how):
        turns.sleep(begins_s)
        try:
            with owner.owned(Folder("train", Memory(self.shelf, pause=turns.sleep, **how))) as mine:
                self.owned.append((mine.number, self.shelf.now))
                self.working.add(mine.number)
                self.at_most_one()
                for _ in range(works_s):
                    turns.sleep(0 if mine.is_succeeded() else 1)
                self.working.remove(mine.number)
        except (Crash, Stopped):
            if not again:
                raise
            self.process(turns, works_s=works_s)

    def at_most_one(self):
        assert sum(f"train/owner-{number + 1:04d}.json" not in self.shelf.objects for number in self.working) <= 1


@settings(deadline=None, max_examples=200)
@given(st.lists(PROCESS, min_size=2, max_size=4), CHOICES)
def test_no_two_own_a_folder_whoever_stalls_or_dies(processes, choices):
    """Two trainings in one folder would each delete the other's checkpoints."""
    contest = Contest(choices)
    contest.run(*processes)
    numbers = [number for number, _ in contest.owned]
    assert len(numbers) == len(set(numbers))
    for contents in contest.shelf.stored.values():
        assert len({json.loads(content)["token"] for content in contents}) == 1
    assert contest.run({}) == [None]  # whatever happened, the next one gets in


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 60), st.floats(0, 80), st.booleans())
def test_the_second_stops_at_once_or_follows_at_once(works_s, begins_s, lost_answers):
    """It must not wait beside one that is alive, nor 120 s for one that has ended well."""
    contest = Contest()
    first, second = contest.run({"works_s": works_s, "lost_answers": lost_answers}, {"begins_s": begins_s})
    assert first is None and contest.owned[0] == (1, 0)
    if begins_s < works_s - 3:
        assert isinstance(second, Stopped) and "alive" in str(second) and len(contest.owned) == 1
    if begins_s > works_s:
        assert second is None and contest.owned[1] == (2, begins_s)


@settings(deadline=None, max_examples=50)
@given(st.integers(3, 80), st.floats(0, 60))
def test_a_silent_owner_is_taken_over(fails_at, begins_s):
    """A machine that was taken away must not keep the folder for ever. From place 3 on the first one's claim is stored."""
    contest = Contest()
    first, second = contest.run({"works_s": 100, "fails_at": fails_at}, {"begins_s": begins_s})
    silent = contest.shelf.written["train/owner-0001.json"]
    assert isinstance(first, Crash)
    if begins_s > silent:
        due = max(begins_s, silent + 10)
        assert second is None and contest.owned[-1][0] == 2 and due <= contest.owned[-1][1] <= due + 3
