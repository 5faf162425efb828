"""The device: weights loaded once a process, chips read while others are encoded."""
