"""What one tenant's feedback adds to the shared model."""

from __future__ import annotations


class Delta:
    """Sparse weights of one tenant."""
