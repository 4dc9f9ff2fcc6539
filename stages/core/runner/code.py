"""Of which of the project's files a module consists, read from its imports.

`make deps` writes them into dvc.yaml, the wiring test holds dvc.yaml against them, and the caches
outside DVC carry them in their keys, so that nobody types them twice.
"""

import ast
import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from stages.core.runner import digest

ROOT = Path(__file__).resolve().parents[3]

# Modules whose change cannot change a result, so that no stage is trained again for them.
HARMLESS = {
    "stages/core/runner/code.py",
    "stages/core/runner/errors.py",
    "stages/core/runner/lock.py",
    "stages/core/runner/parent.py",
    "stages/core/runner/progress.py",
    "stages/core/runner/text.py",
}
# Folders that a module reads beside its own text.
READS = {"stages/core/release/page.py": "stages/core/release/templates"}


def _imported(file: Path) -> set[str]:
    """Dotted names of everything under `stages` that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.startswith("stages.")}


def files_of(modules: Iterable[str], root: Path = ROOT) -> set[str]:
    """The project's files that the given modules consist of, as paths relative to `root`.

    Their own files, those of every module under `stages` that these import, directly or not, and
    what `READS` names; without those that cannot change a result.

    Args:
        modules: dotted names, `stages.teacher` for example.
    """
    todo, seen = [module.replace(".", "/") + ".py" for module in modules], set[str]()
    while todo:
        name = todo.pop()
        if name in seen or not (root / name).is_file():
            continue
        seen.add(name)
        todo += [module.replace(".", "/") + ".py" for module in _imported(root / name)]
    beside = {
        path.relative_to(root).as_posix()
        for module, folder in READS.items()
        if module in seen
        for path in (root / folder).iterdir()
    }
    return (seen | beside) - HARMLESS


@cache
def digest_of(*modules: str) -> str:
    """md5 of all that the given modules consist of: their `files_of`, names and content."""
    content = [f"{name} {digest.file_md5(ROOT / name)}" for name in sorted(files_of(modules))]
    return hashlib.md5("\n".join(content).encode()).hexdigest()
