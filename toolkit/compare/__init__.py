"""Ways of adapting one recipe, run over seeds and held against the line of its plain merges."""
