"""Vision Transformers with sparse experts, whose cost is a knob at inference."""
