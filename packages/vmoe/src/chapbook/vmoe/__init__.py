"""Vision Transformers with sparse experts, whose cost is a knob at inference."""

from chapbook.vmoe.moments import Moments, merge, moments, textbook_variance

__all__ = ["Moments", "merge", "moments", "textbook_variance"]
