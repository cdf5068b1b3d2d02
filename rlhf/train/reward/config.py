"""The configuration of `chorus rewards train`."""

from collections.abc import Iterator

from pydantic import Field, model_validator

from rlhf.phi.config import RewardEvaluationConfig, RewardFitConfig
from rlhf.run.config.common import MeshConfig, PeopleDataConfig, RunConfig, Track
from rlhf.run.config.unread import Unread
from rlhf.run.record import record
from rlhf.train.config import PairTrainConfig, PolicyModelConfig, TuneConfig, check_base, check_schedule
from rlhf.train.optim import OptimizerConfig
from rlhf.train.reward.step import HeadConfig


@record
class RewardTrainConfig(RunConfig):
    """`chorus rewards train`: a language model fine-tuned to tell which completion is preferred, by everybody and by whom."""

    data: PeopleDataConfig = Field(description="Preferences, and who is held out where they say who chose.")
    model: PolicyModelConfig = Field(description="Model that is tuned into the encoder.")
    tune: TuneConfig = Field(
        default=TuneConfig(), description="Which parameters are trained besides the head."
    )
    head: HeadConfig = Field(default=HeadConfig(), description="What is read off the model, and the loss.")
    optimizer: OptimizerConfig = Field(description="AdamW and its schedule.")
    train: PairTrainConfig = Field(description="Length, batches, checkpoints.")
    fit: RewardFitConfig = Field(
        default_factory=RewardFitConfig,
        description="Basis and population over the trained encoder (head.num_basis above 0 only).",
    )
    evaluation: RewardEvaluationConfig = Field(
        default=RewardEvaluationConfig(), description="Replay of held-out people by chorus rewards evaluate."
    )
    mesh: MeshConfig = Field(default=MeshConfig(), description="How the devices share the work.")
    track: Track = ("tensorboard",)

    def unread(self) -> Iterator[Unread]:
        if not self.head.num_basis:
            yield Unread(
                ["fit", "evaluation"], "head.num_basis", "head.num_basis 0, one reward for everybody"
            )

    @model_validator(mode="after")
    def _consistent(self):
        check_schedule(self)
        check_base(self.model, self.tune)
        self.mesh.need_one_process("reward models are trained")
        if self.head.pool == "mean" and not self.head.num_basis:
            raise ValueError(
                "head.pool mean with head.num_basis 0: a reward model in Hugging Face's format reads the last token; "
                "choose head.pool last"
            )
        return self
