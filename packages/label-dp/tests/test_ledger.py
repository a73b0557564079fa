"""The ledger: composition arithmetic, records that come again, and what a crash leaves."""

import datetime
import json
import math

import numpy as np
import polars as pl
import pytest

from chapbook.core.errors import Error
from chapbook.label_dp.certificate import Spend
from chapbook.label_dp.ledger import PrivacyLedger
from chapbook.label_dp.records import RecordHashes, record_hashes


@pytest.fixture(params=["memory", "file"])
def ledger(request, tmp_path) -> PrivacyLedger:
    return PrivacyLedger(None if request.param == "memory" else tmp_path / "ledger.json")


def hashes(ledger: PrivacyLedger, ids, epsilons=None) -> RecordHashes:
    collected = ledger.collect()
    for part in np.array_split(np.arange(len(ids)), 3):  # as it comes in blocks
        each = None if epsilons is None else np.asarray(epsilons, np.float64)[part]
        collected.add(pl.DataFrame({"id": np.asarray(ids)[part]}), each)
    return collected


def test_disjoint_parts_compose_in_parallel_and_repeated_use_in_sequence(ledger):
    for part, epsilon in (("1", 1.0), ("2", 1.0), ("3", 0.7), ("3", 0.6)):
        ledger.charge(Spend(part, "rr-with-prior", epsilon, 10))
    assert ledger.epsilon == pytest.approx(1.3, abs=1e-15)
    ledger.charge(Spend("all", "histogram prior", 0.05, 30))
    assert ledger.epsilon == pytest.approx(1.35, abs=1e-15)
    rho = max(0.5, (0.49 + 0.36) / 2) + 0.05**2 / 2
    assert ledger.zcdp == pytest.approx(rho, rel=1e-12)
    orders = np.array([1.5, 2.0, 64.0])
    np.testing.assert_allclose(ledger.rdp(orders), np.minimum(1.35, rho * orders))


def test_a_charge_under_the_same_id_is_paid_once(ledger):
    spend = Spend("all", "rr", 1.0, 10)
    first = ledger.charge(spend, id="run")
    assert ledger.charge(spend, id="run") == first
    assert ledger.epsilon == 1.0
    with pytest.raises(Error, match="other spends"):
        ledger.charge(Spend("all", "rr", 2.0, 10), id="run")


def test_records_that_come_again_are_refused_with_what_they_spent(ledger):
    ledger.charge(Spend("all", "rr", 1.0, 6), records=hashes(ledger, [1, 2, 3, 4, 5, 6]))
    with pytest.raises(Error) as caught:
        ledger.charge(Spend("all", "rr", 0.5, 4), records=hashes(ledger, [5, 6, 7, 8]))
    assert "2 of 4 records" in caught.value.message
    assert "have spent up to epsilon 1;" in caught.value.message
    assert "would bring them to 1.5" in caught.value.message
    assert "--compose" in (caught.value.hint or "")
    assert ledger.epsilon == 1.0
    assert len(ledger.entries) == 1


def test_composing_adds_up_record_by_record(ledger):
    ledger.charge(Spend("all", "rr", 1.0, 6), records=hashes(ledger, [1, 2, 3, 4, 5, 6]))
    ledger.charge(Spend("all", "rr", 2.0, 3), records=hashes(ledger, [7, 8, 9]))
    assert ledger.epsilon == 2.0  # disjoint records: parallel
    entry = ledger.charge(Spend("all", "rr", 0.5, 2), records=hashes(ledger, [1, 10]), compose=True)
    assert (entry.overlap, entry.spent) == (1, 1.5)
    assert ledger.epsilon == 2.0
    ledger.charge(Spend("all", "rr", 0.5, 1), records=hashes(ledger, [9]), compose=True)
    assert ledger.epsilon == 2.5
    spent = ledger.spent(record_hashes(pl.DataFrame({"id": [1, 2, 9, 99]}), ledger.key))
    np.testing.assert_array_equal(spent, [1.5, 1.0, 2.5, 0.0])


def test_each_record_is_charged_its_own_epsilon(ledger):
    ids, epsilons = [4, 2, 9, 1], [0.4, 0.2, 0.9, 0.1]
    entry = ledger.charge(Spend("all", "rr", 0.9, 4), records=hashes(ledger, ids, epsilons))
    assert entry.spent == 0.9
    found = ledger.spent(record_hashes(pl.DataFrame({"id": ids}), ledger.key))
    np.testing.assert_array_equal(found, epsilons)


def test_a_withdrawn_charge_leaves_nothing(ledger, tmp_path):
    ledger.charge(Spend("all", "rr", 1.0, 2), id="a", records=hashes(ledger, [1, 2]))
    ledger.withdraw("a")
    assert ledger.epsilon == 0
    ledger.charge(Spend("all", "rr", 1.0, 2), records=hashes(ledger, [1, 2]))
    assert not list(tmp_path.glob("ledger.json.records/a.*"))


def test_a_ledger_file_is_found_again_by_another_process(tmp_path):
    path = tmp_path / "ledger.json"
    first = PrivacyLedger(path)
    first.charge(Spend("all", "rr", 1.0, 2), records=hashes(first, [1, 2]))
    second = PrivacyLedger(path)
    assert second.entries == first.entries
    assert json.loads(path.read_text())["epsilon"] == 1.0
    # A ledger that is open already sees what another one has charged since.
    with pytest.raises(Error, match="1 of 1 records"):
        second.charge(Spend("all", "rr", 1.0, 1), records=hashes(second, [2]))
    second.charge(Spend("all", "rr", 1.0, 1), records=hashes(second, [3]))
    with pytest.raises(Error, match="1 of 1 records"):
        first.charge(Spend("all", "rr", 1.0, 1), records=hashes(first, [3]))


def test_lost_record_hashes_are_an_error_and_not_a_clean_slate(tmp_path):
    ledger = PrivacyLedger(tmp_path / "ledger.json")
    entry = ledger.charge(Spend("all", "rr", 1.0, 2), records=hashes(ledger, [1, 2]))
    (tmp_path / "ledger.json.records" / f"{entry.id}.records").write_bytes(b"12345678")
    with pytest.raises(Error, match="missing or cut short"):
        ledger.charge(Spend("all", "rr", 1.0, 1), records=hashes(ledger, [3]))


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": "x"}'])
def test_what_is_no_ledger_is_refused_and_kept(tmp_path, text):
    (tmp_path / "ledger.json").write_text(text)
    with pytest.raises(Error, match="not a label-dp ledger"):
        PrivacyLedger(tmp_path / "ledger.json")
    assert (tmp_path / "ledger.json").read_text() == text


def test_infinite_epsilon_is_kept(tmp_path):
    PrivacyLedger(tmp_path / "l.json").charge(Spend("all", "rr", math.inf, 2))
    assert PrivacyLedger(tmp_path / "l.json").epsilon == math.inf


def test_dp_accounting_composes_what_the_ledger_hands_it():
    accounting = pytest.importorskip("dp_accounting")
    from dp_accounting.rdp import RdpAccountant

    ledger = PrivacyLedger()
    for _ in range(200):
        ledger.charge(Spend("all", "rr", 0.05, 10))
    # rho-zCDP gives rho + 2 sqrt(rho log(1 / delta)) (Bun and Steinke, proposition 1.3).
    bound = ledger.zcdp + 2 * math.sqrt(ledger.zcdp * math.log(1e5))
    approximate = ledger.approximate_epsilon(1e-5)
    assert 0 < approximate <= bound < ledger.epsilon == pytest.approx(10.0)
    event = accounting.ComposedDpEvent([ledger.dp_event(), accounting.GaussianDpEvent(2.0)])
    accountant = RdpAccountant(neighboring_relation=accounting.NeighboringRelation.REPLACE_ONE)
    assert accountant.compose(event).get_epsilon(1e-5) > approximate


def test_equal_records_have_equal_hashes_and_only_those():
    key = bytes(range(32))
    frame = pl.DataFrame(
        {
            "text": ["a", "a", "b", None, "", "a"],
            "number": [1, 1, 1, None, None, 0],
            "day": [datetime.date(2024, 1, 1)] * 6,
            "flag": [True, True, True, None, False, True],
            "real": [0.5, 0.5, 0.5, 0.5, None, 0.5],
        }
    )
    found = record_hashes(frame, key)
    assert found[0] == found[1]
    assert len(set(found.tolist())) == 5
    # A record's hash does not depend on where, or beside what, it stands.
    np.testing.assert_array_equal(record_hashes(frame[::-1], key), found[::-1])
    assert not set(found.tolist()) & set(record_hashes(frame, bytes(32)).tolist())


def test_columns_are_not_interchangeable():
    key = bytes(32)
    one = record_hashes(pl.DataFrame({"a": ["x"], "b": ["y"]}), key)
    two = record_hashes(pl.DataFrame({"a": ["y"], "b": ["x"]}), key)
    joined = record_hashes(pl.DataFrame({"a": ["xy"], "b": [""]}), key)
    assert len({int(h[0]) for h in (one, two, joined)}) == 3


def test_repeated_records_are_found_across_blocks(tmp_path):
    for folder in (None, tmp_path):
        collected = RecordHashes(bytes(32), folder)
        for ids in ([1, 2], [3], [2, 4]):
            collected.add(pl.DataFrame({"id": ids}))
        expected = record_hashes(pl.DataFrame({"id": [2]}), bytes(32))
        np.testing.assert_array_equal(collected.repeated(), expected)
        collected.discard()
    assert not list(tmp_path.iterdir())
