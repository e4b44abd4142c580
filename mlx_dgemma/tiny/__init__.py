"""The embedded model: its checkpoint, and the tasks that it was trained on."""
