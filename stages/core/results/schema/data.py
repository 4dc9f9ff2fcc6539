"""The metrics of the stages that read images: ingest and validate."""

from typing import Literal

from stages.core.results.schema.base import Metrics


class IngestMetrics(Metrics):
    """Counts of the built-in images: in all, by class and by domain."""

    images: int
    groups: int
    classes: dict[str, int]
    domains: dict[str, int]


class Duplicates(Metrics):
    """Pairs of images that are the same or nearly so.

    Attributes:
        across_groups, contradicting: pairs of two groups, and of two labels, among all of them.
    """

    identical: int
    near: int
    across_groups: int
    contradicting: int


class Leaks(Metrics):
    """What was done about near duplicates that would stand in two splits.

    Attributes:
        groups_joined: groups that became part of another.
        left_out: images, those without a label among them.
        leaking: images that leak all the same, where the split is the user's own.
    """

    groups_joined: int
    left_out: int
    leaking: int


class SplitCounts(Metrics):
    """Groups and labelled images of a split; images by class, too."""

    groups: int
    images: int
    classes: dict[str, int]


class Backgrounds(Metrics):
    """What images are divided by.

    Attributes:
        kind: `group`, or `both`, see params.yaml.
        groups: that have a background, the median of `min_images` images or more.
        kept: images that are not divided, since their group is smaller.
    """

    kind: Literal["group", "both"]
    min_images: int
    groups: int
    kept: int


class ValidateMetrics(Metrics):
    """What the images are, and how they are split.

    Attributes:
        channels: of what networks see.
        background: left out where images are not divided by any.
        bit_depth: of the grey values in the image files.
        fit: what became of images that are not square.
        symmetries: in which training shows the images.
        licence: of the images, if the folder names one.
        look_alikes: the symmetry that exchanges two classes, by their names; the clearest 20.
        groups: different groups; an image without one is a group of its own.
        groups_given: whether the images came with groups.
        expectations: how many the images fulfil.
        bad_images: images that were left out.
        other_files: files that are no images.
        split_tears_groups: whether a group stands in two splits.
        unlabelled: images that only teach: without a label, of a target domain, or with their label
            hidden (validate.labelled_share).
        drift: stability index of each column against the accepted data; empty where there is none.
        splits: train, val and test.
    """

    images: int
    layout: str
    channels: int
    image_px: int
    bit_depth: int
    fit: str
    symmetries: str
    licence: str | None = None
    look_alikes: dict[str, str]
    groups: int
    groups_given: bool
    background: Backgrounds | None = None
    expectations: int
    bad_images: int
    other_files: int
    duplicates: Duplicates
    leaks: Leaks
    split_method: str
    split_tears_groups: bool
    unlabelled: int
    drift: dict[str, float]
    splits: dict[str, SplitCounts]
