"""Settings of a server that samples for training, in place of the embedded engine."""

from typing import Literal, Self

from pydantic import Field, model_validator

from togi.core.settings import EngineRef, RecipePath, Settings, runtime_setting


class EngineSettings(Settings):
    """A server that samples from the policy. It gets the policy's weights before each batch of samples; the
    log-probabilities of a probe then verify that it has loaded them."""

    model: EngineRef = Field(
        description="a model in `models:` with url or serve that has the weights of `init`; no other stage may use it, "
        "because its weights change"
    )
    publish: Literal["disk", "adapter", "transfer"] = Field(
        default="disk",
        description="disk: the server loads the whole model from a folder; adapter (needs lora): the adapter alone; "
        "transfer: the server receives the whole model over a connection of its own",
    )
    sleep: bool = runtime_setting(
        False,
        "the server (vLLM or SGLang) frees its memory while the policy is trained, so that both can use one card",
    )
    folder: RecipePath | None = runtime_setting(
        None,
        "folder for published weights, which the server must see under the same path; absent: in the stage's folder",
    )
    tolerance: float = runtime_setting(
        0.05,
        "largest mean difference, in nats, between the log-probabilities of a probe on the server and in the trainer",
        gt=0,
    )

    @model_validator(mode="after")
    def _fits_transfer(self) -> Self:
        if self.publish == "transfer" and self.folder is not None:
            raise ValueError("publish: transfer writes no folder; remove engine.folder, or use publish: disk")
        if self.publish == "transfer" and self.sleep:
            raise ValueError(
                "sleep is for a server on the trainer's card, where NCCL sends no weights; use publish: disk or adapter"
            )
        return self
