"""How much memory this process may take: what is held for chips is bounded by a share of it."""

from __future__ import annotations
