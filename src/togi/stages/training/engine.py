"""A server that samples for a training, in place of the embedded engine."""

from typing import Literal

from pydantic import Field

from togi.core.settings import EngineRef, RecipePath, Settings, runtime_setting


class EngineSettings(Settings):
    """A server that samples the policy. It gets the policy's weights before each batch of samples; log-probabilities of
    a probe then say whether it has them."""

    model: EngineRef = Field(
        description="a model of `models:` with url, or with serve, that holds the weights of `init`; no other stage "
        "may ask it, because its weights change"
    )
    publish: Literal["disk", "adapter"] = Field(
        default="disk",
        description="disk: the server loads the whole model from a folder; adapter: with lora, the adapter alone",
    )
    folder: RecipePath | None = runtime_setting(
        None, "where weights are put for the server, which must see it under the same path; the stage's own when absent"
    )
    tolerance: float = runtime_setting(
        0.05,
        "nats by which log-probabilities on the server may differ from the trainer's, on average, for a probe",
        gt=0,
    )
