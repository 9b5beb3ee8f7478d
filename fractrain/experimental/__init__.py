"""GPU code that has never run on a GPU: int8 products and recorded steps. Not used unless asked for."""
