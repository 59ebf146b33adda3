"""The stages of a run, put together from the layers below; they may import everything."""
