"""How the embedded model was taught: its data, its training, its evaluation."""
