"""The best configuration of a sweep is that with the best mean over seeds, not the luckiest trial."""

from rlhf.report.seeds import over_seeds, section, sentence


def trial(rate, seed, value, state="complete", feasible=True):
    params = {"optimizer.learning_rate": rate, "seed": seed}
    values = {"train/reward": value} if state == "complete" else {}
    return {"state": state, "feasible": feasible, "params": params, "values": values}


ROWS = [
    trial(1e-4, 0, 0.9),  # the luckiest
    trial(1e-4, 1, 0.1),
    trial(1e-3, 1, 0.7),
    trial(1e-3, 0, 0.6),
    trial(1e-2, 0, 5.0),  # one seed only
    trial(1e-2, 1, 5.0, "pruned"),
    trial(1e-2, 2, 5.0, feasible=False),
]


def test_configurations_stand_by_their_mean_over_the_same_number_of_seeds():
    first, second = over_seeds(ROWS, "train/reward", "maximize")
    assert first.params == {"optimizer.learning_rate": 1e-3} and first.seeds == (0, 1)
    assert first.values == (0.6, 0.7) and second.values == (0.9, 0.1)
    assert over_seeds(ROWS, "train/reward", "minimize")[0] == second


def test_the_sentence_names_configuration_seeds_mean_and_spread():
    text = sentence(found := over_seeds(ROWS, "train/reward", "maximize"), "train/reward")
    assert (
        "Over seeds 0, 1 the best configuration is optimizer.learning_rate 0.001: mean train/reward 0.65"
        in text
    )
    assert "(0.6 to 0.7); the next has 0.5." in text
    assert "Configurations over seeds" in section(found, "train/reward")


def test_without_several_seeds_nothing_is_said():
    assert over_seeds([trial(1e-4, 0, 1.0), trial(1e-3, 0, 2.0)], "train/reward", "maximize") == []
    assert sentence([], "train/reward") == "" and section([], "train/reward") == ""
