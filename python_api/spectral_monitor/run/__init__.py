"""Where frames go: recorders, run folders, trackers; and back."""
