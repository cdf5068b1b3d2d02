"""The default: the house model, or the crossed one where texts come back and people left out say that it predicts better.

Where most texts were judged by one person alone, a text has no strength that another's answers could tell, and the
house model is fitted as if it had been named. Else both are fitted without a third of the people and a fifth of the texts
(`trial`), and the crossed one is taken where its loss on them is lower by more than one standard error. What is taken is
fitted on everything: the same model, to the last digit, as when it is named. What was chosen stands in `report["choice"]`.
"""

import dataclasses
import logging
from typing import ClassVar

import numpy as np
import pydantic

from rewards.basis import fit
from rewards.errors import UserError
from rewards.files import JSONObject
from rewards.methods import training as shared
from rewards.methods.base import RewardModel
from rewards.methods.crossed import Crossed
from rewards.methods.house import House
from rewards.methods.linear import LinearFitted
from rewards.methods.trial import left_out_losses, shared_texts

HOUSE, CROSSED = House.kind, Crossed.kind
COMMON = 0.5
"""Share of texts judged by several people below which there is nothing to choose."""
_LOG = logging.getLogger("chorus")


@pydantic.dataclasses.dataclass(frozen=True, config=shared.STRICT)
class Auto(fit.FitConfig, RewardModel):
    """Settings of the house model (`rewards.basis.fit.FitConfig`); sizes that were chosen hold for the crossed one too."""

    kind: ClassVar[str] = "auto"

    def house(self) -> House:
        return House(**{field.name: getattr(self, field.name) for field in dataclasses.fields(fit.FitConfig)})

    def crossed(self) -> Crossed:
        """Whitening, lapse and seed, and of sizes that are somebody's choice the largest."""
        plain, given = fit.FitConfig(), {}
        for name in ("num_basis", "dims"):
            sizes = getattr(self, name)
            if sizes != getattr(plain, name):
                given[name] = max(sizes) if isinstance(sizes, tuple) else sizes
        return Crossed(whitening=self.whitening, lapse=self.lapse, seed=self.seed, **given)

    def _fit(self, table, training, *, weight=None, on_round=None) -> LinearFitted:
        models: dict[str, RewardModel] = {HOUSE: self.house(), CROSSED: self.crossed()}
        choice = self._choice(table, training, weight)
        fitted = models[choice["chosen"]].fit(table, training, weight=weight, on_round=on_round)
        _LOG.info(f"model: {choice['said']}")  # what cannot be fitted at all is said alone
        assert isinstance(fitted, LinearFitted)
        return dataclasses.replace(fitted, report=fitted.report | {"choice": choice})

    def _brief(self) -> dict[str, RewardModel]:
        """Half the iterations, as sizes are chosen (`fit.held_out_loss`), and two folds."""
        crossed = self.crossed()
        return {
            HOUSE: dataclasses.replace(self.house(), rounds=(self.rounds + 1) // 2),
            CROSSED: dataclasses.replace(crossed, steps=crossed.steps // 2, folds=2),
        }

    def _choice(self, table, training, weight) -> JSONObject:
        """Which model, what it goes by, and one line that says so."""
        share = shared_texts(training)
        found: JSONObject = {"chosen": HOUSE, "shared_texts": share, "loss_nats": {}}
        if share < COMMON:
            return found | {
                "said": f"house; {share:.0%} of the texts in comparisons were judged by several people"
            }
        people = int(np.sum(np.bincount(training.user_index, minlength=training.num_users) > 1))
        if people < fit.LEAST_TO_CHOOSE:
            return found | {"said": f"house; {people} people with two comparisons are too few to choose by"}
        try:
            losses = left_out_losses(self._brief(), table, training, weight, self.seed)
        except UserError as error:  # what is left without them is too little for one of the models
            return found | {
                "said": f"house; without some of the people and texts there is too little ({error})"
            }
        mean = {name: float(values.mean()) for name, values in losses.items()}
        gain = losses[HOUSE] - losses[CROSSED]
        error = float(gain.std(ddof=1) / np.sqrt(len(gain)))
        chosen = CROSSED if float(gain.mean()) > error else HOUSE
        other = HOUSE if chosen == CROSSED else CROSSED
        said = (
            f"{chosen}, chosen by {len(losses[chosen])} people and a fifth of the texts left out: {mean[chosen]:.3f} nats a "
            f"comparison ({other} {mean[other]:.3f}, standard error of the difference {error:.3f}); fit.model names one"
        )
        return found | {
            "chosen": chosen,
            "loss_nats": mean,
            "standard_error": error,
            "people": len(losses[chosen]),
            "said": said,
        }
