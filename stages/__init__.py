"""The stages of dvc.yaml, one file each; they meet only through the files they write."""
