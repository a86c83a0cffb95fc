"""The progress of bulk work: rates of the last seconds, an estimated end as a range, and no
estimate without data.
"""

from __future__ import annotations

from exodus.backfill.progress import ProgressMeter, ProgressSample


def test_an_end_is_a_range_of_what_was_seen_overall_and_lately() -> None:
    meter = ProgressMeter("backfill")
    first = meter.look(0.0, ProgressSample(keys=0, keys_total=100_000))
    assert (first.eta_s_min, first.keys_per_s) == (None, 0.0)
    assert "its end is not known yet" in first.text
    for second in range(2, 41, 2):
        told = meter.look(
            float(second),
            ProgressSample(
                keys=1_000 * second, keys_total=100_000, payload_bytes=2_000_000 * second
            ),
        )
    assert (told.keys_per_s, told.bytes_per_s) == (1_000.0, 2_000_000.0)
    assert (told.eta_s_min, told.eta_s_max) == (60, 60)
    assert (
        told.text
        == "backfill: 40,000 of 100,000 keys, 40.0 % · 80.0 MB · 1,000 keys/s · 2.0 MB/s · ends "
        "in 60 s"
    )
    for second in range(42, 62, 2):
        slow = meter.look(
            float(second),
            ProgressSample(
                keys=40_000 + 100 * (second - 40), keys_total=100_000, why="throttled: it is"
            ),
        )
    assert slow.eta_s_min is not None
    assert slow.eta_s_max is not None
    assert slow.eta_s_min < 120 < slow.eta_s_max
    assert "ends in" in slow.text
    assert slow.text.endswith("throttled: it is")


def test_what_was_done_before_this_meter_is_no_rate_and_less_than_one_percent_tells_no_end() -> (
    None
):
    meter = ProgressMeter("backfill")
    meter.look(0.0, ProgressSample(keys=50_000, keys_total=1_000_000))
    resumed = meter.look(2.0, ProgressSample(keys=50_200, keys_total=1_000_000))
    assert resumed.keys_per_s == 100.0
    early = ProgressMeter("backfill")
    early.look(0.0, ProgressSample(keys=0, keys_total=1_000_000))
    assert early.look(2.0, ProgressSample(keys=9_000, keys_total=1_000_000)).eta_s_min is None


def test_a_side_that_grows_never_shows_more_than_all() -> None:
    told = ProgressMeter("backfill").look(0.0, ProgressSample(keys=120, keys_total=100))
    assert told.percent < 100
    assert told.text.startswith("backfill: 120 of 120 keys, 99.9 %")
    assert told.text_when_done == "backfill: 120 keys · 0 keys/s · done"
    assert ProgressMeter("backfill").look(0.0, ProgressSample(keys=0, keys_total=0)).percent == 0
