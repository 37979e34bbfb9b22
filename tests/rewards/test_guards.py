"""Guards: when an alarm is raised, that it is raised only once, and when it ends the run."""

import pytest

from togi.core.errors import StageError
from togi.rewards.build import build_watch
from togi.rewards.guards import Guard, GuardState, stop_on
from togi.rewards.settings import GuardSettings


def test_an_alarm_names_value_bound_and_step():
    alarm = GuardState([Guard(metric="gate_pass_rate", min=0.2)]).observe(3, {"gate_pass_rate": 0.0})[0]
    assert (alarm.name, alarm.step, alarm.value, alarm.threshold, alarm.stop) == ("gate_pass_rate", 3, 0.0, 0.2, False)
    assert alarm.message == "gate_pass_rate is 0 at step 3, below its bound of 0.2"


def test_patience_counts_measurements_in_a_row_and_an_alarm_rises_once():
    watch = GuardState([Guard(metric="kl", max=1.0, patience=2)])
    values = [2.0, 0.5, 2.0, None, 3.0, 4.0, 0.0, 2.0, 2.0]
    alarms = [watch.observe(step, {} if value is None else {"kl": value}) for step, value in enumerate(values)]
    assert [step for step, rising in enumerate(alarms) if rising] == [4, 8]


def test_what_is_not_a_number_is_outside():
    watch = GuardState([Guard(metric="kl", max=1.0), Guard(metric="kl", min=-1.0)])
    assert len(watch.observe(0, {"kl": float("nan")})) == 2


def test_a_watch_goes_on_where_it_was_saved():
    first = GuardState([Guard(metric="kl", max=1.0, patience=2)])
    first.observe(0, {"kl": 2.0})
    again = GuardState(first.guards, crossed=list(first.crossed))
    assert len(again.observe(1, {"kl": 2.0})) == 1


def test_only_a_guard_that_says_so_stops_the_run():
    settings = [
        GuardSettings(metric="length", max=10),
        GuardSettings(metric="diversity", min=0.5, action="stop"),
    ]
    watch = build_watch(settings)
    stop_on(watch.observe(0, {"length": 50.0, "diversity": 0.9}))
    with pytest.raises(StageError, match=r"stopped by a guard: diversity is 0\.1 at step 1"):
        stop_on(watch.observe(1, {"length": 50.0, "diversity": 0.1}))


@pytest.mark.parametrize(
    "value",
    [
        {"metric": "kl"},
        {"metric": "entropy", "max": 1},
        {"metric": "kl", "maximum": 1},
        {"metric": "held_out_reward", "min": 0},  # nothing measures it while training
    ],
)
def test_guards_that_are_refused(value):
    with pytest.raises(ValueError):
        GuardSettings.model_validate(value)
