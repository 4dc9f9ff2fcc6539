"""Validated images as the models see them: packed pixels, labels, groups, seeded views."""
