"""Publishing: a bundle that others can use, checked before it leaves."""
