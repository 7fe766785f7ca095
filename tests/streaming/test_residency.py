"""Which units are in memory: the budget, the order of arrival, the meter, against a fake disk."""

import threading
import time

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from k2ref.checkpoint.weights import CheckpointError
from k2ref.streaming.meter import Meter, Traffic
from k2ref.streaming.residency import Extent, Residency, Unit

SIZES = [1, 2, 3, 5, 8, 13]


class FakeFile:
    """Keep a set of bytes that are "in memory" instead of asking a system."""

    path = "fake"

    def __init__(self):
        self.present, self.broken, self.fetched = set(), set(), 0

    def ask(self, start, stop):
        assert start < stop

    def fetch(self, start, stop):
        if self.broken & set(range(start, stop)):
            raise CheckpointError(f"{self.path}: expected bytes, found none")
        self.fetched += stop - start
        self.present |= set(range(start, stop))

    def let_go(self, start, stop):
        self.present -= set(range(start, stop))

    def has(self, unit):
        return all(set(range(start, stop)) <= self.present for _, start, stop in unit.extents)


def make_units(file, sizes=SIZES):
    """Lay units out on the fake disk, in two extents where there is more than a byte."""
    units, at = [], 0
    for n in sizes:
        cuts = sorted({at, at + n // 2, at + n})
        units.append(Unit(tuple(Extent(file, *cut) for cut in zip(cuts, cuts[1:], strict=False))))
        at += n
    return units


class BudgetAndMeter(RuleBasedStateMachine):
    """Bring, doubt, steal, break and shrink in any order; what must hold holds after each step."""

    def __init__(self):
        super().__init__()
        self.file, self.meter = FakeFile(), Meter()
        self.kept, *self.units = make_units(self.file, [4, *SIZES])
        self.residency = Residency(self.meter, room=12, readers=2)
        self.residency.keep([self.kept])
        self.largest, self.wanted = 0, 0
        self.meter.begin(1)

    @rule(chosen=st.sets(st.sampled_from(range(len(SIZES)))), give_up=st.integers(0, 9))
    def bring(self, chosen, give_up):
        units = [self.units[k] for k in sorted(chosen)]
        self.largest = max([self.largest, *(unit.n_bytes for unit in units)])
        self.wanted += sum(unit.n_bytes for unit in units)
        arrivals, came = self.residency.bring(units), []
        missing = [unit for unit in units if unit.seen != self.residency.epoch]
        bad = any(self.file.broken & set(range(s, e)) for u in missing for _, s, e in u.extents)
        try:
            for landed in arrivals:
                assert all(self.file.has(unit) for unit in units if unit in landed)
                came += landed
                if len(came) > give_up:
                    arrivals.close()
                    break
            else:
                assert sorted(came, key=units.index) == units and not bad
        except CheckpointError:
            assert bad
        assert len(set(came)) == len(came)

    @rule(room=st.integers(0, 40))
    def shrink_or_grow(self, room):
        self.residency.fit(room)
        self.largest = 0
        assert self.residency.held <= room

    @rule(start=st.integers(4, 30), n=st.integers(1, 9))
    def steal(self, start, n):
        self.file.let_go(start, start + n)
        self.residency.doubt()
        self.residency.keep([self.kept])

    @rule(byte=st.integers(4, 35))
    def break_or_mend(self, byte):
        self.file.broken ^= {byte}

    @rule(k=st.integers(0, len(SIZES) - 1))
    def retire(self, k):
        self.residency.retire(self.units[k])
        if self.units[k] in self.residency.recent:
            assert next(iter(self.residency.recent)) is self.units[k]

    @invariant()
    def the_budget_holds(self):
        held = sum(unit.n_bytes for unit in self.residency.recent)
        assert self.residency.held == held <= self.residency.room + self.largest

    @invariant()
    def what_is_believed_is_so(self):
        for unit in [self.kept, *self.units]:
            assert unit.seen != self.residency.epoch or self.file.has(unit)

    @invariant()
    def what_is_in_memory_is_on_the_list(self):
        listed = [self.kept, *self.residency.recent]
        known = {byte for unit in listed for _, s, e in unit.extents for byte in range(s, e)}
        assert self.file.present <= known

    @invariant()
    def the_meter_adds_up(self):
        now = self.meter.now
        assert now.wanted == self.wanted and 0 <= now.hits <= now.wanted
        assert now.wait_s >= 0 and now.reading_s >= 0

    def teardown(self):
        self.residency.close()


BudgetAndMeter.TestCase.settings = settings(stateful_step_count=30)
TestBudgetAndMeter = BudgetAndMeter.TestCase


@pytest.fixture
def disk():
    file = FakeFile()
    return file, make_units(file), Residency(Meter(), room=100, readers=1)


def everything(arrivals):
    return [unit for landed in arrivals for unit in landed]


def test_what_is_there_comes_first_and_the_rest_in_the_order_of_the_disk(disk):
    _, units, residency = disk
    everything(residency.bring([units[3]]))
    lists = list(residency.bring([units[5], units[3], units[1], units[0]]))
    assert lists[0] == [units[3]]
    assert sum(lists[1:], []) == [units[0], units[1], units[5]]


def test_a_second_time_costs_no_reading(disk):
    file, units, residency = disk
    everything(residency.bring(units))
    before = file.fetched
    assert list(residency.bring(units)) == [units]
    assert file.fetched == before == sum(SIZES)
    assert residency.meter.now.hits == sum(SIZES)


def test_the_least_recently_used_goes_first(disk):
    file, units, residency = disk
    residency.fit(8 + 5 + 1)
    for k in (4, 3, 0, 4):  # 8, 5 and 1 bytes; then the first again
        everything(residency.bring([units[k]]))
    everything(residency.bring([units[2]]))  # 3 bytes: the 5 go, not the 8
    assert [file.has(units[k]) for k in (4, 3, 0, 2)] == [True, False, True, True]


def test_a_doubted_unit_is_asked_for_again_but_counted_once(disk):
    file, units, residency = disk
    everything(residency.bring(units))
    file.present.clear()
    residency.doubt()
    everything(residency.bring(units))
    assert all(file.has(unit) for unit in units) and residency.held == sum(SIZES)


@pytest.mark.parametrize("were_there", [False, True])
def test_giving_up_calls_back_what_no_reader_has_begun(disk, were_there):
    file, units, residency = disk
    if were_there:
        everything(residency.bring(units))
        residency.doubt()
    begun, go_on = threading.Event(), threading.Event()
    fetch = file.fetch

    def wait(start, stop):
        begun.set()
        assert go_on.wait(60)
        fetch(start, stop)

    file.fetch = wait
    arrivals = residency.bring(units)
    assert next(arrivals) == []
    assert begun.wait(60)
    threading.Timer(0.1, go_on.set).start()  # the one reader is busy until then
    arrivals.close()
    assert [file.has(unit) for unit in units] == [True] + 5 * [False]
    assert list(residency.recent) == units[:1] and residency.held == units[0].n_bytes
    file.fetch = fetch
    assert everything(residency.bring(units)) == units and residency.held == sum(SIZES)


def test_an_interrupted_keep_calls_back_the_rest(disk):
    file, units, residency = disk
    fetch, begun = file.fetch, []

    def count(start, stop):
        begun.append(start)
        time.sleep(0.02)
        fetch(start, stop)

    def interrupt(done, total):
        raise KeyboardInterrupt

    file.fetch = count
    with pytest.raises(KeyboardInterrupt):
        residency.keep(units, interrupt)
    residency.pool.shutdown()
    assert len(begun) < sum(len(unit.extents) for unit in units)


def test_what_fails_halfway_leaves_nothing(disk):
    file, units, residency = disk
    unit = units[-1]
    file.broken.add(unit.extents[1].start)
    with pytest.raises(CheckpointError):
        everything(residency.bring([unit]))
    assert file.present == set() and residency.held == 0 and not residency.recent


def test_keep_reports_progress_in_bytes(disk):
    _, units, residency = disk
    seen = []
    residency.keep(units, lambda done, total: seen.append((done, total)))
    assert [total for _, total in seen] == [sum(SIZES)] * len(units)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == sum(SIZES) and residency.held == 0


def test_keep_says_what_cannot_be_read(disk):
    file, units, residency = disk
    file.broken.add(7)
    with pytest.raises(CheckpointError):
        residency.keep(units)


def test_traffic_adds_up_and_speaks():
    a = Traffic(tokens=2, wanted=8_000_000_000, hits=2_000_000_000, read=6_000_000_000,
                reading_s=3.0, wait_s=1.0, time_s=4.0)
    b = Traffic(tokens=1, wanted=1_000_000_000, read=None)
    assert a.missed == 6_000_000_000 and a.rate == 2e9
    assert a.line() == (
        "2 tokens: 8.00 GB (4.00 a token) wanted, 2.00 GB (1.00 a token) in memory, "
        "6.00 GB (3.00 a token) read from disk at 2.00 GB/s, 1.0 of 4.0 s waited")
    assert a.record()["missed"] == a.missed and Traffic().rate == 0
    a.add(b)
    assert (a.tokens, a.wanted, a.read) == (3, 9_000_000_000, None)
    assert "disk" not in a.line()


def test_the_meter_keeps_each_pass_and_the_sum():
    meter = Meter()
    for n_tokens in (3, 1, 1):
        meter.begin(n_tokens)
        meter.now.wanted += 10 * n_tokens
        meter.end(lost=1)
    assert [p.tokens for p in meter.passes] == [3, 1, 1]
    assert (meter.total.tokens, meter.total.wanted, meter.total.lost) == (5, 50, 3)
