"""Pipelines of CFLD."""
