"""Every error that Atelier raises on purpose.

AtelierError
├── ParamsError         a key of params.yaml, or an argument, is not what it may be
├── DataError           the user's images or their metadata
├── InputsChanged       something a stage reads changed while the stage ran
├── WorkspaceBusy       another run holds this workspace
├── WorkspaceFailed     git or DVC could not make or remove a workspace
├── ServerFailed        a Prefect server did not start, or does not answer
├── Unavailable         weights, a device or a provider that is not on this machine
├── TrainingDiverged    a loss or a gradient that is no number
└── GateFailed          the model is not good enough to ship

An error's text names the file or the parameter, what was found, what was expected, and what to
do about it. `stages.core.runner.stage.main` prints it as one line, without a traceback.
"""


class AtelierError(Exception):
    """Base of all of the above; its text is meant for the user."""


class ParamsError(AtelierError):
    """A parameter is unknown, of the wrong type or out of range."""


class DataError(AtelierError):
    """The images or their metadata cannot be used as they are."""


class InputsChanged(AtelierError):
    """An input or a params section changed while the stage ran."""


class WorkspaceBusy(AtelierError):
    """Another run holds this workspace."""


class WorkspaceFailed(AtelierError):
    """A workspace could not be made or removed."""


class ServerFailed(AtelierError):
    """A Prefect server did not start, or does not answer."""


class Unavailable(AtelierError):
    """Something this machine does not have was asked for."""


class TrainingDiverged(AtelierError):
    """A loss or its gradients became NaN or infinite."""


class ReleaseRefused(AtelierError):
    """What should be released did not pass, or is not what was checked."""


class GateFailed(AtelierError):
    """At least one gate of the check stage failed."""
