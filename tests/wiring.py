"""Which project files a stage's code consists of, read from its imports."""

import ast
from pathlib import Path

# Files whose change cannot change a result, so that no stage is trained again for them.
NOT_RETRAINING = {
    "stages/__init__.py",
    "stages/core/__init__.py",
    "stages/core/errors.py",
    "stages/core/lock.py",
    "stages/core/parent.py",
    "stages/core/progress.py",
}


def imported_modules(file: Path) -> set[str]:
    """Dotted names of everything under `stages` that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.startswith("stages.")}


def code_of(root: Path, stage: str) -> set[str]:
    """Files of the project that `python -m stages.STAGE` consists of, relative to `root`."""
    todo, seen = [f"stages/{stage}.py"], set()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        for module in imported_modules(root / name):
            path = module.replace(".", "/") + ".py"
            if (root / path).is_file():
                todo.append(path)
    return seen


def expected_code_deps(root: Path, stage: str) -> set[str]:
    """The code that dvc.yaml has to list for a stage; templates of the report included."""
    code = code_of(root, stage)
    if "stages/core/page.py" in code:
        code |= {str(p.relative_to(root)) for p in (root / "stages/core/templates").iterdir()}
    return code - NOT_RETRAINING
