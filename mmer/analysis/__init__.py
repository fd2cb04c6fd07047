"""Looking at what a model says: the timeline picture."""
