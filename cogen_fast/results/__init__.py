"""What a run returns, how it is judged, and how it is drawn."""
