"""The small base that every chapbook package stands on."""
