"""Checkpoints of other code: read without executing anything, recognised, renamed, written."""
