"""The workflow document, as its author writes it.

These models hold a document that has the right shape. Whether its graph makes sense is checked in
`schemas.validation`, which also turns every shape error into a problem with a place.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from schemas.messages import AgentName, Seconds, StepId, WorkflowId


class _Strict(BaseModel):
    # A misspelt option must not be ignored.
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Step(_Strict):
    id: StepId = Field(description="Unique in the workflow; may be left out and then is the step's key.")
    description: str | None = None
    next_step: StepId | None = Field(None, description="Where the run goes on; null ends it here.")
    on_failure: StepId | None = Field(None, description="Where the run goes on when this step fails.")
    timeout_seconds: Seconds | None = Field(
        None, description="How long one attempt may take; on a parallel step, the default for its branches."
    )


class AgentStep(_Step):
    """A step that one agent carries out."""

    type: Literal["agent"] = "agent"
    agent_name: AgentName
    input_mapping: dict[str, Any] = Field(
        default_factory=dict, description="Any JSON; strings in it may hold references such as ${step-a.output.result}."
    )


class ParallelStep(_Step):
    """A block: its branches run concurrently, then their outputs are joined."""

    type: Literal["parallel"]
    parallel_steps: Annotated[list[StepId], Field(min_length=1)]
    max_parallelism: Annotated[int, Field(strict=True, ge=1)] | None = Field(
        None, description="How many branches may run at once in the whole cluster; by default no limit."
    )


Step = Annotated[AgentStep | ParallelStep, Field(discriminator="type")]


class Workflow(_Strict):
    """A workflow document."""

    workflow_id: WorkflowId = Field(description="By default the name.")
    name: WorkflowId
    version: Annotated[str, StringConstraints(min_length=1, max_length=100)] = "1.0"
    description: str | None = None
    start_step: StepId
    steps: Annotated[dict[StepId, Step], Field(min_length=1)]
