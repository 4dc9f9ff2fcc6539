"""The folder of images that a run starts from, as params.yaml names it."""

import unicodedata
from pathlib import PurePosixPath

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from stages.core.runner.params import Section


class Data(Section):
    """Section `data`: the images that dvc.yaml hands to the validate stage.

    `dir` may have any name that a shell or DVC can be given in quotation marks, as dvc.yaml does.
    An absolute path is read where it is, and hashed, but not versioned by DVC.
    """

    dir: str = Field(min_length=1)

    @field_validator("dir")
    @classmethod
    def _a_folder_of_images_alone(cls, name: str) -> str:
        path = PurePosixPath(name)
        if any(unicodedata.category(c) == "Cc" for c in name):
            problem = "has control characters: rename the folder"
        elif name.startswith("-"):
            problem = f"begins like an option: write ./{name}"
        elif name.startswith("~"):
            problem = "begins with ~, which only a shell understands: write the whole path"
        elif ".." in path.parts:
            problem = "leaves the project: write the whole path, from / on"
        elif path in (PurePosixPath(), PurePosixPath("data")):
            problem = "holds what the pipeline writes: give the images a folder, as data/mine"
        else:
            return name
        raise PydanticCustomError("folder", "{problem}", {"problem": problem})
