"""Child process that has DVC bring one stage up to date: `python -m flows.dvc_child FILE STAGE`.

Writes "unchanged", "restored" (from DVC's run cache) or "ran" to FILE, as JSON;
`dvc repro -s` cannot tell these apart.
"""

import argparse
import json
import logging
import sys
from pathlib import Path

from dvc.exceptions import DvcException
from dvc.stage.exceptions import StageCmdFailedError

from flows.repo import open_repo
from stages.core.runner.errors import AtelierError
from stages.core.runner.parent import kill_me_with_parent


class _RestoreFilter(logging.Filter):
    """Notices DVC's message that it took a stage's outputs from the run cache."""

    is_triggered = False

    def filter(self, record: logging.LogRecord) -> bool:
        if "is cached - skipping run" in record.getMessage():
            self.is_triggered = True
        return True


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("outcome", type=Path)
    parser.add_argument("stage")
    parser.add_argument("--force", action="store_true")
    parser.add_argument("--upstream", action="store_true")
    arguments = parser.parse_args()
    kill_me_with_parent()

    restore = _RestoreFilter()
    logger = logging.getLogger("dvc.stage.cache")
    logger.setLevel(logging.INFO)
    logger.addFilter(restore)
    # DVC advises what to add to git, which only helps people who call DVC themselves.
    logging.getLogger("dvc.repo.scm_context").setLevel(logging.WARNING)
    # A killed run stays listed in DVC's lock file; DVC removes it with a warning.
    logging.getLogger("dvc.rwlock").setLevel(logging.ERROR)
    try:
        with open_repo(Path.cwd()) as repo:
            stages = repo.reproduce(
                arguments.stage, single_item=not arguments.upstream, force=arguments.force
            )
    except DvcException as error:
        cause = error.__cause__
        if isinstance(cause, AtelierError):
            sys.exit(f"error: {cause}")
        # Where a stage's command failed, the stage itself has printed why.
        is_explained = cause is None or isinstance(cause, StageCmdFailedError)
        sys.exit(f"dvc: {error}" if is_explained else f"dvc: {error}: {cause}")
    except AtelierError as error:
        sys.exit(f"error: {error}")
    outcome = "restored" if restore.is_triggered else "ran" if stages else "unchanged"
    arguments.outcome.write_text(json.dumps(outcome), encoding="utf-8")


if __name__ == "__main__":
    main()
