"""The command line of the training pipeline: `python -m flows.train --help`."""

import argparse
import signal
import sys

from flows import server
from flows.options import Options
from stages.core.runner.errors import AtelierError
from stages.core.runner.text import terminal


def main() -> None:
    """Run the flow of `flows.pipeline`."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.train",
        description="Bring all stages as far as a target up to date.",
    )
    for name, field in Options.model_fields.items():
        parser.add_argument(
            "--" + name.replace("_", "-"),
            default=field.default,
            type=float if field.annotation is float else str,
            nargs="*" if field.annotation == list[str] else None,
            help=f"{field.description} (default: {field.default})",
        )
    options = Options(**vars(parser.parse_args()))
    # As with Ctrl-C, Prefect records the end, and the stage's process tree is ended.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with server.starting() as wait:
            # Prefect and DVC take seconds to import; the server starts meanwhile.
            from flows import pipeline

            pipeline.run(options, wait)
    except AtelierError as error:
        sys.exit(terminal(f"error: {error}"))
    except KeyboardInterrupt:
        sys.exit("ended; the next run resumes from the last checkpoint")


if __name__ == "__main__":
    main()
