"""Search: candidates of `merges/*.yaml`, merged in memory and scored on the validation sets."""
