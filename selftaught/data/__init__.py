"""Manifests, splits, decoding and the pipelines that turn files into batches."""
