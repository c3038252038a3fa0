"""Whole studies, built from the layers below."""

from __future__ import annotations
