"""prm_core/serving/drift/trust.py: when a calibration is stale, and that a server hears of it."""

from __future__ import annotations

import pytest

from prm_core.errors import InputError
from prm_core.serving.drift import trust
from prm_core.serving.drift.trust import FILE, Alarm, Trust, note_alarm, read_alarms, too_old

DAY = 86400.0


@pytest.mark.parametrize(("calibrated", "days", "stale"), [
    (None, 1e9, False), (0.0, 90.0, False), (0.0, 90.1, True), (DAY, 90.1, False)])
def test_age(calibrated, days, stale) -> None:
    doubt = too_old(calibrated, days * DAY, 90.0)
    assert (doubt is not None) == stale
    if doubt:
        assert (doubt.kind, doubt.reason) == ("age", "calibrated on 1970-01-01, more than 90 days ago "
                                                     "(drift.max_age_days)")


def test_an_alarm_keeps_its_beginning_until_it_is_taken_back(tmp_path) -> None:
    folder = tmp_path / "served"
    assert note_alarm(folder, "v1", None, 0.0) is None
    assert not folder.exists()
    first = note_alarm(folder, "v1", "scores", 0.0)
    assert first == Alarm("1970-01-01T00:00:00+00:00", "scores")
    assert note_alarm(folder, "v1", "lengths", DAY) == Alarm(first.since, "lengths")
    note_alarm(folder, "v2", "tools", DAY)
    assert note_alarm(folder, "v1", None, DAY) is None
    assert read_alarms(folder) == {"v2": Alarm("1970-01-02T00:00:00+00:00", "tools")}


def test_a_server_hears_of_alarms_within_seconds_and_keeps_what_it_knew(tmp_path, caplog) -> None:
    now = [1000.0]
    server = Trust(tmp_path, 90.0, clock=lambda: now[0])
    assert server.doubt("v1", 0.0) is None
    note_alarm(tmp_path, "v1", "scores", 0.0)
    assert server.doubt("v1", 0.0) is None
    now[0] += trust.LOOK_SECONDS
    doubt = server.doubt("v1", 0.0)
    assert (doubt.kind, doubt.reason) == ("drift", "traffic has drifted since 1970-01-01T00:00:00+00:00: scores")
    assert server.doubt("v2", 0.0) is None
    (tmp_path / FILE).write_text("[]")
    now[0] += trust.LOOK_SECONDS
    assert server.doubt("v1", 0.0) == doubt
    assert "holds no alarms" in caplog.text
    (tmp_path / FILE).unlink()
    now[0] += trust.LOOK_SECONDS
    assert server.doubt("v1", 0.0) is None
    now[0] = 91 * DAY
    assert server.doubt("v1", 0.0).kind == "age"


@pytest.mark.parametrize("text", ["[]", '{"v1": {}}', '{"v1": {"since": "", "reason": "", "more": 1}}', '{"v1": 1}'])
def test_a_file_without_alarms_is_named(tmp_path, text) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(InputError, match=r"alarms.json: holds no alarms"):
        read_alarms(tmp_path)
