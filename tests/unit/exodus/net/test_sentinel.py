"""Which server is taken for the master, given the Sentinels' answers."""

from __future__ import annotations

from exodus.net.sentinel import SentinelAnswer, decide

OLD, NEW = "10.0.0.1:6379", "10.0.0.2:6379"


def _said(*answers: tuple[str, int]) -> list[SentinelAnswer]:
    return [SentinelAnswer(f"s{number}", *answer) for number, answer in enumerate(answers)]


def test_nobody_answers() -> None:
    assert decide([], 3, -1) is None


def test_all_agree() -> None:
    verdict = decide(_said((OLD, 1), (OLD, 1), (OLD, 1)), 3, 1)
    assert verdict is not None
    assert (verdict.master, verdict.config_epoch, verdict.sure) == (OLD, 1, True)


def test_the_newest_word_wins_over_a_majority_of_stale_ones() -> None:
    """After a failover the leader knows it first."""
    verdict = decide(_said((OLD, 1), (NEW, 2), (OLD, 1)), 3, 1)
    assert verdict is not None
    assert (verdict.master, verdict.config_epoch) == (NEW, 2)


def test_of_equal_epochs_the_majority_wins() -> None:
    """The leader of a failover names the new master before it has its epoch."""
    verdict = decide(_said((NEW, 1), (OLD, 1), (OLD, 1)), 3, 1)
    assert verdict is not None
    assert verdict.master == OLD


def test_a_stale_sentinel_that_answers_alone_is_not_believed() -> None:
    assert decide(_said((OLD, 1)), 3, 2) is None
    assert decide(_said((OLD, 1), (NEW, 0)), 3, 2) is None


def test_a_majority_that_agrees_on_a_lower_epoch_was_set_up_anew() -> None:
    verdict = decide(_said((OLD, 0), (OLD, 0)), 3, 7)
    assert verdict is not None
    assert (verdict.master, verdict.config_epoch) == (OLD, 0)


def test_less_than_a_majority_is_believed_and_not_sure() -> None:
    """Applications are served by the known master; a switch does not begin."""
    verdict = decide(_said((OLD, 1)), 3, 1)
    assert verdict is not None
    assert not verdict.sure
    verdict = decide(_said((OLD, 1), (OLD, 1)), 3, 1)
    assert verdict is not None
    assert verdict.sure


def test_a_replica_is_away_only_if_no_sentinel_reaches_it() -> None:
    answers = [
        SentinelAnswer("a", OLD, 1, ("r1:1",), ("r2:1",)),
        SentinelAnswer("b", OLD, 1, ("r1:1", "r2:1"), ("r3:1", OLD)),
        SentinelAnswer("stale", NEW, 0, ("r4:1",), ("r1:1",)),
    ]
    verdict = decide(answers, 3, 1)
    assert verdict is not None
    assert (verdict.replicas, verdict.down) == (("r1:1", "r2:1"), ("r3:1",))
