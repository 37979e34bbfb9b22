"""Settings of a server that samples for training, in place of the embedded engine."""

from typing import Literal

from pydantic import Field

from togi.core.settings import EngineRef, RecipePath, Settings, runtime_setting


class EngineSettings(Settings):
    """A server that samples from the policy. It gets the policy's weights before each batch of samples; the
    log-probabilities of a probe then verify that it has loaded them."""

    model: EngineRef = Field(
        description="a model in `models:` with url or serve that has the weights of `init`; no other stage may use it, "
        "because its weights change"
    )
    publish: Literal["disk", "adapter"] = Field(
        default="disk",
        description="disk: the server loads the whole model from a folder; adapter (needs lora): the adapter alone",
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
