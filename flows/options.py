"""What a run can be asked for, on the command line and in the form of Prefect's UI."""

from pydantic import BaseModel, ConfigDict, Field


class Options(BaseModel):
    """How to run; params.yaml says what is computed."""

    model_config = ConfigDict(extra="forbid")

    target: str = Field(default="check", description="The last stage to bring up to date.")
    force: list[str] = Field(default=[], description="Stages to run even if nothing has changed.")
    overlay: str | None = Field(
        default=None,
        description="Run with other params, in a workspace of its own: the name of a file in "
        "flows/overlays (such as full), or the path of another YAML file inside the project.",
    )
    stage_timeout_minutes: float = Field(
        default=600, gt=0, description="A stage that takes longer is ended and counts as failed."
    )
